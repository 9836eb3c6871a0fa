"""Where examples and labels come from: digits, the Hub, local folders, benchmarks with a layout of their own.

Each source gives a DatasetDict with the splits `train` and `test` and whatever else it has (`validation`; `meta`, clean
examples beside noisy ones), columns `image`, `text` or `audio`, `label` (a ClassLabel), `clean_label` where the data
bring one.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDatasetDict, load_dataset

from famus_hf.data.sources.benchmarks import BUILDERS, CIFAR_N, build
from famus_hf.data.sources.columns import Columns, label_column, with_shared_classes, with_standard_columns
from famus_hf.data.sources.folders import load_folder, load_whole_folder
from famus_hf.data.sources.idx import is_idx_folder, load_idx_folder
from famus_hf.errors import DataError, first_few

# Short name → Hub id and columns. Their labels count as clean.
HUB_DATASETS = {
    "cifar10": ("uoft-cs/cifar10", Columns(image="img", label="label")),
    "cifar100": ("uoft-cs/cifar100", Columns(image="img", label="fine_label", superclass="coarse_label")),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", Columns(image="image", label="label")),
}
DATA_LICENSES = {  # as their authors publish them
    "digits": "CC BY 4.0 (UCI Machine Learning Repository, Optical Recognition of Handwritten Digits)",
    "fashion_mnist": "MIT (Zalando SE)",
    "cifar10": "none is stated by the authors",
    "cifar100": "none is stated by the authors",
}
TEST_NAMES = ("test", "validation", "valid", "val")  # of the split to test on; the first that has labels
TEST_SEED = 0  # of every test split that is made here: it never follows the run's seed
TEST_SHARE = 0.2


def load_source(
    name: str | None = None,
    config_name: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 - frozen
    *,
    data_dir: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
) -> DatasetDict:
    """Load a data set by name or from folders.

    Args:
        name: `digits`, a short name of `HUB_DATASETS` or `BUILDERS`, a Hub id, or a local folder: images or
            recordings sorted into folders of classes, parquet, csv, jsonl, arrow, or MNIST-format idx files.
        config_name: Its configuration on the Hub, or the variant of a benchmark.
        columns: Named columns; the others are found.
        data_dir: Where a benchmark of `BUILDERS` lies.
        train_dir: A folder with the training examples alone, instead of a name.
        validation_dir: Another with those to test on.

    Raises:
        DataError: One sentence that says what is wrong and what to do.
    """
    if name is None:
        return _load_two_folders(
            Path(str(train_dir)), None if validation_dir is None else Path(validation_dir), columns
        )
    if name in BUILDERS:
        return build(name, None if data_dir is None else Path(data_dir), config_name, load_source)
    folder = Path(name) if Path(name).is_dir() else None
    if name == "digits" or (folder is not None and is_idx_folder(folder)):
        _refuse_settings(name, config_name, columns)
        return _load_digits() if folder is None else load_idx_folder(folder)
    if folder is not None:
        return standard_splits(load_folder(folder), columns, name, folder)
    hub_id, known = HUB_DATASETS.get(name, (name, columns))
    return standard_splits(load_from_hub(hub_id, config_name), merged_columns(columns, known), hub_id)


def check_source(
    name: str | None, data_dir: str | None = None, train_dir: str | None = None, validation_dir: str | None = None
) -> None:
    """Raise DataError on a name that can't be one, and on places that contradict each other."""
    if (name is None) == (train_dir is None):
        raise DataError("give either a data set's name or a train_dir, and not both")
    if validation_dir is not None and train_dir is None:
        raise DataError("validation_dir needs a train_dir: a data set by name brings its own test split")
    for folder in (train_dir, validation_dir):
        if folder is not None and not Path(folder).is_dir():
            raise DataError(f"folder {folder!r} does not exist")
    if name is None:
        return
    if data_dir is not None and name not in BUILDERS:
        raise DataError(f"data_dir is where one of {', '.join(BUILDERS)} lies: {name!r} takes none")
    if Path(name).is_file():
        raise DataError(f"data set {name!r} is a file: give its folder {str(Path(name).parent)!r}")
    short_names = ("digits", *HUB_DATASETS, *BUILDERS)
    if name not in short_names and not Path(name).is_dir() and ("/" not in name or name.startswith(("/", ".", "~"))):
        raise DataError(
            f"data set {name!r} is unknown: choose one of {', '.join(short_names)}, a Hub id such as 'user/name', "
            "or a folder"
        )


def clean_labels_known(name: str | None) -> bool:
    """Return whether this source has clean labels: its own, when nothing was corrupted, or beside the wrong ones."""
    return name is not None and (name in ("digits", *HUB_DATASETS, *CIFAR_N) or is_idx_folder(Path(name)))


