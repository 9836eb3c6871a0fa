"""Learning to bootstrap: two weights of each example afresh in each step (torch only)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from famus_hf.core.losses import at_least_float32
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner, divided_by_sum


class L2B(MetaLearner):
    """Learning to Bootstrap (Zhou et al., CVPR 2024, arXiv:2202.04291): L2R with the network's own class beside y.

    With ŷ the likeliest class, a = max(0, −∂L_c/∂a) and b = max(0, −∂L_c/∂b) at a = b = 0, divided by the sum of all
    2n; as in `L2R` there is no virtual step, and the learning rate cancels. In a step in which no layer is on, training
    is plain. Of a trusted example, ŷ is its label.
    """

    keeps_theta = False
    has_virtual_step = False
    only_ratios_count = True
    plain_share = 0.1  # a network that knows nothing has no class of its own

    def __init__(self) -> None:
        super().__init__()
        self.given, self.predicted = torch.empty(0), torch.empty(0)  # a and b of the present batch, (n,)

    def begin_step(self, logits: Tensor) -> None:
        like = at_least_float32(logits[:, 0].detach())
        self.given = torch.full_like(like, 1 / len(like)).requires_grad_()
        self.predicted = torch.zeros_like(like).requires_grad_()

    def theta(self) -> dict[str, Tensor]:
        return {"given": self.given, "predicted": self.predicted}

    def example_weights(self, losses: Tensor) -> Tensor:
        """Return a, the weights of given labels, shape (n,)."""
        return self.given.detach()

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J = Σ_i [a_i ℓ(z_i, y_i) + b_i ℓ(z_i, ŷ_i)]; linear in a and b."""
        losses = batch.losses
        own = batch.by_trust(losses, batch.per_example_loss(batch.logits, batch.logits.argmax(1)))
        return (self.given.to(losses) * losses + self.predicted.to(losses) * own).sum()

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        weights = self.outcome(gradient)
        self.given, self.predicted = (weights[name].requires_grad_() for name in ("given", "predicted"))

    def outcome(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that follow from the gradient by a and b."""
        slopes = torch.cat([gradient["given"], gradient["predicted"]])
        given, predicted = divided_by_sum((-slopes).clamp(min=0)).chunk(2)
        return {"given": given, "predicted": predicted}
