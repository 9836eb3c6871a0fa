"""Per-example losses ℓ: logits (n, C) and labels → (n,), in at least float32 (torch only), and their mean.

Labels are class indices of shape (n,) or, but for LDAM, soft targets of shape (n, C) whose rows sum to 1. Every loss
serves alone (its mean is then the training loss) or below any meta-learner.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from famus_hf.errors import SettingsError

BaseLoss = Literal["ce", "focal", "gce", "sce", "nce-rce", "class-balanced", "cb-focal", "ldam"]
LOG_ZERO = -4.0  # what reverse cross-entropy takes for log 0
LARGEST_AGREEMENT = 1 - 1e-4  # of prediction and target, beyond which early-learning regularization pulls no further
IGNORED = -100  # the label of an example without one, as torch and transformers have it


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each example.

    Args:
        logits: Shape (n, C).
        labels: Shape (n,) or (n, C).
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).

    Returns:
        Shape (n,).
    """
    return F.cross_entropy(at_least_float32(logits), labels, reduction="none", label_smoothing=label_smoothing)


class CrossEntropyLoss:
    """Cross-entropy with label smoothing.

    Args:
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0):
        if not 0 <= label_smoothing < 1:
            raise SettingsError(f"label_smoothing={label_smoothing} must lie in [0, 1)")
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, self.label_smoothing)


class FocalLoss:
    """Σ_c t_c (1 − p_c)^γ (−log p_c), p = softmax(logits), t = target (Lin et al., ICCV 2017, arXiv:1708.02002).

    Args:
        gamma: γ; 0 gives cross-entropy.
        label_smoothing: As in `CrossEntropyLoss`.
    """

    def __init__(self, gamma: float = 2.0, label_smoothing: float = 0.0):
        if not gamma >= 0:
            raise SettingsError(f"gamma={gamma} must not be negative")
        self.gamma = gamma
        self.smoothed = CrossEntropyLoss(label_smoothing)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = F.log_softmax(at_least_float32(logits), dim=1)
        targets = _soft_targets(labels, log_p, self.smoothed.label_smoothing)
        # (1 − p)^γ from log p: a power of exactly 0 would have an infinite derivative where γ < 1
        others = -torch.expm1(log_p.clamp_max(-torch.finfo(log_p.dtype).eps))
        return -(targets * others**self.gamma * log_p).sum(1)


class GeneralizedCrossEntropyLoss:
    """Σ_c t_c (1 − p_c^q)/q, between cross-entropy and the mean absolute error (Zhang, Sabuncu, NeurIPS 2018).

    arXiv:1805.07836. p = softmax(logits), t = target.

    Args:
        q: In (0, 1]; towards 0 it becomes cross-entropy, at 1 it is half the mean absolute error.
        label_smoothing: As in `CrossEntropyLoss`.
    """

    def __init__(self, q: float = 0.7, label_smoothing: float = 0.0):
        if not 0 < q <= 1:
            raise SettingsError(f"q={q} must lie in (0, 1]")
        self.q = q
        self.smoothed = CrossEntropyLoss(label_smoothing)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = F.log_softmax(at_least_float32(logits), dim=1)
        targets = _soft_targets(labels, log_p, self.smoothed.label_smoothing)
        return -(targets * torch.expm1(self.q * log_p)).sum(1) / self.q


class SymmetricCrossEntropyLoss:
    """α CE + β RCE (Wang et al., ICCV 2019, arXiv:1908.06112); RCE is `reverse_cross_entropy`.

    Args:
        alpha: α; the paper has 0.1 on CIFAR-10 and 6 on CIFAR-100.
        beta: β; the paper has 1 on CIFAR-10 and 0.1 on CIFAR-100.
        label_smoothing: As in `CrossEntropyLoss`, of both parts.
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, label_smoothing: float = 0.0):
        self.alpha, self.beta = _checked_weights(alpha, beta)
        self.smoothed = CrossEntropyLoss(label_smoothing)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = F.log_softmax(at_least_float32(logits), dim=1)
        targets = _soft_targets(labels, log_p, self.smoothed.label_smoothing)
        return -self.alpha * (targets * log_p).sum(1) + self.beta * reverse_cross_entropy(log_p, targets)


