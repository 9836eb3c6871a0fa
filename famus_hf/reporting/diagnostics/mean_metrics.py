"""Means of what a run logs between two log entries (torch only)."""

import torch
from torch import Tensor

from famus_hf.core.parallel.processes import Processes


class MeanMetrics:
    """Sums by name; nothing waits for a GPU before the means are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}  # name → sum, count

    def add(self, name: str, value: Tensor) -> None:
        """Add one more value, a scalar."""
        total, count = self._sums.get(name, (torch.zeros_like(value), 0))
        self._sums[name] = (total + value, count + 1)

    def take(self, processes: Processes) -> dict[str, float]:
        """Return the means over all processes since the last time; what a process lacks is left out."""
        per_process = processes.objects({name: (total.item(), count) for name, (total, count) in self._sums.items()})
        self._sums.clear()
        names = dict.fromkeys(name for sums in per_process for name in sums)
        means = {}
        for name in names:
            totals, counts = zip(*(sums[name] for sums in per_process if name in sums), strict=True)
            means[name] = sum(totals) / sum(counts)
        return means
