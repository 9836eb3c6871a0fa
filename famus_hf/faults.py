"""What is done about numbers that are not finite: the step is left out, and the log says so once (torch only)."""

import logging
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger("famus_hf")


@cache
def log_once(message: str) -> None:
    """A warning for the first time that a process has this message."""
    logger.warning(message)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is infinite or NaN; one host synchronisation."""
    values = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not values:
        return True
    norms = torch._foreach_norm(values)  # carries infinities and NaN along, and is the fastest way over the values
    return bool(torch.stack([norm.to(norms[0]) for norm in norms]).isfinite().all())
