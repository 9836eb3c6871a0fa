"""From whatever columns a data set has to `image`, `text` or `audio`, `label` and, where known, `clean_label`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value
from transformers.utils import logging

from famus_hf.data.media.images import check_image_formats
from famus_hf.data.media.modalities import FILES
from famus_hf.data.sources.encoded_files import decoded
from famus_hf.errors import DataError, first_few

logger = logging.get_logger(__name__)

LABEL_NAMES = ("label", "labels")  # what the label column is called where no ClassLabel tells it
STRINGS = ("string", "large_string")
KINDS = ("image", "text", "audio")
FILE_NAMES = {"image": "image", "img": "image", "audio": "audio"}  # columns of strings called so are of files
ORIGINAL, REVIEWED = "original_label", "reviewed"  # columns of a mended copy that are never what is learned from
PAIRS = (  # of texts that belong together, as GLUE and others call them
    ("sentence1", "sentence2"), ("question", "sentence"), ("question1", "question2"), ("premise", "hypothesis"),
    ("text1", "text2"),
)  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Names of the columns to use.

    Attributes:
        image: Default: the only image column.
        text: Default, where there is neither image nor audio: the only column of strings, or the first of a known pair.
        text_pair: Second text of each example, if there is one.
        audio: Default: the only audio column.
        label: Default: the only ClassLabel column, or the one called `label`.
        clean_label: Column with the true labels beside wrong ones, if there is one.
        superclass: Column of superclasses, from which asymmetric noise makes its map, if there is one.
        kept: A further column of the training split, which keeps its name.
    """

    image: str | None = None
    text: str | None = None
    text_pair: str | None = None
    audio: str | None = None
    label: str | None = None
    clean_label: str | None = None
    superclass: str | None = None
    kept: str | None = None

    @property
    def names_files(self) -> bool:
        """Whether a column of files was named, which tables alone have."""
        return self.image is not None or self.audio is not None


def standard_names(features: Features, columns: Columns, is_train: bool = True) -> dict[str, str]:
    """Return which column becomes which: old name → `image`, `text` (and `text_pair`) or `audio`, `label`,
    `clean_label`, `superclass`.

    Args:
        features: Of the split.
        columns: What was named.
        is_train: Other splits may lack the clean labels: their own labels are taken as clean then.

    Raises:
        DataError: A named column is not there, or none or several could be meant.
    """
    label = label_column(features, columns)
    names = _input_columns(features, columns, label)
    if label in names:
        raise DataError(f"column {label!r} can't be both the {names[label]} and the label column: name another one")
    names[label] = "label"
    for role in ("clean_label", "superclass"):
        taken = getattr(columns, role)
        if taken in names:
            known = names[taken]
            raise DataError(f"column {taken!r} can't be both the {known} and the {role} column: name another one")
    if columns.clean_label is not None and (is_train or columns.clean_label in features):
        names[_named(features, columns.clean_label, "clean_label")] = "clean_label"
    if columns.kept is not None and is_train:
        if columns.kept in names:
            raise DataError(f"column {columns.kept!r} can't be the {names[columns.kept]} and be kept: name another one")
        names[_named(features, columns.kept, "kept")] = columns.kept
    if columns.superclass in features:
        names[str(columns.superclass)] = "superclass"
    return names


def label_column(features: Features, columns: Columns) -> str:
    """Return the column that becomes `label`. Raise DataError as `standard_names` does."""
    if columns.label is not None:
        return _named(features, columns.label, "label")
    others = (columns.clean_label, columns.superclass, ORIGINAL)
    candidates = [name for name, feature in features.items() if isinstance(feature, ClassLabel) and name not in others]
    candidates = candidates or [name for name in LABEL_NAMES if name in features]
    if len(candidates) != 1:
        _refuse(features, candidates, "label", "label_column_name")
    return candidates[0]


