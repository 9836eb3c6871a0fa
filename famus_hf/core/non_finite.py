"""What is done about numbers that are not finite: the run stops, or the step is left out (torch only)."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_pass import cloned_buffers
from famus_hf.core.parallel.dtensor import abandon_passes, own_part
from famus_hf.core.parallel.processes import Processes

NanPolicy = Literal["stop", "skip"]
LOGITS, META_GRADIENT = "the network's logits", "the meta gradient"
MOST_IN_A_ROW = 100  # faults of one kind, after which nothing is to be hoped for

logger = logging.getLogger("famus_hf")


class NotFiniteError(ArithmeticError):
    """Something in a step is not finite. A guard's `step` leaves that step out; the text says what it was."""


@dataclass
class GuardedStep:
    """A step of training.

    Attributes:
        loss: A detached scalar; zero where the step was left out.
    """

    loss: Tensor


class NonFiniteGuard:
    """Counts the steps of a run in which something was not finite, and leaves them out.

    Args:
        policy: `"stop"`: the first one ends the run. `"skip"`: such a step moves nothing, and the log says so once;
            the run ends where 100 of one kind come in a row.
        processes: That train together.
        scaler: Returns fp16's GradScaler, if there is one. With it a gradient that is not finite is no fault, but how
            it finds its scale.

    Attributes:
        count: Steps left out so far, for whatever reason.
        meta_count: Steps so far that moved the network alone, and neither θ nor η.
    """

    def __init__(self, policy: str, processes: Processes | None = None, scaler: Callable[[], Any] = lambda: None):
        self.policy, self.processes, self.scaler = policy, processes or Processes(), scaler
        self.count = self.meta_count = 0
        self._is_meta_step_sound = True
        self._in_a_row: dict[str, int] = {}

    @contextmanager
    def step(
        self, network: nn.Module, number: int, what: str = "the gradient", undo: Callable[[], None] = lambda: None
    ) -> Iterator[GuardedStep]:
        """Guard the body, in which the network gets its gradients: where they or the loss are not finite, undo it.

        The network is then as it was, running statistics included; gradients are emptied, and with them those of
        micro-batches accumulated before.

        Args:
            network: That is trained.
            number: Of the optimizer's step.
            what: How an error calls the loss and the gradients.
            undo: Takes back what else has moved.

        Raises:
            FloatingPointError: The run is to stop.
        """
        buffers = cloned_buffers(network)
        device = next(network.parameters()).device
        step = GuardedStep(torch.zeros((), device=device))
        self._is_meta_step_sound = True
        try:
            yield step
        except NotFiniteError as error:
            undo()
            self._leave_out(network, buffers)
            self.failed(str(error), number)
            step.loss = torch.zeros((), device=device)
            return
        self.passed(LOGITS)
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        if self.processes.all_true(all_finite([step.loss, *gradients])):
            self.passed(what)
            if not self._is_meta_step_sound:
                self._meta_step_failed(number)
            return
        network.zero_grad()
        undo()
        self._leave_out(network, buffers)
        if self.scaler() is None:
            self.failed(what, number)
        step.loss = torch.zeros((), device=device)

    def _leave_out(self, network: nn.Module, buffers: dict[str, Tensor]) -> None:
        abandon_passes(network)
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])
            if self.scaler() is not None:  # which must see this step, to leave it out and to scale less
                for parameter in network.parameters():
                    parameter.grad = torch.full_like(parameter, torch.inf) if parameter.requires_grad else None

    def passed(self, what: str) -> None:
        """Note that in this step it was finite."""
        self._in_a_row[what] = 0

    def note_meta_step(self, is_finite: bool) -> None:
        """Note whether θ and η could move in this step, in which the network may all the same."""
        self._is_meta_step_sound = is_finite
        if is_finite:
            self.passed(META_GRADIENT)

    def _meta_step_failed(self, number: int) -> None:
        self.meta_count += 1
        self._failed(META_GRADIENT, number, "such meta steps are left out, and the network learns without them")

    def failed(self, what: str, number: int) -> None:
        """Note that in this step of the optimizer it was not. Raise FloatingPointError where the run is to stop."""
        self.count += 1
        self._failed(what, number, "such steps are left out")

    def _failed(self, what: str, number: int, consequence: str) -> None:
        self._in_a_row[what] = self._in_a_row.get(what, 0) + 1
        advice = "look at the data and at the learning rates; what was saved before is sound"
        if self.policy == "stop":
            raise FloatingPointError(
                f"step {number}: {what} held values that are not finite: {advice}, and nan_policy 'skip' leaves such "
                "steps out"
            )
        if self._in_a_row[what] >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"step {number}: {what} held values that are not finite {MOST_IN_A_ROW} times in a row: {advice}"
            )
        log_once(f"{what} held values that are not finite: {consequence}")


@cache
def log_once(message: str) -> None:
    """Warn for the first time that a process has this message."""
    logger.warning(message)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no value is infinite or NaN, of sharded tensors in this process's part. One synchronisation."""
    values = [shard for shard in (own_part(tensor.detach()) for tensor in tensors) if shard.numel()]
    if not values:
        return True
    norms = torch._foreach_norm(values)  # carries infinities and NaN along, and is the fastest way over the values
    return bool(torch.stack([norm.to(norms[0]) for norm in norms]).isfinite().all())
