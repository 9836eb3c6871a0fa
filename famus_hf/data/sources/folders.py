"""Local folders: images or recordings in a folder for each class, parquet, csv, jsonl, or arrow by `save_to_disk`."""

import glob
import re
from collections import Counter
from pathlib import Path

from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDatasetDict,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from famus_hf.errors import DataError, first_few

MEDIA = {  # loader of datasets → what its files are called, and their endings
    "imagefolder": ("images", frozenset(ImageFolder.EXTENSIONS)),
    "audiofolder": ("recordings", frozenset(AudioFolder.EXTENSIONS)),
}
FILE_KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}
NO_DATA = ("readme", "readme.md", "license", "license.txt", "thumbs.db", "desktop.ini")  # beside data, in lower case
SPLITS = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
    | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
)  # as files and folders call them, in lower case
SPLIT_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLITS)})(?=[^a-z]|$)")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of a folder of images or recordings


def load_folder(folder: Path, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Load the splits that names of folders, or of files and folders (tables), tell; what tells none is `train`.

    Raises:
        DataError: Nothing that could be data is there, files of another kind lie among images or recordings, or
            folders of them lie beside those of splits.
    """
    kind, tables = _kind_and_tables(folder)
    if kind == "arrow":
        saved = load_from_disk(str(folder))
        splits = saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
        return _as_streams(splits) if streaming else splits
    files: dict[str, list[str]] = {}
    if kind in MEDIA:
        for split, places in _split_folders(folder).items():
            files[split] = [f"{glob.escape(str(place))}/**" for place in places]
        return _load(folder, kind, streaming, files)
    for path in tables:
        matches = SPLIT_NAME.findall(path.relative_to(folder).as_posix().lower())
        files.setdefault(SPLITS[matches[-1]] if matches else "train", []).append(glob.escape(str(path)))
    return _load(folder, kind, streaming, files)


def load_whole_folder(folder: Path) -> Dataset:
    """Load all that lies in a folder as one data set, whatever its files are called."""
    kind, tables = _kind_and_tables(folder)
    if kind == "arrow":
        saved = load_from_disk(str(folder))
        if isinstance(saved, DatasetDict):
            raise DataError(f"folder {str(folder)!r} holds the splits {', '.join(saved)}: use it as dataset_name")
        return saved
    files = [f"{glob.escape(str(folder))}/**"]
    if kind not in MEDIA:
        files = [glob.escape(str(path)) for path in tables]
    return _load(folder, kind, False, {"train": files})["train"]


def _split_folders(folder: Path) -> dict[str, list[Path]]:
    """Return split → folders called so (train/, Test/, …), or the whole folder as `train`."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders: dict[str, list[Path]] = {}
    for path in below:
        if path.name.lower() in SPLITS:
            folders.setdefault(SPLITS[path.name.lower()], []).append(path)
    if "train" not in folders:
        return _split_folders(below[0]) if len(below) == 1 and _has_folders(below[0]) else {"train": [folder]}
    others = [path.name for path in below if path.name.lower() not in SPLITS]
    if others:
        raise DataError(
            f"{len(others)} folders in {str(folder)!r} lie beside those of the splits ({first_few(others)}): move them"
        )
    return folders


def _has_folders(folder: Path) -> bool:
    return any(path.is_dir() for path in folder.iterdir())


def _load(folder: Path, kind: str, streaming: bool, files: dict[str, list[str]]) -> DatasetDict | IterableDatasetDict:
    if kind == "audiofolder":
        splits = DatasetDict({split: _recordings(folder, patterns) for split, patterns in files.items()})
        return _as_streams(splits) if streaming else splits
    first = next(iter(files.values()))[0]
    settings = {"sep": "\t"} if Path(first).suffix.lower() == ".tsv" else {}
    try:
        splits = load_dataset(kind, data_files=files, streaming=streaming, **settings)
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise DataError(f"folder {str(folder)!r} could not be read as {kind}: {reason}") from error
    if kind == "imagefolder" and len(splits["train"].features) < 2:
        raise DataError(f"the images in {str(folder)!r} are of one class: sort them into a folder for each class")
    return splits


def _as_streams(splits: DatasetDict) -> IterableDatasetDict:
    return IterableDatasetDict({name: split.to_iterable_dataset() for name, split in splits.items()})


def _recordings(folder: Path, patterns: list[str]) -> Dataset:
    """Read recordings of a class each, by the folder that they lie in.

    datasets 5.2's own loader of such folders needs torchcodec, though nothing is decoded.
    """
    files = sorted(Path(path) for pattern in patterns for path in glob.glob(pattern, recursive=True))
    names = [path.name for path in files if path.name in METADATA]
    if names:
        raise DataError(
            f"{names[0]!r} in {str(folder)!r} is not read beside recordings: give it another name, to be a table of "
            "paths, and name their column with audio_column_name"
        )
    paths = [path for path in files if path.suffix.lower() in MEDIA["audiofolder"][1]]
    labels = [path.parent.name for path in paths]
    if len(set(labels)) < 2:
        raise DataError(f"the recordings in {str(folder)!r} are of one class: sort them into a folder for each class")
    stored = {"audio": [{"bytes": None, "path": str(path)} for path in paths], "label": labels}
    features = Features(
        {"audio": {"bytes": Value("binary"), "path": Value("string")}, "label": ClassLabel(names=sorted(set(labels)))}
    )
    return Dataset.from_dict(stored, features=features).cast_column("audio", Audio(decode=False))


def _kind_and_tables(folder: Path) -> tuple[str, list[Path]]:
    """Return `arrow`, a key of `MEDIA`, `parquet`, `csv` or `json`, by the files, and those of the last three."""
    if not folder.is_dir():
        raise DataError(f"folder {str(folder)!r} does not exist")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "arrow", []
    files = _data_files(folder)
    tables = [path for path in files if path.suffix.lower() in FILE_KINDS and path.name not in METADATA]
    media = Counter(kind for kind, (_, endings) in MEDIA.items() for path in files if path.suffix.lower() in endings)
    if media and not tables:
        kind = media.most_common(1)[0][0]
        _check_only_media(folder, files, *MEDIA[kind])
        return kind, []
    kinds = Counter(FILE_KINDS[path.suffix.lower()] for path in tables)
    if not kinds:
        raise DataError(
            f"folder {str(folder)!r} holds no data: it needs images or recordings in a folder for each class, parquet, "
            "csv or jsonl files, the folder that datasets' save_to_disk leaves, or the four idx files of MNIST's format"
        )
    kind = kinds.most_common(1)[0][0]
    return kind, [path for path in files if FILE_KINDS.get(path.suffix.lower()) == kind]


def _data_files(folder: Path) -> list[Path]:
    """Return the files below the folder; hidden ones and those in hidden folders are no data."""
    below = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _check_only_media(folder: Path, files: list[Path], things: str, endings: frozenset[str]) -> None:
    wrong = sorted(
        str(path.relative_to(folder))
        for path in files
        if path.suffix.lower() not in endings and path.name.lower() not in (*NO_DATA, *METADATA)
    )
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(files)} files in {str(folder)!r} are no {things} ({first_few(wrong)}): remove them"
        )
