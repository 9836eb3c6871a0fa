"""Long-tailed training sets: class sizes that fall exponentially from the first class to the last."""

import numpy as np

from famus_hf.data.labels.noise import generator_for
from famus_hf.errors import DataError


def long_tail_counts(num_train: int, num_labels: int, imbalance_factor: float) -> list[int]:
    """Return n_i = int(n_max · IF^(−i/(C−1))) with n_max = num_train / C (Cui et al. 2019; paper, Table 8).

    Args:
        num_train: Examples without the meta set.
        num_labels: C.
        imbalance_factor: IF = n_0 / n_(C−1), at least 1.

    Raises:
        DataError: An imbalance factor below 1, or one that leaves a class without examples.
    """
    if not imbalance_factor >= 1:
        raise DataError(f"imbalance_factor={imbalance_factor} is the largest class over the smallest: at least 1")
    largest = num_train / num_labels
    counts = [int(largest * imbalance_factor ** (-i / max(num_labels - 1, 1))) for i in range(num_labels)]
    if counts[-1] < 1:
        raise DataError(
            f"imbalance_factor={imbalance_factor:g} leaves the last class without examples: with {num_train} examples "
            f"of {num_labels} classes choose at most {largest:.0f}"
        )
    return counts


def long_tail_rows(labels: np.ndarray, num_labels: int, imbalance_factor: float, seed: int) -> np.ndarray:
    """Draw the rows of a long-tailed subset within each class, in ascending order.

    Args:
        labels: Shape (N,), clean class indices without those of the meta set.
        num_labels: C.
        imbalance_factor: See `long_tail_counts`; a class that is too small is taken whole.
        seed: Of the draw.
    """
    generator = generator_for("long tail", seed)
    counts = long_tail_counts(len(labels), num_labels, imbalance_factor)
    kept = [generator.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(counts)]
    return np.sort(np.concatenate(kept))
