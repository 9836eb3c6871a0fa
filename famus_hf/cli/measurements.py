"""What a run takes: seconds of its steps and epochs, memory."""

import resource
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from famus_hf.core.timer import Timer

STATUS = Path("/proc/self/status")  # of a process on Linux, in kilobytes


class StepTimer(TrainerCallback):
    """Seconds of each training step alone, without the loading of its data.

    Attributes:
        seconds: Of each step.
        cycle: Steps of which one is a meta step: `meta_interval`.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cycle = 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.cycle = int(getattr(args, "meta_interval", 1))
        self.started = Timer(args.device).now()

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.seconds.append(Timer(args.device).now() - self.started)

    @property
    def per_step(self) -> list[float]:
        """Return the mean seconds of a step of each whole cycle, which has one meta step; of all steps before one."""
        starts = range(0, len(self.seconds) - self.cycle + 1, self.cycle)
        cycles = [self.seconds[start : start + self.cycle] for start in starts] or [self.seconds]
        return [statistics.fmean(cycle) for cycle in cycles if cycle]

    @property
    def seconds_per_step(self) -> float | None:
        """Return the median over whole cycles; None where no step was taken."""
        return statistics.median(self.per_step) if self.seconds else None


def start_measuring_memory(device: torch.device) -> None:
    """Measure from here on, on a GPU; the peak of a process on the CPU can't be taken back."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most that torch had on the GPU; on the CPU, the most that the process had since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.is_file():  # getrusage counts what the process held that started this one, too
        (highest,) = (line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(highest) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kilobytes, but on macOS in bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
