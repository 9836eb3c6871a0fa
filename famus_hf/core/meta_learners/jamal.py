"""Class-balanced weights and what a step's meta batch adds to them, for long tails (torch only)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from famus_hf.core.losses import as_targets, at_least_float32, class_balanced_weights
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner
from famus_hf.core.validation import check_number, check_whole


class ClassBalancedResidual(MetaLearner):
    """Class-balanced weights with a residual of each example (Jamal et al., CVPR 2020, arXiv:2003.10780).

    `J = (1/n) Σ_i (w_{y_i} + ε_i) ℓ_i` with w the weights of Cui et al.; the virtual step is that of ε = 0, and then
    ε_i = −rate · ∂L_c/∂ε_i, afresh in each step and of any sign. Most of a run is plain training.

    Args:
        class_counts: Training examples of each class, C of them.
        beta: β of the effective number of examples, see `class_balanced_weights`.
        residual_rate: How long a step ε takes.
    """

    keeps_theta = False
    plain_share = 0.8
    class_weights: Tensor

    def __init__(self, class_counts: Sequence[int], beta: float = 0.9999, residual_rate: float = 0.01):
        super().__init__()
        for class_count in class_counts:
            check_whole("class_counts", class_count, 0)
        check_number("residual_rate", residual_rate)
        self.class_counts, self.beta, self.residual_rate = list(class_counts), beta, residual_rate
        self.num_labels = len(self.class_counts)
        self.register_buffer("class_weights", class_balanced_weights(self.class_counts, beta), persistent=False)
        self.residuals = torch.empty(0)  # ε of the present batch, (n,)

    def config(self) -> dict[str, Any]:
        return {"class_counts": self.class_counts, "beta": self.beta, "residual_rate": self.residual_rate}

    def begin_step(self, logits: Tensor) -> None:
        self.residuals = torch.zeros_like(at_least_float32(logits[:, 0].detach())).requires_grad_()

    def theta(self) -> dict[str, Tensor]:
        return {"residuals": self.residuals}

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        losses = batch.losses
        prior = batch.mixed(as_targets(batch.labels, at_least_float32(batch.logits))) @ self.class_weights.to(losses)
        return ((prior + self.residuals.to(losses)) * losses).mean()

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        self.residuals = self.outcome(gradient)["residuals"].requires_grad_()

    def outcome(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the residuals that follow from the gradient by ε."""
        return {"residuals": -self.residual_rate * gradient["residuals"]}
