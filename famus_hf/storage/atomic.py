"""Files that are whole or not there: written beside, synced to the disk, then renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError

from famus_hf.errors import SaveError
from famus_hf.storage.model_folder import NETWORKS_APART, holds_two_networks

UNFINISHED = ".unfinished"  # a folder within the one that is written to; nothing in it is ever read
TOKENIZER_FILES = (
    "tokenizer*.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "special_tokens_map.json",
    "vocab.*", "merges.txt", "added_tokens.json",
)  # fmt: skip
MODEL_FILES = (  # those of an earlier model that would be taken for the new one's
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "meta_net",
    *TOKENIZER_FILES,
)
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch and safetensors have their own for a full disk


def save_error(path: Path, error: Exception) -> SaveError:
    """One sentence: what could not be saved, why, and how much room there is."""
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
    """A path to write a file to; it takes the place of `path` once it is on the disk.

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
        sync(path.parent)
    except WRITE_ERRORS as error:
        raise save_error(path, error) from error
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)


@contextmanager
def atomic_write_model(folder: str | Path) -> Iterator[Path]:
    """A folder to save a model to; its files take the place of an earlier model's once all are on the disk.

    config.json goes first and comes last: a folder with some files of either model has none, and does not load.

    Raises:
        SaveError: They could not be written.
    """
    folder = Path(folder)
    beside = folder / UNFINISHED / "model"
    try:
        shutil.rmtree(beside.parent, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        sync_tree(beside)
        for earlier in _of_earlier_model(folder, beside):
            os.replace(earlier, beside.parent / earlier.name)
        for path in sorted(beside.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
        sync(folder)
    except WRITE_ERRORS as error:
        raise save_error(folder / "model", error) from error
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)


def _of_earlier_model(folder: Path, beside: Path) -> list[Path]:
    """What makes room for the model beside. A folder `model_a` that is no network's is the user's, and stays.

    Raises:
        OSError: One is in the way.
    """
    earlier = [path for pattern in MODEL_FILES for path in folder.glob(pattern)]
    had_two = holds_two_networks(folder)
    for path in (folder / name for name in NETWORKS_APART):
        is_networks = path.is_dir() and all(_is_of_network(entry.name) for entry in path.iterdir())
        if path.exists() and is_networks and (had_two or (beside / path.name).exists()):
            earlier.append(path)
        elif path.exists() and (beside / path.name).exists():
            raise OSError(errno.EEXIST, f"{path.name!r} is there already and holds more than a network: move it away")
    return earlier


def _is_of_network(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, "processor_config.json", "*.py"))


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # Windows can't open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """The same for everything below a folder, and itself."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
