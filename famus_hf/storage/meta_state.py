"""`meta_state.pt` of a checkpoint: read without running anything, and checked before a run takes it (torch only)."""

import pickletools
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from famus_hf.errors import LoadError

# All that a pickle of tensors, numbers and dicts names. (torch's own list for `weights_only` also has bytearray, which
# takes any amount of memory for a few bytes of file.)
GLOBALS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2")
STORAGES = tuple(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool"))
OPTIMIZER_STATE: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
}


def read_meta_state(path: Path) -> dict[str, Any]:
    """What torch.save wrote. Raises ValueError on a file that names other things than tensors and plain values."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
            if any(file.compress_type != zipfile.ZIP_STORED for file in files):
                raise LoadError("it is compressed, which torch.save does not do")
            if sum(file.file_size for file in files) > path.stat().st_size:
                raise LoadError("it claims more than it holds")
            for file in files:
                if file.filename.endswith(".pkl"):
                    _check_pickle(archive.read(file))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # zipfile and torch.load raise anything on a damaged file
        raise LoadError(f"it can't be read: {type(error).__name__}") from error
    if not isinstance(state, dict):
        raise LoadError(f"it holds a {type(state).__name__} and no dict")
    return state


def _check_pickle(content: bytes) -> None:
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "GLOBAL" and argument in (*GLOBALS, *STORAGES):
            continue
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise LoadError(f"it names {str(argument)[:80]!r}, which is neither a tensor nor a plain value")


def check_meta_state(
    state: Mapping[str, Any],
    present: Mapping[str, Any],
    optimizers: Mapping[str, torch.optim.Optimizer | None],
    num_candidates: int,
) -> None:
    """Raise ValueError on what `MetaUpdate.state_dict` can't have given, or not with these parts and settings.

    Args:
        state: That is to be taken back.
        present: What `state_dict` gives now.
        optimizers: By their names in it; None where there is nothing that one could move.
        num_candidates: Layers that have a gate.
    """
    strange = [key for key in state if key not in present and key != "pseudo_clean"]
    missing = [key for key in present if key not in state]
    if strange or missing:
        words = f"has the unknown key {str(strange[0])[:80]!r}" if strange else f"lacks the key {missing[0]!r}"
        raise LoadError(f"it {words}")
    for name, optimizer in optimizers.items():
        _check_optimizer(name, state[name], optimizer)
    _check_counters(state, num_candidates)
    if state["costs"] is not None:
        _check_costs(state["costs"], num_candidates)
        _require(_is_number(state["scale"]) and state["scale"] > 0, "scale is no number above 0")


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise LoadError(f"its {complaint}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # false for NaN


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _check_optimizer(name: str, saved: Any, optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is None or saved is None:
        _require(optimizer is None and saved is None, f"{name} belongs to another meta-learner or layer sampler")
        return
    _require(isinstance(saved, dict) and saved.keys() == {"state", "param_groups"}, f"{name} is none of torch")
    _check_groups(name, saved["param_groups"], optimizer.state_dict()["param_groups"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _require(isinstance(saved["state"], dict), f"{name} has no state of parameters")
    for number, entry in saved["state"].items():
        _require(_is_count(number) and number < len(parameters), f"{name} has state of a parameter that is not there")
        known = OPTIMIZER_STATE[type(optimizer)]
        _require(isinstance(entry, dict) and set(entry) <= set(known), f"{name} is of another kind")
        _require(type(optimizer) is torch.optim.SGD or set(entry) == set(known), f"{name} is incomplete")
        for key, value in entry.items():
            if value is None and key == "momentum_buffer":
                continue
            shape = () if key == "step" else tuple(parameters[number].shape)
            _require(_is_tensor(value, shape), f"{name} has a {key} that is no finite tensor of shape {shape}")
            _require(key in ("momentum_buffer", "exp_avg") or bool((value >= 0).all()), f"{name} has a negative {key}")


def _is_tensor(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether it is a finite floating-point tensor of that shape."""
    is_strided = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
    return is_strided and tuple(value.shape) == shape and bool(value.isfinite().all())


def _check_groups(name: str, saved: Any, present: Sequence[Mapping[str, Any]]) -> None:
    """Settings must be those of the run; only the learning rate is the checkpoint's."""
    alike = isinstance(saved, list) and len(saved) == len(present)
    for group, own in zip(saved if alike else [], present, strict=False):
        alike = alike and isinstance(group, dict) and group.keys() == own.keys()
        alike = alike and all(
            type(group[key]) is type(own[key]) and repr(group[key]) == repr(own[key]) for key in own if key != "lr"
        )
        alike = alike and _is_number(group["lr"]) and group["lr"] >= 0
    _require(alike, f"{name} has other settings")


def _check_counters(state: Mapping[str, Any], num_candidates: int) -> None:
    steps, times_on = state["steps"], state["times_on"]
    _require(_is_count(steps), "steps are no whole number of at least 0")
    sound = isinstance(times_on, list) and len(times_on) == num_candidates
    sound = sound and all(_is_count(times) and times <= steps for times in times_on)
    _require(sound, f"times_on are no {num_candidates} whole numbers of at most {steps}")
    slope = state["slope_size"]
    _require(_is_tensor(slope, ()) and bool(slope >= 0), "slope_size is no number of at least 0")
    _require(_is_number(state["spent"]) and state["spent"] >= 0, "spent is no number of at least 0")
    seconds, times = state["seconds"], state["times"]
    sound = isinstance(seconds, dict) and isinstance(times, dict) and seconds.keys() == times.keys()
    sound = sound and all(
        isinstance(part, str) and _is_number(seconds[part]) and seconds[part] >= 0 for part in seconds
    )
    sound = sound and all(_is_count(count) and count > 0 for count in times.values())
    _require(sound, "seconds and times are no measurements of the same parts")


def _check_costs(costs: Any, num_candidates: int) -> None:
    def is_row(values: Any) -> bool:
        return isinstance(values, list) and len(values) == num_candidates and all(map(_is_number, values))

    sound = isinstance(costs, dict) and costs.keys() == {"alone", "beside", "ways", "always"}
    sound = sound and is_row(costs["alone"]) and min(costs["alone"]) > 0 and isinstance(costs["beside"], dict)
    sound = sound and all(isinstance(way, str) and is_row(own) for way, own in costs["beside"].items())
    sound = sound and isinstance(costs["ways"], list) and len(costs["ways"]) == num_candidates
    sound = sound and set(map(str, costs["ways"])) <= set(costs["beside"]) and type(costs["always"]) is bool
    _require(sound, f"costs are not those of {num_candidates} layers")
