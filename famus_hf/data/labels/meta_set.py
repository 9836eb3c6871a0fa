"""The clean meta set: held out of the training split, class-balanced, never corrupted, never also in train."""

from collections.abc import Sequence

import numpy as np

from famus_hf.errors import DataError, first_few


def default_num_meta(num_train: int, num_labels: int) -> int:
    """Return min(1000, 10 % of the training split), rounded down to a multiple of the number of classes."""
    return min(1000, num_train // 10) // num_labels * num_labels


def balanced_shares(size: int, num_labels: int) -> list[int]:
    """Return how many examples each class has in a set of this size: the first ones get what an even split leaves."""
    return [size // num_labels + (label < size % num_labels) for label in range(num_labels)]


def class_balanced_holdout(
    labels: Sequence[int] | np.ndarray, num_meta: int, num_labels: int, seed: int, first: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into a class-balanced meta set and the rest.

    Args:
        labels: Shape (N,), clean class indices.
        num_meta: Size of the meta set. What is left over after an even split goes to the first classes, one each.
        num_labels: C.
        seed: Of the draw.
        first: Take the first rows of each class and draw nothing.

    Returns:
        Rows of the meta set and rows of the rest, each in ascending order.

    Raises:
        DataError: Fewer examples than classes were asked for, or a class has too few.
    """
    if num_meta < num_labels:
        raise DataError(
            f"num_meta={num_meta} leaves some of the {num_labels} classes without a meta example: "
            f"choose at least {num_labels}"
        )
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    shares = balanced_shares(num_meta, num_labels)
    counts = np.bincount(labels, minlength=num_labels)
    # <= and not <: a class keeps at least one example to train on.
    small = [label for label in range(num_labels) if counts[label] <= shares[label]]
    if small:
        sizes = first_few(f"class {label} has {counts[label]} in all" for label in small)
        raise DataError(
            f"num_meta={num_meta} takes {shares[0]} examples of each class, which {len(small)} of {num_labels} classes "
            f"do not have to spare ({sizes}): choose a smaller num_meta"
        )
    chosen = []
    for label in range(num_labels):
        rows = np.flatnonzero(labels == label)
        chosen.append(rows[: shares[label]] if first else generator.choice(rows, shares[label], replace=False))
    meta = np.sort(np.concatenate(chosen))
    return meta, np.setdiff1d(np.arange(len(labels)), meta)


def check_no_overlap(train_index: Sequence[int], meta_index: Sequence[int]) -> None:
    """Raise DataError if a row of the source split is both in train and in the meta set."""
    shared = sorted(set(train_index) & set(meta_index))
    if shared:
        raise DataError(
            f"{len(shared)} meta examples are also in the training set (index {first_few(shared)}): a "
            f"meta set must be held out of it"
        )
