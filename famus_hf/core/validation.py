"""Checks of single settings, each in one sentence: they come from users, and from files of others."""

import sys
from numbers import Integral, Real
from typing import Any

from famus_hf.errors import SettingsError


def check_whole(name: str, value: Any, at_least: int) -> None:
    """Raises ValueError on what is no whole number, or too small."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise SettingsError(f"{name}={value!r} must be a whole number of at least {at_least}")


def check_number(name: str, value: Any) -> None:
    """Raises ValueError on what is no finite number."""
    number: Any = value
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(number) <= sys.float_info.max:  # NaN is not
        raise SettingsError(f"{name}={value!r} must be a finite number")


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError on what is neither True nor False."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name}={value!r} must be True or False")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError on what is not among the words allowed."""
    if value not in choices:
        raise SettingsError(f"{name}={value!r} is unknown: choose {' or '.join(map(repr, choices))}")
