"""Which examples of a training set are in another set as well."""

from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

from datasets import Dataset

from famus_hf.data.media.modalities import FILES

MAX_COPIES = 3  # in the training set; what is there more often is a placeholder, and leaks nothing


def same_content(train: Dataset, other: Dataset) -> list[int]:
    """Return the rows of train whose file (or texts) the other set has too; repeated placeholders do not count."""
    others = {content for content in _contents(other) if content is not None}
    if not others:
        return []
    return rows_of_copies(_contents(train, {len(content) for content in others}), others)


def rows_of_copies(contents: Iterable[Any], wanted: Set[Any]) -> list[int]:
    """Return the places of wanted contents, but for contents that occur more than `MAX_COPIES` times."""
    places: dict[Any, list[int]] = {}
    for place, content in enumerate(contents):
        if content in wanted:
            places.setdefault(content, []).append(place)
    return sorted(place for copies in places.values() if len(copies) <= MAX_COPIES for place in copies)


def _contents(dataset: Dataset, sizes: set[int] | None = None) -> Iterator[Any]:
    """Yield the bytes of each file, or the texts; bytes are None, unread, where their number is none of `sizes`."""
    column = next((name for name in FILES if name in dataset.features), None)
    if column is None:
        yield from zip(*(dataset[name] for name in ("text", "text_pair") if name in dataset.features), strict=True)
        return
    files = dataset.select_columns(column).cast_column(column, type(FILES[column])(decode=False))
    for start in range(0, len(files), 1000):
        for file in files[start : start + 1000][column]:
            yield _file_content(file, sizes)


def _file_content(file: dict[str, Any] | None, sizes: set[int] | None) -> bytes | None:
    if file is None:
        return None
    if file["bytes"] is not None:
        return file["bytes"] if sizes is None or len(file["bytes"]) in sizes else None
    path = Path(file["path"])
    if not path.is_file() or (sizes is not None and path.stat().st_size not in sizes):
        return None
    return path.read_bytes()
