"""Files that are whole or not there: written beside, synced to the disk, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from famus_hf.errors import SaveError
from famus_hf.storage.run_folder import UNFINISHED

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch and safetensors have their own for a full disk


def save_error(path: Path, error: Exception) -> SaveError:
    """Return an error that says in one sentence what could not be saved, why, and how much room there is."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
    if "inline_container" in reason:  # all that torch.save says of a write that failed
        reason = "a file could not be written to its end"
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free / 1e6
    return SaveError(
        f"{path.name!r} could not be saved in {str(path.parent)!r} ({reason}; {free:.0f} MB are free there): what was "
        "saved before is as it was, so make room and go on from the newest checkpoint with resume_from_checkpoint"
    )


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path to write a file to; it takes the place of `path` once it is on the disk.

    Raises:
        SaveError: It could not be written.
    """
    path = Path(path)
    beside = path.parent / UNFINISHED / path.name
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        sync(beside)
        os.replace(beside, path)
        sync(path.parent)  # a new name is on the disk once its folder is
    except WRITE_ERRORS as error:
        raise save_error(path, error) from error
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows can't open folders
    # Windows syncs only files that are open for writing; a folder can't be opened so.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and everything below it is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
