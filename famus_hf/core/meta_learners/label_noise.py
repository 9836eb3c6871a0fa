"""How given labels come from true classes: transitions, counted from beliefs, and the losses they correct (torch only).

Symbols: N examples of which the network believes q_i, C classes, y the given label, T_ky = P(given label y | true class
k); s the label as a target, one-hot or soft.
"""

import math
from typing import Any

import torch
from torch import Tensor

from famus_hf.core.losses import as_targets
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner
from famus_hf.core.transitions import joint_by_trusted, transitions_of_joint, trusted_insist
from famus_hf.core.validation import check_choice, check_whole
from famus_hf.errors import SettingsError

SMALLEST = 1e-12  # of a belief or a probability, so that its logarithm exists
SOURCES = ("calibrated", "counts", "trusted", "anchors", "given")  # of transitions
LEAST_TRUSTED = 5  # examples of a class, on average, by which transitions are calibrated
ROWS_AT_ONCE = 65_536  # examples whose posteriors are in memory together
FULL_CLASSES = 1000  # up to which every transition has a number of its own
ANCHOR = 0.97  # quantile of what is believed of a class, at which its anchor is
PSEUDO_COUNT = 1e-3  # of a transition between two classes; 1 of a class to itself


def counted_transitions(beliefs: Tensor, labels: Tensor) -> Tensor:
    """Return T, shape (C, C), rows sum to 1, counted on the examples that the network is surest of.

    Those are, of each class k, the ones that are believed to be k by more than the mean of all that are. So the counts
    are not spoilt by examples between two classes (as in GLC and confident learning, by argmax).

    Args:
        beliefs: Shape (N, C).
        labels: Shape (N,).
    """
    count = beliefs.shape[1]
    belief, likeliest = beliefs.max(1)
    totals = torch.zeros(count, device=beliefs.device, dtype=belief.dtype).index_add_(0, likeliest, belief)
    means = totals / likeliest.bincount(minlength=count).clamp(min=1)
    sure = belief >= means[likeliest]
    pairs = (likeliest * count + labels)[sure].bincount(minlength=count * count)
    counts = pairs.view(count, count).double() + PSEUDO_COUNT
    counts.diagonal().add_(1 - PSEUDO_COUNT)
    return counts / counts.sum(1, keepdim=True)


def transitions_of_trusted(predictions: Tensor, labels: Tensor) -> Tensor:
    """Return T, shape (C, C), by a network that learned the given labels: its mean prediction of each true class.

    From gold loss correction (Hendrycks et al., NeurIPS 2018, arXiv:1802.05300). A class without a trusted example is
    taken to keep its label.

    Args:
        predictions: Of trusted examples, shape (m, C), rows sum to 1.
        labels: Theirs, shape (m,).
    """
    of_class = as_targets(labels, predictions)  # (m, C)
    counts = of_class.sum(0)[:, None]
    identity = torch.eye(len(counts), device=predictions.device, dtype=predictions.dtype)
    return torch.where(counts > 0, of_class.T @ predictions / counts.clamp(min=1), identity)


def transitions_of_anchors(beliefs: Tensor) -> Tensor:
    """Return T, shape (C, C), rows sum to 1: of each class what is believed of its anchor.

    That is an example which is surely of the class, so that what a network that learned the given labels predicts of it
    is how the class is labelled (Patrini et al., CVPR 2017): the one at the 97th percentile of belief in the class.

    Args:
        beliefs: Shape (N, C), rows sum to 1.
    """
    place = max(1, math.ceil(ANCHOR * len(beliefs)))
    anchors = beliefs.kthvalue(place, dim=0).indices
    return beliefs[anchors] / beliefs[anchors].sum(1, keepdim=True)


def calibrated_transitions(beliefs: Tensor, labels: Tensor, trusted: tuple[Tensor, Tensor]) -> Tensor | None:
    """Return T, shape (C, C), rows sum to 1, by how the network takes trusted examples: see `joint_by_trusted`.

    So mistakes of the network are not taken for wrong labels, as counts take them. None where these may explain all
    that it disagrees with (`trusted_insist`).

    Args:
        beliefs: Shape (N, C).
        labels: Shape (N,).
        trusted: Beliefs of trusted examples that are as old, shape (m, C), and their labels, shape (m,).
    """
    of_trusted, trusted_labels = (values.numpy(force=True) for values in trusted)
    seen = labels.numpy(force=True), beliefs.numpy(force=True), trusted_labels, of_trusted
    if not trusted_insist(*seen):
        return None
    return torch.from_numpy(transitions_of_joint(joint_by_trusted(*seen))).to(beliefs)


def features_of_beliefs(losses: Tensor, beliefs: Tensor, targets: Tensor) -> list[Tensor]:
    """Return loss, −log q_y, max q and the entropy of q, each of shape (n,).

    Args:
        losses: Shape (n,).
        beliefs: Shape (n, C).
        targets: Labels as targets, shape (n, C).
    """
    beliefs = beliefs.clamp_min(SMALLEST)
    of_label = (beliefs * targets).sum(1)
    return [losses, -of_label.log(), beliefs.max(1).values, -(beliefs * beliefs.log()).sum(1)]


