"""MentorNet without a learned mentor: examples with large losses wait (torch only)."""

import torch
from torch import Tensor

from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner
from famus_hf.core.validation import Between, check_bound, check_number


class MentorNet(MetaLearner):
    """Self-paced learning by a threshold (Jiang et al., ICML 2018, arXiv:1712.05055): J = (1/n) Σ_i 1[ℓ_i < m] ℓ_i.

    m is a running quantile of the batches' losses. That is the curriculum which the authors predefine; their learned
    mentor needs its weights, which are not here.

    Args:
        quantile: Of a batch's losses, in (0, 1).
        decay: Of m, likewise.

    Attributes:
        threshold: m, a scalar; infinite before the first step.
    """

    has_meta_step = False
    weighs_examples = True
    plain_share = 0.2
    threshold: Tensor

    def __init__(self, quantile: float = 0.75, decay: float = 0.5):
        super().__init__()
        for name, value in (("quantile", quantile), ("decay", decay)):
            check_number(name, value)
            check_bound(name, value, Between(0, 1))
        self.quantile, self.decay = quantile, decay
        self.register_buffer("threshold", torch.tensor(torch.inf))

    def config(self) -> dict[str, float]:
        return {"quantile": self.quantile, "decay": self.decay}

    def raw_weights(self, losses: Tensor) -> Tensor:
        return below(self.threshold, losses)

    def example_weights(self, losses: Tensor) -> Tensor:
        return below(self.threshold, losses) / len(losses)

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J, a scalar, by a threshold that has seen this batch."""
        losses = batch.losses.detach()
        self.follow(self.threshold, losses)
        return (self.example_weights(losses) * batch.losses).sum()

    def follow(self, threshold: Tensor, losses: Tensor) -> None:
        """Have a running quantile take in the losses of a batch, unless one is not finite. (), (n,)"""
        found = losses.float().quantile(self.quantile)
        if losses.isfinite().all():
            is_first = threshold.isinf()
            threshold.copy_(torch.where(is_first, found, self.decay * threshold + (1 - self.decay) * found))


def below(threshold: Tensor, losses: Tensor) -> Tensor:
    """Return 1 where a loss is below the threshold, else 0. (), (n,) → (n,)"""
    return (losses < threshold.to(losses)).to(losses)
