"""Transitions from true classes to given labels, as a user gives them in a JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from famus_hf.errors import DataError, first_few, reason_of

SHOWN = 10  # names of a list in a message


def read_transitions(path: Path, class_names: Sequence[str]) -> Tensor:
    """Return T, shape (rows, columns), of `{"class_names": [...], "transitions": [[...], ...]}`.

    T_ky = P(given label y | true class k), classes in the order of `class_names`. That it is square, and each row sums
    to 1, is for `set_transitions` to check.

    Args:
        path: The file.
        class_names: Of the data, by their numbers.

    Raises:
        DataError: The file can't be read, holds something else, or has other classes or these in another order.
    """
    what = f"transitions file {str(path)!r}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{what} can't be read as JSON: {reason_of(error)}") from error
    names, rows = (content.get(key) if isinstance(content, dict) else None for key in ("class_names", "transitions"))
    try:
        matrix = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        matrix = torch.empty(0)
    if matrix.dim() != 2 or not isinstance(names, list):
        raise DataError(f"{what} must hold an object with class_names, a list, and transitions, a list of equal rows")
    if names != list(class_names):
        raise DataError(
            f"{what} is of the classes {first_few(map(str, names), SHOWN)} and the data of "
            f"{first_few(class_names, SHOWN)}: order its rows and columns as these, by the same names"
        )
    return matrix
