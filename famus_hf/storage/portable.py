"""A checkpoint as safetensors and JSON alone: what a push carries, and another machine goes on from.

A local checkpoint keeps optimizers and random states in pickles. Here `state.json` has their plain values,
`state.safetensors` their tensors; the model's own files are as they were. The local checkpoint that is made of it is
read by the same code, with the same checks, as any other.
"""

import json
import logging
import random
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerState
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import safe_globals

from famus_hf.errors import LoadError, reason_of
from famus_hf.storage import checkpoints
from famus_hf.storage.json_tree import from_json_tree, to_json_tree
from famus_hf.storage.run_folder import (
    ADAPTER_CONFIG,
    BASE_CONFIG,
    CONFIG,
    GENERATION_CONFIG,
    META_NET,
    NETWORKS_APART,
    TRAINED_ON,
    TRAINER_STATE,
    UNFINISHED,
)
from famus_hf.storage.saved_state import is_dict, is_list, is_number, is_whole
from famus_hf.storage.untrusted import MAX_JSON_BYTES, read_json, shapes_in

STATE, STATE_TENSORS = "state.json", "state.safetensors"
CARRIED = (CONFIG, GENERATION_CONFIG, ADAPTER_CONFIG, BASE_CONFIG, TRAINED_ON, "*.safetensors",
           "*.safetensors.index.json",
           f"{META_NET}/{CONFIG}", *(f"{network}/{META_NET}/{CONFIG}" for network in NETWORKS_APART))  # fmt: skip
PICKLED = re.compile(r"[a-z_]+(_\d+)?\.(pt|pth|bin)")
RANDOM_STATE = re.compile(r"rng_state(_\d+)?\.pth")

logger = logging.getLogger("famus_hf")


# ---- Packing ----


def pack(checkpoint: Path, target: Path) -> None:
    """Write a checkpoint into an empty folder, without the paths of this machine.

    Raises:
        LoadError: Something in it is no plain value, or too long to be read back.
        OSError, SafetensorError: It can't be read or written.
    """
    trees: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if PICKLED.fullmatch(name) and name != TRAINING_ARGS_NAME:
            trees[name] = _encode(path, tensors)
        elif path.is_file() and any(fnmatch(name, pattern) for pattern in CARRIED):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
    save_file(tensors, target / STATE_TENSORS, metadata={"format": "pt"})
    state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    _write_json(target / TRAINER_STATE, {**state, "best_model_checkpoint": None})
    _write_json(target / STATE, {"run": checkpoints.run_of(checkpoint), "files": trees})


