"""What a run of run_famus.py takes: seconds of its steps and epochs, memory."""

import resource
import statistics
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback


class StepTimer(TrainerCallback):
    """Seconds of each training step alone, without the loading of its data."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.started = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.seconds.append(now() - self.started)

    @property
    def median_step(self) -> float | None:
        """Seconds; None where no step was taken."""
        return statistics.median(self.seconds) if self.seconds else None


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
