"""Which examples of a training set are in another set as well."""

from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any

from datasets import Dataset

from famus_hf.data.media.modalities import FILES

MAX_COPIES = 3  # in the training set; what is there more often is a placeholder, and leaks nothing


def same_content(train: Dataset, other: Dataset) -> list[int]:
    """Rows of train whose file (or texts) are also in the other set, but for placeholders that repeat in train."""
    wanted = {content for content in _contents(other) if content is not None}
    if not wanted:
        return []
    return rows_of_copies(_contents(train, {len(content) for content in wanted}), wanted)


def rows_of_copies(contents: Iterable[Any], wanted: Set[Any]) -> list[int]:
    """Places of those contents that are wanted, but for contents that occur more than `MAX_COPIES` times."""
    places: dict[Any, list[int]] = {}
    for place, content in enumerate(contents):
        if content in wanted:
            places.setdefault(content, []).append(place)
    return sorted(place for own in places.values() if len(own) <= MAX_COPIES for place in own)


def _contents(dataset: Dataset, sizes: set[int] | None = None) -> Iterator[Any]:
    """Bytes of each file, or the texts; bytes are None, unread, where their number is none of `sizes`."""
    kind = next((kind for kind in FILES if kind in dataset.features), None)
    if kind is None:
        yield from zip(*(dataset[name] for name in ("text", "text_pair") if name in dataset.features), strict=True)
        return
    files = dataset.select_columns(kind).cast_column(kind, type(FILES[kind])(decode=False))
    for start in range(0, len(files), 1000):
        for file in files[start : start + 1000][kind]:
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
