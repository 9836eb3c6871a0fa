"""The meta batch of each step: a function of (seed, step) and, with a pseudo-clean set, of the rows chosen last."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from famus_hf.core.autodiff.forward_pass import random_state_kept
from famus_hf.core.parallel.processes import Processes
from famus_hf.data.inputs.augmentation import make_generator
from famus_hf.data.labels.meta_set import MetaBatchSampler
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
        """The batch of the step that follows the one asked for before, or of any step after `restart`."""
        if self._batches is None:
            wanted = self.batch_size * self.processes.count
            part = (self.processes.rank, self.processes.count)
            loader = DataLoader(
                self.dataset,
                batch_sampler=MetaBatchSampler(len(self.dataset), wanted, self.seed, step, part),
                collate_fn=self.collate,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                generator=torch.Generator(),  # its own: the loader must not draw from the global one
            )
            self._batches = iter(loader)
        with random_state_kept(self.args.device):  # an augmentation may draw
            return next(self._batches)

    def redrawn(self, *numbers: int) -> Any:
        """A batch beside those of the steps, all examples different: a function of the seed and these numbers."""
        order = torch.randperm(len(self.dataset), generator=make_generator(self.seed, *numbers)).numpy()
        parts = np.array_split(order[: self.batch_size * self.processes.count], self.processes.count)
        with random_state_kept(self.args.device):
            return self.collate([self.dataset[int(row)] for row in parts[self.processes.rank]])

    def restart(self) -> None:
        """Ends the workers; the next batch is of whatever the meta set is then."""
        self._batches = None


def in_order(dataset: Any, args: FaMUSTrainingArguments, collate: Callable[[list[Any]], Any]) -> Iterator[Any]:
    """All examples once, in batches for evaluation; draws nothing from the global generators."""
    loader = DataLoader(
        dataset,
        batch_size=args.per_device_eval_batch_size,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        generator=torch.Generator(),
    )
    with random_state_kept(args.device):
        yield from loader
