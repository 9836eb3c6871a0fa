"""Labels that are refined and guessed, mixed examples, and the loss over labelled and unlabelled ones (torch only).

Paper: §5.3, on DivideMix (Li, Socher, Hoi, ICLR 2020, arXiv:2002.07394), whose formulas these are but for the weights.
Symbols: n examples, C classes; targets and predictions are rows of probabilities.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from famus_hf.core.losses import at_least_float32, cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner


def sharpened(probabilities: Tensor, temperature: float) -> Tensor:
    """Return p_c^(1/T) / Σ_k p_k^(1/T), row by row. (n, C) → (n, C); T below 1 makes the largest larger."""
    return ((probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)).log() / temperature).softmax(1)


def refined_labels(targets: Tensor, predictions: Tensor, clean_probabilities: Tensor, temperature: float) -> Tensor:
    """Return c·y + (1 − c)·p of labelled examples, sharpened.

    Args:
        targets: y, the given labels; shape (n, C).
        predictions: p, of the network in training, averaged over the views of an example; shape (n, C).
        clean_probabilities: c, shape (n,).
        temperature: T.

    Returns:
        Shape (n, C).
    """
    c = clean_probabilities.to(predictions).unsqueeze(1)
    return sharpened(c * targets.to(predictions) + (1 - c) * predictions, temperature)


def guessed_labels(predictions: Tensor, temperature: float) -> Tensor:
    """Return the mean of all predictions of each unlabelled example, sharpened.

    Args:
        predictions: Of both networks for each view; shape (predictions of an example, n, C).
        temperature: T.

    Returns:
        Shape (n, C).
    """
    return sharpened(predictions.mean(0), temperature)


def mixing_share(alpha: float, generator: np.random.Generator) -> float:
    """Return λ' = max(λ, 1 − λ) with λ ~ Beta(α, α); 1, which mixes nothing, for α = 0."""
    if alpha == 0:
        return 1.0
    share = float(generator.beta(alpha, alpha))
    return max(share, 1 - share)


def mixed(values: Tensor, partners: Tensor, share: float) -> Tensor:
    """Return λ'·x_i + (1 − λ')·x_j: images or targets with those of their partners, of one shape."""
    return share * values + (1 - share) * partners


def ramped_up(weight: float, epochs: float, ramp_up_epochs: float) -> float:
    """Return λ_u at `epochs` after the warm-up: it grows linearly from zero to `weight` within `ramp_up_epochs`."""
    return weight if ramp_up_epochs == 0 else weight * min(max(epochs / ramp_up_epochs, 0.0), 1.0)


def squared_errors(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of (softmax(z)_c − t_c)² over the classes, as in MixMatch. (n, C), (n, C) → (n,)

    Paper: DivideMix writes the sum, C times as much; its code takes the mean, and its values of λ_u are for that.
    """
    return (at_least_float32(logits).softmax(1) - targets).square().mean(1)


def prior_term(logits: Tensor) -> Tensor:
    """Return KL(uniform ‖ mean prediction of the batch), a scalar ≥ 0 that keeps all classes in use. logits: (n, C)."""
    n, num_labels = logits.shape
    # In logarithms throughout: a class whose probabilities are 0 in floating point is what this is there to bring back.
    log_mean = at_least_float32(logits).log_softmax(1).logsumexp(0) - math.log(n)
    return -math.log(num_labels) - log_mean.mean()


def confidence_penalty(logits: Tensor) -> Tensor:
    """Return each prediction's negative entropy, (n, C) → (n,), which DivideMix's warm-up on asymmetric noise adds."""
    log_p = at_least_float32(logits).log_softmax(1)
    return (log_p.exp() * log_p).sum(1)


class SemiSupervisedLoss(MetaLearner):
    """J over a batch of labelled and unlabelled examples whose weights are another meta-learner's:

    Σ_labelled V̂_i ℓ_i + λ_u Σ_unlabelled V̂_i e_i + KL(uniform ‖ mean prediction)

    with cross-entropy ℓ against refined, squared errors e against guessed labels, and V̂ each part's own. θ is the
    meta-learner's. With equal weights it is DivideMix's loss. Paper: does not say which loss of an unlabelled example
    enters Ψ; here it is cross-entropy as in the labelled part, so that Ψ sees losses of one kind.

    Args:
        meta_learner: Gives V̂ of a batch as a differentiable function of its losses, as `MWNet` does.

    Attributes:
        is_labelled: Which examples of the global batch are in the labelled part; shape (n,).
        unlabelled_weight: λ_u.
    """

    def __init__(self, meta_learner: MetaLearner):
        super().__init__()
        self.meta_learner = meta_learner
        self.keeps_theta = meta_learner.keeps_theta
        self.has_virtual_step = meta_learner.has_virtual_step
        # A meta set of small losses soon teaches a quick θ to trust small losses alone: with Adam at the same rate
        # FaMUS stays two points below equal weights on Fashion-MNIST (40 % symmetric, 20 epochs).
        self.default_optimizer = "sgd"
        self.default_learning_rate = meta_learner.default_learning_rate
        self.momentum = meta_learner.momentum
        self.is_labelled = torch.empty(0, dtype=torch.bool)
        self.unlabelled_weight = 0.0

    def theta(self) -> dict[str, Tensor]:
        return self.meta_learner.theta()

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        self.meta_learner.move(gradient, optimizer)

    def begin_step(self, logits: Tensor) -> None:
        self.meta_learner.begin_step(logits)

    def raw_weights(self, losses: Tensor) -> Tensor | None:
        return self.meta_learner.raw_weights(losses)

    def config(self) -> dict[str, Any]:
        return self.meta_learner.config()

    def example_weights(self, losses: Tensor) -> Tensor:
        """Return V̂ of both parts, (n,), from cross-entropies (n,); the parts' sums are in proportion to their sizes."""
        weights = torch.zeros_like(losses)
        for mask in (self.is_labelled, ~self.is_labelled):
            weights[mask] = self._weights(losses[mask]).to(losses) * mask.sum() / len(mask)
        return weights

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        labelled, unlabelled, logits, labels = self.is_labelled, ~self.is_labelled, batch.logits, batch.labels
        losses = batch.per_example_loss(logits[labelled], labels[labelled])
        loss = (self._weights(losses.detach()) * losses).sum() + prior_term(logits)
        if self.unlabelled_weight == 0:
            return loss
        logits, targets = logits[unlabelled], labels[unlabelled]
        weights = self._weights(cross_entropy(logits.detach(), targets))
        return loss + self.unlabelled_weight * (weights * squared_errors(logits, targets)).sum()

    def _weights(self, losses: Tensor) -> Tensor:
        weights = self.meta_learner.example_weights(losses)
        if weights is None:
            raise TypeError(f"{type(self.meta_learner).__name__} gives examples no weights by their losses")
        return weights


class EqualWeights(MetaLearner):
    """V̂ = 1/n for every example: nothing is learned."""

    def example_weights(self, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1 / len(losses))

    def raw_weights(self, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)
