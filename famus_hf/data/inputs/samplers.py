"""Which rows the training batches of an epoch are drawn of, where these are not all rows once: a function of seed and
epoch."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler):
    """An epoch of a fixed size, whose rows are drawn afresh in each one.

    Args:
        size: Examples of an epoch.
        seed: Of all draws; with `set_epoch` it decides an epoch's rows.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate calls this before each one, and after resuming."""
        self.epoch = epoch

    def __iter__(self) -> Iterator:
        yield from self._drawn(np.random.default_rng((self.seed, self.epoch)))

    def _drawn(self, generator: np.random.Generator) -> list:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.size


class ClassBalancedSampler(EpochSampler):
    """Rows of an epoch: the same number of each class, drawn afresh in each epoch and shuffled.

    Clothing1M is trained in this way, 1000 batches an epoch, balanced over the noisy labels (DivideMix). A class with
    fewer examples than its share is taken as often as it must be; classes without examples take no part. What is left
    over after an even split goes to classes drawn at random.

    Args:
        labels: Shape (N,), class indices.
        size: Examples of an epoch.
        seed: Of all draws.
    """

    def __init__(self, labels: Sequence[int], size: int, seed: int):
        super().__init__(size, seed)
        self.rows = _rows_of_classes(labels)

    def _drawn(self, generator: np.random.Generator) -> list[int]:
        shares = np.full(len(self.rows), self.size // len(self.rows))
        shares[generator.permutation(len(self.rows))[: self.size % len(self.rows)]] += 1
        drawn = [_draw(generator, rows, share) for rows, share in zip(self.rows, shares, strict=True)]
        rows: list[int] = generator.permutation(np.concatenate(drawn)).tolist()
        return rows


class ChosenRowsSampler(EpochSampler):
    """Some rows in place of all: they are gone through, in another order each time, until an epoch is full.

    Args:
        chosen: Returns the rows when an epoch begins, at least one.
        size: Examples of an epoch.
        seed: Of all draws.
    """

    def __init__(self, chosen: Callable[[], np.ndarray], size: int, seed: int):
        super().__init__(size, seed)
        self.chosen = chosen

    def _drawn(self, generator: np.random.Generator) -> list[int]:
        rows: list[int] = _draw(generator, self.chosen(), self.size).tolist()
        return rows


class PartnerSampler(EpochSampler):
    """Pairs of rows: all rows once, each with a partner whose class is the likelier the fewer examples it has.

    The reversed sampler of BBN (Zhou et al., CVPR 2020): a class of n_c examples is drawn with a probability that is
    proportional to 1/n_c, and then one of its examples, all alike.

    Args:
        labels: Shape (N,), class indices; a row whose label is below 0 is nobody's partner.
        seed: Of all draws.
    """

    def __init__(self, labels: Sequence[int], seed: int):
        super().__init__(len(labels), seed)
        self.rows = _rows_of_classes(labels)
        frequencies = np.array([1 / len(rows) for rows in self.rows])
        self.class_shares = frequencies / frequencies.sum()

    def _drawn(self, generator: np.random.Generator) -> list[tuple[int, int]]:
        own = generator.permutation(self.size)
        drawn = generator.multinomial(self.size, self.class_shares)
        partners = np.concatenate([generator.choice(rows, n) for rows, n in zip(self.rows, drawn, strict=True)])
        return list(zip(own.tolist(), generator.permutation(partners).tolist(), strict=True))


def _rows_of_classes(labels: Sequence[int]) -> list[np.ndarray]:
    """Return the rows of each class that has any."""
    array = np.asarray(labels)
    return [np.flatnonzero(array == label) for label in np.unique(array[array >= 0])]


def _draw(generator: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
    """Draw so many rows, each as often as another or once more."""
    rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate([*rounds, rows[:0]])[:count]  # rows[:0], as numpy refuses to join no arrays
