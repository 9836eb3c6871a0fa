"""`meta_state.pt` of a checkpoint: read without running anything, and checked before a run takes it (torch only)."""

import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from famus_hf.errors import LoadError
from famus_hf.storage.saved_state import (
    Check,
    check_state,
    is_dict,
    is_flag,
    is_list,
    is_number,
    is_tensor,
    is_whole,
    is_word,
    optional,
)

# All that a pickle of tensors, numbers and dicts names. (torch's own list for `weights_only` also has bytearray, which
# takes any amount of memory for a few bytes of file.)
GLOBALS = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2")
STORAGES = tuple(f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool"))
OPTIMIZER_STATE: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.Adam: ("step", "exp_avg", "exp_avg_sq"),
}
SIGNED = ("momentum_buffer", "exp_avg")  # of these, what may be below zero
WHAT = "the meta state"
OPTIONAL: dict[str, tuple[Check, str]] = {  # there where a run needed it
    "times_before": (is_dict(is_whole()), "times_before that are no counts of steps"),
    "step_sizes": (is_dict(is_list(is_number(0), 2)), "step_sizes that are no pairs of lengths"),
}


def read_meta_state(path: Path) -> dict[str, Any]:
    """Return what torch.save wrote. Raise LoadError on a file that names other things than tensors and plain values."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.infolist()
            # Else a few kilobytes, compressed or listed several times, could fill the memory.
            if any(file.compress_type != zipfile.ZIP_STORED for file in files):
                raise LoadError("the file is compressed, which torch.save does not do")
            if sum(file.file_size for file in files) > path.stat().st_size:
                raise LoadError("the file claims more than it holds")
            for file in files:
                if file.filename.endswith(".pkl"):
                    _check_pickle(archive.read(file))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except Exception as error:  # zipfile and torch.load raise anything on a damaged file
        raise LoadError(f"the file can't be read: {type(error).__name__}") from error
    if not isinstance(state, dict):
        raise LoadError(f"the file holds a {type(state).__name__} and no dict")
    return state


def _check_pickle(content: bytes) -> None:
    for operation, argument, _ in pickletools.genops(content):
        if operation.name == "GLOBAL" and argument in (*GLOBALS, *STORAGES):
            continue
        if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise LoadError(f"the file names {str(argument)[:80]!r}, which is neither a tensor nor a plain value")


def check_meta_state(
    state: Mapping[str, Any],
    present: Mapping[str, Any],
    optimizers: Mapping[str, torch.optim.Optimizer | None],
    num_candidates: int,
) -> None:
    """Raise LoadError on what `MetaUpdate.state_dict` can't have given, or not with these parts and settings.

    Args:
        state: What was read, and is to be taken back.
        present: What `state_dict` gives now.
        optimizers: By their names in it; None where there is nothing that one could move.
        num_candidates: Layers that have a gate.
    """
    is_total = is_number(0)
    fields: dict[str, tuple[Check, str]] = {key: (lambda value: True, "") for key in present}
    for key in OPTIONAL:
        fields.pop(key, None)
    fields |= {
        "steps": (is_whole(), "steps that are no whole number of at least 0"),
        "slope_size": (is_tensor((), low=0), "a slope_size that is no number of at least 0"),
        "spent": (is_total, "a spent that is no number of at least 0"),
        "seconds": (is_dict(is_total), "seconds that are no measurements of parts"),
        "times": (is_dict(is_whole(1)), "times that are no measurements of parts"),
        "costs": (optional(is_costs(num_candidates)), f"costs that are not those of {num_candidates} layers"),
    }
    fields |= {key: field for key, field in OPTIONAL.items() if key in state}
    check_state(WHAT, state, fields, {"pseudo_clean"})
    steps = state["steps"]
    if not is_list(is_whole(0, steps), num_candidates)(state["times_on"]):
        raise LoadError(f"{WHAT} has times_on that are no {num_candidates} whole numbers of at most {steps}")
    if state["seconds"].keys() != state["times"].keys():
        raise LoadError(f"{WHAT} has seconds and times that are no measurements of the same parts")
    if state["costs"] is not None and not is_number(0, above=True)(state["scale"]):
        raise LoadError(f"{WHAT} has a scale that is no number above 0")
    for name, optimizer in optimizers.items():
        _check_optimizer(name, state[name], optimizer)


def is_costs(num_candidates: int) -> Check:
    """Return a check for the costs of so many layers, see `famus_hf.core.budget.LayerCosts`."""
    is_row = is_list(is_number(), num_candidates)
    keys = {"alone", "beside", "ways", "always"}

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and value.keys() == keys
            and is_list(is_number(0, above=True), num_candidates)(value["alone"])
            and is_dict(is_row)(value["beside"])
            and is_list(lambda way: is_word(way) and way in value["beside"], num_candidates)(value["ways"])
            and is_flag(value["always"])
        )

    return check


def _check_optimizer(name: str, saved: Any, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise LoadError on what is no state of this optimizer with these settings; only the learning rate may differ."""

    def require(condition: bool, complaint: str) -> None:
        if not condition:
            raise LoadError(f"{WHAT} has a {name} {complaint}")

    if optimizer is None or saved is None:
        require(optimizer is None and saved is None, "that belongs to another meta-learner or layer sampler")
        return
    require(isinstance(saved, dict) and saved.keys() == {"state", "param_groups"}, "that is none of torch")
    require(_are_groups(saved["param_groups"], optimizer.state_dict()["param_groups"]), "that has other settings")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = OPTIMIZER_STATE[type(optimizer)]
    require(isinstance(saved["state"], dict), "without a state of parameters")
    for number, entry in saved["state"].items():
        require(is_whole(0, len(parameters) - 1)(number), "with state of a parameter that is not there")
        require(isinstance(entry, dict) and set(entry) <= set(known), "of another kind")
        require(type(optimizer) is torch.optim.SGD or set(entry) == set(known), "that is incomplete")
        for key, value in entry.items():
            shape = () if key == "step" else tuple(parameters[number].shape)
            is_sound = is_tensor(shape)(value) or (value is None and key == "momentum_buffer")
            require(is_sound, f"with a {key} that is no finite tensor of shape {shape}")
            require(key in SIGNED or is_tensor(shape, low=0)(value), f"with a negative {key}")


def _are_groups(saved: Any, present: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether parameter groups are those of the run, but for the learning rate."""
    if not isinstance(saved, list) or len(saved) != len(present):
        return False
    return all(
        isinstance(group, dict)
        and group.keys() | {"initial_lr"} == expected.keys() | {"initial_lr"}
        and all(_is_same(group[key], expected[key]) for key in expected.keys() - {"lr", "initial_lr"})
        and is_number(0)(group["lr"])
        and is_number(0)(group.get("initial_lr", 0.0))  # there where β follows a schedule
        for group, expected in zip(saved, present, strict=True)
    )


def _is_same(value: Any, expected: Any) -> bool:
    return type(value) is type(expected) and repr(value) == repr(expected)  # == takes True for 1, within a list too
