"""The meta batch of each step: a function of (seed, step) and, with a pseudo-clean set, of the rows chosen last."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.parallel.processes import Processes
from famus_hf.data.inputs.augmentation import make_generator
from famus_hf.training_args import FaMUSTrainingArguments


class MetaBatches:
    """Batches of the meta set, prefetched by a DataLoader that starts where a resumed run left off.

    Args:
        dataset: The meta set.
        args: Their size, seed, and how data are loaded.
        collate: From examples to a batch.
        processes: Among which each batch is shared out.
        batch_size: Of each process; default: `args.meta_batch_size`.
        seed: Default: `args.seed`.
    """

    def __init__(
        self,
        dataset: Any,
        args: FaMUSTrainingArguments,
        collate: Callable[[list[Any]], Any],
        processes: Processes,
        *,
        batch_size: int | None = None,
        seed: int | None = None,
    ):
        self.dataset, self.args, self.collate, self.processes = dataset, args, collate, processes
        self.batch_size = batch_size or args.meta_batch_size or args.per_device_train_batch_size
        self.seed = args.seed if seed is None else seed
        self._batches: Iterator[Any] | None = None

    def next(self, step: int) -> Any:
        """Return the batch of the step that follows the one asked for before, or of any step after `restart`."""
        if self._batches is None:
            global_batch_size = self.batch_size * self.processes.count
            share = (self.processes.rank, self.processes.count)
            loader = DataLoader(
                self.dataset,
                batch_sampler=MetaBatchSampler(len(self.dataset), global_batch_size, self.seed, step, share),
                collate_fn=self.collate,
                pin_memory=self.args.dataloader_pin_memory,
                **_loading(self.args),
                generator=torch.Generator(),  # its own: the loader must not draw from the global one
            )
            self._batches = iter(loader)
        with preserve_rng_state(self.args.device):  # an augmentation may draw
            return next(self._batches)

    def redrawn(self, *numbers: int) -> Any:
        """Draw a batch beside those of the steps, all examples different: a function of the seed and these numbers."""
        order = torch.randperm(len(self.dataset), generator=make_generator(self.seed, *numbers)).numpy()
        shares = np.array_split(order[: self.batch_size * self.processes.count], self.processes.count)
        with preserve_rng_state(self.args.device):
            return self.collate([self.dataset[int(row)] for row in shares[self.processes.rank]])

    def restart(self) -> None:
        """End the workers; the next batch is of whatever the meta set is then."""
        self._batches = None


def in_order(dataset: Any, args: FaMUSTrainingArguments, collate: Callable[[list[Any]], Any]) -> Iterator[Any]:
    """Yield all examples once, in batches for evaluation; draw nothing from the global generators."""
    loader = DataLoader(
        dataset,
        batch_size=args.per_device_eval_batch_size,
        collate_fn=collate,
        generator=torch.Generator(),
        **_loading(args),
    )
    with preserve_rng_state(args.device):
        yield from loader


def _loading(args: FaMUSTrainingArguments) -> dict[str, Any]:
    """Return what a DataLoader's workers are, as in Trainer's own loaders."""
    return {
        "num_workers": args.dataloader_num_workers,
        "multiprocessing_context": args.dataloader_multiprocessing_context,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "in_order": args.dataloader_in_order,
    }


class MetaBatchSampler:
    """An endless stream of meta batches in which the batch of a step is a function of (seed, step) alone.

    The meta set is shuffled anew whenever less than a batch of it is left.

    Args:
        size: Examples in the meta set.
        batch_size: m; at most `size` are taken.
        seed: Of the shuffles.
        start: The step to begin with.
        part: (r, k): of each batch only the r-th of k parts.
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int = 0, part: tuple[int, int] = (0, 1)):
        self.size = size
        self.part = part
        self.batch_size = min(batch_size, size)
        self.seed = seed
        self.start = start

    def batch(self, step: int) -> list[int]:
        """Return the rows of the meta set for this step (of its part), all different."""
        round_, place = divmod(step, self.size // self.batch_size)
        order = np.random.default_rng((self.seed, round_)).permutation(self.size)
        batch = order[place * self.batch_size : (place + 1) * self.batch_size]
        rank, count = self.part
        return np.array_split(batch, count)[rank].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            yield self.batch(step)
            step += 1
