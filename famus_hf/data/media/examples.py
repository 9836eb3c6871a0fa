"""Examples in sentences: what each is called, and which of them can't be read."""

from collections.abc import Sequence
from pathlib import PurePath

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from famus_hf.data.media.modalities import TEXT, Modality, modality_of_source
from famus_hf.errors import DataError, first_few

NAMED = 5  # examples of those that a sentence counts
SHOWN_LENGTH = 200  # characters of a text where examples are listed
SHORTENED = "…"  # ends the beginning of a longer one


def file_name(path: str) -> str:
    """Return folder and name of a file, as in `cats/7.png`."""
    return "/".join(PurePath(path).parts[-2:])


def file_names(dataset: Dataset, column: str) -> list[str | None] | None:
    """Return the path of each example's file below the folder that holds all of them; None where they have no files.

    At least with the folder that the file lies in, as in `cats/7.png`. The files are not read: of a data set that holds
    them itself, they would be all of its bytes.
    """
    stored = dataset.data.column(column)  # of all rows, as they were before `select` and `shuffle`
    if not pa.types.is_struct(stored.type) or stored.type.get_field_index("path") < 0:
        return None
    paths = [None if path is None else PurePath(path).parts for path in pc.struct_field(stored, "path").to_pylist()]
    known = [path for path in paths if path]
    if not known:
        return None
    first, last = min(path[:-2] for path in known), max(path[:-2] for path in known)
    depth = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    rows = range(len(paths)) if dataset._indices is None else dataset._indices.column(0).to_pylist()
    names = ["/".join(path[depth:]) if path else None for path in (paths[row] for row in rows)]
    return names if any(names) else None


def texts_or_files(dataset: Dataset) -> list[str | None] | None:
    """Return by what the examples of a data set are told apart at its source: texts, or paths as of `file_names`."""
    column = modality_of_source(dataset.features).column
    if column != TEXT.column:
        return file_names(dataset, column)
    texts: list[str | None] = dataset[column][:]
    return texts


def beginning_of(text: str) -> str:
    """Return so much of a text as is shown where examples are listed."""
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - len(SHORTENED)]}{SHORTENED}"


def named(dataset: Dataset, column: str, rows: Sequence[int], index: Sequence[int] | None = None) -> str:
    """Return what the first few of these rows are called: their files, else `index 7, 9` or `row 7, 9`.

    Args:
        dataset: That they are of.
        column: Which holds the examples.
        rows: Of the data set.
        index: Numbers of all its examples. Default: they are known by their rows.
    """
    first = rows[: NAMED + 1]
    word, numbers = ("row", first) if index is None else ("index", [index[row] for row in first])
    files = file_names(dataset.select(first), column)
    if files is None:
        return f"{word} {first_few(numbers, NAMED)}"
    return first_few((file or f"{word} {number}" for file, number in zip(files, numbers, strict=True)), NAMED)


def refuse_broken(
    dataset: Dataset, modality: Modality, rows: Sequence[int], name: str, index: Sequence[int] | None = None
) -> None:
    """Raise DataError that counts and names the examples that can't be read, if there are any.

    Args:
        dataset: That they are of.
        modality: Of the examples.
        rows: Of those that can't be read.
        name: Of the data set, as in "the training set".
        index: See `named`.
    """
    if rows:
        which = named(dataset, modality.column, rows, index)
        raise DataError(
            f"{len(rows)} of {len(dataset)} {modality.things} of {name} can't be read ({which}): remove or repair them"
        )