def _refuse_settings(name: str, config_name: str | None, columns: Columns) -> None:
    named = [value for value in (config_name, *vars(columns).values()) if value]
    if named:
        raise DataError(f"{name!r} has images and labels alone: leave out the configuration or column {named[0]!r}")


def merged_columns(named: Columns, known: Columns) -> Columns:
    """Return what the user named, else what is known of the data set."""
    return Columns(**{role: value or getattr(known, role) for role, value in vars(named).items()})


def _load_digits() -> DatasetDict:
    """Load 1797 real 8×8 images inside scikit-learn; the test split of 20 % is fixed, stratified by class."""
    return DatasetDict(_split_digits())  # a dict of its own: who is given it may change it, and no data set in it


@cache
def _split_digits() -> DatasetDict:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(mode="L"), "label": ClassLabel(names=[str(name) for name in range(10)])})
    whole = Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)
    return with_test_split(DatasetDict({"train": whole}))


def _load_two_folders(train_dir: Path, validation_dir: Path | None, columns: Columns) -> DatasetDict:
    folders = {"train": train_dir} | ({} if validation_dir is None else {"test": validation_dir})
    splits = {
        split: with_standard_columns(load_whole_folder(folder), columns, split == "train", folder)
        for split, folder in folders.items()
    }
    return with_test_split(with_shared_classes(splits))


def load_from_hub(hub_id: str, config_name: str | None, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Load all splits of a Hub data set. Raise DataError with what the client said, in one sentence."""
    try:
        return load_dataset(hub_id, config_name, streaming=streaming)
    except Exception as error:  # the client raises a dozen unrelated types for a missing network, id or config
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"data set {hub_id!r} could not be loaded ({type(error).__name__}: {reason}): check id and network, "
            "or use --dataset_name digits or a local folder, which need none"
        ) from error


def standard_splits(splits: Any, columns: Columns, name: str, folder: Path | None = None) -> DatasetDict:
    """Return splits with standard columns and shared classes; where none is to test on, 20 % of train is `test`."""
    check_has_train(splits, name)
    test = next((split for split in TEST_NAMES if split in splits and _has_labels(splits[split], columns)), None)
    chosen = {"train": splits["train"]} | ({} if test is None else {"test": splits[test]})
    if test == "test" and "validation" in splits:
        chosen["validation"] = splits["validation"]
    standard = {
        split: with_standard_columns(dataset, columns, split == "train", folder) for split, dataset in chosen.items()
    }
    return with_test_split(with_shared_classes(standard))


def check_has_train(splits: Any, name: str) -> None:
    if "train" not in splits:
        raise DataError(f"data set {name!r} has the splits {', '.join(splits)}, but no 'train'")


def _has_labels(dataset: Dataset, columns: Columns) -> bool:
    """Return whether not all labels are −1, as in test splits whose labels are kept secret."""
    if len(dataset) == 0:
        return True  # refused later, by name
    return set(dataset[label_column(dataset.features, columns)][:]) != {-1}


def with_test_split(splits: DatasetDict) -> DatasetDict:
    """Return the splits; where none is `test`, a fixed 20 % of train is, stratified by label if classes allow."""
    if "test" in splits or len(splits["train"]) < 2:
        return splits
    train = splits["train"]
    counts = np.bincount(train["label"][:], minlength=train.features["label"].num_classes)
    # What the stratified split of datasets asks for: two rows of each class, and no fewer test rows than classes.
    stratify = "label" if counts.min() >= 2 and len(train) * TEST_SHARE >= len(counts) else None
    return DatasetDict({**splits, **train.train_test_split(TEST_SHARE, stratify_by_column=stratify, seed=TEST_SEED)})


def check_splits(splits: DatasetDict) -> None:
    """Raise DataError on a split without rows, and on classes that only train or only the test split has."""
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise DataError(f"the split {split!r} of the data has no rows: give a few examples of every class")
    if "test" not in splits:
        raise DataError("the data are a single example: give enough to train and to test on")
    names = splits["train"].features["label"].names
    classes = {split: set(splits[split]["label"][:]) for split in ("train", "test")}
    for one, other, advice in (("test", "train", "add examples"), ("train", "test", "add some, or give another split")):
        missing = sorted(classes[other] - classes[one])
        if missing:
            first = first_few(repr(names[label]) for label in missing)
            raise DataError(
                f"{len(missing)} of {len(classes[other])} classes of the {other} split have no example in the {one} "
                f"split ({first}): {advice}, or leave these classes out"
            )
