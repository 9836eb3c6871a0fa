"""What is done about numbers that are not finite: the run stops, or the step is left out (torch only)."""

import logging
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from famus_hf.core.parallel.dtensor import own_part

NAN_POLICIES = ("stop", "skip")
MOST_IN_A_ROW = 100  # faults of one kind, after which nothing is to be hoped for

logger = logging.getLogger("famus_hf")


class NonFiniteGuard:
    """Counts the steps of a run in which something was not finite.

    Args:
        policy: `"stop"`: the first one ends the run. `"skip"`: such a step moves nothing, and the log says so once;
            the run ends where 100 of one kind come in a row.

    Attributes:
        count: Of all kinds, so far.
    """

    def __init__(self, policy: str):
        self.policy = policy
        self.count = 0
        self._in_a_row: dict[str, int] = {}

    def none(self, what: str) -> None:
        """Says that in this step it was finite."""
        self._in_a_row[what] = 0

    def found(self, what: str, step: int) -> None:
        """Says that in this step (of the optimizer) it was not. Raises FloatingPointError where the run is to stop."""
        self.count += 1
        self._in_a_row[what] = self._in_a_row.get(what, 0) + 1
        advice = "look at the data and at the learning rates; what was saved before is sound"
        if self.policy == "stop":
            raise FloatingPointError(
                f"step {step}: {what} held values that are not finite: {advice}, and nan_policy 'skip' leaves such "
                "steps out"
            )
        if self._in_a_row[what] >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"step {step}: {what} held values that are not finite {MOST_IN_A_ROW} times in a row: {advice}"
            )
        log_once(f"{what} held values that are not finite: such steps are left out")


@cache
def log_once(message: str) -> None:
    """A warning for the first time that a process has this message."""
    logger.warning(message)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is infinite or NaN, of sharded tensors in this process's part; one host synchronisation."""
    values = [part for part in (own_part(tensor.detach()) for tensor in tensors) if part.numel()]
    if not values:
        return True
    norms = torch._foreach_norm(values)  # carries infinities and NaN along, and is the fastest way over the values
    return bool(torch.stack([norm.to(norms[0]) for norm in norms]).isfinite().all())