class ActivePassiveLoss:
    """α NCE + β RCE (Ma et al., ICML 2020, arXiv:2006.13554); RCE is `reverse_cross_entropy`.

    NCE = Σ_c t_c log p_c / Σ_c log p_c, cross-entropy over its sum for all classes; p = softmax(logits), t = target.

    Args:
        alpha: α; the paper has 1 on CIFAR-10 and 10 on CIFAR-100.
        beta: β; the paper has 1 on CIFAR-10 and 0.1 on CIFAR-100.
        label_smoothing: As in `CrossEntropyLoss`, of both parts.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, label_smoothing: float = 0.0):
        self.alpha, self.beta = _checked_weights(alpha, beta)
        self.smoothed = CrossEntropyLoss(label_smoothing)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = F.log_softmax(at_least_float32(logits), dim=1)
        targets = _soft_targets(labels, log_p, self.smoothed.label_smoothing)
        normalized = (targets * log_p).sum(1) / log_p.sum(1)
        return self.alpha * normalized + self.beta * reverse_cross_entropy(log_p, targets)


def reverse_cross_entropy(log_p: Tensor, targets: Tensor) -> Tensor:
    """Return −Σ_c p_c log t_c of each example, where no logarithm is less than `LOG_ZERO`; shape (n,).

    For class indices that is 4 (1 − p_y). Released code has log 10⁻⁴ for log 0, and so a loss 2.3 times as large.

    Args:
        log_p: Logarithms of predictions, shape (n, C).
        targets: Shape (n, C).
    """
    return -(log_p.exp() * targets.clamp_min(math.exp(LOG_ZERO)).log()).sum(1)


def _checked_weights(alpha: float, beta: float) -> tuple[float, float]:
    if not (alpha >= 0 and beta >= 0 and alpha + beta > 0):
        raise SettingsError(f"alpha={alpha} and beta={beta} must not be negative, and not both 0")
    return alpha, beta


class ClassBalancedLoss:
    """A loss times the inverse effective number of the label's class (Cui et al., CVPR 2019, arXiv:1901.05555).

    Args:
        class_counts: Training examples of each class, C of them.
        beta: β of the effective number (1 − β^n)/(1 − β).
        label_smoothing: As in `CrossEntropyLoss`.
        gamma: γ of the focal loss; 0 is cross-entropy.
    """

    def __init__(
        self, class_counts: Sequence[int], beta: float = 0.9999, label_smoothing: float = 0.0, gamma: float = 0.0
    ):
        self.class_weights = class_balanced_weights(class_counts, beta)
        self.smoothed = FocalLoss(gamma, label_smoothing) if gamma else CrossEntropyLoss(label_smoothing)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.class_weights = self.class_weights.to(logits.device)  # copied to a GPU once
        return weights_of_labels(self.class_weights, labels) * self.smoothed(logits, labels)


class LDAMLoss:
    """Label-distribution-aware margins (Cao et al., NeurIPS 2019, arXiv:1906.07413): CE(s·(z − Δ_y·1_y), y).

    Δ_y is proportional to n_y^(−1/4). Made for a classifier whose logits are cosines
    (`WideResNetConfig(cosine_classifier=True)`), to which s gives back a scale.

    Args:
        class_counts: Training examples n_y of each class, C of them.
        max_margin: Δ of the rarest class.
        scale: s.
        reweight_from: Share of the training run after which class-balanced weights set in (deferred re-weighting, DRW);
            1 means never.
        beta: β of these weights.

    Attributes:
        progress: Share of the training run that is over; the trainer keeps it up to date.
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_from: float = 0.8,
        beta: float = 0.9999,
    ):
        if not (max_margin > 0 and scale > 0):
            raise SettingsError(f"max_margin={max_margin} and scale={scale} must be greater than 0")
        counts = torch.tensor(class_counts, dtype=torch.float64)
        margins = counts.clamp_min(1) ** -0.25
        self.margins = (margins * (max_margin / margins[counts > 0].max())).float()
        self.class_weights = class_balanced_weights(class_counts, beta)
        self.scale = scale
        self.reweight_from = reweight_from
        self.progress = 0.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.dim() != 1:
            raise SettingsError("LDAM needs class indices as labels: it has no margin for soft targets")
        self.margins, self.class_weights = self.margins.to(logits.device), self.class_weights.to(logits.device)
        logits = at_least_float32(logits)
        margins = weights_of_labels(self.margins, labels).to(logits)
        lowered = logits - F.one_hot(labels, logits.shape[1]) * margins.unsqueeze(1)
        losses = cross_entropy(self.scale * lowered, labels)
        if self.progress < self.reweight_from:
            return losses
        return weights_of_labels(self.class_weights, labels).to(losses) * losses


