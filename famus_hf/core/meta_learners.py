"""Meta-learners Ψ(·; θ): what the training loss is as a function of logits, labels and θ, and how θ moves (torch only).

A meta-learner of your own is a subclass of `MetaLearner` that says its `training_loss` in terms of its parameters.
"""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from famus_hf.core.pretrained import Pretrained
from famus_hf.core.validation import check_choice, check_flag, check_number, check_whole
from famus_hf.errors import SettingsError

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]  # logits (n, C), labels (n,) or (n, C) → (n,)


class MetaLearner(Pretrained, nn.Module):
    """What a meta-learner must say: its training loss as a function of logits, labels and its own parameters θ.

    Attributes:
        keeps_theta: Whether θ lives on from step to step; where not, `begin_step` makes it afresh.
        weighs_examples: Whether ∇_w J = Σ_i V̂_i ∇_w ℓ_i with V̂ = `example_weights(ℓ)`.
        has_virtual_step: False where J does not move w before θ is known (L2R: its weights start at zero): then ŵ = w.
        only_ratios_count: Whether a positive factor of the gradient by θ changes nothing: then the learning rate of w,
            which is 0 at the start of a warm-up, is left out of it.
        default_optimizer: Of θ where the user names none, `"adam"` or `"sgd"`.
        default_learning_rate: β, likewise.
        momentum: Of `"sgd"`.
    """

    keeps_theta = True
    weighs_examples = False
    has_virtual_step = True
    only_ratios_count = False
    default_optimizer = "adam"
    default_learning_rate = 1e-3
    momentum = 0.9

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, for `meta_net/config.json`."""
        return {}

    def begin_step(self, logits: Tensor) -> None:
        """Begin a training step, where θ lives for one step only. logits: Of the training batch, shape (n, C)."""

    def theta(self) -> dict[str, Tensor]:
        """Return θ by name: what the meta gradient is taken of. Default: the module's parameters."""
        return dict(self.named_parameters())

    def example_weights(self, losses: Tensor) -> Tensor | None:
        """Return V̂ of a batch for the logs, shape (n,), from losses of shape (n,); None where there are none."""
        return None

    def raw_weights(self, losses: Tensor) -> Tensor | None:
        """Return V of single examples, for reports, shape (n,), from losses (n,); None where V depends on more."""
        return None

    def training_loss(self, logits: Tensor, labels: Tensor, per_example_loss: PerExampleLoss) -> Tensor:
        """Return J(w, θ), a scalar that reaches w only through the logits.

        Args:
            logits: Shape (n, C).
            labels: Shape (n,), or (n, C) for soft targets.
            per_example_loss: ℓ.
        """
        raise NotImplementedError

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        """Move θ ← θ − β·g' by the optimizer. gradient: g' by name in `theta()`."""
        if optimizer is None:
            return
        for name, parameter in self.named_parameters():
            parameter.grad = gradient[name]
        optimizer.step()
        optimizer.zero_grad()

    def outcome(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what `famus_hf.meta_gradient` returns. Default: the gradient itself."""
        return dict(gradient)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `meta_net/` below the folder, in place of one that is there, its layer sampler included."""
        type(self).files().save_meta_net(folder, self, None)


class MWNet(MetaLearner):
    """Meta-Weight-Net (Shu et al., NeurIPS 2019, arXiv:1902.07379): an example's loss → how much it is trusted.

    Args:
        hidden_size: Width of the hidden layer.
        weight_normalization: `"sum"`: V̂ = V / Σ_j V_j over the batch and no further 1/n, the practice of MW-Net and
            FaMUS. `"mean"`: V̂ = V / n. Paper: Eq. (3) writes the latter.
        initial_scale: Of the output layer's initial weights, relative to torch's default. Paper: 1; then some seeds
            start with much trust in high losses.
        initial_bias: Of the output layer. Default: −3 with `"sum"`, 0 with `"mean"`. Paper: torch's random one, about
            0. Under division by the sum only ratios of weights count, so that V may drift; where it drifts up to 1 for
            every loss, the sigmoid is saturated and all examples weigh the same for good. From V ≈ 0.05 that is far.
        detach_losses: Whether the losses that enter Ψ are constants (the authors' practice for noisy labels). False:
            J depends on w through the weights, too (their code for long tails).
    """

    def __init__(
        self,
        hidden_size: int = 100,
        weight_normalization: str = "sum",
        initial_scale: float = 0.1,
        initial_bias: float | None = None,
        detach_losses: bool = True,
    ):
        super().__init__()
        check_whole("hidden_size", hidden_size, 1)
        check_choice("weight_normalization", weight_normalization, ("sum", "mean"))
        check_number("initial_scale", initial_scale)
        check_flag("detach_losses", detach_losses)
        self.hidden_size = hidden_size
        self.weight_normalization = weight_normalization
        self.initial_scale = initial_scale
        self.detach_losses = self.weighs_examples = detach_losses
        self.hidden = nn.Linear(1, hidden_size)
        self.output = nn.Linear(hidden_size, 1)
        if initial_bias is None:
            initial_bias = -3.0 if weight_normalization == "sum" else 0.0
        check_number("initial_bias", initial_bias)
        self.initial_bias = initial_bias
        with torch.no_grad():
            self.output.weight.mul_(initial_scale)
            self.output.bias.fill_(initial_bias)

    def config(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "weight_normalization": self.weight_normalization,
            "initial_scale": self.initial_scale,
            "initial_bias": self.initial_bias,
            "detach_losses": self.detach_losses,
        }

    def forward(self, losses: Tensor) -> Tensor:
        """Return the raw weights V in (0, 1), shape (n,), before normalisation. losses: Shape (n,)."""
        losses = losses.to(self.hidden.weight.dtype)
        hidden = torch.relu(self.hidden(losses.unsqueeze(1)))  # (n, hidden_size)
        return torch.sigmoid(self.output(hidden)).squeeze(1)

    def raw_weights(self, losses: Tensor) -> Tensor:
        return self(losses)

    def example_weights(self, losses: Tensor) -> Tensor:
        """Return the normalised weights V̂ of a batch, shape (n,); all zero where the raw weights sum to zero."""
        weights = self(losses)
        if self.weight_normalization == "mean":
            return weights / len(weights)
        return divided_by_sum(weights)

    def training_loss(self, logits: Tensor, labels: Tensor, per_example_loss: PerExampleLoss) -> Tensor:
        """Return J(w, θ) = Σ_i V̂_i(θ) ℓ_i(w) (Eq. 1)."""
        losses = per_example_loss(logits, labels)
        return (self.example_weights(losses.detach() if self.detach_losses else losses) * losses).sum()


class L2R(MetaLearner):
    """Learning to Reweight (Ren et al., ICML 2018, arXiv:1803.09050): no parameters, fresh weights in each step.

    The weights ε of the virtual step are zero, so ŵ = w; then `u_i = max(0, −∂L_c/∂ε_i)` of a plain gradient step, in
    which the learning rate cancels, and V̂ = u / Σ_j u_j, all zero if the sum is zero. In a step in which no layer is on
    nothing is known of the examples, and all weigh 1/n.
    """

    keeps_theta = False
    weighs_examples = True
    has_virtual_step = False
    only_ratios_count = True

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.empty(0)  # of the present batch, (n,)

    def begin_step(self, logits: Tensor) -> None:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        self.weights = torch.full_like(logits[:, 0].detach(), 1 / len(logits), dtype=dtype).requires_grad_()

    def theta(self) -> dict[str, Tensor]:
        return {"weights": self.weights}

    def example_weights(self, losses: Tensor) -> Tensor:
        return self.weights.detach()

    def training_loss(self, logits: Tensor, labels: Tensor, per_example_loss: PerExampleLoss) -> Tensor:
        """Return J = Σ_i ε_i ℓ_i(w); linear in ε, so that its gradient by ε is that at ε = 0 whatever ε is now."""
        losses = per_example_loss(logits, labels)
        return (self.weights.to(losses) * losses).sum()

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        self.weights = self.outcome(gradient)["weights"].requires_grad_()

    def outcome(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights V̂ that follow from the gradient by ε."""
        return {"weights": divided_by_sum((-gradient["weights"]).clamp(min=0))}


class MLC(MetaLearner):
    """Meta loss correction (Wang, Hu, Hu, CVPR 2020): a noise transition matrix T of shape (C, C) corrects the loss.

    T starts from the identity and moves as T ← max(T − β ∂L_c/∂T, 0), then each column (logits) or row (probabilities)
    is divided by its sum. Test predictions are those of the uncorrected logits.

    Args:
        num_labels: C.
        form: `"logits"`: ℓ(z·T), the form of the authors' code. `"probabilities"`: ℓ(log q), q = softmax(z)·T, the
            forward correction of the literature, T_jk = P(given label k | true label j). Cross-entropy is then exactly
            −log q_y as a function of T; other losses take their logits log q as if q were divided by its sum.
        keep_matrix: Whether T goes on learning from step to step. False: it starts from the identity in each step, as
            in the authors' code.
        reduction: Of the per-example losses: `"mean"`, or `"sum"` as in the authors' code.
    """

    default_optimizer = "sgd"
    momentum = 0.0

    def __init__(self, num_labels: int, form: str = "logits", keep_matrix: bool = True, reduction: str = "mean"):
        super().__init__()
        check_whole("num_labels", num_labels, 2)
        check_choice("form", form, ("logits", "probabilities"))
        check_flag("keep_matrix", keep_matrix)
        check_choice("reduction", reduction, ("mean", "sum"))
        self.num_labels = num_labels
        self.form = form
        self.keep_matrix = self.keeps_theta = keep_matrix
        self.reduction = reduction
        # The authors' β for their fresh matrix; a kept one learned better with ten times as much on digits.
        self.default_learning_rate = 1.0 if keep_matrix else 0.11
        self.matrix = nn.Parameter(torch.eye(num_labels))

    def config(self) -> dict[str, Any]:
        return {
            "num_labels": self.num_labels,
            "form": self.form,
            "keep_matrix": self.keep_matrix,
            "reduction": self.reduction,
        }

    def begin_step(self, logits: Tensor) -> None:
        if not self.keep_matrix:
            with torch.no_grad():
                self.matrix.copy_(torch.eye(self.num_labels))

    def forward(self, logits: Tensor) -> Tensor:
        """Return the logits of the given, possibly wrong, labels; shape (n, C). logits: Shape (n, C)."""
        if logits.shape[1] != self.num_labels:
            raise SettingsError(f"MLC was made for {self.num_labels} classes, and the network has {logits.shape[1]}")
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        with torch.autocast(logits.device.type, enabled=False):  # which would take the products in 16 bits again
            if self.form == "logits":
                return logits @ self.matrix.to(logits)
            probabilities = logits.softmax(1) @ self.matrix.to(logits)
            return probabilities.clamp_min(torch.finfo(logits.dtype).tiny).log()

    def training_loss(self, logits: Tensor, labels: Tensor, per_example_loss: PerExampleLoss) -> Tensor:
        corrected = self(logits)
        losses = per_example_loss(corrected, labels)
        if self.form == "probabilities":  # −log q_y, and not −log(q_y / Σ q): zero, but not in its gradient by T
            losses = losses - corrected.logsumexp(1)
        return losses.sum() if self.reduction == "sum" else losses.mean()

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        super().move(gradient, optimizer)
        dim = 0 if self.form == "logits" else 1
        with torch.no_grad():
            self.matrix.clamp_(min=0)
            total = self.matrix.sum(dim, keepdim=True)
            empty = total == 0  # a class that lost everything starts over
            identity = torch.eye(self.num_labels).to(self.matrix)
            self.matrix.copy_(torch.where(empty, identity, self.matrix / torch.where(empty, 1, total)))


def divided_by_sum(weights: Tensor) -> Tensor:
    """Return weights / Σ weights, all zero if the sum is zero. weights: Shape (n,), at least 0."""
    total = weights.sum()
    return weights / torch.where(total == 0, torch.ones_like(total), total)


def raw_weights(meta_learner: MetaLearner | None, losses: np.ndarray) -> np.ndarray | None:
    """Return V by losses alone, both of shape (n,); None where there are no such weights."""
    if meta_learner is None:
        return None
    device = next((parameter.device for parameter in meta_learner.parameters()), torch.device("cpu"))
    with torch.no_grad():
        weights = meta_learner.raw_weights(torch.as_tensor(losses, dtype=torch.float32, device=device))
    return None if weights is None else weights.float().cpu().numpy()


META_LEARNERS: dict[str, type[MetaLearner]] = {"mw-net": MWNet, "l2r": L2R, "mlc": MLC}


def register_meta_learner(kind: type[MetaLearner]) -> type[MetaLearner]:
    """Make `load_famus` know a meta-learner of your own, by its class name; also a decorator of the class.

    Its `config()` must give the arguments of its constructor. Nothing of it is taken from the folder that is loaded but
    these arguments and tensors. The constructor must therefore be safe with any JSON as arguments; the tensors that it
    makes may have at most four times the size of its tensor file and 16 MiB.
    """
    META_LEARNERS[kind.__name__] = kind
    return kind
