"""Local folders: images in a folder for each class, parquet, csv, jsonl, or what `save_to_disk` leaves (arrow)."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from famus_hf.wording import first_few

IMAGE_ENDINGS = frozenset(ImageFolder.EXTENSIONS)
FILE_KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}
NO_DATA = ("readme", "readme.md", "license", "license.txt", "thumbs.db", "desktop.ini")  # beside data, in lower case
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SPLIT_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLITS)})(?=[^a-z]|$)")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of a folder of images


def load_folder(folder: Path, streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """The splits that file and folder names tell; what tells none is `train`.

    Raises:
        ValueError: Nothing that could be data is there, or files that are no images lie among images.
    """
    kind = folder_kind(folder)
    if kind == "arrow":
        saved = load_from_disk(str(folder))
        return saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
    if kind == "imagefolder":
        return _load(folder, kind, streaming, data_dir=str(folder))
    files: dict[str, list[str]] = {}
    for path in _files_of_kind(folder, kind):
        found = SPLIT_NAME.findall(path.relative_to(folder).as_posix())
        files.setdefault(SPLITS[found[-1]] if found else "train", []).append(str(path))
    return _load(folder, kind, streaming, data_files=files)


def load_whole_folder(folder: Path) -> Dataset:
    """All that lies in a folder as one data set, whatever its files are called."""
    kind = folder_kind(folder)
    if kind == "arrow":
        saved = load_from_disk(str(folder))
        if isinstance(saved, DatasetDict):
            raise ValueError(f"folder {str(folder)!r} holds the splits {', '.join(saved)}: use it as dataset_name")
        return saved
    return _load(folder, kind, False, data_files={"train": list(map(str, _files_of_kind(folder, kind)))})["train"]


def _files_of_kind(folder: Path, kind: str) -> list[Path]:
    endings = IMAGE_ENDINGS if kind == "imagefolder" else {ending for ending, own in FILE_KINDS.items() if own == kind}
    return [
        p for p in _data_files(folder) if p.suffix.lower() in endings or (kind == "imagefolder" and p.name in METADATA)
    ]


def _load(folder: Path, kind: str, streaming: bool, **where: Any) -> DatasetDict | IterableDatasetDict:
    if kind == "csv" and _files_of_kind(folder, kind)[0].suffix.lower() == ".tsv":
        where["sep"] = "\t"
    try:
        return load_dataset(kind, streaming=streaming, **where)
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"folder {str(folder)!r} could not be read as {kind}: {reason}") from error


def folder_kind(folder: Path) -> str:
    """`arrow`, `imagefolder`, `parquet`, `csv` or `json`, by the files that are there."""
    if not folder.is_dir():
        raise ValueError(f"folder {str(folder)!r} does not exist")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "arrow"
    files = _data_files(folder)
    tables = [path for path in files if path.suffix.lower() in FILE_KINDS and path.name not in METADATA]
    if not tables and any(path.suffix.lower() in IMAGE_ENDINGS for path in files):
        _check_only_images(folder, files)
        return "imagefolder"
    kinds = Counter(FILE_KINDS[path.suffix.lower()] for path in tables)
    if not kinds:
        raise ValueError(
            f"folder {str(folder)!r} holds no data: it needs images in a folder for each class, parquet, csv or jsonl "
            "files, the folder that datasets' save_to_disk leaves, or the four idx files of MNIST's format"
        )
    return kinds.most_common(1)[0][0]


def _data_files(folder: Path) -> list[Path]:
    """Files below the folder; hidden ones and those in hidden folders are no data."""
    below = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _check_only_images(folder: Path, files: list[Path]) -> None:
    wrong = sorted(
        str(path.relative_to(folder))
        for path in files
        if path.suffix.lower() not in IMAGE_ENDINGS and path.name.lower() not in (*NO_DATA, *METADATA)
    )
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(files)} files in {str(folder)!r} are no images ({first_few(wrong)}): remove them"
        )