def _encode(path: Path, tensors: dict[str, torch.Tensor]) -> Any:
    try:
        # Mapped, so that the whole file is not in memory beside the copies of its tensors.
        with safe_globals():  # random states hold an array of numpy's
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return to_json_tree(value, tensors, path.name)
    except Exception as error:  # torch.load raises anything on what is neither a plain value nor a tensor
        raise LoadError(f"{path.name} can't travel without a pickle: {reason_of(error)}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, sort_keys=True)
    if len(text) > MAX_JSON_BYTES:
        raise LoadError(
            f"{path.name} would have {len(text)} bytes, and at most {MAX_JSON_BYTES} are read back: raise logging_steps"
        )
    path.write_text(text + "\n", encoding="utf-8")


# ---- Unpacking ----


def unpack(folder: Path, output_dir: Path, processes: int) -> Path:
    """Make a whole local checkpoint of a folder that `pack` wrote, or an attacker.

    Args:
        folder: Of plain files.
        output_dir: Of the run; an earlier checkpoint of the same step there is replaced.
        processes: Of the run that goes on from it.

    Returns:
        `output_dir/checkpoint-N`.

    Raises:
        LoadError: It is no such folder, or of a run with another number of processes. Nothing has been written then.
        OSError: It can't be written.
    """
    state, trainer_state = read_json(folder, folder / STATE), read_json(folder, folder / TRAINER_STATE)
    _check_trainer_state(trainer_state)
    files, run = state.get("files"), state.get("run")
    if not isinstance(files, dict) or not all(map(PICKLED.fullmatch, files)) or not isinstance(run, str):
        raise LoadError(f"{STATE} is none that a push writes")
    _check_processes(sum(bool(RANDOM_STATE.fullmatch(name)) for name in files), processes)
    checkpoint = output_dir / f"checkpoint-{trainer_state['global_step']}"
    written = output_dir / UNFINISHED / checkpoint.name
    shutil.rmtree(written, ignore_errors=True)
    try:
        written.mkdir(parents=True)
        _copy_files(folder, written)
        _write_pickles(folder, files, written)
        _write_json(written / TRAINER_STATE, _with_best_checkpoint(trainer_state, checkpoint))
        checkpoints.write_manifest(written, run)
        checkpoints.publish(written, checkpoint)
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return checkpoint


def _check_trainer_state(state: dict[str, Any]) -> None:
    """Raise LoadError on what is no state of the Trainer: transformers takes any value for its attributes."""
    present, unset = vars(TrainerState()), int | float | str | dict
    kinds: dict[type, Any] = {bool: bool, int: int | float, list: list, dict: dict}
    for name, value in state.items():
        if name not in present:
            raise LoadError(f"{TRAINER_STATE} has the unknown key {name[:80]!r}")
        kind = kinds.get(type(present[name]), unset)
        if not isinstance(value, kind) and (value is not None or kind is bool):
            raise LoadError(f"{TRAINER_STATE} has a {type(value).__name__} for {name}")
    for name in ("global_step", "max_steps"):
        if not is_whole()(state.get(name)):
            raise LoadError(f"{TRAINER_STATE} has no whole number of at least 0 for {name}")
    is_callbacks = is_dict(lambda saved: _is_callback(saved) or is_list(_is_callback)(saved))
    is_log = is_list(lambda entry: isinstance(entry, dict))
    if not is_callbacks(state.get("stateful_callbacks") or {}) or not is_log(state.get("log_history") or []):
        raise LoadError(f"{TRAINER_STATE} has callbacks or logs that are none")


def _is_callback(saved: Any) -> bool:
    return isinstance(saved, dict) and isinstance(saved.get("attributes"), dict)


def _check_processes(saved: int, present: int) -> None:
    if saved != present:
        raise LoadError(f"it was saved by {saved} processes and this run has {present}: start {saved}")


def _copy_files(folder: Path, written: Path) -> None:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == STATE_TENSORS or not any(fnmatch(name, pattern) for pattern in CARRIED):
            continue
        if path.suffix == ".json":
            read_json(folder, path)
        else:
            shapes_in(folder, path)
        (written / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, written / name)


def _write_pickles(folder: Path, files: dict[str, Any], written: Path) -> None:
    """Write the files of torch.save, each of plain values and tensors that are in state.safetensors."""
    names = shapes_in(folder, folder / STATE_TENSORS)
    with safe_open(folder / STATE_TENSORS, framework="pt") as file:

        def tensor(name: str) -> torch.Tensor:
            if name not in names:
                raise LoadError(f"it names the tensor {name[:80]!r}, which is not there")
            stored: torch.Tensor = file.get_tensor(name)
            # An empty one lies where the next one begins, and torch.save takes the two for one.
            return stored if stored.numel() else stored.clone()

        for name, tree in files.items():
            try:
                value = from_json_tree(tree, tensor)
                if RANDOM_STATE.fullmatch(name):
                    _check_random_states(value)
                torch.save(value, written / name)
            except (ValueError, RecursionError) as error:
                raise LoadError(f"{name} in {STATE} is none that a push writes: {reason_of(error)}") from error


def _check_random_states(states: Any) -> None:
    """Raise LoadError on what are no random states: numpy trusts the place in its own, and would read beyond it."""
    try:
        random.Random().setstate(states["python"])
        torch.Generator().set_state(states["cpu"])
        kind, key, place, has_gauss, gauss = states["numpy"]
        is_sound = kind == "MT19937" and key.dtype == np.uint32 and key.shape == (624,)
        is_sound = is_sound and is_whole(0, 624)(place) and is_whole()(has_gauss) and is_number()(gauss)
    except Exception as error:  # random, torch and wrong types have errors of their own
        raise LoadError(f"a random state does not fit ({reason_of(error)})") from error
    if not is_sound:
        raise LoadError("the random state of numpy does not fit")


def _with_best_checkpoint(state: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return a state whose best checkpoint is this one; where that stayed behind, one whose selection starts over."""
    if state.get("best_global_step") == state["global_step"]:
        return {**state, "best_model_checkpoint": str(checkpoint)}
    if state.get("best_global_step") is not None:
        logger.warning(
            "the best checkpoint so far, of step %s, did not come with %s: selection starts over from there",
            state["best_global_step"],
            checkpoint.name,
        )
    return {**state, "best_metric": None, "best_global_step": None, "best_model_checkpoint": None}
