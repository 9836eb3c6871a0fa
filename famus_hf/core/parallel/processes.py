"""What the processes of a run tell each other in a step (torch only); without torch.distributed there is one.

A weight is divided by the sum over the *global* batch, so that the meta gradient is no mean of what each process finds
on its own share. Hence the small things are gathered, logits and their tangents, and each process takes the same
gradient by θ of the same global function; the large ones, gradients by w, are sums over the processes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

BUCKET_BYTES = 25 * 2**20  # gradients are summed in parts of about this size


class Processes:
    """The processes that train together, each on its own rows of every batch.

    Args:
        rank: Of this one, from 0.
        count: k.
        device: That they talk over.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None):
        self.rank, self.count, self.device = rank, count, device

    @classmethod
    def present(cls, device: torch.device | None = None) -> "Processes":
        """Return those of torch.distributed's default group; one where it is not in use."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(device=device)

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in order of their ranks, detached. (n, …) → (k·n, …); each gives n."""
        if self.count == 1:
            return rows
        rows = rows.detach().contiguous()  # as NCCL demands
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    def gathered_with_graph(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, as `gathered`, with the graph of this process's own."""
        if self.count == 1:
            return rows
        parts = list(self.gathered(rows).chunk(self.count))
        parts[self.rank] = rows
        return torch.cat(parts)

    def own(self, rows: Tensor) -> Tensor:
        """Return this process's part of what was gathered. (k·n, …) → (n, …)"""
        return rows.chunk(self.count)[self.rank]

    def gathered_unevenly(self, rows: Tensor) -> Tensor:
        """Return what `gathered` does, where processes have different numbers of rows. (n, …) → (N, …)"""
        if self.count == 1:
            return rows.detach()
        counts = self._row_counts(rows)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        return torch.cat(
            [block[:count] for block, count in zip(self.gathered(padded).chunk(self.count), counts, strict=True)]
        )

    def own_of(self, gathered: Tensor, own: Tensor) -> Tensor:
        """Return the part of what was gathered unevenly in the place of this process's rows. (N, …), (n, …) → (n, …)"""
        return gathered if self.count == 1 else gathered.split(self._row_counts(own))[self.rank]

    def rows_before(self, own: Tensor) -> int:
        """Return how many rows the processes before this one have. own: This one's, shape (n, …)."""
        return 0 if self.count == 1 else sum(self._row_counts(own)[: self.rank])

    def _row_counts(self, rows: Tensor) -> list[int]:
        return self.gathered(torch.tensor([len(rows)], device=rows.device)).tolist()

    def summed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return sums over the processes, by name; all give the same names and shapes."""
        if self.count == 1:
            return dict(tensors)
        sums: dict[str, Tensor] = {}
        for names in _buckets(tensors):
            flat = torch.cat([tensors[name].detach().reshape(-1) for name in names])
            dist.all_reduce(flat)
            values = flat.split([tensors[name].numel() for name in names])
            sums.update((name, value.view(tensors[name].shape)) for name, value in zip(names, values, strict=True))
        return {name: sums[name] for name in tensors}

    def mean(self, tensors: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """Return the mean over all rows of what each process gives as the mean over its own ones, by name."""
        if self.count == 1:
            return dict(tensors)
        weighted = {name: rows * tensor.detach() for name, tensor in tensors.items()}
        # " rows" is no parameter's name; summed with the others, it takes no message of its own.
        total = self.summed({**weighted, " rows": torch.tensor(float(rows), device=self.device)})
        return {name: total[name] / total[" rows"].to(total[name]) for name in tensors}

    def first(self, tensor: Tensor) -> Tensor:
        """Return the first process's values of a tensor that all have, detached."""
        if self.count == 1:
            return tensor.detach()
        values = tensor.detach().to(self.device, copy=True)
        dist.broadcast(values, src=0)
        return values.to(tensor.device)

    def first_object(self, value: Any) -> Any:
        """Return what the first process has."""
        if self.count == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]

    def of_first(self, action: Callable[[], Any]) -> Any:
        """Return what the action returns in the first process, which alone takes it; all raise its ValueError."""
        result, problem = None, None
        if self.rank == 0:
            try:
                result = action()
            except ValueError as error:
                problem = error
        result, problem = self.first_object((result, problem))
        if problem is not None:
            raise problem
        return result

    def objects(self, value: Any) -> list[Any]:
        """Return what each process has, in order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def all_true(self, condition: bool) -> bool:
        """Return whether it holds in every process."""
        if self.count == 1:
            return condition
        flag = torch.tensor(float(condition), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    def take_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace the values by those of the first process."""
        if self.count == 1:
            return
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(self.first(tensor))


def _buckets(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the names in order, in groups of one kind of number and about `BUCKET_BYTES`."""
    buckets: list[list[str]] = []
    held, kind = 0, None
    for name, tensor in tensors.items():
        if tensor.dtype != kind or held + tensor.nbytes > BUCKET_BYTES:
            buckets.append([])
            held, kind = 0, tensor.dtype
        buckets[-1].append(name)
        held += tensor.nbytes
    return buckets
