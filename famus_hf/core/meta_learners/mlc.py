"""Meta loss correction: a noise transition matrix is learned (torch only)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner
from famus_hf.core.validation import check_choice, check_flag, check_whole
from famus_hf.errors import SettingsError


class MLC(MetaLearner):
    """Meta loss correction (Wang, Hu, Hu, CVPR 2020): a noise transition matrix T of shape (C, C) corrects the loss.

    T starts from the identity and moves as T ← max(T − β ∂L_c/∂T, 0), then each column (logits) or row (probabilities)
    is divided by its sum. Test predictions are those of the uncorrected logits.

    Args:
        num_labels: C.
        form: `"logits"`: ℓ(z·T), the form of the authors' code. `"probabilities"`: ℓ(log q), q = softmax(z)·T, the
            forward correction of the literature, T_jk = P(given label k | true label j). Cross-entropy is then exactly
            −log q_y as a function of T; other losses take their logits log q as if q were divided by its sum.
        keep_matrix: Whether T goes on learning from step to step. False: it starts from the identity in each step, as
            in the authors' code.
        reduction: Of the per-example losses: `"mean"`, or `"sum"` as in the authors' code.
    """

    default_optimizer = "sgd"
    momentum = 0.0

    def __init__(self, num_labels: int, form: str = "logits", keep_matrix: bool = True, reduction: str = "mean"):
        super().__init__()
        check_whole("num_labels", num_labels, 2)
        check_choice("form", form, ("logits", "probabilities"))
        check_flag("keep_matrix", keep_matrix)
        check_choice("reduction", reduction, ("mean", "sum"))
        self.num_labels = num_labels
        self.form = form
        self.keep_matrix = self.keeps_theta = keep_matrix
        self.reduction = reduction
        # The authors' β for their fresh matrix; a kept one learned better with ten times as much on digits.
        self.default_learning_rate = 1.0 if keep_matrix else 0.11
        self.matrix = nn.Parameter(torch.eye(num_labels))

    def config(self) -> dict[str, Any]:
        return {
            "num_labels": self.num_labels,
            "form": self.form,
            "keep_matrix": self.keep_matrix,
            "reduction": self.reduction,
        }

    def begin_step(self, logits: Tensor) -> None:
        if not self.keep_matrix:
            with torch.no_grad():
                self.matrix.copy_(torch.eye(self.num_labels))

    def forward(self, logits: Tensor) -> Tensor:
        """Return the logits of the given, possibly wrong, labels; shape (n, C). logits: Shape (n, C)."""
        if logits.shape[1] != self.num_labels:
            raise SettingsError(f"MLC was made for {self.num_labels} classes, and the network has {logits.shape[1]}")
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        with torch.autocast(logits.device.type, enabled=False):  # which would take the products in 16 bits again
            if self.form == "logits":
                return logits @ self.matrix.to(logits)
            probabilities = logits.softmax(1) @ self.matrix.to(logits)
            return probabilities.clamp_min(torch.finfo(logits.dtype).tiny).log()

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        corrected = self(batch.logits)
        losses = batch.losses_of(corrected)
        if self.form == "probabilities":  # −log q_y, and not −log(q_y / Σ q): zero, but not in its gradient by T
            losses = losses - corrected.logsumexp(1)
        return losses.sum() if self.reduction == "sum" else losses.mean()

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        super().move(gradient, optimizer)
        dim = 0 if self.form == "logits" else 1
        with torch.no_grad():
            self.matrix.clamp_(min=0)
            total = self.matrix.sum(dim, keepdim=True)
            empty = total == 0  # a class that lost everything starts over
            identity = torch.eye(self.num_labels).to(self.matrix)
            self.matrix.copy_(torch.where(empty, identity, self.matrix / torch.where(empty, 1, total)))
