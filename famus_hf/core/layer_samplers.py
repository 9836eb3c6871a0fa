"""Layer samplers Γ: through which layers the meta gradient flows in a step (torch only).

A sampler is made with its settings and told later which layers there are (`build`). In each step it decides gates r of
shape (L,), 0 or 1; the learned one from the virtual gradients of those layers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from famus_hf.core.budget import Budget
from famus_hf.core.layers import Layer, pool_gradient
from famus_hf.core.pretrained import Pretrained
from famus_hf.core.validation import check_number, check_whole
from famus_hf.errors import SettingsError

MAX_WIDTH = 4096  # a longer pooled gradient (an embedding's) is average-pooled to this width


class LayerSampler(Pretrained, nn.Module):
    """What a sampler must say: the gates of a step.

    Attributes:
        layers: The candidate layers, in order.
        needs_gradients: Whether the gates depend on the virtual gradients; where not, `forward` gets none.
    """

    needs_gradients = False

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, for `meta_net/config.json`."""
        return {}

    def build(self, layers: Sequence[Layer]) -> None:
        """Tell the sampler its candidate layers, in order. Raise SettingsError where it can't choose among them."""
        self.layers = list(layers)

    def rebuild(self, layers: Sequence[Layer], optimizer: torch.optim.Optimizer | None) -> None:
        """Tell the sampler other candidate layers in the middle of a run, as some were frozen or set free.

        Args:
            layers: In order.
            optimizer: Of the sampler; where parameters become others, it goes on with those.
        """
        self.build(layers)

    def forward(self, pooled: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Return gates r of shape (L,), 0 or 1.

        Args:
            pooled: Candidate layer → its pooled virtual gradient ḡ of shape (D_out,).
            generator: Source of all randomness, on the CPU.
        """
        raise NotImplementedError


class AllLayers(LayerSampler):
    """Every candidate layer, always: the exact base method, or with few candidates its fixed top layers."""

    def forward(self, pooled: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        return torch.ones(len(self.layers))


class BlockSampler(LayerSampler):
    """The layers of one residual block, always (Table 4, "pre-specified block").

    Args:
        block: b, from 1 for the lowest block.
    """

    def __init__(self, block: int):
        super().__init__()
        check_whole("block", block, 0)
        self.block = block

    def config(self) -> dict[str, Any]:
        return {"block": self.block}

    def build(self, layers: Sequence[Layer]) -> None:
        super().build(layers)
        blocks = {layer.block: layer.name for layer in reversed(layers) if layer.block is not None}
        if self.block not in blocks:
            known = ", ".join(f"{block} (from {blocks[block]})" for block in sorted(blocks)) or "none"
            raise SettingsError(
                f"residual block {self.block} is not among the candidate layers: the blocks there are {known}"
            )

    def forward(self, pooled: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        return torch.tensor([float(layer.block == self.block) for layer in self.layers])


class RandomLayers(LayerSampler):
    """s layers, drawn uniformly without replacement in each step (Table 4, "random layers").

    Args:
        num_layers: s.
    """

    def __init__(self, num_layers: int = 4):
        super().__init__()
        check_whole("num_layers", num_layers, 1)
        self.num_layers = num_layers

    def config(self) -> dict[str, Any]:
        return {"num_layers": self.num_layers}

    def build(self, layers: Sequence[Layer]) -> None:
        super().build(layers)
        if self.num_layers > len(layers):
            raise SettingsError(f"{self.num_layers} random layers can't be drawn from {len(layers)} candidate layers")

    def forward(self, pooled: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        gates = torch.zeros(len(self.layers))
        gates[torch.randperm(len(self.layers), generator=generator)[: self.num_layers]] = 1
        return gates


class LearnedSampler(LayerSampler):
    """FaMUS: one small network per layer decides from the layer's virtual gradient (Eq. 8).

    FC(D_out → hidden_size), PReLU, FC(hidden_size → 2), Gumbel-softmax (hard, straight-through). The networks of layers
    of equal width are stacked and evaluated as one.

    Args:
        hidden_size: Width between the two fully connected layers.
        temperature: Of the Gumbel-softmax. Paper: not stated (its released code uses 5).
        initial_bias: Log-odds of a layer being on before anything is learned. Paper: not stated. The second fully
            connected layer starts from zero weights, so that at first only this bias and the noise decide.
    """

    needs_gradients = True

    def __init__(self, hidden_size: int = 128, temperature: float = 1.0, initial_bias: float = 0.0):
        super().__init__()
        check_whole("hidden_size", hidden_size, 1)
        check_number("temperature", temperature)
        check_number("initial_bias", initial_bias)
        if temperature <= 0:
            raise SettingsError(f"temperature={temperature} must be greater than 0")
        self.hidden_size = hidden_size
        self.temperature = temperature
        self.initial_bias = initial_bias
        self.stacks = nn.ModuleDict()
        self.budget: Budget | None = None  # of a run, on top of what is learned

    def config(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "temperature": self.temperature,
            "initial_bias": self.initial_bias,
        }

    def build(self, layers: Sequence[Layer]) -> None:
        widths = [(layer.name, layer.width) for layer in layers]
        if self.stacks and widths == [(layer.name, layer.width) for layer in self.layers]:
            return  # keeps what it has learned
        if self.stacks:
            raise SettingsError(f"the layer sampler was made for {len(self.layers)} other layers: make a new one")
        super().build(layers)
        counts = Counter(min(width, MAX_WIDTH) for _, width in widths)
        if counts[0]:
            raise SettingsError("a layer sampler can't learn from a layer of width 0, which has no gradient")
        for width in sorted(counts):
            self.stacks[str(width)] = _StackedGates(counts[width], width, self.hidden_size, self.initial_bias)

    @torch.no_grad()
    def rebuild(self, layers: Sequence[Layer], optimizer: torch.optim.Optimizer | None) -> None:
        """Take other layers: those that stay keep what was learned, and its momentum; new ones begin anew."""
        like = next(self.parameters())
        stacks, places = self.stacks, self._places()
        self.stacks, self.layers = nn.ModuleDict(), []
        self.build(layers)
        self.to(like)
        momenta = {} if optimizer is None else {p: state["momentum_buffer"] for p, state in optimizer.state.items()}
        kept: dict[Tensor, Tensor] = {}  # parameter → its momentum
        for (width, row), place in ((place, places.get(name)) for name, place in self._places().items()):
            for name, parameter in self.stacks[width].named_parameters():
                momentum = kept.setdefault(parameter, torch.zeros_like(parameter))
                if place is not None and place[0] == width:
                    earlier = stacks[width].get_parameter(name)
                    parameter[row] = earlier[place[1]]
                    if momenta.get(earlier) is not None:
                        momentum[row] = momenta[earlier][place[1]]
        if optimizer is not None:
            optimizer.param_groups[0]["params"] = list(self.parameters())
            optimizer.state.clear()
            if momenta:
                optimizer.state.update({p: {"momentum_buffer": momentum} for p, momentum in kept.items()})

    def _places(self) -> dict[str, tuple[str, int]]:
        """Return layer → its stack, and its row there."""
        return {
            name: (width, row) for width in self.stacks for row, name in enumerate(self._names_of_width(int(width)))
        }

    def _names_of_width(self, width: int) -> list[str]:
        return [layer.name for layer in self.layers if min(layer.width, MAX_WIDTH) == width]

    def log_odds(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """Return unnormalised log-probabilities (off, on) of each candidate layer, shape (L, 2).

        Args:
            pooled: Candidate layer → its pooled virtual gradient ḡ of shape (D_out,).
        """
        rows: dict[str, Tensor] = {}
        for width, stack in self.stacks.items():
            names = self._names_of_width(int(width))
            inputs = torch.stack([sampler_input(pooled[name]) for name in names])
            rows.update(zip(names, stack(inputs).unbind(), strict=True))
        return torch.stack([rows[layer.name] for layer in self.layers])

    def forward(self, pooled: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Return hard samples, whose gradient is that of the soft ones (straight-through)."""
        scores = self.log_odds(pooled)
        if self.budget is not None:
            shift = self.budget.shift(scores[:, 1] - scores[:, 0])
            scores = scores + torch.stack([torch.zeros_like(shift), shift], dim=1)
        # Drawn on the CPU, so that gates are the same on any device.
        exponential = torch.empty(scores.shape).exponential_(generator=generator)
        noise = -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()  # Gumbel(0, 1)
        soft = F.softmax((scores + noise.to(scores)) / self.temperature, dim=1)[:, 1]
        hard = (soft.detach() > 0.5).to(soft)
        return hard + (soft - soft.detach())


class _StackedGates(nn.Module):
    """The gate networks of `count` layers of one width, side by side."""

    def __init__(self, count: int, width: int, hidden_size: int, initial_bias: float):
        super().__init__()
        bound = width**-0.5  # as in nn.Linear
        self.hidden_weight = nn.Parameter(torch.empty(count, width, hidden_size).uniform_(-bound, bound))
        self.hidden_bias = nn.Parameter(torch.empty(count, 1, hidden_size).uniform_(-bound, bound))
        self.slope = nn.Parameter(torch.full((count, 1, 1), 0.25))  # of the PReLU
        self.output_weight = nn.Parameter(torch.zeros(count, hidden_size, 2))
        self.output_bias = nn.Parameter(torch.tensor([-initial_bias / 2, initial_bias / 2]).repeat(count, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities (off, on), shape (count, 2). inputs: Shape (count, width)."""
        hidden = torch.baddbmm(self.hidden_bias, inputs.unsqueeze(1), self.hidden_weight)  # (count, 1, hidden)
        hidden = torch.where(hidden >= 0, hidden, self.slope * hidden)
        return torch.baddbmm(self.output_bias, hidden, self.output_weight).squeeze(1)


def sampler_input(pooled: Tensor) -> Tensor:
    """Return a layer's pooled virtual gradient, ready for its sampler: detached, standardised, `MAX_WIDTH` at most.

    Paper: not standardised; raw values near 1e-4 carry no signal through the first layer.

    Args:
        pooled: Shape (D_out,).
    """
    values = pooled.detach().float()
    if len(values) > MAX_WIDTH:
        values = F.adaptive_avg_pool1d(values.unsqueeze(0), MAX_WIDTH).squeeze(0)
    if len(values) == 1:
        return values
    return (values - values.mean()) / (values.std(unbiased=False) + 1e-9)


def sparsity_gradient(gates: Tensor, *, expected_layers: float, sparsity_weight: float) -> Tensor:
    """Return the gradient of λ1·(Σ_l r_l − K)² (Eq. 10) by each gate, shape (L,).

    Args:
        gates: r, shape (L,), 0 or 1.
        expected_layers: K.
        sparsity_weight: λ1.
    """
    r = gates.detach()
    return torch.full_like(r, 2 * sparsity_weight) * (r.sum() - expected_layers)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return a CPU generator that is a function of (seed, step) alone, the same on all processes."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def pooled_gradients(layers: Sequence[Layer], gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ḡ of Eq. (8) for each layer: name → shape (D_out,). gradient: g by parameter name."""
    return {layer.name: pool_gradient([gradient[name] for name in layer.parameters]) for layer in layers}


LAYER_SAMPLERS: dict[str, type[LayerSampler]] = {
    "learned": LearnedSampler,
    "all": AllLayers,
    "block": BlockSampler,
    "random": RandomLayers,
}


def register_layer_sampler(kind: type[LayerSampler]) -> type[LayerSampler]:
    """Make `load_famus` know a layer sampler of your own, as `register_meta_learner` does for a meta-learner."""
    LAYER_SAMPLERS[kind.__name__] = kind
    return kind
