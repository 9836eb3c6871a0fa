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
from transformers.utils import logging

from famus_hf.data.sources.benchmarks import BUILDERS, CIFAR_N, build
from famus_hf.data.sources.columns import KINDS, Columns, label_column, with_shared_classes, with_standard_columns
from famus_hf.data.sources.folders import load_folder, load_whole_folder
from famus_hf.data.sources.idx import is_idx_folder, load_idx_folder
from famus_hf.errors import DataError, first_few

logger = logging.get_logger(__name__)

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
    with_test: bool = True,
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
        with_test: Where nothing is to test on, set 20 % of a Hub data set or folder apart.

    Raises:
        DataError: One sentence that says what is wrong and what to do.
    """
    if name is None:
        folders = {"train": Path(str(train_dir))}
        folders |= {} if validation_dir is None else {"test": Path(validation_dir)}
        return _shared({split: load_whole(folder, columns, split) for split, folder in folders.items()}, with_test)
    if name in BUILDERS:
        return build(name, None if data_dir is None else Path(data_dir), config_name, load_source)
    folder = Path(name) if Path(name).is_dir() else None
    if name == "digits" or (folder is not None and is_idx_folder(folder)):
        _refuse_settings(name, config_name, columns)
        return _load_digits() if folder is None else load_idx_folder(folder)
    if folder is not None:
        loaded = load_folder(folder, as_table=columns.names_files)
        return _shared(standard_splits(loaded, columns, name, folder), with_test)
    hub_id, known = HUB_DATASETS.get(name, (name, columns))
    columns = merged_columns(columns, known)
    return _shared(standard_splits(load_from_hub(hub_id, config_name), columns, hub_id), with_test)


def load_trusted(folder: str | None, name: str | None, columns: Columns, splits: DatasetDict) -> DatasetDict:
    """Return the splits with `meta`, all examples of a folder or of a data set's training split.

    Args:
        folder: Of the trusted examples; or
        name: Of a data set: what `load_source` takes as a name, without benchmarks.
        columns: Named columns; where the trusted examples lack these, they are found.
        splits: What they are trusted examples for.

    Raises:
        DataError: They can't be read, or are of another kind, or of classes that the training set does not have.
    """
    if name is not None:
        check_source(name)
        if name in BUILDERS:
            raise DataError(f"{name!r} can't be a trusted set: give a Hub id or a folder of trusted examples")
        trusted = load_source(name, columns=columns, with_test=False)["train"]
    else:
        trusted = load_whole(Path(str(folder)), columns, "meta")
    kinds = {split: set(KINDS) & set(dataset.features) for split, dataset in splits.items()}
    found = set(KINDS) & set(trusted.features)
    if found != kinds["train"]:
        raise DataError(
            f"the trusted examples are {' and '.join(sorted(found))}, and the training examples "
            f"{' and '.join(sorted(kinds['train']))}: give trusted examples of the same kind"
        )
    known = splits["train"].features["label"].names
    trusted = trusted.remove_columns([name for name in ("clean_label", "superclass") if name in trusted.features])
    merged = with_shared_classes({**splits, "meta": trusted})
    names = merged["train"].features["label"].names
    strange = [names[label] for label in sorted(set(merged["meta"]["label"][:])) if label >= len(known)]
    if strange:
        raise DataError(
            f"{len(strange)} classes of the trusted examples ({first_few(strange)}) are none of the training set, "
            f"whose {len(known)} classes are {first_few(known, 10)}: give both the same names"
        )
    return merged


def load_whole(folder: Path, columns: Columns, split: str) -> Dataset:
    """Return all that lies in a folder, with standard columns."""
    return with_standard_columns(load_whole_folder(folder, columns.names_files), columns, split == "train", folder)


def _shared(splits: dict[str, Dataset], with_test: bool) -> DatasetDict:
    shared = with_shared_classes(splits)
    return with_test_split(shared) if with_test else shared


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


def standard_splits(splits: Any, columns: Columns, name: str, folder: Path | None = None) -> dict[str, Dataset]:
    """Return what there is to train and to test on, with standard columns."""
    return {
        split: with_standard_columns(splits[own], columns, split == "train", folder)
        for split, own in chosen_splits(splits, columns, name).items()
    }


def chosen_splits(splits: Any, columns: Columns, name: str) -> dict[str, str]:
    """Return `train`, `test` and, beside that, `validation`, each with the name of that split in the data set."""
    check_has_train(splits, name)
    test = next((split for split in TEST_NAMES if split in splits and _has_labels(splits[split], columns)), None)
    chosen = {"train": "train"} | ({} if test is None else {"test": test})
    return chosen | ({"validation": "validation"} if test == "test" and "validation" in splits else {})


def check_has_train(splits: Any, name: str) -> None:
    if "train" not in splits:
        raise DataError(
            f"data set {name!r} has the splits {', '.join(splits)}, but no 'train': if it is a folder, name with "
            "train_dir the one in it to train on"
        )


def _has_labels(dataset: Dataset, columns: Columns) -> bool:
    """Return whether not all labels are −1, as in test splits whose labels are kept secret."""
    if len(dataset) == 0:
        return True  # refused later, by name
    return set(dataset[label_column(dataset.features, columns)][:]) != {-1}


def with_test_split(splits: DatasetDict) -> DatasetDict:
    """Return the splits; where none is `test`, a fixed 20 % of train is."""
    if "test" in splits or len(splits["train"]) < 2:
        return splits
    train = splits["train"]
    return DatasetDict({**splits, **{split: train.select(rows) for split, rows in rows_set_apart(train).items()}})


def rows_set_apart(train: Dataset) -> dict[str, list[int]]:
    """Return the rows of a training split that stay `train`, and those that become `test`: 20 %, stratified by label.

    Where that would leave a class out of one of the two, it is a fifth of each class instead, rounded; classes of one
    or two examples stay in train, which is said.
    """
    feature, labels = train.features["label"], np.asarray(train["label"][:])
    counts = np.bincount(labels, minlength=feature.num_classes)
    # What the stratified split of datasets asks for: two rows of each class, and no fewer test rows than classes.
    stratify = "label" if counts.min() >= 2 and len(train) * TEST_SHARE >= len(counts) else None
    # Of labels in memory: of saved data it would write what it has drawn beside their files.
    known = Dataset.from_dict({"label": labels}, Features({"label": feature})).add_column("row", range(len(train)))
    parts = known.train_test_split(TEST_SHARE, stratify_by_column=stratify, seed=TEST_SEED)
    if any(len(set(part["label"][:])) < np.count_nonzero(counts) for part in parts.values()):
        return _fifth_of_each_class(labels, counts)
    return {split: part["row"][:] for split, part in parts.items()}


def _fifth_of_each_class(labels: np.ndarray, counts: np.ndarray) -> dict[str, list[int]]:
    generator = np.random.default_rng(TEST_SEED)
    sizes = np.round(counts * TEST_SHARE).astype(int)
    chosen = [generator.permutation(np.flatnonzero(labels == label))[:size] for label, size in enumerate(sizes)]
    test = np.sort(np.concatenate(chosen))
    if not len(test):
        raise DataError(
            f"no class of the {len(labels)} examples has as many as three, so that none can be set apart to test on: "
            "give a set to test on (a folder with validation_dir), or more examples"
        )
    return {"train": np.setdiff1d(np.arange(len(labels)), test).tolist(), "test": test.tolist()}


def without_absent_classes(splits: DatasetDict) -> DatasetDict:
    """Leave out the names of classes that no split has an example of, and say so."""
    feature = splits["train"].features["label"]
    columns = [
        (split, column)
        for split, dataset in splits.items()
        for column in ("label", "clean_label")
        if column in dataset.features
    ]
    present = sorted({label for split, column in columns for label in splits[split][column][:] if label is not None})
    if len(present) == feature.num_classes or not present:
        return splits
    absent = [name for label, name in enumerate(feature.names) if label not in set(present)]
    logger.warning(
        f"{len(absent)} of {feature.num_classes} classes have no example and are left out ({first_few(absent)})"
    )
    names = ClassLabel(names=[feature.names[label] for label in present])
    number_of = {label: number for number, label in enumerate(present)}
    for split, column in columns:
        numbers = [number_of[label] for label in splits[split][column][:]]
        splits[split] = splits[split].remove_columns(column).add_column(column, numbers, feature=names)
    return splits


def check_splits(splits: DatasetDict) -> None:
    """Raise DataError on a split without rows, on a single class, and on classes that train has no example of."""
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise DataError(f"the split {split!r} of the data has no rows: give a few examples of every class")
    if "test" not in splits:
        raise DataError("the data are a single example: give enough to train and to test on")
    names = splits["train"].features["label"].names
    classes = {split: set(dataset["label"][:]) for split, dataset in splits.items()}
    if len(classes["train"]) == 1 and len(classes["test"]) == 1:
        raise DataError(f"the examples are of one class ({names[min(classes['train'])]!r}): give two classes or more")
    for split in splits:
        strange = sorted(classes[split] - classes["train"])
        if strange:
            first = first_few(repr(names[label]) for label in strange)
            raise DataError(
                f"{len(strange)} of {len(classes[split])} classes of the {split} split have no example in the train "
                f"split ({first}): add examples, or leave these classes out"
            )
    untested = sorted(classes["train"] - classes["test"])
    if untested:
        first = first_few(repr(names[label]) for label in untested)
        logger.warning(
            f"{len(untested)} of {len(classes['train'])} classes have no example in the test split ({first}): what is "
            "learned of them is not tested"
        )
