"""Meta-learners Ψ(·; θ): what the training loss is as a function of logits, labels and θ (torch only)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]  # logits (n, C), labels (n,) → (n,)


class MetaLearner(nn.Module):
    """What a meta-learner must say: its training loss as a function of logits, labels and its own parameters θ."""

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for `meta_net/config.json`."""
        raise NotImplementedError

    def example_weights(self, losses: Tensor) -> Tensor | None:
        """V̂ of a batch for the logs, shape (n,), from losses of shape (n,); None where there are no such weights."""
        return None

    def training_loss(self, logits: Tensor, labels: Tensor, per_example_loss: PerExampleLoss) -> Tensor:
        """J(w, θ), a scalar that reaches w only through the logits.

        Args:
            logits: Shape (n, C).
            labels: Shape (n,).
            per_example_loss: ℓ.
        """
        raise NotImplementedError


class MWNet(MetaLearner):
    """Meta-Weight-Net (Shu et al., NeurIPS 2019, arXiv:1902.07379): an example's loss → how much it is trusted.

    Args:
        hidden_size: Width of the hidden layer.
        weight_normalization: `"sum"`: V̂ = V / Σ_j V_j over the batch and no further 1/n, the practice of MW-Net and
            FaMUS. `"mean"`: V̂ = V / n. Paper: Eq. (3) writes the latter.
        initial_scale: Of the output layer's initial parameters, relative to torch's default. Paper: torch's default,
            1; then some seeds start with much trust in high losses, drift up to V = 1 for every loss and stay there.
    """

    def __init__(self, hidden_size: int = 100, weight_normalization: str = "sum", initial_scale: float = 0.1):
        super().__init__()
        if weight_normalization not in ("sum", "mean"):
            raise ValueError(f"weight_normalization={weight_normalization!r} is unknown: choose 'sum' or 'mean'")
        self.hidden_size = hidden_size
        self.weight_normalization = weight_normalization
        self.initial_scale = initial_scale
        self.hidden = nn.Linear(1, hidden_size)
        self.output = nn.Linear(hidden_size, 1)
        with torch.no_grad():
            for parameter in self.output.parameters():
                parameter.mul_(initial_scale)

    def config(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden_size,
            "weight_normalization": self.weight_normalization,
            "initial_scale": self.initial_scale,
        }

    def forward(self, losses: Tensor) -> Tensor:
        """losses: shape (n,), detached. Returns the raw weights V in (0, 1), shape (n,), before normalisation."""
        losses = losses.to(self.hidden.weight.dtype)
        hidden = torch.relu(self.hidden(losses.unsqueeze(1)))  # (n, hidden_size)
        return torch.sigmoid(self.output(hidden)).squeeze(1)

    def example_weights(self, losses: Tensor) -> Tensor:
        """The normalised weights V̂ of a batch, shape (n,); all zero where the raw weights sum to zero."""
        weights = self(losses)
        if self.weight_normalization == "mean":
            return weights / len(weights)
        total = weights.sum()
        return weights / torch.where(total == 0, torch.ones_like(total), total)

    def training_loss(self, logits: Tensor, labels: Tensor, per_example_loss: PerExampleLoss) -> Tensor:
        """J(w, θ) = Σ_i V̂_i(θ) ℓ_i(w) (Eq. 1); the losses that enter Ψ are detached."""
        losses = per_example_loss(logits, labels)
        return (self.example_weights(losses.detach()) * losses).sum()
