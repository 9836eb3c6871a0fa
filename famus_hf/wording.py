"""How errors name offenders."""

from collections.abc import Iterable
from itertools import islice
from typing import Any


def first_few(values: Iterable[Any], count: int = 3) -> str:
    """The first of them, separated by commas, and whether there are more: "a, b, c, …"."""
    first = list(islice(values, count + 1))
    return ", ".join(map(str, first[:count])) + (", …" if len(first) > count else "")
