"""How much each training example counts, as a column of the training set says."""

from collections.abc import Mapping
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from famus_hf.errors import DataError, SettingsError, first_few


def read_sample_weights(column: str | None, train: Any) -> Tensor | None:
    """Return the weights of the training examples, shape (N,), float32, divided by their mean; None without a column.

    Args:
        column: Its name.
        train: `datasets.Dataset`, or any map-style data set of mappings; None: there is none.

    Raises:
        SettingsError: The data are a stream.
        DataError: There is no such column, or it holds what can't be weights.
    """
    if column is None or train is None:
        return None
    if isinstance(train, (datasets.IterableDataset, IterableDataset)) or not has_length(train):
        raise SettingsError("sample_weight_column needs to know which example is which, and a stream does not tell")
    weights = _as_numbers(column, _values(column, train))
    wrong = (~(weights.isfinite() & (weights >= 0))).nonzero()[:, 0].tolist()
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(weights)} weights in column {column!r} are negative or not finite "
            f"(row {first_few(wrong)}): give numbers of at least 0"
        )
    if not weights.any():
        raise DataError(f"all weights in column {column!r} are 0, so that nothing would be learned: give some above 0")
    return (weights / weights.mean()).float()


def _values(column: str, train: Any) -> list[Any]:
    names = train.column_names if isinstance(train, datasets.Dataset) else list(_columns_of(train[0]))
    if column not in names:
        raise DataError(f"sample_weight_column {column!r} is not in the training set, which has {', '.join(names)}")
    if isinstance(train, datasets.Dataset):
        stored = train if train.format["type"] == "custom" else train.with_format(None)
        return list(stored[column][:])
    return [train[row][column] for row in range(len(train))]


def _columns_of(example: Any) -> Mapping[str, Any]:
    return example if isinstance(example, Mapping) else {}


def _as_numbers(column: str, values: list[Any]) -> Tensor:
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise DataError(f"{len(missing)} examples have no weight in column {column!r} (row {first_few(missing)})")
    try:
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {column!r} holds {values[0]!r}, and weights are numbers of at least 0") from error
