"""Which rows of the training split are trained on and which are the clean meta set, with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from famus_hf.data.labels.class_maps import known_class_map
from famus_hf.data.labels.duplicates import same_content
from famus_hf.data.labels.long_tail import long_tail_rows
from famus_hf.data.labels.meta_set import class_balanced_holdout, default_num_meta
from famus_hf.data.labels.noise import corrupt_labels
from famus_hf.data.labels.noise_file import NoiseFile, by_names_of, check_noise_file
from famus_hf.data.media.images import pixel_features
from famus_hf.errors import DataError, first_few

LONG_TAIL_META = 10  # clean meta examples of each class of a long-tailed set

logger = logging.get_logger(__name__)


@dataclass
class LabelSplit:
    """The training split, divided.

    Attributes:
        labels: Shape (N,), possibly wrong; those of the meta set are clean.
        clean: Shape (N,), or None where they are not known.
        num_labels: C.
        train: Rows to train on, ascending.
        meta: Rows of the clean meta set, ascending; may be empty.
    """

    labels: np.ndarray
    clean: np.ndarray | None
    num_labels: int
    train: np.ndarray
    meta: np.ndarray

    def within(self, rows: np.ndarray, labels: np.ndarray, clean: np.ndarray | None) -> "LabelSplit":
        """Return this division of a part as one of the whole.

        Args:
            rows: Of the part, in the whole.
            labels: Shape of the whole; outside of the part they stay.
            clean: Likewise.
        """
        labels = labels.copy()
        labels[rows] = self.labels
        return LabelSplit(labels, clean, self.num_labels, rows[self.train], rows[self.meta])


def divide(
    labels: np.ndarray,
    clean: np.ndarray | None,
    num_labels: int,
    num_meta: int | None,
    imbalance_factor: float | None,
    seed: int,
    names: Sequence[str] | None = None,
) -> LabelSplit:
    """Hold out a class-balanced meta set by the clean labels, and make the rest long-tailed if asked to.

    Args:
        labels: Shape (N,).
        clean: Shape (N,); needed where there is something to hold out. Without it a long tail is of the given labels.
        num_labels: C.
        num_meta: Size of the meta set. None: min(1000, 10 % of N), or 10 of each class of a long-tailed set.
        imbalance_factor: Largest class over smallest. The meta set is then the first examples of each class, as in
            the paper's Table 8, and else a seeded draw.
        seed: Of the draws.
        names: Of the classes, for messages.

    Raises:
        DataError: Sizes that the data do not have.
    """
    long_tailed = imbalance_factor is not None
    if num_meta is None:
        present = len(np.unique(labels if clean is None else clean))
        num_meta = LONG_TAIL_META * present if long_tailed else default_num_meta(len(labels), present)
        if num_meta == 0:
            raise DataError(
                f"{len(labels)} training examples of {present} classes are too few for a meta set of 10 %: set "
                f"num_meta to {present} or more, or give trusted examples of their own (meta_dir)"
            )
    division = LabelSplit(labels.copy(), clean, num_labels, np.arange(len(labels)), np.arange(0))
    if num_meta > 0:
        assert clean is not None
        division.meta, division.train = class_balanced_holdout(
            clean, num_meta, num_labels, seed, first=long_tailed, names=names
        )
        division.labels[division.meta] = clean[division.meta]
    if imbalance_factor is not None:
        classes = (labels if clean is None else clean)[division.train]
        division.train = division.train[long_tail_rows(classes, num_labels, imbalance_factor, seed)]
    return division


def divide_as(
    noise_file: NoiseFile,
    labels: np.ndarray,
    clean: np.ndarray | None,
    class_names: list[str],
    num_meta: int | None,
    seed: int,
) -> LabelSplit:
    """Return the rows and labels of another run.

    Args:
        noise_file: What that run left. Its meta set is used too, unless another size is asked for.
        labels: Shape (N,), of the source.
        clean: Shape (N,), where the source's clean labels are known: the file's must be the same.
        class_names: Of the C classes; those of the file are found by their names, where it has any.
        num_meta: None: that run's meta set, or none where the file names none; 0: none; else held out of the rows that
            the file does not name.
        seed: Of the latter.

    Raises:
        DataError: The file was made for other data.
    """
    num_labels, noise_file = len(class_names), by_names_of(noise_file, class_names)
    drawn_here = noise_file.metadata.get("noise", 0) > 0  # then the data's own labels counted as clean
    check_noise_file(noise_file, len(labels), num_labels, labels if drawn_here else clean)
    if clean is None and noise_file.clean_labels is not None:
        clean = labels.copy()  # of other rows nothing better is known
        clean[noise_file.index] = noise_file.clean_labels
    division = LabelSplit(labels.copy(), clean, num_labels, np.sort(noise_file.index), np.arange(0))
    division.labels[noise_file.index] = noise_file.labels
    named_meta = np.array(noise_file.metadata.get("meta_index", []), dtype=int)
    if num_meta in (None, len(named_meta)):
        division.meta = named_meta
    elif num_meta:
        others = np.setdiff1d(np.arange(len(labels)), division.train)
        trusted = labels if clean is None else clean
        division.meta = others[class_balanced_holdout(trusted[others], num_meta, num_labels, seed)[0]]
    if len(division.meta) and clean is not None:
        division.labels[division.meta] = clean[division.meta]
    return division


def corrupt(
    division: LabelSplit,
    dataset: Dataset,
    noise: float,
    noise_type: str,
    exact_count: bool,
    class_map: Sequence[int] | None,
    seed: int,
) -> None:
    """Draw wrong labels for the rows to train on; the arguments are those of `corrupt_labels`."""
    assert division.clean is not None
    if noise_type == "instance" and "image" not in dataset.features:
        raise DataError("noise_type 'instance' depends on pixels, and these data have no images: choose another one")
    rows = dataset.select(division.train)
    division.labels[division.train], _ = corrupt_labels(
        division.clean[division.train],
        noise,
        noise_type,
        division.num_labels,
        seed,
        exact_count=exact_count,
        class_map=known_class_map(rows) if class_map is None and noise_type == "asymmetric" else class_map,
        features=pixel_features(rows) if noise_type == "instance" else None,
    )


def rows_without_copies(train: Dataset, meta: Dataset) -> np.ndarray:
    """Return the rows of train whose image, text or recording is not in the meta set as well, byte for byte."""
    copies = same_content(train, meta)
    if copies:
        index = first_few(train.select(copies)["index"][:])
        logger.warning(f"{len(copies)} training examples are copies of meta examples and left out (index {index})")
    return np.setdiff1d(np.arange(len(train)), copies)
