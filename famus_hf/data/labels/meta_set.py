"""The clean meta set: held out of the training split, class-balanced, never corrupted, never also in train."""

from collections.abc import Sequence

import numpy as np
from transformers.utils import logging

from famus_hf.data.labels.noise import generator_for
from famus_hf.errors import DataError, first_few

logger = logging.get_logger(__name__)


def default_num_meta(num_train: int, num_labels: int) -> int:
    """Return min(1000, 10 % of the training split), rounded down to a multiple of the number of classes."""
    return min(1000, num_train // 10) // num_labels * num_labels


def balanced_shares(size: int, num_labels: int) -> list[int]:
    """Return how many examples each class has in a set of this size: the first ones get what an even split leaves."""
    return [size // num_labels + (label < size % num_labels) for label in range(num_labels)]


def class_balanced_holdout(
    labels: Sequence[int] | np.ndarray,
    num_meta: int,
    num_labels: int,
    seed: int,
    first: bool = False,
    kept: int = 1,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into a class-balanced meta set and the rest.

    Classes that have too few examples for an even share give what they have to spare, and the others make up for it.

    Args:
        labels: Shape (N,), clean class indices. Classes that do not occur count for nothing.
        num_meta: Size of the meta set. What is left over after an even split goes to the first classes, one each.
        num_labels: C.
        seed: Of the draw.
        first: Take the first rows of each class and draw nothing.
        kept: How many examples of each class stay in the rest at least.
        names: Of the classes, for messages.

    Returns:
        Rows of the meta set and rows of the rest, each in ascending order.

    Raises:
        DataError: Fewer examples than classes were asked for, or more than there are to spare.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels, minlength=num_labels)
    present = np.flatnonzero(counts)
    spare = np.maximum(counts[present] - kept, 0)
    if num_meta > spare.sum():
        most = f"choose at most {spare.sum()}, or " if spare.sum() >= len(present) else ""
        raise DataError(
            f"num_meta={num_meta} is more than the {spare.sum()} examples that {len(present)} classes have to spare, "
            f"as each keeps {kept} to train on: {most}give trusted examples of their own (meta_dir)"
        )
    if num_meta < len(present):
        raise DataError(
            f"num_meta={num_meta} leaves some of the {len(present)} classes without a meta example: "
            f"choose at least {len(present)}"
        )
    shares = shares_within(num_meta, spare)
    short = present[spare < num_meta // len(present)]
    if len(short):
        logger.warning(
            f"{len(short)} of {len(present)} classes have too few examples for an even share of the meta set "
            f"({first_few(f'{label if names is None else names[label]} has {counts[label]}' for label in short)}): "
            "others make up for it"
        )
    generator = generator_for("meta set", seed)
    chosen = []
    for label, share in zip(present, shares, strict=True):
        rows = np.flatnonzero(labels == label)
        chosen.append(rows[:share] if first else generator.choice(rows, share, replace=False))
    meta = np.sort(np.concatenate(chosen))
    return meta, np.setdiff1d(np.arange(len(labels)), meta)


def shares_within(size: int, limits: np.ndarray) -> list[int]:
    """Return how many examples each class has in a set of this size, as even as its limits allow.

    Args:
        size: At most the sum of the limits.
        limits: Shape (C,), the most that each class can give.
    """
    shares = np.zeros(len(limits), dtype=int)
    while (missing := size - shares.sum()) > 0:
        open_ = np.flatnonzero(shares < limits)
        shares[open_] += np.minimum(balanced_shares(missing, len(open_)), limits[open_] - shares[open_])
    return shares.tolist()


def check_no_overlap(train_index: Sequence[int], meta_index: Sequence[int]) -> None:
    """Raise DataError if a row of the source split is both in train and in the meta set."""
    shared = sorted(set(train_index) & set(meta_index))
    if shared:
        raise DataError(
            f"{len(shared)} meta examples are also in the training set (index {first_few(shared)}): a "
            f"meta set must be held out of it"
        )
