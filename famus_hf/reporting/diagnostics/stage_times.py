"""Seconds of the parts of single steps (Figure 1b); the device is synchronised in those steps alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.timer import NO_TIMER, Timer


class StageTimes:
    """Collects the seconds of one step.

    Attributes:
        seconds: Network → stage → seconds.

    Args:
        device: Where the stages compute.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.clock = NO_TIMER
        self.seconds: dict[str, dict[str, float]] = {}

    def begin(self, is_measured: bool) -> None:
        """Begin a step, before its data are loaded."""
        self.clock = Timer(self.device) if is_measured else NO_TIMER
        self.seconds = {}

    @property
    def is_measuring(self) -> bool:
        return self.clock is not NO_TIMER

    def start(self) -> None:
        """Start the clock of the step itself, once its data are loaded."""
        self._started = self.clock.now() if self.is_measuring else 0.0

    def start_of_optimizer(self) -> None:
        self._started_optimizer = self.clock.now() if self.is_measuring else 0.0

    def end_of_optimizer(self) -> None:
        if self.is_measuring:
            self._add("", "optimizer", self.clock.now() - self._started_optimizer)

    def end(self) -> dict[str, dict[str, float]]:
        """Return what the step took, by network and stage; empty where it was not measured or was plain."""
        if not self.is_measuring:
            return {}
        self._add("", "step", self.clock.now() - self._started)
        self._add("", "data", self.clock.seconds.get("data", 0.0))
        seconds, self.clock = self.seconds, NO_TIMER
        return seconds if any("forward" in stages for stages in seconds.values()) else {}

    @contextmanager
    def of(self, network: str, meta: MetaUpdate) -> Iterator[None]:
        """Take the times of a network's three stages in the body, in a step that is measured."""
        clock = meta.clock  # with a budget it measures every step, and goes on doing so
        if clock.device is None:
            meta.clock = Timer(self.device)
        before = dict(meta.clock.seconds)
        try:
            yield
            for stage, seconds in meta.clock.seconds.items():
                if seconds > before.get(stage, 0.0):
                    self._add(network, stage, seconds - before.get(stage, 0.0))
        finally:
            meta.clock = clock

    def _add(self, network: str, stage: str, seconds: float) -> None:
        stages = self.seconds.setdefault(network, {})
        stages[stage] = stages.get(stage, 0.0) + seconds
