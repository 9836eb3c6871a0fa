"""What a pair of networks learns from a batch (torch only).

Symbols: n examples, C classes, k losses of an example: 2, one of each network, or 1 of both together.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from famus_hf.core.meta_learners.base import PerExampleLoss


@dataclass(frozen=True)
class PairBatch:
    """A batch as two networks see it.

    Attributes:
        logits: Of both networks, each of shape (n, C).
        labels: Given ones, shape (n,), or (n, C) of soft targets.
        per_example_loss: ℓ.
        forget_rate: r, the share of the examples that is to be left out, in [0, 1).
    """

    logits: tuple[Tensor, Tensor]
    labels: Tensor
    per_example_loss: PerExampleLoss
    forget_rate: float = 0.0

    @property
    def losses(self) -> Tensor:
        """ℓ of each network, shape (2, n)."""
        return torch.stack([self.per_example_loss(logits, self.labels) for logits in self.logits])


class PairMethod(ABC):
    """Says what two networks learn from a batch: Σ_ki w_ki ℓ_ki, by losses ℓ and weights w that are constants.

    Attributes:
        about: How it is done, after "While they were trained, ".
        forgets: Whether it leaves out `forget_rate` of a batch.
        has_warm_up: Whether the networks must have learned something from all examples before.
        cross_validates: Whether they learn only from what cross-validation selects before.
    """

    about = "they chose examples for each other"
    forgets = False
    has_warm_up = False
    cross_validates = False

    def losses(self, batch: PairBatch) -> Tensor:
        """Return ℓ, shape (k, n)."""
        return batch.losses

    @abstractmethod
    def weights(self, batch: PairBatch, losses: Tensor) -> Tensor:
        """Return w, shape (k, n).

        Args:
            batch: The batch.
            losses: ℓ, detached, shape (k, n).
        """

    def training_loss(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the training loss, a scalar, and w, shape (k, n)."""
        losses = self.losses(batch)
        weights = self.weights(batch, losses.detach())
        return weighted_sum(losses, weights), weights


class EveryExample(PairMethod):
    """Both networks learn from all examples, as in a warm-up."""

    def weights(self, batch: PairBatch, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1 / losses.shape[1])


def weighted_sum(losses: Tensor, weights: Tensor) -> Tensor:
    """Return Σ w ℓ over what has a weight, whatever the loss of the others. (k, n), (k, n) → ()"""
    return (weights * losses.where(weights > 0, 0)).sum()


def smallest(losses: Tensor, forget_rate: float) -> Tensor:
    """Return w that are alike for the (1 − r) n smallest losses of each row, at least one, and else 0.

    Args:
        losses: Shape (k, n); those that are not finite come last.
        forget_rate: r.

    Returns:
        Shape (k, n), rows sum to 1.
    """
    kept = max(1, round((1 - forget_rate) * losses.shape[1]))
    places = losses.argsort(dim=1, stable=True)[:, :kept]
    return torch.zeros_like(losses).scatter(1, places, 1 / kept)
