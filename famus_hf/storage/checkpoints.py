"""Checkpoint folders: made whole before they get their name, and which of them a run goes on from.

Each holds `checkpoint_files.json`: the sizes of all its files, when it was saved, and by which run. A folder without
it, or whose files differ from it, is not whole. Sizes are compared and not contents, which would read every byte once
more at each save: a copy that was cut short is found, a bit that the disk has lost is not.
"""

import json
import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from famus_hf.errors import LoadError
from famus_hf.storage.atomic import sync, sync_tree
from famus_hf.storage.run_folder import (
    ADAPTER_WEIGHTS,
    MANIFEST,
    META_NET,
    META_STATE,
    NETWORKS_APART,
    TRAINED_ON,
    TRAINER_STATE,
    UNFINISHED,
    WEIGHTS,
)

FOREIGN_WEIGHTS = (*WEIGHTS, ADAPTER_WEIGHTS, "pytorch_model*.bin")  # of checkpoints that transformers has saved
NAME = re.compile(r"checkpoint-(\d+)")  # what transformers takes for a checkpoint

logger = logging.getLogger("famus_hf")


# ---- Writing ----


def write_manifest(folder: Path, run: str, resumable: bool = True) -> None:
    """Write down what the folder holds, and wait until all of it is on the disk.

    Args:
        folder: Holds all files of a checkpoint.
        run: Name of the run, the same after a resume.
        resumable: Whether the optimizers are among them.
    """
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    files.pop(MANIFEST, None)
    record = {"run": run, "resumable": resumable, "saved_at": time.time(), "files": files}
    (folder / MANIFEST).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sync_tree(folder)


def publish(written: Path, checkpoint: Path) -> None:
    """Give a folder with a manifest its name, in place of an earlier checkpoint of the same step if there is one.

    A folder can't be renamed onto another. So that there is one at every moment, the earlier one first becomes
    `checkpoint-07` instead of `checkpoint-7`, which still is a checkpoint of step 7 to everyone.
    """
    earlier = checkpoint.with_name(f"checkpoint-0{step_of(checkpoint)}")
    if checkpoint.exists():
        discard(earlier)
        os.rename(checkpoint, earlier)
    os.rename(written, checkpoint)
    sync(checkpoint.parent)
    discard(earlier)


def discard(folder: Path) -> None:
    """Remove a folder under another name, so that what is half removed is nobody's checkpoint."""
    if not folder.exists():
        return
    removed = folder.parent / UNFINISHED / "removed"
    removed.parent.mkdir(exist_ok=True)
    shutil.rmtree(removed, ignore_errors=True)
    os.rename(folder, removed)
    shutil.rmtree(removed, ignore_errors=True)


def rotate(output_dir: Path, limit: int | None, keep: set[Path]) -> None:
    """Remove the checkpoints that were saved first, until `limit` are left or only those to keep."""
    if limit is None or limit <= 0:
        return
    folders = by_age(output_dir)
    removable = [folder for folder in folders if folder not in keep]
    for folder in removable[: max(0, len(folders) - limit)]:
        discard(folder)


def settle(output_dir: Path) -> None:
    """Remove what a killed run left unfinished, and rename or remove each `checkpoint-07`; see `publish`."""
    shutil.rmtree(output_dir / UNFINISHED, ignore_errors=True)
    for checkpoint in by_age(output_dir):
        unpadded = _without_zero(checkpoint)
        if not unpadded.exists():
            os.rename(checkpoint, unpadded)
        elif unpadded != checkpoint and fault_of(unpadded) is None:
            discard(checkpoint)
    shutil.rmtree(output_dir / UNFINISHED, ignore_errors=True)


def _without_zero(checkpoint: Path) -> Path:
    """Return `checkpoint-7` for `checkpoint-07`, and any other path as it is."""
    return checkpoint.with_name(f"checkpoint-{step_of(checkpoint)}") if NAME.fullmatch(checkpoint.name) else checkpoint


# ---- Reading ----


def by_age(output_dir: Path) -> list[Path]:
    """Return all checkpoints in a folder, damaged ones too, the one that was saved last at the end.

    By time and not by step: where two runs wrote into one folder, the newest is the later run's.
    """
    if not output_dir.is_dir():
        return []
    folders = [path for path in output_dir.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: (_read_manifest(path).get("saved_at", path.stat().st_mtime), step_of(path)))


