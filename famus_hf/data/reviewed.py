"""Reviewed examples as trusted ones: from decisions to the meta set, and to better labels to test on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from famus_hf.data.fingerprint import fingerprint_of_splits
from famus_hf.data.labels.class_names import occurring_names
from famus_hf.data.labels.decisions import Decision, Decisions, check_decisions, read_decisions
from famus_hf.data.labels.split import LabelSplit, rows_without_copies
from famus_hf.errors import DataError, first_few


def decisions_on(splits: DatasetDict, path: Path) -> Decisions:
    """Read decisions and check that they are on these data.

    Args:
        splits: Of `load_splits`.
        path: Of the file.

    Raises:
        DataError: The file can't be read, is on other data, or has labels that are no classes of theirs.
    """
    decisions = read_decisions(path)
    sizes = {split: len(dataset) for split, dataset in splits.items()}
    check_decisions(decisions, fingerprint_of_splits(splits), sizes, occurring_names(splits["train"]))
    return decisions


def trust_reviewed(division: LabelSplit, decisions: Decisions, train: Dataset) -> None:
    """Make the reviewed training examples the meta set, beside one that there is, with the labels they were given.

    Args:
        division: Of the training split, which is changed.
        decisions: Checked.
        train: The whole training split; copies of reviewed examples are left out of what is trained on.

    Raises:
        DataError: No training example was reviewed, or the labels that were reviewed are not those of the division.
    """
    reviewed = decisions.of_split("train")
    if not reviewed:
        raise DataError("the decisions are on no training example, so that none can be trusted: review some")
    rows = np.array([decision.index for decision in reviewed])
    names = train.features["label"].names
    now = [names[label] for label in division.labels[rows]]
    trained_on = np.isin(rows, division.train)
    other = [
        own.index for own, label, counts in zip(reviewed, now, trained_on, strict=True) if counts and own.label != label
    ]
    if other:
        raise DataError(
            f"{len(other)} of {len(rows)} reviewed labels are not those of the training examples (index "
            f"{first_few(other)}): where a run drew wrong labels, give its noise.parquet with noise_file"
        )
    division.labels[rows] = reviewed_labels(train, reviewed)[rows]
    division.meta = np.union1d(division.meta, rows)
    division.train = np.setdiff1d(division.train, rows)
    kept = rows_without_copies(train.select(division.train), train.select(division.meta))
    division.train = division.train[kept]


def reviewed_labels(dataset: Dataset, reviewed: Sequence[Decision]) -> np.ndarray:
    """Return the labels of a split, shape (N,), with those of its reviewed examples in their place."""
    labels = np.array(dataset["label"][:])
    number_of = {name: number for number, name in enumerate(dataset.features["label"].names)}
    for decision in reviewed:
        labels[decision.index] = number_of[decision.reviewed_label]
    return labels
