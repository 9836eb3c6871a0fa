"""Cumulative learning of BBN (Zhou, Cui, Wei, Chen, CVPR 2020, arXiv:1912.02413; torch only).

Early a network with two branches learns from examples as they come, later more and more from those of rare classes.
Symbols: n examples, C classes, t the epoch, from 0, of T.
"""

from torch import Tensor

from famus_hf.core.meta_learners.base import PerExampleLoss


def conventional_share(epoch: int, epochs: float) -> float:
    """Return α = 1 − (t/T)², the share of the conventional branch; 1 in the first epoch.

    Args:
        epoch: t.
        epochs: T, more than t.
    """
    return 1 - (epoch / epochs) ** 2


def cumulative_losses(
    loss: PerExampleLoss, logits: Tensor, labels: Tensor, partner_labels: Tensor, share: float
) -> Tensor:
    """Return α ℓ(z, y_c) + (1 − α) ℓ(z, y_r) of each pair, shape (n,).

    Args:
        loss: ℓ.
        logits: z, of both branches together, shape (n, C).
        labels: y_c, of the examples as they come, shape (n,).
        partner_labels: y_r, of their partners of rare classes, shape (n,).
        share: α.
    """
    return share * loss(logits, labels) + (1 - share) * loss(logits, partner_labels)
