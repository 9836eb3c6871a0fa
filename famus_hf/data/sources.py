"""Where images and labels come from: digits, folders of MNIST-format idx files, the Hub.

Each source gives a DatasetDict with the splits `train` and `test`, columns `image` and `label` (a ClassLabel), and
`clean_label` where the data bring one.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset

# Short name → Hub id, image column, label column. Their labels count as clean.
HUB_DATASETS = {
    "cifar10": ("uoft-cs/cifar10", "img", "label"),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "image", "label"),
}
FASHION_MNIST_CLASSES = [
    "T-shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
]  # fmt: skip
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
TEST_SEED = 0  # of every test split that is made here: it never follows the run's seed
TEST_SHARE = 0.2


def load_source(
    name: str,
    config_name: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    clean_label_column_name: str | None = None,
) -> DatasetDict:
    """Loads a data set by name: `digits`, a folder of idx files, a short name of `HUB_DATASETS` or any Hub id.

    Args:
        name: The data set.
        config_name: Its configuration on the Hub.
        image_column_name: Default: the only image column.
        label_column_name: Default: the only ClassLabel column.
        clean_label_column_name: A column with the true labels beside wrong ones, if there is one.

    Raises:
        ValueError: One sentence that says what is wrong and what to do.
    """
    if name == "digits" or Path(name).is_dir():
        named = [
            column for column in (config_name, image_column_name, label_column_name, clean_label_column_name) if column
        ]
        if named:
            raise ValueError(
                f"{name!r} has images and labels alone: leave out the configuration or column {named[0]!r}"
            )
        return _load_digits() if name == "digits" else _load_idx_folder(Path(name))
    hub_id, image_default, label_default = HUB_DATASETS.get(name, (name, None, None))
    splits = _load_from_hub(hub_id, config_name)
    columns = (image_column_name or image_default, label_column_name or label_default)
    return with_shared_classes(
        {
            split: _standard_columns(dataset, *columns, clean_label_column_name, clean_is_needed=split == "train")
            for split, dataset in splits.items()
        }
    )


def check_source_name(name: str) -> None:
    """Raises ValueError on a name that is neither a built-in data set nor a folder nor could be a Hub id."""
    if name not in ("digits", *HUB_DATASETS) and "/" not in name and not Path(name).is_dir():
        raise ValueError(
            f"data set {name!r} is unknown: choose one of {', '.join(['digits', *HUB_DATASETS])}, "
            "a Hub id such as 'user/name', or a folder of idx files"
        )


def labels_known_clean(name: str) -> bool:
    """Whether the labels of this source are taken as clean when nothing was corrupted."""
    return name == "digits" or name in HUB_DATASETS or Path(name).is_dir()


def _load_digits() -> DatasetDict:
    """1797 real 8×8 images inside scikit-learn; the test split of 20 % is fixed, stratified by class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(mode="L"), "label": ClassLabel(names=[str(name) for name in range(10)])})
    whole = Dataset.from_dict({"image": list(images), "label": digits.target}, features=features)
    return whole.train_test_split(TEST_SHARE, stratify_by_column="label", seed=TEST_SEED)


def _load_idx_folder(folder: Path) -> DatasetDict:
    """The four files of MNIST's format, gzipped or not, as in Debian's package dataset-fashion-mnist."""
    splits = {}
    found = [_read_idx(_find_idx_file(folder, file_names[1])) for file_names in IDX_FILES.values()]
    num_classes = 1 + max((int(labels.max()) for labels in found if labels.size), default=0)
    classes = [str(label) for label in range(num_classes)]
    if "fashion" in folder.resolve().name.lower() and num_classes == len(FASHION_MNIST_CLASSES):
        classes = FASHION_MNIST_CLASSES
    for split, file_names in IDX_FILES.items():
        paths = tuple(_find_idx_file(folder, file_name) for file_name in file_names)
        images, labels = map(_read_idx, paths)
        if len(images) != len(labels) or len(labels) == 0:
            raise ValueError(f"{str(paths[0])!r} has {len(images)} images, {str(paths[1])!r} {len(labels)} labels")
        splits[split] = Dataset.from_generator(
            _idx_rows,
            gen_kwargs={"paths": paths, "stamps": tuple(path.stat().st_mtime_ns for path in paths)},
            features=Features({"image": Image(mode="L"), "label": ClassLabel(names=classes)}),
        )
    return DatasetDict(splits)


def _find_idx_file(folder: Path, file_name: str) -> Path:
    for path in (folder / file_name, folder / f"{file_name}.gz"):
        if path.is_file():
            return path
    raise ValueError(
        f"folder {str(folder)!r} has no {file_name} or {file_name}.gz: a folder data set needs the four idx files of "
        "MNIST's format (Debian's package dataset-fashion-mnist brings them)"
    )


