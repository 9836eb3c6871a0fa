"""metadata.csv, .jsonl or .parquet beside images or recordings: a table of what is known of each file.

As `datasets` documents it for folders of images: a column `file_name` with paths from the metadata file's own folder,
and further columns, of which one may be the label. A file is described by the nearest metadata file above it.
"""

import posixpath
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from famus_hf.data.sources.tables import read_tables
from famus_hf.errors import DataError, first_few

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


def described(folder: Path, metadata: Sequence[Path], files: Sequence[str]) -> Dataset:
    """Return the columns of the metadata for each file, in the order of the files, but for that of their names.

    Args:
        folder: Of the data.
        metadata: Files of `NAMES` below it, one in a folder.
        files: Paths from the folder, as in "train/7.png".

    Raises:
        DataError: A row without a file, a file without a row or with two, or tables that do not go together.
    """
    tables = {path: _read(path) for path in metadata}
    columns = {path: sorted(table.column_names) for path, table in tables.items()}
    different = [path for path in metadata if columns[path] != columns[metadata[0]]]
    if different:
        first, other = (str(path.relative_to(folder)) for path in (metadata[0], different[0]))
        raise DataError(
            f"{first!r} has the columns {', '.join(columns[metadata[0]])} and {other!r} has "
            f"{', '.join(columns[different[0]])}: give them the same ones"
        )
    names = [
        posixpath.normpath(posixpath.join(path.parent.relative_to(folder).as_posix(), str(name).replace("\\", "/")))
        for path in metadata
        for name in tables[path][FILE_NAME]
    ]
    whose = ", ".join(str(path.relative_to(folder)) for path in metadata)
    _check(names, set(files), whose, folder)
    row_of = {name: row for row, name in enumerate(names)}
    whole = concatenate_datasets(list(tables.values())).remove_columns(FILE_NAME)
    return whole.select([row_of[file] for file in files])


def _read(path: Path) -> Dataset:
    table: Any = read_tables({"train": [path]})["train"]
    if FILE_NAME not in table.column_names:
        raise DataError(
            f"{str(path)!r} has the columns {', '.join(table.column_names)}, but no {FILE_NAME}: name in it the file "
            "of each row, or call the table otherwise"
        )
    return table


def _check(names: list[str], files: set[str], whose: str, folder: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    missing = sorted(set(names) - files)
    others = sorted(files - set(names))
    for wrong, count, problem in (
        (twice, len(names), f"files are named twice by {whose}"),
        (missing, len(names), f"files that {whose} names are not in {str(folder)!r}"),
        (others, len(files), f"files in {str(folder)!r} have no row in {whose}"),
    ):
        if wrong:
            raise DataError(
                f"{len(wrong)} of {count} {problem} ({first_few(wrong)}): give each file one row, and each row a file"
            )
