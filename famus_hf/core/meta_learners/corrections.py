"""Losses that transitions between classes correct, and nothing is learned from a meta set (torch only).

Symbols: C classes, s the given label as a target, T_ky = P(given label y | true class k), p the network's
probabilities.
"""

import torch
from torch import Tensor

from famus_hf.core.losses import as_targets, at_least_float32
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_learners.label_noise import LabelNoise, log_likelihood

LEAST_SINGULAR = 1e-3  # value of T that is inverted, as a share of the largest


class Correction(LabelNoise):
    """A loss corrected by T as it was found. A trusted label is taken as it is.

    Args:
        num_labels: C.
        source: As in `LabelNoise`; if given, no beliefs and no plain part are needed.
    """

    has_meta_step = False
    plain_steps = 100  # T is never mended afterwards; after 48 steps on 2400 photos, two epochs, it was wrong

    def __init__(self, num_labels: int, source: str = "counts"):
        super().__init__(num_labels, source)
        if source == "given":
            self.needs_beliefs, self.plain_share = False, 0.0


class ForwardCorrection(Correction):
    """Forward correction (Patrini et al., CVPR 2017, arXiv:1609.03683): J = −(1/n) Σ log Σ_k p_k T_{k y_i}."""

    def corrected_loss(self, batch: LabelledBatch) -> Tensor:
        logits = at_least_float32(batch.logits)
        targets = as_targets(batch.labels, logits)
        return log_likelihood(logits, batch.mixed(batch.by_trust(targets, self.evidence(targets)))).neg().mean()


class BackwardCorrection(Correction):
    """Backward correction (Patrini et al., CVPR 2017, arXiv:1609.03683): J = −(1/n) Σ_i Σ_k (T⁻¹)_{y_i k} log p_ik.

    Its mean over labels drawn by T is cross-entropy by true classes. Targets s T⁻¹ sum to 1, and some are below 0: the
    loss has no lower bound. Singular values of T below a thousandth of the largest are left out of its inverse, as they
    would make targets of nothing but noise.

    Attributes:
        inverse: T⁻¹, shape (C, C).
    """

    inverse: Tensor

    def __init__(self, num_labels: int, source: str = "counts"):
        super().__init__(num_labels, source)
        self.register_buffer("inverse", torch.eye(num_labels))

    @torch.no_grad()
    def set_transitions(self, transitions: Tensor) -> None:
        super().set_transitions(transitions)
        self.inverse.copy_(torch.linalg.pinv(at_least_float32(transitions), rtol=LEAST_SINGULAR))

    def corrected_loss(self, batch: LabelledBatch) -> Tensor:
        logits = at_least_float32(batch.logits)
        targets = as_targets(batch.labels, logits)
        corrected = targets @ self.inverse.to(logits)
        return -(batch.mixed(batch.by_trust(targets, corrected)) * logits.log_softmax(1)).sum(1).mean()
