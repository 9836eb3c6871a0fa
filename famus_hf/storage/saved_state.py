"""What a state out of a file must be like, declared key by key: whoever wrote it may be an attacker.

    check_state("the division", state, {
        "epoch": (is_whole(-1), "an epoch that is no whole number of at least -1"),
        "purity": (optional(is_number(0, 1)), "a purity that lies not in [0, 1]"),
    })

A check returns whether a value is as it must be, and never raises on what it is given.
"""

import sys
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from famus_hf.errors import LoadError

Check = Callable[[Any], bool]


def check_state(
    what: str, state: Any, fields: Mapping[str, tuple[Check, str]], optional_keys: Set[str] = frozenset()
) -> None:
    """Raise LoadError on a state that is no dict of these keys, or has a value that is not as it must be.

    Args:
        what: The state, as an error calls it.
        state: Anything.
        fields: Key → check, and what is there where that fails.
        optional_keys: Further ones that may be there, and are not looked at.
    """
    if not isinstance(state, Mapping):
        raise LoadError(f"{what} is no dict (but of type {type(state).__name__})")
    strange = [key for key in state if key not in fields and key not in optional_keys]
    missing = [key for key in fields if key not in state]
    if strange:
        raise LoadError(f"{what} has the unknown key {str(strange[0])[:80]!r}")
    if missing:
        raise LoadError(f"{what} lacks the key {missing[0]!r}")
    for key, (check, complaint) in fields.items():
        if not check(state[key]):
            raise LoadError(f"{what} has {complaint}")


def stored_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU, for `check_state`.

    Args:
        path: The file.
        what: It is, as an error calls it.

    Raises:
        LoadError: It can't be read.
    """
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{what} can't be read: {error}") from error


def is_whole(at_least: int = 0, at_most: int = 2**63 - 1) -> Check:
    """Return a check for a whole number that is no truth value."""
    return lambda value: type(value) is int and at_least <= value <= at_most


def is_number(at_least: float = -sys.float_info.max, at_most: float = sys.float_info.max, above: bool = False) -> Check:
    """Return a check for a finite number; with `above`, `at_least` itself is refused."""

    def check(value: Any) -> bool:
        return type(value) in (int, float) and at_least <= value <= at_most and not (above and value == at_least)

    return check


def is_word(value: Any) -> bool:
    """Return whether it is a string."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """Return whether it is True or False."""
    return type(value) is bool


def optional(check: Check) -> Check:
    """Return a check for None, or what this check takes."""
    return lambda value: value is None or check(value)


def is_list(item: Check, length: int | None = None) -> Check:
    """Return a check for a list of such items, of any length or of this one."""

    def check(value: Any) -> bool:
        return isinstance(value, list) and length in (None, len(value)) and all(map(item, value))

    return check


def is_dict(value: Check, keys: set[Any] | None = None, key: Check = is_word) -> Check:
    """Return a check for a dict of such values, with any keys that `key` takes or with exactly `keys`."""

    def check(content: Any) -> bool:
        if not isinstance(content, Mapping) or (keys is not None and content.keys() != keys):
            return False
        return all(map(key, content)) and all(map(value, content.values()))

    return check


def is_tensor(
    shape: tuple[int | None, ...], dtype: torch.dtype | None = None, low: float = -torch.inf, high: float = torch.inf
) -> Check:
    """Return a check for a finite, dense tensor in [low, high].

    Args:
        shape: None in it stands for any length.
        dtype: Default: any of floats.
        low: Smallest number.
        high: Largest number.
    """

    def check(value: Any) -> bool:
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.dim() != len(shape):
            return False
        if any(side not in (None, length) for side, length in zip(shape, value.shape, strict=True)):
            return False
        if not (value.is_floating_point() if dtype is None else value.dtype == dtype):
            return False
        return bool((value.isfinite() & (value >= low) & (value <= high)).all())

    return check


def is_rows(total: int, at_least: int = 0) -> Check:
    """Return a check for different rows of a data set, shape (n,), int64.

    Args:
        total: Examples of the data set.
        at_least: Smallest n.
    """
    is_within = is_tensor((None,), torch.int64, 0, total - 1)

    def check(value: Any) -> bool:
        return is_within(value) and at_least <= len(value) <= total and len(value.unique()) == len(value)

    return check