def class_balanced_weights(class_counts: Sequence[int], beta: float) -> Tensor:
    """Return (1 − β)/(1 − β^n) of each class, scaled to a mean of 1 over the classes that have examples; shape (C,).
    A class without examples gets the weight of a class with one example."""
    if not 0 <= beta < 1:
        raise SettingsError(f"beta={beta} must lie in [0, 1)")
    counts = torch.tensor(class_counts, dtype=torch.float64)
    if not counts.sum() > 0:
        raise SettingsError("class_counts are all zero: at least one class needs examples")
    weights = (1 - beta) / (1 - beta ** counts.clamp_min(1))
    return (weights / weights[counts > 0].mean()).float()


def mean_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of a per-example loss over the examples that have a label; 0 where none has.

    Args:
        loss: ℓ, which sees class 0 in the place of `IGNORED`.
        logits: Shape (n, C).
        labels: Shape (n,), some of them perhaps `IGNORED`, or (n, C).
    """
    if labels.dim() != 1:
        return loss(logits, labels).mean()
    is_labelled = labels != IGNORED
    losses = loss(logits, labels.masked_fill(~is_labelled, 0))
    return losses.where(is_labelled, 0).sum() / is_labelled.sum().clamp_min(1)


def with_row_weights(logits: Tensor, weights: Tensor | None) -> Tensor:
    """Return the same logits, whose gradient counts as many times in each row as its weight says.

    So the gradient of any J(logits) is that of a J in which each example counts so much, whatever J makes of them.

    Args:
        logits: Shape (n, C).
        weights: Shape (n,); None: all count alike.
    """
    if weights is None:
        return logits
    values = logits.detach()
    return values + weights.to(logits)[:, None] * (logits - values)


def early_learning_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log(1 − ⟨p, t⟩) of each example, p = softmax(logits), which is the less the more p agrees with t.

    Early-learning regularization (Liu et al., NeurIPS 2020, arXiv:2007.00151) adds λ times its mean to the training
    loss. Paper: ⟨p, t⟩ has no limit; in the authors' code each p_c lies in [10⁻⁴, 1 − 10⁻⁴], which is above all of p
    where there are more than 10 000 classes, so that here ⟨p, t⟩ is at most 1 − 10⁻⁴.

    Args:
        logits: Shape (n, C).
        targets: t, decaying sums of predictions up to the present one (`RunningBeliefs.sums`), constant, shape (n, C).

    Returns:
        Shape (n,).
    """
    predictions = at_least_float32(logits).softmax(1)
    agreement = (predictions * targets.to(predictions)).sum(1)
    return torch.log1p(-agreement.clamp(max=LARGEST_AGREEMENT))


def weights_of_labels(class_weights: Tensor, labels: Tensor) -> Tensor:
    """Return the weight of each example's label, or its mean under soft targets; shape (n,)."""
    return class_weights[labels] if labels.dim() == 1 else labels @ class_weights.to(labels.dtype)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits of 16 bits in float32, others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def one_hot(labels: Tensor, num_labels: int) -> Tensor:
    """Return class indices (n,) as targets (n, C) in float32; soft targets stay as they are."""
    return labels if labels.dim() == 2 else F.one_hot(labels, num_labels).float()


def as_targets(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels of shape (n,) or (n, C) as targets of shape (n, C), in the logits' numbers."""
    return one_hot(labels, logits.shape[1]).to(logits)


def adjusted(logits: Tensor, shift: Tensor | None) -> Tensor:
    """Return logits with what logit adjustment adds, shape (C,), or as they are. logits: Shape (n, C)."""
    return logits if shift is None else logits + shift.to(logits)


def _soft_targets(labels: Tensor, like: Tensor, label_smoothing: float) -> Tensor:
    targets = as_targets(labels, like)
    return targets * (1 - label_smoothing) + label_smoothing / like.shape[1] if label_smoothing else targets
