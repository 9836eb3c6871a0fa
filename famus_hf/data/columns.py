"""From whatever columns a data set has to `image` or `text`, `label` and, where known, `clean_label`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from famus_hf.wording import first_few

LABEL_NAMES = ("label", "labels")  # what the label column is called where no ClassLabel tells it
STRINGS = ("string", "large_string")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to use.

    Attributes:
        image: Default: the only image column.
        text: Default, where there is no image column: the only column of strings.
        label: Default: the only ClassLabel column, or the one called `label`.
        clean_label: Column with the true labels beside wrong ones, if there is one.
        superclass: Column of superclasses, from which asymmetric noise makes its map, if there is one.
    """

    image: str | None = None
    text: str | None = None
    label: str | None = None
    clean_label: str | None = None
    superclass: str | None = None


def standard_names(features: Features, columns: Columns, is_train: bool = True) -> dict[str, str]:
    """Which column becomes which: old name → `image` or `text`, `label`, `clean_label`, `superclass`.

    Args:
        features: Of the split.
        columns: What was named.
        is_train: Other splits may lack the clean labels: their own labels are taken as clean then.

    Raises:
        ValueError: A named column is not there, or none or several could be meant.
    """
    label = label_column(features, columns)
    name, kind = _input_column(features, columns, label)
    names = {name: kind, label: "label"}
    if len(names) < 2:
        raise ValueError(f"column {name!r} can't be both the {kind} and the label column: name another one")
    if columns.clean_label is not None and (is_train or columns.clean_label in features):
        names[_named(features, columns.clean_label, "clean_label")] = "clean_label"
    if columns.superclass in features:
        names[str(columns.superclass)] = "superclass"
    return names


def label_column(features: Features, columns: Columns) -> str:
    """The column that becomes `label`. Raises ValueError as `standard_names` does."""
    if columns.label is not None:
        return _named(features, columns.label, "label")
    others = (columns.clean_label, columns.superclass)
    found = [name for name, feature in features.items() if isinstance(feature, ClassLabel) and name not in others]
    found = found or [name for name in LABEL_NAMES if name in features]
    if len(found) != 1:
        _refuse(features, found, "label", "label_column_name")
    return found[0]


def _input_column(features: Features, columns: Columns, label: str) -> tuple[str, str]:
    """The column that goes into the network, and its kind."""
    if columns.image is not None and columns.text is not None:
        raise ValueError("image and text column contradict each other: name one of them")
    if columns.image is not None:
        return _named(features, columns.image, "image"), "image"
    if columns.text is not None:
        return _named(features, columns.text, "text"), "text"
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    texts = [
        name
        for name, feature in features.items()
        if _is_string(feature) and name not in (label, columns.clean_label, columns.superclass)
    ]
    if len(images) == 1:
        return images[0], "image"
    if not images and len(texts) == 1:
        return texts[0], "text"
    _refuse(features, images or texts, "image", "image_column_name or text_column_name")


def _named(features: Features, wanted: str, role: str) -> str:
    if wanted not in features:
        raise ValueError(f"{role} column {wanted!r} is not in the data set, which has {', '.join(features)}")
    return wanted


def _refuse(features: Features, found: list[str], role: str, flag: str) -> NoReturn:
    raise ValueError(
        f"{len(found)} columns of the data set could be the {role} column ({', '.join(found) or 'none'}): "
        f"name one of {', '.join(features)} with {flag}"
    )


def _is_string(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in STRINGS


def select_and_rename(dataset: Any, names: dict[str, str]) -> Any:
    """These columns of a data set or stream alone, under their new names."""
    return dataset.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})


def with_standard_columns(
    dataset: Dataset, columns: Columns, is_train: bool = True, folder: Path | None = None
) -> Dataset:
    """Renames the columns as `standard_names` says and drops the others.

    Args:
        dataset: One split.
        columns: What was named.
        is_train: See `standard_names`.
        folder: Where the data lie: an image column of strings then holds paths below it.
    """
    names = standard_names(dataset.features, columns, is_train)
    dataset = select_and_rename(dataset, names)
    kind = "image" if "image" in dataset.features else "text"
    if kind == "image" and folder is not None and _is_string(dataset.features["image"]):
        dataset = _images_at_paths(dataset, folder)
    feature = dataset.features[kind]
    if not (isinstance(feature, Image) if kind == "image" else _is_string(feature)):
        old = next(old for old, new in names.items() if new == kind)
        raise ValueError(f"column {old!r} holds {feature}, which is not {'an image' if kind == 'image' else 'text'}")
    return dataset


def _images_at_paths(dataset: Dataset, folder: Path) -> Dataset:
    """Turns a column of paths below a folder into images, which are read when they are needed."""
    names = dataset["image"][:]
    root = folder.resolve()
    paths = [root / str(name) for name in names]
    outside = [name for name, path in zip(names, paths, strict=True) if not path.resolve().is_relative_to(root)]
    missing = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    for wrong, problem in ((outside, "lead out of"), (missing, "are not in")):
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(names)} image paths {problem} the folder {str(folder)!r} ({first_few(wrong)})"
            )
    dataset = dataset.remove_columns("image").add_column("image", list(map(str, paths)))
    return dataset.cast_column("image", Image())


def with_shared_classes(splits: dict[str, Dataset]) -> DatasetDict:
    """Makes `label` and `clean_label` of all splits ClassLabels with the same names in the same order.

    Names are matched by name; integers and strings become the sorted union of what occurs anywhere.
    """
    columns = [
        (split, column) for split in splits for column in ("label", "clean_label") if column in splits[split].features
    ]
    feature = splits["train"].features["label"]
    if isinstance(feature, ClassLabel) and all(splits[split].features[column] == feature for split, column in columns):
        for split, column in columns:
            class_values(splits[split], column, feature.names)
        return DatasetDict(splits)
    names = list(feature.names) if isinstance(feature, ClassLabel) else []
    values = {place: class_values(splits[place[0]], place[1], names) for place in columns}
    found = {value for own in values.values() for value in own} - set(names)
    names += [str(value) for value in sorted(found, key=lambda value: (isinstance(value, str), value))]
    shared = ClassLabel(names=names)
    place_of = {name: place for place, name in enumerate(names)}
    for split, column in columns:
        numbers = [place_of[str(value)] for value in values[split, column]]
        splits[split] = splits[split].remove_columns(column).add_column(column, numbers, feature=shared)
    return DatasetDict(splits)


def class_values(dataset: Dataset, column: str, names: list[str]) -> list[Any]:
    """The class of each row, as a name where there are names. Raises ValueError on what is no class.

    Args:
        dataset: One split.
        column: `label` or `clean_label`.
        names: Of the training labels, if they have any: integers without names of their own then count in these.
    """
    feature = dataset.features[column]
    values = dataset[column][:]
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(values)} rows have no {column} (row {first_few(missing)}): remove those rows"
        )
    if isinstance(feature, ClassLabel):
        names = feature.names
    elif not (isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", *STRINGS))):
        raise ValueError(
            f"the {column} column holds {feature}, which are not classes: "
            "choose a column of class names or integer class indices"
        )
    if not values or isinstance(values[0], str):
        return values
    wrong = [row for row, value in enumerate(values) if value < 0 or (names and value >= len(names))]
    if wrong:
        raise ValueError(
            f"{len(wrong)} rows of column {column} hold {values[wrong[0]]} or another number that is no class "
            f"(row {first_few(wrong)}): remove those rows"
        )
    return [names[value] for value in values] if names else values
