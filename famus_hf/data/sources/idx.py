"""Folders of MNIST-format idx files, gzipped or not, as in Debian's package dataset-fashion-mnist."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from famus_hf.errors import DataError

FASHION_MNIST_CLASSES = [
    "T-shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
]  # fmt: skip
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def is_idx_folder(folder: Path) -> bool:
    """Return whether any of the four files is there."""
    names = [name for pair in IDX_FILES.values() for name in pair]
    return any((folder / f"{name}{ending}").is_file() for name in names for ending in ("", ".gz"))


def is_called_fashion(folder: Path) -> bool:
    """Return whether a folder of idx files goes by the name of Fashion-MNIST and not of MNIST."""
    return "fashion" in folder.resolve().name.lower()


def load_idx_folder(folder: Path) -> DatasetDict:
    """Load splits `train` and `test` of the four files. Raise DataError if one is missing, cut short or misfits."""
    splits = {}
    labels_of_splits = [_read_idx(_find_idx_file(folder, file_names[1])) for file_names in IDX_FILES.values()]
    num_classes = 1 + max((int(labels.max()) for labels in labels_of_splits if labels.size), default=0)
    classes = [str(label) for label in range(num_classes)]
    if is_called_fashion(folder) and num_classes == len(FASHION_MNIST_CLASSES):
        classes = FASHION_MNIST_CLASSES
    for split, file_names in IDX_FILES.items():
        paths = tuple(_find_idx_file(folder, file_name) for file_name in file_names)
        images, labels = map(_read_idx, paths)
        if len(images) != len(labels) or len(labels) == 0:
            raise DataError(f"{str(paths[0])!r} has {len(images)} images, {str(paths[1])!r} {len(labels)} labels")
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
    raise DataError(
        f"folder {str(folder)!r} has no {file_name} or {file_name}.gz: MNIST's format needs its four idx files "
        "(Debian's package dataset-fashion-mnist brings them)"
    )


def _read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes as an array. Raise DataError if the header and the size disagree."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error):
        content = b""
    dimensions = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], ">u4").astype(int) if dimensions and len(content) >= start else None
    if shape is None or len(content) != start + shape.prod():
        raise DataError(f"{str(path)!r} is not an idx file of unsigned bytes, or it is cut short: fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_rows(paths: tuple[Path, ...], stamps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split; `stamps` only makes the cache notice changed files."""
    for image, label in zip(*map(_read_idx, paths), strict=True):
        yield {"image": image, "label": int(label)}
