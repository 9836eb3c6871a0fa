"""Tables in files: parquet, csv, tsv, json and jsonl, whose values stay what was written."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, IterableDatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from famus_hf.errors import DataError, first_few, reason_of

logger = logging.get_logger(__name__)

LOADERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}  # of datasets
BEGINNING = 2**16  # bytes of a table, and rows of a parquet file, in which names of files are looked for


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its name."""
    return path.suffix.lower() in LOADERS


def of_one_kind(tables: Sequence[Path]) -> list[Path]:
    """Return the tables of the kind that most of them are of, and say which are left out."""
    kinds = Counter(path.suffix.lower() for path in tables)
    kind = kinds.most_common(1)[0][0]
    alike = [path for path in tables if path.suffix.lower() == kind]
    others = [path.name for path in tables if path.suffix.lower() != kind]
    if others:
        logger.warning(f"{len(others)} files are not read beside {len(alike)} {kind} files ({first_few(others)})")
    return alike


def read_tables(splits: Mapping[str, Sequence[Path]], streaming: bool = False) -> DatasetDict | IterableDatasetDict:
    """Read the tables of each split, all of one kind.

    Of csv and tsv every value is what the file has: a column becomes one of numbers only where each number is written
    as it would be written again, so that `01` and `1` stay two classes, and `None` and `NA` are words.

    Raises:
        DataError: A file can't be read; says why.
    """
    paths = {split: [str(path) for path in files] for split, files in splits.items()}
    first = Path(next(iter(paths.values()))[0])
    loader = LOADERS[first.suffix.lower()]
    try:
        settings = _settings_of_csv(first) if loader == "csv" else {}
        loaded = load_dataset(loader, data_files=paths, streaming=streaming, **settings)
    except (DatasetGenerationError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise DataError(f"folder {str(first.parent)!r} could not be read as {loader}: {reason_of(cause)}") from error
    if streaming or loader != "csv":
        return loaded
    return DatasetDict({split: _with_numbers(dataset) for split, dataset in loaded.items()})


def _settings_of_csv(path: Path) -> dict[str, object]:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    names = pd.read_csv(path, sep=separator, nrows=0).columns
    return {
        "sep": separator,
        "features": Features({str(name): Value("string") for name in names}),
        "keep_default_na": False,
        "na_values": [""],
    }


def _with_numbers(dataset: Dataset) -> Dataset:
    """Make numbers of the columns in which each is written as it would be written again."""
    for name in dataset.column_names:
        column = dataset.data.column(name)
        for kind in (pa.int64(), pa.float64()):
            if _is_written_as(column, kind):
                dataset = dataset.cast_column(name, Value(str(kind).replace("double", "float64")))
                break
    return dataset


def _is_written_as(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        numbers = pc.cast(column, kind)
    except pa.ArrowInvalid:
        return False
    same = pc.and_(pc.equal(column, pc.cast(numbers, column.type)), pc.is_finite(numbers))  # nan and inf are words
    return len(column) > column.null_count and bool(pc.all(same).as_py())


def names_files(table: Path, names: set[str]) -> bool:
    """Return whether the beginning of a table has the name of one of these files."""
    try:
        if LOADERS[table.suffix.lower()] == "parquet":
            with pq.ParquetFile(table) as file:
                beginning = next(file.iter_batches(BEGINNING), None)
            text = "" if beginning is None else str(beginning.slice(0, 100).to_pydict())
        else:
            with table.open("rb") as file:
                text = file.read(BEGINNING).decode("utf-8", "replace")
    except (OSError, pa.ArrowException):
        return False
    return any(word in names for word in re.split(r"[/\\\"',;\t\r\n]+", text))
