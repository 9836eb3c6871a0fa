"""The cost of a set of layers in Meta-Train, in plain steps (forward and backward), and gates that keep to a budget.

The gates decide the validation backward and the directional derivative. Both run down to the lowest layer that is on,
and take a little more for each other layer that is on. `measure_layer_costs` measures them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from famus_hf.core.autodiff.forward_pass import cloned_buffers, model_logits, preserve_rng_state
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.layers import Layer, parameters_of
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_train import choose_derivative
from famus_hf.core.timer import Timer
from famus_hf.errors import SettingsError

MAX_DEPTHS = 12  # at which sets of all layers above are measured, beside each layer alone
ROUNDS = 3  # of all measurements, of which the median counts


@dataclass(frozen=True)
class LayerCosts:
    """cost(S) = `alone` of the dearest layer in S, which is as a rule the lowest, + Σ of what the others add.

    Attributes:
        alone: Cost of each candidate layer being the only one on, in order of the layers; shape (L,).
        beside: What each layer adds where a dearer one is on: way of the derivative → shape (L,).
        ways: Way of the derivative (`"forward"`, …) where each layer is the dearest.
        always: Whether the last layer is evaluated even where it is off (Eq. 11).
    """

    alone: list[float]
    beside: dict[str, list[float]]
    ways: list[str]
    always: bool = False

    @property
    def cheapest(self) -> float:
        """The least cost of a set that holds a layer."""
        return self.alone[-1] if self.always else min(self.alone)

    def cost(self, on: Sequence[bool]) -> float:
        """Return the cost of the set of layers that are on. on: shape (L,)."""
        return float(self.expected(np.array([on], dtype=np.float64))[0])

    def expected(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the expected cost of independent gates, (k,). probabilities: Of being on, shape (k, L)."""
        p = probabilities.copy()
        if self.always:
            p[:, -1] = 1.0
        alone, ways = np.array(self.alone), np.array(self.ways)
        order = np.argsort(-alone, kind="stable")
        p, alone, ways = p[:, order], alone[order], ways[order]
        none_dearer = np.cumprod(1 - p, axis=1)
        dearest = p * np.concatenate([np.ones((len(p), 1)), none_dearer[:, :-1]], axis=1)
        total = dearest @ alone
        for way, added in self.beside.items():
            others = p * np.array(added)[order]
            cheaper = np.cumsum(others[:, ::-1], axis=1)[:, ::-1] - others
            total += (dearest * (ways == way) * cheaper).sum(1)
        return total


class Budget:
    """What the gates may cost on average, as a share of a plain step's forward and backward.

    In each step all log-odds are shifted by −μ·cost_l, with the μ for which the gates' expected cost is the budget;
    what the sampler has learned decides how it is spent. So the budget is kept from the first step on. (A penalty
    λ1·(Σ_l r_l·cost_l − budget)² in place of Eq. (10) does not keep a small one: its gradient by the gate of a low
    layer is so large that gates saturate at random and stay.)

    Attributes:
        share: The budget.
        costs: Of the candidate layers.
        scale: How much dearer than that they turn out to be in training.

    Raises:
        SettingsError: The budget does not pay for the cheapest layer.
    """

    def __init__(self, share: float, costs: LayerCosts):
        if share < costs.cheapest:
            raise SettingsError(
                f"meta_budget={share:g} is below the cheapest layer's cost of {costs.cheapest:.3f} plain steps: "
                f"choose at least {math.ceil(1000 * costs.cheapest) / 1000:g}"
            )
        self.share = share
        self.costs = costs
        self.scale = 1.0

    def calibrate(self, measured: float, predicted: float) -> None:
        """Learn from what the steps so far really took and what the costs say they should have taken."""
        if predicted > 0 and measured > 0:
            self.scale = min(measured / predicted, self.share / self.costs.cheapest)

    def shift(self, log_odds: Tensor) -> Tensor:
        """Return −μ·cost_l, shape (L,). log_odds: of each layer being on, shape (L,)."""
        from scipy.optimize import brentq  # slow to import, and only a budget needs it

        start = log_odds.detach().double().cpu().numpy()
        direction = -np.array(self.costs.alone) / max(self.costs.alone)

        def excess(shift: float) -> float:
            """Return the expected cost beyond the budget; falls with μ, in units of the dearest layer."""
            logits = np.clip(start + shift * direction, -500, 500)  # exp overflows beyond 709
            return float(self.costs.expected(1 / (1 + np.exp(-logits[None])))[0] - self.share / self.scale)

        end = 1e3 / self.share
        shift = -end if excess(-end) <= 0 else end if excess(end) > 0 else brentq(excess, -end, end, xtol=1e-9)
        return torch.as_tensor(shift * direction).to(log_odds)


