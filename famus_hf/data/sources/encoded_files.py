"""Files that a table holds as text: base64, with or without the head of a data URI."""

import base64
import binascii
import re
from collections.abc import Sequence

HEAD = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]*)*,")
SHORTEST = 64  # characters; the path of a file may be made of letters and slashes alone


def decoded(values: Sequence[str | None]) -> list[bytes | None] | None:
    """Return the bytes of each value, None of those that are no base64; None where the first one is none."""
    first = next((value for value in values if value), "")
    if _bytes_of(first) is None:
        return None
    return [None if value is None else _bytes_of(value) for value in values]


def _bytes_of(value: str) -> bytes | None:
    text = HEAD.sub("", value, count=1) if value.startswith("data:") else value
    if text == value and len(value) < SHORTEST:
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
