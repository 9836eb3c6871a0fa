"""A copy of data with other labels, in the form of the original: folders of classes, tables, or saved data sets."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Value

from famus_hf.data.media.modalities import FILES
from famus_hf.data.sources.columns import ORIGINAL, REVIEWED
from famus_hf.data.sources.folders import SAVED, form_of, table_files
from famus_hf.data.sources.metadata import FILE_NAME, NAMES
from famus_hf.errors import DataError, SaveError, SettingsError, first_few
from famus_hf.review.origin import Origin
from famus_hf.storage.atomic import WRITE_ERRORS, save_error, sync_tree
from famus_hf.storage.run_folder import UNFINISHED


@dataclass(frozen=True)
class NewLabels:
    """What becomes of the labels of one split.

    Attributes:
        given: Shape (N,), as they were, by the names of their classes.
        labels: Shape (N,), as they are to be.
        reviewed: Shape (N,), whether somebody looked at them.
    """

    given: list[str]
    labels: list[str]
    reviewed: list[bool]


@contextmanager
def whole_folder(out: Path, source: Path | None) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `out` when all is there; nothing is left of one that failed.

    Raises:
        SettingsError: There is something already, or one of the folder and the original lies in the other.
        SaveError: It can't be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{str(out)!r} is there already and not empty: choose another folder with --out")
    if source is not None:
        places = out.resolve(), source.resolve()
        if places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0]):
            raise SettingsError(
                f"{str(out)!r} and the original {str(source)!r} lie in each other: choose another --out"
            )
    beside = out.parent / UNFINISHED / out.name
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        yield beside
        os.sync() if hasattr(os, "sync") else sync_tree(beside)  # all files at once: 0.1 s and not 30 of 3000
        if out.is_dir():
            out.rmdir()
        os.replace(beside, out)
    except SaveError:
        raise
    except WRITE_ERRORS as error:
        raise save_error(out, error) from error
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)


def write_mended(origin: Origin, labels: dict[str, NewLabels], folder: Path) -> dict[str, list[int]]:
    """Write the copy, and return own split → row of each example in the copy.

    Args:
        origin: Of which it is a copy.
        labels: Own split → its labels.
        folder: Empty.

    Raises:
        DataError: Files are gone, or a label has no place in the column.
    """
    if origin.is_media:
        return _write_media(origin, labels, folder)
    mended = {split: _with_labels(origin, split, labels[split]) for split in origin.splits}
    if origin.form == SAVED:
        is_single = origin.folder is not None and (origin.folder / "state.json").is_file()
        (mended["train"] if is_single else DatasetDict(mended)).save_to_disk(str(folder))
    else:
        _write_tables(origin, mended, folder)
    return {split: list(range(len(dataset))) for split, dataset in mended.items()}


# ---- By column ----


def _with_labels(origin: Origin, split: str, new: NewLabels) -> Dataset:
    """Return a split with its new labels, of the type of the old ones, and the columns of a mended copy."""
    dataset, column = origin.splits[split], origin.label
    value_of = {
        name: value
        for other in origin.splits
        for name, value in zip(origin.names(other), origin.splits[other][column][:], strict=True)
    }
    feature, order = dataset.features[column], dataset.column_names
    given = dataset[ORIGINAL][:] if ORIGINAL in order else dataset[column][:]  # what came first, after several rounds
    seen = [own or bool(before) for own, before in zip(new.reviewed, _seen_before(dataset), strict=True)]
    dataset = dataset.remove_columns([name for name in (column, ORIGINAL, REVIEWED) if name in order])
    dataset = dataset.add_column(column, [value_of[name] for name in new.labels], feature=feature)
    dataset = dataset.add_column(ORIGINAL, given, feature=feature).add_column(REVIEWED, seen, feature=Value("bool"))
    return dataset.select_columns(list(dict.fromkeys([*order, ORIGINAL, REVIEWED])))


def _seen_before(dataset: Dataset) -> list[bool]:
    """Return which rows a mended copy has as reviewed; tables of text have words for it."""
    if REVIEWED not in dataset.column_names:
        return [False] * len(dataset)
    return [str(value).lower() == "true" for value in dataset[REVIEWED]]


def _write_tables(origin: Origin, mended: dict[str, Dataset], folder: Path) -> None:
    """Write a table for each split, and copy what else lies beside them."""
    assert origin.folder is not None
    contents = form_of(origin.folder, as_table=True)[1]
    assert contents is not None
    files = table_files(contents, whole=list(mended) == ["train"])
    tables = {path for paths in files.values() for path in paths}
    for path in contents.files:
        if path not in tables:
            _copy(path, folder / path.relative_to(origin.folder))
    for split, dataset in mended.items():
        first = files[split][0]
        name = first.relative_to(origin.folder) if len(files[split]) == 1 else Path(f"{split}{first.suffix}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _write_table(dataset, folder / name)


def _write_table(dataset: Dataset, path: Path) -> None:
    kind = path.suffix.lower()
    if kind == ".parquet":
        dataset.to_parquet(str(path))
    elif kind in (".csv", ".tsv"):
        dataset.to_csv(str(path), index=False, sep="\t" if kind == ".tsv" else ",")
    else:
        dataset.to_json(str(path), lines=True, force_ascii=False)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


# ---- Images and recordings in folders ----


def _write_media(origin: Origin, labels: dict[str, NewLabels], folder: Path) -> dict[str, list[int]]:
    """Copy each file, into the folder of its class where folders are classes, and describe all in metadata.csv."""
    paths = {split: _paths(origin, split) for split in origin.splits}
    in_folders = all(
        label in PurePosixPath(path).parts[:-1]
        for split, own in paths.items()
        for path, label in zip(own, labels[split].given, strict=True)
    )
    taken: set[str] = set()
    moved = {split: list(own) for split, own in paths.items()}
    tables = []
    for split, own in paths.items():
        new = labels[split]
        if in_folders:
            kept = [given == label for given, label in zip(new.given, new.labels, strict=True)]
            taken |= {path for path, is_kept in zip(own, kept, strict=True) if is_kept}
            moved[split] = [
                path if is_kept else _free(_in_class(path, given, label), given, taken)
                for path, given, label, is_kept in zip(own, new.given, new.labels, kept, strict=True)
            ]
        for path, target in zip(own, moved[split], strict=True):
            _copy(Path(str(origin.folder)) / path, folder / target)
        described = _with_labels(origin, split, new).remove_columns(origin.form)
        table = described.to_pandas()
        for column in (origin.label, ORIGINAL):
            if isinstance(described.features[column], ClassLabel):
                table[column] = described.features[column].int2str(described[column][:])
        table.insert(0, FILE_NAME, moved[split])
        tables.append(table)
    pd.concat(tables).to_csv(folder / NAMES[0], index=False)
    return {split: _places_of(own) for split, own in moved.items()}


def _paths(origin: Origin, split: str) -> list[str]:
    """Return the files of a split from the folder. Raise DataError where some are gone."""
    folder = Path(str(origin.folder))
    stored = origin.splits[split].cast_column(origin.form, type(FILES[origin.form])(decode=False))
    paths = [Path(value["path"]) for value in stored[origin.form]]
    gone = [path.relative_to(folder).as_posix() for path in paths if not path.is_file()]
    if gone:
        raise DataError(f"{len(gone)} of {len(paths)} files are gone ({first_few(gone)}): put them back")
    return [path.relative_to(folder).as_posix() for path in paths]


def _in_class(path: str, given: str, label: str) -> str:
    """Return the path with the folder of another class in place of the innermost one of the given class."""
    *folders, name = PurePosixPath(path).parts
    place = len(folders) - 1 - folders[::-1].index(given)
    return PurePosixPath(*folders[:place], label, *folders[place + 1 :], name).as_posix()


def _free(path: str, given: str, taken: set[str]) -> str:
    """Return the path, by another name where a file of the class has that already, and take it."""
    file = PurePosixPath(path)
    for number in count(1):
        if path not in taken:
            taken.add(path)
            break
        path = file.with_name(f"{file.stem}-from-{given}{'' if number == 1 else f'-{number}'}{file.suffix}").as_posix()
    return path


def _places_of(paths: list[str]) -> list[int]:
    """Return the row of each file among all of them, which are read in the order of their names."""
    place_of = {path: place for place, path in enumerate(sorted(paths))}
    return [place_of[path] for path in paths]
