"""What famus_hf raises where something is not as it must be, for users to catch, and how it words that.

Every message is one sentence: what was seen, what is allowed, what to do.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any


class FaMUSError(ValueError):
    """Something that was given can't be used."""


class SettingsError(FaMUSError):
    """An argument, or several together, or what they ask of the network or the machine."""


class DataError(FaMUSError):
    """A data set, its columns, its examples or its labels."""


class LoadError(FaMUSError):
    """A folder, checkpoint or file that is missing, damaged, absurd, or of another run."""


class HubError(FaMUSError):
    """A repository on the Hub that is not there, or does not let us in, or holds something else."""


class SaveError(OSError):
    """Something could not be written. What was there before is as it was."""


class PushError(OSError):
    """A push failed. The repository is as it was, as a push is one commit.

    Args:
        failure: What failed, and why.
        remedy: How to repeat it.
    """

    def __init__(self, failure: str, remedy: str | None = None):
        super().__init__(failure if remedy is None else f"{failure}; {remedy}")
        self.failure = failure


def first_few(values: Iterable[Any], count: int = 3) -> str:
    """Return the first of them, separated by commas, and whether there are more: "a, b, c, …"."""
    first = list(islice(values, count + 1))
    return ", ".join(map(str, first[:count])) + (", …" if len(first) > count else "")


def reason_of(error: BaseException) -> str:
    """Return the first sentence of an error, short enough to be part of another."""
    first = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    text = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
    text = text.rstrip(".: ").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 300 else text[:300] + "…"
