"""Checks of single settings, each in one sentence: they come from users, and from files of others."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

from famus_hf.errors import SettingsError


def check_whole(name: str, value: Any, at_least: int) -> None:
    """Raise SettingsError on what is no whole number, or too small."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise SettingsError(f"{name}={value!r} must be a whole number of at least {at_least}")


def check_number(name: str, value: Any) -> None:
    """Raise SettingsError on what is no finite number."""
    number: Any = value
    if isinstance(value, bool) or not isinstance(value, Real) or not abs(number) <= sys.float_info.max:  # NaN is not
        raise SettingsError(f"{name}={value!r} must be a finite number")


def check_flag(name: str, value: Any) -> None:
    """Raise SettingsError on what is neither True nor False."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name}={value!r} must be True or False")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise SettingsError on what is not among the words allowed."""
    if value not in choices:
        raise SettingsError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}")


class Bound(Protocol):
    """What a number must keep to; stands in the annotation of a setting, `Annotated[float, Above(0)]`."""

    def holds(self, value: Any) -> bool:
        """Return whether a number keeps to it; NaN never does."""

    @property
    def words(self) -> str:
        """What an error says after "must be"."""


@dataclass(frozen=True)
class Above:
    """Greater than a number."""

    number: float

    def holds(self, value: Any) -> bool:
        return bool(value > self.number)

    @property
    def words(self) -> str:
        return f"greater than {self.number}"


@dataclass(frozen=True)
class AtLeast:
    """A number, or greater. meaning: Other words for it."""

    number: float
    meaning: str | None = None

    def holds(self, value: Any) -> bool:
        return bool(value >= self.number)

    @property
    def words(self) -> str:
        return self.meaning or f"at least {self.number}"


@dataclass(frozen=True)
class Below:
    """Less than a number."""

    number: float

    def holds(self, value: Any) -> bool:
        return bool(value < self.number)

    @property
    def words(self) -> str:
        return f"less than {self.number}"


@dataclass(frozen=True)
class Between:
    """Greater than one number and less than another."""

    low: float
    high: float

    def holds(self, value: Any) -> bool:
        return bool(self.low < value < self.high)

    @property
    def words(self) -> str:
        return f"greater than {self.low} and less than {self.high}"


def check_bound(name: str, value: Any, bound: Bound) -> None:
    """Raise SettingsError on a number, or a list with one, that does not keep to its bound; None is no number."""
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not bound.holds(number):
            raise SettingsError(f"{name}={value} must be {bound.words}")
