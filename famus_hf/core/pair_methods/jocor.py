"""JoCoR (Wei et al., CVPR 2020, arXiv:2003.02752)."""

import torch
from torch import Tensor

from famus_hf.core.losses import at_least_float32
from famus_hf.core.pair_methods.base import PairBatch, PairMethod, smallest


class JoCoR(PairMethod):
    """Both networks learn from the (1 − r) n examples with the smallest joint losses:

    (1 − λ)(ℓ_1 + ℓ_2) + λ (KL(p_1 ‖ p_2) + KL(p_2 ‖ p_1))

    r as in Co-teaching. Examples on which both agree are more likely to be labelled rightly.

    Args:
        agreement: λ in [0, 1); the authors have 0.9 on CIFAR-10 and 0.85 on CIFAR-100.
    """

    about = (
        "both learned, in every step, from those examples on which they agreed with the label and with each other "
        "most, about as many as are rightly labelled ([JoCoR](https://huggingface.co/papers/2003.02752))"
    )
    forgets = True

    def __init__(self, agreement: float = 0.9):
        self.agreement = agreement

    def losses(self, batch: PairBatch) -> Tensor:
        of_labels, share = batch.losses.sum(0), self.agreement
        return ((1 - share) * of_labels + share * divergence(*batch.logits)).unsqueeze(0)

    def weights(self, batch: PairBatch, losses: Tensor) -> Tensor:
        return smallest(losses, batch.forget_rate)


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Return KL(p ‖ q) + KL(q ‖ p) of each example, by the logits of p and q. (n, C), (n, C) → (n,)"""
    log_p, log_q = (at_least_float32(each).log_softmax(1) for each in (logits, others))
    return ((torch.exp(log_p) - torch.exp(log_q)) * (log_p - log_q)).sum(1)
