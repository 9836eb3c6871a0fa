"""What a run of run_famus.py takes: seconds of its steps and epochs, memory."""

import resource
import statistics
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback


class StepTimer(TrainerCallback):
    """Seconds of each training step alone, and of all steps with the loading of their data.

    Evaluation and checkpoints are in neither. The division of the training set is in the step that it precedes.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.training_seconds = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.went_on = now()

    on_log = on_evaluate = on_save = on_epoch_begin  # after which training goes on

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.started = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        ended = now()
        self.seconds.append(ended - self.started)
        self.training_seconds += ended - self.went_on
        self.went_on = ended

    @property
    def median_step(self) -> float | None:
        """Seconds; None where no step was taken."""
        return statistics.median(self.seconds) if self.seconds else None

    def seconds_per_epoch(self, state: Any) -> float | None:
        """The mean over the epochs of this training, warm-up included; None where no step was taken."""
        if not self.seconds or not state.epoch:
            return None
        return float(self.training_seconds / len(self.seconds) * state.global_step / state.epoch)


def now() -> float:
    """Seconds on the clock once a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def start_measuring_memory(device: torch.device) -> None:
    """From here on, on a GPU; the peak of a process on the CPU can't be taken back."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """The most that torch had on the GPU; on the CPU, the most that the process had since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kilobytes, but on macOS in bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
