"""The paper: what one FaMUS step computes. Imports torch, numpy, scipy and the standard library only.

The public names are those of `__init__.pyi`, which a type checker reads; each is imported when it is first asked for.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOMES = {name: module for module, name in re.findall(r"^from \.([\w.]+) import (\w+)", _STUB, re.MULTILINE)}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