def _input_columns(features: Features, columns: Columns, label: str) -> dict[str, str]:
    """Return what goes into the network: column → its kind."""
    named = {kind: name for kind in KINDS if (name := getattr(columns, kind)) is not None}
    if len(named) > 1:
        raise DataError(f"{' and '.join(named)} column contradict each other: name one of them")
    if columns.text_pair is not None and columns.text is None:
        raise DataError(f"text_pair_column_name={columns.text_pair!r} needs the first text: add text_column_name")
    kind_of = {_named(features, name, kind): kind for kind, name in named.items()}
    if columns.text_pair is not None:
        second = _named(features, columns.text_pair, "text_pair")
        if second in kind_of:
            raise DataError(f"column {second!r} can't be both texts of a pair: name another one")
        kind_of[second] = "text_pair"
    return kind_of or _unnamed_columns(features, {label, columns.clean_label, columns.superclass, ORIGINAL, REVIEWED})


def _unnamed_columns(features: Features, taken: set[str | None]) -> dict[str, str]:
    """Return the same where none is named. Raise DataError where none or several could be meant."""
    kinds_of = {type(feature): kind for kind, feature in FILES.items()}
    stored = {name: kinds_of[type(feature)] for name, feature in features.items() if type(feature) in kinds_of}
    stored = stored or {
        name: FILE_NAMES[name] for name in features if name in FILE_NAMES and _holds_files(features[name])
    }
    texts = [name for name, feature in features.items() if _is_string(feature) and name not in taken]
    if not stored and len(texts) == 2 and tuple(texts) in PAIRS:
        return {texts[0]: "text", texts[1]: "text_pair"}
    candidates = stored or dict.fromkeys(texts, "text")
    if len(candidates) == 1:
        return candidates
    kinds = list(dict.fromkeys(candidates.values())) or list(KINDS)
    _refuse(features, list(candidates), " or ".join(kinds), " or ".join(f"{kind}_column_name" for kind in kinds))


def _named(features: Features, name: str, role: str) -> str:
    if name not in features:
        raise DataError(f"{role} column {name!r} is not in the data set, which has {', '.join(features)}")
    return name


def _refuse(features: Features, candidates: list[str], role: str, flag: str) -> NoReturn:
    raise DataError(
        f"{len(candidates)} columns of the data set could be the {role} column ({', '.join(candidates) or 'none'}): "
        f"name one of {', '.join(features)} with {flag}"
    )


def _is_string(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in STRINGS


def _holds_files(feature: Any) -> bool:
    """Return whether a column without a feature of its own may hold files: by path, or as bytes."""
    return _is_string(feature) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})


def select_and_rename(dataset: Any, names: dict[str, str]) -> Any:
    """Keep these columns of a data set or stream alone, under their new names."""
    return dataset.select_columns(list(names)).rename_columns({old: new for old, new in names.items() if old != new})


def with_standard_columns(
    dataset: Dataset, columns: Columns, is_train: bool = True, folder: Path | None = None
) -> Dataset:
    """Rename the columns as `standard_names` says and drop the others.

    Args:
        dataset: One split.
        columns: What was named.
        is_train: See `standard_names`.
        folder: Where the data lie: a column of strings that is of images or recordings then holds paths below it.
    """
    names = standard_names(dataset.features, columns, is_train)
    dataset = select_and_rename(dataset, names)
    for kind, feature in FILES.items():
        if kind in dataset.features:
            dataset = _with_files(dataset, kind, feature, folder)
    for old, new in names.items():
        kind = new.removesuffix("_pair")
        expected = type(FILES[kind]) if kind in FILES else Value
        feature = dataset.features[new]
        if kind in KINDS and not (isinstance(feature, expected) and (kind in FILES or _is_string(feature))):
            word = {"image": "an image", "text": "text", "audio": "a recording"}[kind]
            raise DataError(f"column {old!r} holds {feature}, which is not {word}")
    return dataset


