"""Seconds spent in the named parts of a step (torch only)."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Timer:
    """`with timer("derivative"): …` adds to the seconds of that part, the device synchronised before and after.

    Args:
        device: Where the parts compute; None takes no time and synchronises nothing.

    Attributes:
        seconds: Part → seconds so far.
        times: Part → how often it was measured.
    """

    def __init__(self, device: torch.device | None = None):
        self.device = device
        self.seconds: dict[str, float] = {}
        self.times: dict[str, int] = {}

    def __call__(self, part: str) -> AbstractContextManager[None]:
        return nullcontext() if self.device is None else self._measured(part)

    @contextmanager
    def _measured(self, part: str) -> Iterator[None]:
        started = self.now()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + self.now() - started
        self.times[part] = self.times.get(part, 0) + 1

    def mean(self, part: str) -> float:
        """Return the seconds of the part each time."""
        return self.seconds[part] / self.times[part]

    def now(self) -> float:
        """Return the seconds on the clock once the device has done what it was told."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


NO_TIMER = Timer()
