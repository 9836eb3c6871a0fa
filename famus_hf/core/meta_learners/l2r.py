"""Learning to reweight: weights of a batch's examples afresh in each step (torch only)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner, divided_by_sum


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

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J = Σ_i ε_i ℓ_i(w); linear in ε, so that its gradient by ε is that at ε = 0 whatever ε is now."""
        return (self.weights.to(batch.losses) * batch.losses).sum()

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        self.weights = self.outcome(gradient)["weights"].requires_grad_()

    def outcome(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights V̂ that follow from the gradient by ε."""
        return {"weights": divided_by_sum((-gradient["weights"]).clamp(min=0))}