class LabelNoise(MetaLearner):
    """A meta-learner that knows transitions between classes.

    Args:
        num_labels: C.
        source: Where T is from: `"counts"` on beliefs (`counted_transitions`); `"calibrated"`, by beliefs and by those
            of trusted examples that are trained on (`calibrated_transitions`), if there are `LEAST_TRUSTED` of a class,
            and else counts: until these tell of wrong labels training stays plain; `"trusted"`, predictions of trusted
            examples at the end of the plain part (`transitions_of_trusted`); `"anchors"`, beliefs of one example of
            each class (`transitions_of_anchors`); or `"given"` by `set_transitions`.

    Attributes:
        stays: T_kk, shape (C,); 1 before anything was counted.
        goes: T_ky of k ≠ y, divided by their sum, shape (C, C), 0 on the diagonal.
        is_counted: Whether transitions are known; 0 or 1. Until then training is plain, and the learner waits.
    """

    needs_beliefs = True
    takes_probabilities = True
    plain_share = 0.25
    plain_epochs = 2.0  # later beliefs are those of a network that has begun to learn labels by heart
    stays: Tensor
    goes: Tensor
    is_counted: Tensor

    def __init__(self, num_labels: int, source: str):
        super().__init__()
        check_whole("num_labels", num_labels, 2)
        check_choice("source", source, SOURCES)
        self.num_labels, self.source = num_labels, source
        self.observes_trusted = source == "trusted"
        self.register_buffer("stays", torch.ones(num_labels))
        self.register_buffer("goes", (1 - torch.eye(num_labels)) / (num_labels - 1))
        self.register_buffer("is_counted", torch.zeros((), dtype=torch.int64))

    def config(self) -> dict[str, Any]:
        return {"num_labels": self.num_labels, "source": self.source}

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return not self.is_counted

    def observe_beliefs(self, beliefs: Tensor, labels: Tensor, trusted: tuple[Tensor, Tensor] | None = None) -> None:
        if self.source == "trusted":
            self.set_transitions(transitions_of_trusted(beliefs, labels))
        elif self.source == "calibrated" and trusted is not None and self._can_calibrate(len(trusted[1])):
            transitions = calibrated_transitions(beliefs, labels, trusted)
            if transitions is not None:
                self.set_transitions(transitions)
        elif self.source == "anchors":
            self.set_transitions(transitions_of_anchors(beliefs))
        elif self.source != "given":
            self.set_transitions(counted_transitions(beliefs, labels))

    def _can_calibrate(self, trusted: int) -> bool:
        return trusted >= LEAST_TRUSTED * self.num_labels and self.num_labels <= FULL_CLASSES

    @torch.no_grad()
    def set_transitions(self, transitions: Tensor) -> None:
        """Take T, shape (C, C), rows sum to 1, as what is known from now on.

        Raises:
            SettingsError: It has another shape, or rows are no probabilities.
        """
        shape = (self.num_labels, self.num_labels)
        if tuple(transitions.shape) != shape:
            raise SettingsError(f"transitions have shape {tuple(transitions.shape)}, and there must be {shape}")
        if not (transitions.min() >= 0 and ((transitions.sum(1) - 1).abs() < 1e-3).all()):
            raise SettingsError("each row of the transitions must be probabilities, which sum to 1")
        self.stays.copy_(transitions.diagonal())
        others = transitions - torch.diag(transitions.diagonal())
        totals = others.sum(1, keepdim=True)
        evenly = (1 - torch.eye(self.num_labels, device=others.device, dtype=others.dtype)) / (self.num_labels - 1)
        self.goes.copy_(torch.where(totals > 0, others / totals.clamp_min(SMALLEST), evenly))
        self.is_counted.fill_(1)

    def evidence(self, targets: Tensor) -> Tensor:
        """Return P(given label | true class k) by transitions as they were found. (n, C) → (n, C)"""
        stays, goes = self.stays.to(targets), self.goes.to(targets)
        return stays * targets + (1 - stays) * (targets @ goes.T)

    def class_counts(self, beliefs: Tensor, labels: Tensor) -> Tensor:
        """Return how many examples are thought to be of each true class, shape (C,): the sum of their posteriors.

        Beliefs of the first epochs miss rare classes, which labels tell.

        Args:
            beliefs: Shape (N, C).
            labels: Shape (N,).
        """
        counts = torch.zeros(beliefs.shape[1], device=beliefs.device, dtype=beliefs.dtype)
        for start in range(0, len(labels), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            joint = beliefs[rows].clamp_min(SMALLEST) * self.evidence(as_targets(labels[rows], beliefs))
            counts += (joint / joint.sum(1, keepdim=True).clamp_min(SMALLEST)).sum(0)
        return counts

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return the mean loss by given labels, until transitions are known; then `corrected_loss`."""
        return self.corrected_loss(batch) if self.is_counted else batch.losses.mean()

    def corrected_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J where transitions are known, a scalar."""
        raise NotImplementedError


def log_likelihood(logits: Tensor, evidence: Tensor) -> Tensor:
    """Return log Σ_k p_k e_k, shape (n,), with p = softmax(logits) and e = P(given label | true class k), (n, C)."""
    return torch.logsumexp(logits.log_softmax(1) + evidence.clamp_min(SMALLEST).log(), 1)