def _read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes as an array. Raises ValueError if the header and the size disagree."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error):
        content = b""
    dimensions = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").astype(int) if dimensions and len(content) >= start else None
    if shape is None or len(content) != start + shape.prod():
        raise ValueError(f"{str(path)!r} is not an idx file of unsigned bytes, or it is cut short: fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_rows(paths: tuple[Path, ...], stamps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Rows of one split; `stamps` only makes the cache notice changed files."""
    for image, label in zip(*map(_read_idx, paths), strict=True):
        yield {"image": image, "label": int(label)}


def _load_from_hub(hub_id: str, config_name: str | None) -> DatasetDict:
    """Splits `train` and `test` of a Hub data set; without a test split, `validation` or a fixed 20 % of train."""
    try:
        splits = load_dataset(hub_id, config_name)
    except Exception as error:  # the client raises a dozen unrelated types for a missing network, id or config
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"data set {hub_id!r} could not be loaded ({type(error).__name__}: {reason}): check id and network, "
            "or use --dataset_name digits or a local folder of idx files, which need none"
        ) from error
    if "train" not in splits:
        raise ValueError(f"data set {hub_id!r} has the splits {', '.join(splits)}, but no 'train'")
    for test in ("test", "validation", "valid"):
        if test in splits:
            return DatasetDict({"train": splits["train"], "test": splits[test]})
    return splits["train"].train_test_split(TEST_SHARE, seed=TEST_SEED)


def _standard_columns(
    dataset: Dataset, image: str | None, label: str | None, clean_label: str | None, clean_is_needed: bool = True
) -> Dataset:
    """Renames the columns to `image`, `label` and `clean_label` and drops the others."""
    image = _one_column(dataset, image, Image, "image")
    label = _one_column(dataset, label, ClassLabel, "label")
    names = {image: "image", label: "label"}
    if clean_label is not None and (clean_is_needed or clean_label in dataset.column_names):
        names[_one_column(dataset, clean_label, ClassLabel, "clean_label")] = "clean_label"
    dataset = dataset.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})
    if not isinstance(dataset.features["image"], Image):
        raise ValueError(f"column {image!r} holds {dataset.features['image']}, which is not an image")
    return dataset


def _one_column(dataset: Dataset, wanted: str | None, kind: type, role: str) -> str:
    columns = dataset.column_names
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(f"{role} column {wanted!r} is not in the data set, which has {', '.join(columns)}")
        return wanted
    found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} columns of the data set could be the {role} column ({', '.join(found) or 'none'}): "
            f"name one of {', '.join(columns)} with --{role}_column_name"
        )
    return found[0]


def with_shared_classes(splits: dict[str, Dataset]) -> DatasetDict:
    """Makes `label` and `clean_label` of all splits ClassLabels with the same names in the same order.

    Names are matched by name; integers and strings become the sorted union of what occurs anywhere.
    """
    columns = [
        (split, column) for split in splits for column in ("label", "clean_label") if column in splits[split].features
    ]
    feature = splits["train"].features["label"]
    names = list(feature.names) if isinstance(feature, ClassLabel) else []
    values = {place: _class_values(splits[place[0]], place[1], names) for place in columns}
    found = {value for own in values.values() for value in own} - set(names)
    names += [str(value) for value in sorted(found, key=lambda value: (isinstance(value, str), value))]
    shared = ClassLabel(names=names)
    place_of = {name: place for place, name in enumerate(names)}
    for split, column in columns:
        numbers = [place_of[str(value)] for value in values[split, column]]
        splits[split] = splits[split].remove_columns(column).add_column(column, numbers, feature=shared)
    return DatasetDict(splits)


def _class_values(dataset: Dataset, column: str, names: list[str]) -> list[Any]:
    """The class of each row, as a name where there are names. Raises ValueError on what is no class.

    Args:
        dataset: One split.
        column: `label` or `clean_label`.
        names: Of the training labels, if they have any: integers without names of their own then count in these.
    """
    feature = dataset.features[column]
    values = dataset[column][:]
    missing = sum(value is None for value in values)
    if missing:
        raise ValueError(f"{missing} of {len(values)} rows have no {column}: remove those rows")
    if isinstance(feature, ClassLabel):
        names = feature.names
    elif not (isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "string", "large_string"))):
        raise ValueError(
            f"the {column} column holds {feature}, which are not classes: "
            "choose a column of class names or integer class indices"
        )
    if not values or isinstance(values[0], str):
        return values
    wrong = [value for value in values if value < 0 or (names and value >= len(names))]
    if wrong:
        raise ValueError(f"{len(wrong)} rows of column {column} hold {wrong[0]}, which is no class: remove those rows")
    return [names[value] for value in values] if names else values
