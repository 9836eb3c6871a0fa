"""Long tails: sizes as in the literature, drawn within classes."""

import numpy as np
import pytest

from famus_hf import load_noisy_dataset
from famus_hf.data.labels.long_tail import long_tail_counts, long_tail_rows

LABELS = np.repeat(np.arange(10), 2000)


def test_long_tails_have_the_sizes_of_the_literature():
    assert long_tail_counts(50_000, 10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(long_tail_counts(50_000, 100, 100)) == 10_847  # CIFAR-100-LT of Cao et al. 2019
    assert long_tail_counts(1000, 10, 1) == [100] * 10
    for factor, sentence in ((0.5, "at least 1"), (1000, "choose at most 100"), (float("nan"), "at least 1")):
        with pytest.raises(ValueError, match=sentence):
            long_tail_counts(1000, 10, factor)


def test_long_tails_are_drawn_within_classes():
    rows = long_tail_rows(LABELS, 10, 50, seed=0)
    assert np.bincount(LABELS[rows]).tolist() == long_tail_counts(len(LABELS), 10, 50)
    assert np.array_equal(rows, np.unique(rows))
    assert not np.array_equal(rows, long_tail_rows(LABELS, 10, 50, seed=1))


def test_long_tailed_data_keep_the_first_ten_of_each_class_as_meta_set():
    data = load_noisy_dataset("digits", imbalance_factor=20, seed=1)
    whole = load_noisy_dataset("digits", num_meta=0)["train"]
    labels = np.array(whole["label"][:])
    expected = sorted(row for label in range(10) for row in np.flatnonzero(labels == label)[:10])
    assert data["meta"]["index"][:] == expected
    available = np.bincount(labels) - 10
    assert (
        np.bincount(data["train"]["label"][:]).tolist()
        == np.minimum(long_tail_counts(1437 - 100, 10, 20), available).tolist()
    )
    assert len(data["test"]) == 360, "the test split is unchanged"
