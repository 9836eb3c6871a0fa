"""Epochs of a fixed number of batches with as many examples of one class as of another."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class ClassBalancedSampler(Sampler[int]):
    """Rows of an epoch: the same number of each class, drawn afresh in each epoch and shuffled.

    Clothing1M is trained in this way, 1000 batches an epoch, balanced over the noisy labels (DivideMix). A class with
    fewer examples than its share is taken as often as it must be; classes without examples take no part. What is left
    over after an even split goes to classes drawn at random.

    Args:
        labels: Shape (N,), class indices.
        size: Examples of an epoch.
        seed: Of all draws; with `set_epoch` it decides an epoch's rows.
    """

    def __init__(self, labels: Sequence[int], size: int, seed: int):
        array = np.asarray(labels)
        self.rows = [np.flatnonzero(array == label) for label in np.unique(array)]
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate calls this before each one, and after resuming."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        shares = np.full(len(self.rows), self.size // len(self.rows))
        shares[generator.permutation(len(self.rows))[: self.size % len(self.rows)]] += 1
        drawn = [_draw(generator, rows, share) for rows, share in zip(self.rows, shares, strict=True)]
        yield from generator.permutation(np.concatenate(drawn)).tolist()

    def __len__(self) -> int:
        return self.size


def _draw(generator: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    """Draw so many rows, each as often as another or once more."""
    rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate([*rounds, rows[:0]])[:count]  # rows[:0], as numpy refuses to join no arrays
