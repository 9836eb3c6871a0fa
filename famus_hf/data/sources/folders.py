"""Local folders: images or recordings in a folder for each class, parquet, csv, jsonl, or arrow by `save_to_disk`."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDatasetDict, Value, load_from_disk
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from transformers.utils import logging

from famus_hf.data.media.images import IMAGE_ENDINGS, check_image_formats
from famus_hf.data.media.modalities import FILES
from famus_hf.data.sources import metadata
from famus_hf.data.sources.class_folders import (
    FilesOfSplit,
    classes_of_files,
    files_of_splits,
    split_of_name,
)
from famus_hf.data.sources.columns import LABEL_NAMES
from famus_hf.data.sources.tables import is_table, names_files, of_one_kind, read_tables
from famus_hf.errors import DataError, first_few

logger = logging.get_logger(__name__)

MEDIA = {  # kind of what is stored in files → what several are called, and their endings
    "image": ("images", IMAGE_ENDINGS),
    "audio": ("recordings", frozenset(AudioFolder.EXTENSIONS)),
}
TABLES, SAVED = "tables", "saved"  # other forms of data in a folder
NO_DATA = ("readme", "readme.md", "license", "license.txt", "thumbs.db", "desktop.ini")  # beside data, in lower case


@dataclass(frozen=True)
class Contents:
    """The files below a folder, links to folders followed.

    Attributes:
        folder: The folder.
        files: Sorted, hidden ones and those in hidden folders left out.
        hidden: These.
        folders: All that are not hidden.
    """

    folder: Path
    files: list[Path]
    hidden: list[Path]
    folders: list[Path]

    @property
    def tables(self) -> list[Path]:
        """Those of the files that are tables and could be the data."""
        return [path for path in self.files if is_table(path) and path.name not in metadata.NAMES]

    def names(self, paths: Sequence[Path]) -> list[str]:
        """Return the paths from the folder."""
        return [path.relative_to(self.folder).as_posix() for path in paths]


def load_folder(
    folder: Path, streaming: bool = False, *, whole: bool = False, as_table: bool = False
) -> DatasetDict | IterableDatasetDict:
    """Load the splits that names of folders, or of files and folders (tables), tell; what tells none is `train`.

    Args:
        folder: The folder.
        streaming: As streams.
        whole: All of it as `train`, whatever files and folders are called.
        as_table: Read tables where there are any, also beside images in folders of classes.

    Raises:
        DataError: Nothing that could be data is there, files of another kind lie among images or recordings, or it is
            open of which split or class they are.
    """
    form, contents = form_of(folder, as_table)
    if contents is None:
        splits = _saved(folder, whole)
        return _as_streams(splits) if streaming else splits
    if form in MEDIA:
        splits = _media(contents, form, whole)
        return _as_streams(splits) if streaming else splits
    return read_tables(table_files(contents, whole), streaming)


def form_of(folder: Path, as_table: bool = False) -> tuple[str, Contents | None]:
    """Return what a folder's data are, a kind of `MEDIA`, `TABLES` or `SAVED`, and what lies there, if not the latter.

    Raises:
        DataError: Nothing that could be data is there.
    """
    if not folder.is_dir():
        raise DataError(f"folder {str(folder)!r} does not exist")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return SAVED, None
    contents = _contents(folder)
    tables = contents.tables
    kinds = Counter(kind for kind in MEDIA for path in contents.files if _is_of(kind, path))
    kind = kinds.most_common(1)[0][0] if kinds else None
    if kind is not None and (not tables or not (as_table or _is_described_by(contents, tables, kind))):
        return kind, contents
    if not tables:
        raise DataError(
            f"folder {str(folder)!r} holds no data: it needs images or recordings in a folder for each class, parquet, "
            "csv or jsonl files, the folder that datasets' save_to_disk leaves, or the four idx files of MNIST's format"
        )
    return TABLES, contents


def table_files(contents: Contents, whole: bool = False) -> dict[str, list[Path]]:
    """Return the tables of each split, all of one kind; with `whole` they are all of `train`."""
    files: dict[str, list[Path]] = {}
    for path, name in zip(tables := of_one_kind(contents.tables), contents.names(tables), strict=True):
        files.setdefault((not whole and split_of_name(name)) or "train", []).append(path)
    return files


def load_whole_folder(folder: Path, as_table: bool = False) -> Dataset:
    """Load all that lies in a folder as one data set, whatever its files are called."""
    return load_folder(folder, whole=True, as_table=as_table)["train"]


def _saved(folder: Path, whole: bool) -> DatasetDict:
    saved = load_from_disk(str(folder))
    if not isinstance(saved, DatasetDict):
        return DatasetDict({"train": saved})
    if whole:
        raise DataError(f"folder {str(folder)!r} holds the splits {', '.join(saved)}: use it as dataset_name")
    return saved


def _as_streams(splits: DatasetDict) -> IterableDatasetDict:
    return IterableDatasetDict({name: split.to_iterable_dataset() for name, split in splits.items()})


# ---- What lies there ----


def _contents(folder: Path) -> Contents:
    files: list[Path] = []
    hidden: list[Path] = []
    folders: list[Path] = []
    for path, is_folder, is_hidden in _walk(folder, {folder.resolve()}):
        if is_folder:
            folders += [] if is_hidden else [path]
        else:
            (hidden if is_hidden else files).append(path)
    return Contents(folder, sorted(files, key=str), sorted(hidden), sorted(folders))


def _walk(folder: Path, above: set[Path], is_hidden: bool = False) -> Iterator[tuple[Path, bool, bool]]:
    """Yield files and folders, whether one is a folder, and whether it or one around it is hidden.

    Links are followed, but for those to a folder around them.
    """
    for entry in os.scandir(folder):
        path, hidden = folder / entry.name, is_hidden or entry.name.startswith(".")
        if not entry.is_dir():
            yield path, False, hidden
            continue
        place = path.resolve()
        if place not in above:
            yield path, True, hidden
            yield from _walk(path, above | {place}, hidden)


def _is_of(kind: str, path: Path) -> bool:
    return path.suffix.lower() in MEDIA[kind][1]


def _is_described_by(contents: Contents, tables: list[Path], kind: str) -> bool:
    """Return whether tables are the data, as they name files, or as these are not sorted into folders of classes."""
    files = [path for path in contents.files if _is_of(kind, path)]
    names = {path.name for path in files}
    if any(names_files(table, names) for table in tables):
        return True
    if len({path.parent for path in files}) < 2:
        return True
    logger.warning(
        f"{len(tables)} tables in {str(contents.folder)!r} name none of its {MEDIA[kind][0]} and are not read "
        f"({first_few(contents.names(tables))})"
    )
    return False


def _check_only_media(contents: Contents, kind: str) -> None:
    """Raise DataError on files that are neither of this kind nor known to lie beside data."""
    things, _ = MEDIA[kind]
    wrong = [
        path
        for path in contents.files
        if not (_is_of(kind, path) or is_table(path) or path.name.lower() in (*NO_DATA, *metadata.NAMES))
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(contents.files)} files in {str(contents.folder)!r} are no {things} "
            f"({first_few(contents.names(wrong))}): remove them"
        )
    filled = {folder for path in contents.files if _is_of(kind, path) for folder in path.parents}
    empty = [folder for folder in contents.folders if folder not in filled and folder.parent in filled]
    if empty:
        logger.warning(
            f"{len(empty)} folders in {str(contents.folder)!r} hold no {things} ({first_few(contents.names(empty))})"
        )
    hidden = [path for path in contents.hidden if _is_of(kind, path)]
    if hidden:
        logger.warning(
            f"{len(hidden)} {things} in {str(contents.folder)!r} are hidden, or in hidden folders, and left out "
            f"({first_few(contents.names(hidden))})"
        )


# ---- Images and recordings ----


def _media(contents: Contents, kind: str, whole: bool) -> DatasetDict:
    """Return the files of each split with the columns of `metadata`, or with their class by folders."""
    _check_only_media(contents, kind)
    things, where = MEDIA[kind][0], str(contents.folder)
    descriptions = [path for path in contents.files if path.name in metadata.NAMES]
    media = [path for path in contents.files if _is_of(kind, path)]
    if kind == "image":
        check_image_formats(media)
    names = contents.names(media)
    _check_names(names, where, things)
    files = [tuple(name.split("/")) for name in names]
    splits = (
        {"train": FilesOfSplit(files, [0] * len(files))}
        if whole
        else files_of_splits(files, where, things, is_described=bool(descriptions))
    )
    columns = metadata.described(contents.folder, descriptions, names) if descriptions else None
    row_of = {name: row for row, name in enumerate(names)}
    classes = None
    if columns is None or not set(columns.column_names) & set(LABEL_NAMES):
        classes = classes_of_files(splits, where, things)
    if classes is None and columns is None:
        raise DataError(f"the {things} in {where!r} are of one class: sort them into a folder for each class")
    loaded = {}
    for split, of_split in splits.items():
        paths = ["/".join(file) for file in of_split.files]
        dataset = _files(kind, contents.folder, paths)
        if classes is not None:
            dataset = _with_classes(dataset, classes, split)
        if columns is not None:
            described = columns.select([row_of[path] for path in paths])
            for name in (name for name in described.column_names if name != kind):
                dataset = dataset.add_column(name, described[name][:], feature=described.features[name])
        loaded[split] = dataset
    return DatasetDict(loaded)


def _check_names(names: list[str], where: str, things: str) -> None:
    """Raise DataError on names that are no text, as of files from systems with another encoding."""
    wrong = [name for name in names if name.encode("utf-8", "replace").decode() != name]
    if wrong:
        shown = first_few(ascii(name) for name in wrong)
        raise DataError(f"{len(wrong)} {things} in {where!r} have names that are no UTF-8 ({shown}): rename them")


def _files(kind: str, folder: Path, paths: list[str]) -> Dataset:
    stored = {kind: [{"bytes": None, "path": str(folder / path)} for path in paths]}
    features = Features({kind: {"bytes": Value("binary"), "path": Value("string")}})
    return Dataset.from_dict(stored, features=features).cast_column(kind, FILES[kind])


def _with_classes(dataset: Dataset, classes: dict[str, list[str]], split: str) -> Dataset:
    feature = ClassLabel(names=sorted({label for labels in classes.values() for label in labels}))
    numbers: Any = feature.str2int(classes[split])
    return dataset.add_column("label", numbers, feature=feature)
