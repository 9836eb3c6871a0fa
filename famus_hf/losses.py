"""Per-example losses (torch only)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each example, in at least float32.

    Args:
        logits: Shape (n, C).
        labels: Shape (n,), class indices in [0, C).
        label_smoothing: Share of the target spread evenly over all classes, in [0, 1).

    Returns:
        Shape (n,).
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
