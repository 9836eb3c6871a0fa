"""Plain values with tensors in them as JSON and safetensors, instead of a pickle.

A dict, list, tuple, tensor or array becomes an object with its kind for a key; tensors go beside, by name.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from famus_hf.errors import LoadError

SCALARS = (type(None), bool, int, str)
DICTS: dict[str, type[dict]] = {"dict": dict, "ordered dict": OrderedDict}
SEQUENCES: dict[str, type[list] | type[tuple]] = {"list": list, "tuple": tuple}


def _decode(tree: Any, tensor: Callable[[str], Tensor]) -> Any:
    if type(tree) in (*SCALARS, float):
        return tree
    if not isinstance(tree, dict) or len(tree) != 1:
        raise LoadError(f"it has a {type(tree).__name__} where a value should be")
    ((kind, content),) = tree.items()
    if kind in SEQUENCES and isinstance(content, list):
        return SEQUENCES[kind](_decode(item, tensor) for item in content)
    if kind in DICTS and isinstance(content, list) and all(map(_is_item, content)):
        return DICTS[kind]((key, _decode(item, tensor)) for key, item in content)
    if isinstance(content, str) and kind == "tensor":
        return tensor(content)
    if isinstance(content, str) and kind == "array":
        return tensor(content).numpy()
    if kind == "float" and content in ("nan", "inf", "-inf"):
        return float(content)
    raise LoadError(f"it has a value of the unknown kind {kind[:80]!r}")


def _is_item(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], Hashable)


def to_json_tree(value: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """Return the value as JSON; its tensors are added to `tensors`, under names that begin with `prefix`.

    Raises:
        LoadError: Something in it is neither a plain value nor a tensor or array of numbers.
    """
    if type(value) in SCALARS or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is float:
        return {"float": str(value)}
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "buif"):
        name = f"{prefix}.{len(tensors)}"
        kind, tensor = ("tensor", value) if isinstance(value, Tensor) else ("array", torch.from_numpy(value))
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {kind: name}
    for kind, sequence in SEQUENCES.items():
        if type(value) is sequence:
            return {kind: [to_json_tree(item, tensors, prefix) for item in value]}
    for kind, mapping in DICTS.items():
        if type(value) is mapping:
            return {kind: [[_key(key), to_json_tree(item, tensors, prefix)] for key, item in value.items()]}
    raise LoadError(f"it holds a {type(value).__name__}, which is no plain value")


def _key(key: Any) -> Any:
    if type(key) not in SCALARS:
        raise LoadError(f"it has a {type(key).__name__} for a key")
    return key


def from_json_tree(tree: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Return what `to_json_tree` was given.

    Args:
        tree: JSON, maybe hostile.
        tensor: Returns the tensor of a name; raises LoadError where there is none.

    Raises:
        LoadError: `to_json_tree` does not write such a tree.
    """
    try:
        return _decode(tree, tensor)
    except RecursionError:
        raise LoadError("it is nested too deeply to be read") from None
