"""noise.parquet: which labels a run was trained on, so that another method can be trained on the very same."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from famus_hf.errors import DataError, first_few, reason_of
from famus_hf.storage.atomic import atomic_write

COLUMNS = ("index", "label", "clean_label")
SPARE_ROWS = 2**22  # beside one for each byte


@dataclass
class NoiseFile:
    """What `noise.parquet` holds.

    Attributes:
        index: Shape (N,), row of each training example in the source split, all different.
        labels: Shape (N,), the possibly wrong labels.
        clean_labels: Shape (N,), the labels before corruption, or None where they are not known.
        metadata: Seed, realised rate and whatever else describes the draw; `meta_index` are the rows of the meta set,
            `class_names` the names of the classes.
    """

    index: np.ndarray
    labels: np.ndarray
    clean_labels: np.ndarray | None
    metadata: dict[str, Any]


def write_noise_file(
    path: Path,
    index: Sequence[int],
    labels: Sequence[int],
    clean_labels: Sequence[int] | None,
    metadata: dict[str, Any],
) -> None:
    """Write columns `index`, `label` and, where known, `clean_label`; settings as JSON under the key `famus_hf`.

    Args:
        path: The file; replaced whole or not at all.
        index: Row of each example in the source split.
        labels: The possibly wrong labels.
        clean_labels: The labels before corruption.
        metadata: Seed, realised rate and whatever else describes the draw; `class_names`, where the classes have names.
    """
    columns = {"index": list(index), "label": list(labels)}
    if clean_labels is not None:
        columns["clean_label"] = list(clean_labels)
    table = pa.table(columns).replace_schema_metadata({"famus_hf": json.dumps(metadata)})
    with atomic_write(path) as temporary_path:
        pq.write_table(table, temporary_path)


def read_noise_file(path: Path) -> NoiseFile:
    """Read what `write_noise_file` wrote, or any parquet file with the columns `index` and `label`.

    Raises:
        DataError: No such file, columns missing or of other types, or an index that occurs twice.
    """
    try:
        table = _read_columns(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"noise file {str(path)!r} can't be read as parquet: {reason_of(error)}") from error
    columns = {name: table[name] for name in table.column_names}
    index = columns["index"].to_numpy()
    rows, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"noise file {str(path)!r} names {(counts > 1).sum()} rows more than once "
            f"(index {first_few(rows[counts > 1])}): leave one line for each"
        )
    metadata = _checked_metadata(path, (table.schema.metadata or {}).get(b"famus_hf", b"{}"), set(index.tolist()))
    clean = columns["clean_label"].to_numpy() if "clean_label" in columns else None
    return NoiseFile(index, columns["label"].to_numpy(), clean, metadata)


def _read_columns(path: Path) -> pa.Table:
    """Read the columns of use, as int64. Raise DataError where they hold no whole numbers or claim too many rows."""
    with pq.ParquetFile(path) as file:
        rows, size = file.metadata.num_rows, path.stat().st_size
        if rows > SPARE_ROWS + size:  # `write_noise_file` takes at least four bytes for a row
            raise DataError(f"noise file {str(path)!r} claims {rows} rows in {size} bytes: take the file of a run")
        names = file.schema_arrow.names
        needed = [name for name in COLUMNS if name in names or name in COLUMNS[:2]]
        types = {field.name: field.type for field in file.schema_arrow}
        wrong = [name for name in needed if names.count(name) != 1 or not pa.types.is_integer(types[name])]
        table = file.read(columns=[name for name in needed if name not in wrong])
    wrong += [name for name in table.column_names if table[name].null_count]
    if wrong:
        raise DataError(
            f"noise file {str(path)!r} has no column {wrong[0]!r} of whole numbers: it needs index and label, and "
            "clean_label where known, as in the noise.parquet of a run"
        )
    return table.cast(pa.schema([(name, pa.int64()) for name in table.column_names], table.schema.metadata))


def _checked_metadata(path: Path, content: bytes, train: set[int]) -> dict[str, Any]:
    """Return the settings, a mapping; its `meta_index` has different rows outside of train, `class_names` words."""
    try:
        metadata = json.loads(content)
        rows, noise = metadata.get("meta_index", []), metadata.get("noise", 0)
        sound = isinstance(rows, list) and all(type(row) is int and abs(row) < 2**63 for row in rows)  # int64
        sound = sound and len(set(rows)) == len(rows) and not train & set(rows)
        sound = sound and type(noise) in (int, float) and math.isfinite(noise)
        names = metadata.get("class_names") or []
        sound = sound and isinstance(names, list) and all(isinstance(name, str) for name in names)
        sound = sound and len(set(names)) == len(names)
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        sound = False
    if not sound:
        raise DataError(
            f"noise file {str(path)!r} has settings that no run writes (meta_index must hold different rows outside of "
            "the training rows, class_names different words): take the noise.parquet of a run, or leave them out"
        )
    return metadata


def by_names_of(noise_file: NoiseFile, class_names: list[str]) -> NoiseFile:
    """Return the file with its classes in the order of these names, where it has names too.

    Args:
        noise_file: The file.
        class_names: Of the data.

    Raises:
        DataError: A class of the file is none of the data's.
    """
    names = noise_file.metadata.get("class_names") or class_names
    if names == class_names:
        return noise_file
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise DataError(
            f"{len(unknown)} classes of the noise file are none of the data ({_words(unknown)}): it has "
            f"{len(names)} ({_words(names)}) and the data {len(class_names)} ({_words(class_names)}), so take the file "
            "of a run on these data"
        )
    for values in (noise_file.labels, noise_file.clean_labels):
        if values is not None and ((values < 0) | (values >= len(names))).any():
            raise DataError(
                f"labels of the noise file are none of the {len(names)} classes that it names: it is damaged"
            )
    places = {name: place for place, name in enumerate(class_names)}
    numbers = np.array([places[name] for name in names])
    clean = None if noise_file.clean_labels is None else numbers[noise_file.clean_labels]
    return replace(noise_file, labels=numbers[noise_file.labels], clean_labels=clean)


def _words(names: Sequence[str]) -> str:
    return first_few((repr(name[:40]) for name in names), 10)


def check_noise_file(noise_file: NoiseFile, num_rows: int, num_labels: int, known_clean: np.ndarray | None) -> None:
    """Raise DataError if the file was made for other data.

    Args:
        noise_file: The file.
        num_rows: Rows of the source split.
        num_labels: C.
        known_clean: Shape (num_rows,), the labels of the source split where they are clean, else None.
    """
    index, labels = noise_file.index, noise_file.labels
    named = np.concatenate([index, np.array(noise_file.metadata.get("meta_index", []), dtype=index.dtype)])
    outside = named[(named < 0) | (named >= num_rows)]
    if len(outside):
        raise DataError(
            f"{len(outside)} rows of the noise file are not in the training split, which has {num_rows} "
            f"(index {first_few(outside)}): it was made for other data"
        )
    for name, values in (("label", labels), ("clean_label", noise_file.clean_labels)):
        wrong = values[(values < 0) | (values >= num_labels)] if values is not None else np.empty(0)
        if len(wrong):
            raise DataError(
                f"{len(wrong)} values of {name} in the noise file are no class of the data, which have {num_labels} "
                f"({first_few(wrong)}): it was made for other data"
            )
    if known_clean is not None and noise_file.clean_labels is not None:
        differ = index[known_clean[index] != noise_file.clean_labels]
        if len(differ):
            raise DataError(
                f"{len(differ)} of {len(index)} clean labels of the noise file are not those of the data "
                f"(index {first_few(differ)}): it was made for other data, or its rows were reordered"
            )