def _with_files(dataset: Dataset, kind: str, feature: Any, folder: Path | None) -> Dataset:
    """Cast the column to files, where a table has only their bytes or, below its folder, their paths."""
    current = dataset.features[kind]
    if folder is not None and _is_string(current):
        contents = decoded(dataset[kind][:])
        if contents is not None:
            stored = [{"bytes": content, "path": None} for content in contents]
            dataset = dataset.remove_columns(kind).add_column(kind, stored)
        else:
            dataset = _files_at_paths(dataset, kind, folder)
        return dataset.cast_column(kind, feature)
    is_stored = isinstance(current, dict) and current.keys() == {"bytes", "path"}
    return dataset.cast_column(kind, feature) if is_stored or isinstance(current, Audio) else dataset


def _files_at_paths(dataset: Dataset, kind: str, folder: Path) -> Dataset:
    """Put whole paths in place of those below a folder, whose files are read when they are needed."""
    names = dataset[kind][:]
    root = folder.resolve()
    paths = [root / str(name) for name in names]
    outside, missing = [], []
    for name, path in zip(names, paths, strict=True):
        try:
            if not path.resolve().is_relative_to(root):
                outside.append(name)
            elif not path.is_file():
                missing.append(name)
        except (OSError, ValueError):  # no name that a file could have
            missing.append(name)
    for wrong, problem in ((outside, "lead out of"), (missing, "are not in")):
        if wrong:
            shown = first_few(str(name)[:80] for name in wrong)
            raise DataError(
                f"{len(wrong)} of {len(names)} {kind} paths {problem} the folder {str(folder)!r} ({shown}): give paths "
                "from that folder"
            )
    if kind == "image":
        check_image_formats(paths)
    return dataset.remove_columns(kind).add_column(kind, list(map(str, paths)))


def with_shared_classes(splits: dict[str, Dataset]) -> DatasetDict:
    """Make `label` and `clean_label` of all splits ClassLabels with the same names in the same order.

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
    values = {(split, column): class_values(splits[split], column, names) for split, column in columns}
    unnamed = {value for classes in values.values() for value in classes} - set(names)
    names += [str(value) for value in sorted(unnamed, key=lambda value: (isinstance(value, str), value))]
    _report_alike(names)
    shared = ClassLabel(names=names)
    number_of = {name: number for number, name in enumerate(names)}
    for split, column in columns:
        numbers = [number_of[str(value)] for value in values[split, column]]
        splits[split] = splits[split].remove_columns(column).add_column(column, numbers, feature=shared)
    return DatasetDict(splits)


def _report_alike(names: list[str]) -> None:
    """Say which classes differ in capitals or spaces alone."""
    by_letters: dict[str, list[str]] = {}
    for name in names:
        by_letters.setdefault("".join(name.split()).casefold(), []).append(name)
    alike = [" and ".join(map(repr, same)) for same in by_letters.values() if len(same) > 1]
    if alike:
        logger.warning(f"{len(alike)} classes differ from others in capitals or spaces alone ({first_few(alike)})")


def class_values(dataset: Dataset, column: str, names: list[str]) -> list[Any]:
    """Return the class of each row, as a name where there are names. Raise DataError on what is no class.

    Args:
        dataset: One split.
        column: `label` or `clean_label`.
        names: Of the training labels, if they have any: integers without names of their own then count in these.
    """
    feature = dataset.features[column]
    values = dataset[column][:]
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(values)} rows have no {column} (row {first_few(missing)}): remove those rows"
        )
    if isinstance(feature, ClassLabel):
        names = feature.names
    elif not (isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "bool", *STRINGS))):
        raise DataError(
            f"the {column} column holds {feature}, which are not classes: "
            "choose a column of class names or integer class indices"
        )
    if not values or isinstance(values[0], str):
        return values
    if isinstance(values[0], bool):
        return [str(value) for value in values]
    wrong = [row for row, value in enumerate(values) if value < 0 or (names and value >= len(names))]
    if wrong:
        raise DataError(
            f"{len(wrong)} rows of column {column} hold {values[wrong[0]]} or another number that is no class "
            f"(row {first_few(wrong)}): remove those rows"
        )
    return [names[value] for value in values] if names else values