def measure_layer_costs(
    training_pass: TrainingPass,
    meta_inputs: Mapping[str, Any],
    meta_labels: Tensor,
    candidates: Sequence[Layer],
    derivative: str,
    *,
    always: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> LayerCosts:
    """Time each candidate layer alone, and all layers above a dozen depths, on the batches given. Leave no trace.

    Args:
        training_pass: A training batch's forward pass, with its graph.
        meta_inputs: A meta batch's keyword arguments of the model.
        meta_labels: Shape (m,).
        candidates: The layers to time.
        derivative: As in `MetaObjective`.
        always: See `LayerCosts`.
        on_progress: Called after each timing, `num_timings(len(candidates))` times.
    """
    depths = _depths(len(candidates))
    sets = [[layer] for layer in candidates] + [list(candidates[lowest:]) for lowest in depths]
    _seconds_of_layers(training_pass, meta_inputs, meta_labels, sets[-1], derivative)  # warms up
    rounds = []
    for _ in range(ROUNDS):
        plain = [_seconds_of_plain_step(training_pass)]
        seconds = []
        for count, layers in enumerate(sets, 1):
            seconds.append(_seconds_of_layers(training_pass, meta_inputs, meta_labels, layers, derivative))
            if count % 4 == 0:  # all along, so that a slow spell of the machine hits both
                plain.append(_seconds_of_plain_step(training_pass))
            on_progress()
        rounds.append([value / median(plain) for value in seconds])
    costs = [median(values) for values in zip(*rounds, strict=True)]
    alone = costs[: len(candidates)]
    together = dict(zip(depths, costs[len(candidates) :], strict=True))
    ways = [choose_derivative(derivative, [layer]) for layer in candidates]
    beside = {way: _added_costs(way, candidates, alone, together, ways) for way in sorted(set(ways))}
    return LayerCosts(alone, beside, ways, always)


def num_timings(num_candidates: int) -> int:
    """Return how often `measure_layer_costs` reports progress."""
    return ROUNDS * (num_candidates + len(_depths(num_candidates)))


def _depths(num_candidates: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, num_candidates - 1, MAX_DEPTHS)})


def _seconds_of_layers(
    training_pass: TrainingPass,
    meta_inputs: Mapping[str, Any],
    meta_labels: Tensor,
    layers: Sequence[Layer],
    derivative: str,
) -> float:
    """Return the seconds of the validation backward and of the derivative with these layers on."""
    clock = Timer(training_pass.logits.device)
    names = parameters_of(layers)
    _, direction = training_pass.validation_gradient(
        {}, VirtualStep({}), meta_inputs, meta_labels, names, cross_entropy, clock=clock
    )
    with clock("derivative"):
        training_pass.logit_tangent(direction, choose_derivative(derivative, layers))
    return clock.seconds["validation backward"] + clock.seconds["derivative"]


def _added_costs(
    way: str, candidates: Sequence[Layer], alone: list[float], together: Mapping[int, float], ways: list[str]
) -> list[float]:
    """Return what each layer adds where a dearer one is on: an amount for its operations and one for being a layer,
    fitted to what all layers above a depth cost beyond the dearest of them."""
    shares = [layer.share for layer in candidates]
    operations = [here - above for here, above in zip(shares, [*shares[1:], 0.0], strict=True)]
    rows, targets = [], []
    for lowest, cost in together.items():
        dearest = max(range(lowest, len(candidates)), key=lambda i: alone[i])
        if ways[lowest] == way and lowest + 1 < len(candidates):
            rows.append([sum(operations[lowest:]) - operations[dearest], len(candidates) - lowest - 1])
            targets.append(cost - alone[dearest])
    if not rows:
        return [0.0] * len(candidates)
    from scipy.optimize import nnls  # slow to import, as brentq

    (per_operation, per_layer), _ = nnls(np.array(rows), np.array(targets).clip(0))
    return [float(per_operation * share + per_layer) for share in operations]


def _seconds_of_plain_step(training_pass: TrainingPass) -> float:
    """Return the seconds of forward and backward of the training batch, mean cross-entropy, gradients thrown away."""
    model, labels = training_pass.model, training_pass.labels
    clock = Timer(training_pass.logits.device)
    with clock("plain"), preserve_rng_state(labels.device):
        logits = model_logits(model, training_pass.inputs, cloned_buffers(model))
        parameters = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(cross_entropy(logits, labels).mean(), parameters, allow_unused=True)
    return clock.seconds["plain"]
