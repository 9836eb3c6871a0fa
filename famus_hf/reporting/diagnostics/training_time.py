"""Seconds that a run has trained, over all its resumes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from famus_hf.storage.saved_state import is_number


# transformers saves a callback's state under the name of its class: another name would not find that of older runs.
class TrainingTime(TrainerCallback, ExportableState):
    """The clock of a run; evaluations, checkpoints and diagnostics stop it, loading of data does not.

    Attributes:
        earlier: Seconds before the checkpoint from which this training went on.
    """

    def __init__(self) -> None:
        self.earlier = 0.0
        self._started: float | None = None
        self._left_out = 0.0
        self._stops = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if not is_number(0)(self.earlier):  # a checkpoint may say anything
            self.earlier = 0.0
        self._started, self._left_out, self._stops = time.perf_counter(), 0.0, 0

    @property
    def seconds(self) -> float | None:
        """Seconds so far; None before the first training."""
        if self._started is None:
            return None
        now = self._stopped_at if self._stops else time.perf_counter()
        return self.earlier + now - self._started - self._left_out

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out what runs in the body, which is no training; it may be nested."""
        if not self._stops:
            self._stopped_at = time.perf_counter()
        self._stops += 1
        try:
            yield
        finally:
            self._stops -= 1
            if not self._stops:
                self._left_out += time.perf_counter() - self._stopped_at

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"earlier": self.seconds or 0.0}}

    def on_train_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._stops, self._stopped_at = 1, time.perf_counter()  # for good
