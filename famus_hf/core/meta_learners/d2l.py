"""D2L: labels give way to the network's own classes as far as its features gain dimensions (torch only)."""

import math

import torch
from torch import Tensor

from famus_hf.core.losses import as_targets, at_least_float32
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner

POINTS, NEIGHBOURS = 128, 20  # among how many examples, and of how many, distances are taken; as its authors have it
WINDOW, DEVIATIONS = 5, 2.0  # epochs before, and their deviations, by which a turning point stands out; likewise


class D2L(MetaLearner):
    """Dimensionality-driven learning (Ma et al., ICML 2018, arXiv:1806.02612).

    While a network learns what is common to examples its last hidden features lose dimensions, and gain them again
    when it learns wrong labels by heart. Each epoch gives one local dimension, the mean of `local_dimensions`. Training
    is plain up to the turning point: the first epoch after the plain part whose dimension is more than two deviations
    above the mean of the five before. The network then goes back to the weights of the epoch before, and from there
    `J = (1/n) Σ_i ℓ(z_i, a y_i + (1 − a) ŷ_i)` with ŷ the likeliest class at present and
    `a = exp(−(t/T) LID_t / min_{j ≤ t} LID_j)` after epoch t of T. A trusted example's target is its label.

    Paper: the turning point is looked for after 45 of 120 epochs on CIFAR-10, and 65 of 200 on CIFAR-100; here after a
    quarter of the run, as small data are learned by heart sooner (digits from the fifth of 25 epochs on).

    Attributes:
        latest: The last dimension; 0 before the first epoch.
        smallest: Of all; infinite before the first epoch.
        recent: Of the last epochs, shape (5,), the latest last; 0 before the first ones.
        label_share: a, a scalar; 1 before the turning point.
        has_turned: Whether that is past, 0 or 1.
    """

    has_meta_step = False
    takes_probabilities = True
    observed_features = 10 * POINTS  # examples
    plain_share = 0.25
    latest: Tensor
    smallest: Tensor
    recent: Tensor
    label_share: Tensor
    has_turned: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("latest", torch.zeros(()))
        self.register_buffer("smallest", torch.tensor(torch.inf))
        self.register_buffer("recent", torch.zeros(WINDOW))
        self.register_buffer("label_share", torch.ones(()))
        self.register_buffer("has_turned", torch.zeros((), dtype=torch.int64))

    @property
    def may_go_back(self) -> bool:
        return not self.has_turned

    @torch.no_grad()
    def observe_features(self, features: Tensor, progress: float, is_plain: bool) -> bool:
        dimension = mean_local_dimension(features)
        if not math.isfinite(dimension):
            return False
        self.latest.fill_(dimension)
        self.smallest.clamp_(max=dimension)
        turns = not (self.has_turned or is_plain) and self._stands_out(dimension)
        if turns:
            self.has_turned.fill_(1)
        if self.has_turned:
            self.label_share.copy_((-progress * dimension / self.smallest).exp())
        self.recent.copy_(torch.cat([self.recent[1:], self.latest[None]]))
        return turns

    def _stands_out(self, dimension: float) -> bool:
        is_full = bool((self.recent > 0).all())
        return is_full and dimension > float(self.recent.mean() + DEVIATIONS * self.recent.std(correction=0))

    def notes(self) -> dict[str, float]:
        return {"local_dimension": float(self.latest), "label_share": float(self.label_share)}

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J, a scalar; of mixed examples ŷ is the class of the mixed one."""
        if not self.has_turned:
            return batch.losses.mean()
        logits = at_least_float32(batch.logits)
        targets = as_targets(batch.labels, logits)
        given = batch.mixed(batch.by_trust(targets, self.label_share.to(logits) * targets))
        own = as_targets(logits.argmax(1), logits)
        return batch.per_example_loss(logits, given + (1 - given.sum(1, keepdim=True)) * own).mean()


def mean_local_dimension(features: Tensor) -> float:
    """Return the mean of `local_dimensions` over groups of 128, as large a rest among them; NaN where there is none.

    Args:
        features: Shape (n, D).
    """
    groups = [group for group in features.split(POINTS) if len(group) == min(POINTS, len(features))]
    found = torch.cat([local_dimensions(group, min(NEIGHBOURS, len(group) - 1)) for group in groups])
    return float(found[found.isfinite()].mean())


def local_dimensions(features: Tensor, neighbours: int) -> Tensor:
    """Return −k / Σ_{j ≤ k} log(r_j / r_k) of each point, its local intrinsic dimensionality by maximum likelihood.

    r_j is the distance to the j-th of its k nearest others; copies of it are left out. Where there are fewer than k, or
    all are as far, the number is not finite.

    Args:
        features: Shape (n, D).
        neighbours: k, less than n.

    Returns:
        Shape (n,).
    """
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.masked_fill(distances == 0, torch.inf)
    nearest = distances.topk(neighbours, largest=False).values  # (n, k), ascending
    return -neighbours / (nearest / nearest[:, -1:]).log().sum(1)
