"""Meta-Weight-Net: an example's loss → how much it is trusted (torch only)."""

from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner, divided_by_sum
from famus_hf.core.validation import check_choice, check_flag, check_number, check_whole


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

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J(w, θ) = Σ_i V̂_i(θ) ℓ_i(w) (Eq. 1)."""
        losses = batch.losses
        return (self.example_weights(losses.detach() if self.detach_losses else losses) * losses).sum()