def is_foreign(checkpoint: str | Path) -> bool:
    """Return whether transformers' own Trainer has saved it: there is none of the files that only ours writes."""
    folder = Path(checkpoint)
    own = (MANIFEST, META_NET, META_STATE, TRAINED_ON, *(f"{network}/{META_NET}" for network in NETWORKS_APART))
    return (folder / TRAINER_STATE).is_file() and not any((folder / name).exists() for name in own)


def _fault_of_foreign(checkpoint: Path) -> str | None:
    """Return which of the files that transformers 5.23 resumes from is missing; None if all are there."""
    if not any(list(checkpoint.glob(pattern)) for pattern in FOREIGN_WEIGHTS):
        return "there are no weights in it"
    return None


def fault_of(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, naming the file; None if it is whole."""
    if is_foreign(checkpoint):
        return _fault_of_foreign(checkpoint)
    record = _read_manifest(checkpoint)
    if not record:
        return f"{MANIFEST} is missing or can't be read"
    for name, size in record["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def run_of(checkpoint: str | Path) -> str:
    """Return the name of the run that saved it; empty where that can't be read."""
    return str(_read_manifest(Path(checkpoint)).get("run", ""))


def to_resume_from(resume_from_checkpoint: str | Path | bool | None, output_dir: str | Path) -> str | None:
    """Return the checkpoint that a run goes on from.

    Args:
        resume_from_checkpoint: A checkpoint's folder; True for the newest whole one in `output_dir`; None or False
            for none.
        output_dir: Of the run.

    Raises:
        LoadError: It is damaged, there is none, or it was saved without what is needed to go on.
    """
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return None
    checkpoint = _newest_whole(Path(output_dir)) if resume_from_checkpoint is True else Path(resume_from_checkpoint)
    if not checkpoint.exists():
        checkpoint = _without_zero(checkpoint)  # it was named before `settle`
    if not checkpoint.is_dir():
        raise LoadError(f"checkpoint {str(resume_from_checkpoint)!r} does not exist: {_other_choice(checkpoint)}")
    fault = fault_of(checkpoint)
    if fault is not None:
        raise LoadError(f"checkpoint {str(checkpoint)!r} is damaged ({fault}): {_other_choice(checkpoint)}")
    if not is_foreign(checkpoint) and not _read_manifest(checkpoint)["resumable"]:
        raise LoadError(
            f"checkpoint {str(checkpoint)!r} was saved with save_only_model, so the optimizers that it takes to go on "
            "are not in it: start anew from its weights, or resume from another one"
        )
    return str(checkpoint)


def _newest_whole(output_dir: Path) -> Path:
    """Return the newest checkpoint that is whole: from an older one a run comes to the same end, only later.

    Where the damaged ones before it are of another run, the newest of those is returned, for the caller to refuse.
    """
    newest_first = by_age(output_dir)[::-1]
    if not newest_first:
        raise LoadError(f"resume_from_checkpoint found no checkpoint in {str(output_dir)!r}: start without it")
    for place, checkpoint in enumerate(newest_first):
        if fault_of(checkpoint) is None:
            runs = {run_of(folder) for folder in newest_first[: place + 1]} - {""}
            if len(runs) > 1:
                break
            for damaged in newest_first[:place]:
                logger.warning("%s is damaged (%s): going on from %s", damaged, fault_of(damaged), checkpoint)
            return checkpoint
    return newest_first[0]


def _other_choice(checkpoint: Path) -> str:
    """Return what to do instead: the newest whole checkpoint of no later step, if there is one."""
    whole = [folder for folder in by_age(checkpoint.parent) if folder != checkpoint and fault_of(folder) is None]
    older = [folder for folder in whole if step_of(folder) <= step_of(checkpoint)] or whole
    if not older:
        return f"there is no whole one in {str(checkpoint.parent)!r}, so start anew"
    return f"resume from {str(older[-1])!r} instead"


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return what `write_manifest` wrote; empty where that can't be read."""
    try:
        record = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return record if isinstance(record["files"], dict) and isinstance(record["saved_at"], float) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name; 0 for a folder of another name."""
    match = NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0
