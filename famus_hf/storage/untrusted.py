"""Reading files that may be hostile: JSON and safetensors alone, inside their folder, within what their size warrants.

Everything here raises LoadError with one sentence.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from famus_hf.errors import LoadError, first_few, reason_of

MAX_JSON_BYTES = 2**24  # ten thousand layers take two million
SPARE_BYTES = 2**24  # what a constructor may take beside what it loads
SPARE_TENSORS = 4096


def check_inside(root: Path, path: Path) -> None:
    """Raise LoadError on a file that is missing, is no plain file, or lies outside of root once links are followed.

    In huggingface_hub's cache the files of `snapshots/REVISION`, and of folders in it, are links into `blobs` beside
    `snapshots`.
    """
    if not path.is_file():
        raise LoadError(f"there is no file {path.name}")
    real, home = path.resolve(), root.resolve()
    caches = [folder.parent for folder in home.parents if folder.name == "snapshots"]
    allowed = [home, *(cache / "blobs" for cache in caches[:1])]
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise LoadError(f"{path.name} is a link that leaves the folder")


def read_json(root: Path, path: Path) -> dict[str, Any]:
    """Return an object of JSON. Raise LoadError on anything else, a key that is there twice, and more than 16 MiB."""
    check_inside(root, path)
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise LoadError(f"{path.name} has {size} bytes, and at most {MAX_JSON_BYTES} are read")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise LoadError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise LoadError(f"{path.name} can't be read as JSON: {reason_of(error)}") from error
    if not isinstance(content, dict):
        raise LoadError(f"{path.name} holds a {type(content).__name__} and no object")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise LoadError(f"the key {twice[0][:80]!r} is there twice")
    return dict(pairs)


def shapes_in(root: Path, path: Path) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the tensors of a safetensors file, from its header alone."""
    check_inside(root, path)
    try:
        with safe_open(path, framework="pt") as file:  # which can't be iterated over itself
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadError(f"{path.name} can't be read as safetensors: {reason_of(error)}") from error


def read_tensors(module: nn.Module, root: Path, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, which must match a module's in names, shapes and kinds of numbers.

    A module without tensors has no file. NaN is refused, and so are infinite parameters.
    """
    expected = module.state_dict()
    if not expected and not path.exists():
        return {}
    shapes = shapes_in(root, path)
    strange = [*(shapes.keys() - expected.keys()), *(expected.keys() - shapes.keys())]
    if strange:
        problem = "has a tensor too many" if strange[0] in shapes else "lacks the tensor"
        raise LoadError(f"{path.name} {problem}: {strange[0][:80]!r}")
    for name, tensor in expected.items():
        if not is_lazy(tensor) and shapes[name] != tuple(tensor.shape):
            raise LoadError(f"{path.name} holds {name} of shape {shapes[name]}, not {tuple(tensor.shape)}")
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in expected}
    for name, tensor in expected.items():
        if stored[name].dtype != tensor.dtype and not (stored[name].is_floating_point() and tensor.is_floating_point()):
            raise LoadError(f"{path.name} holds {name} as {stored[name].dtype}, not {tensor.dtype}")
    # What is finite in float64 may overflow in the module's float32.
    cast = {name: value.to(expected[name].dtype) for name, value in stored.items()}
    check_finite(path.name, cast, {name for name, _ in module.named_parameters()})
    return stored


def check_finite(source: str, tensors: Mapping[str, Tensor], parameters: Iterable[str]) -> None:
    """Raise LoadError on NaN, and on parameters that are infinite; a buffer may be (a mask of −∞)."""
    names = set(parameters)
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    wrong = [
        name for name, tensor in floats.items() if not (tensor.isfinite() if name in names else ~tensor.isnan()).all()
    ]
    if wrong:
        raise LoadError(f"{source} holds numbers that are not finite in {first_few(wrong)}")


class Allowance(TorchDispatchMode):
    """While it is entered, refuses an operation before it makes more tensors, or larger ones, than a file warrants.

    The size of a result is found on the meta device first. Tensors on the meta device count as what they claim to be.

    Args:
        num_bytes: Of the file.
        num_tensors: In the file.
    """

    def __init__(self, num_bytes: int, num_tensors: int):
        super().__init__()
        self.bytes_left = 4 * num_bytes + SPARE_BYTES
        self.tensors_left = 16 * num_tensors + SPARE_TENSORS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(returned.alias_info is None for returned in func._schema.returns):  # no view and not in place
            for tensor in _result_on_meta(func, args, kwargs):
                self.bytes_left -= tensor.numel() * tensor.element_size()
                self.tensors_left -= 1
            if self.bytes_left < 0 or self.tensors_left < 0:
                raise LoadError("its settings ask for more memory than the size of its tensor files warrants")
        return func(*args, **kwargs)


def _result_on_meta(func: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the operation's new tensors without memory; none where their size depends on values."""
    names = {argument.name for argument in func._schema.arguments}
    settings = {name: value for name, value in kwargs.items() if name != "generator"}
    if "device" in names:
        settings["device"] = torch.device("meta")
    args, settings = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, settings))
    try:
        return [leaf for leaf in tree_leaves(func(*args, **settings)) if isinstance(leaf, Tensor)]
    except (RuntimeError, TypeError):  # NotImplementedError among them; if it is impossible, it fails for real as well
        return []
