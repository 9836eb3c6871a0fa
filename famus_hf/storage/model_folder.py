"""The model in a run's folder, which is whole or not there, and what PEFT and transformers do not write of it.

A run of two networks leaves `model_a/` and `model_b/` beside their ensemble, each a folder like any run's.
"""

import copy
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from famus_hf.models.two_networks import TwoNetworksConfig, TwoNetworksForImageClassification
from famus_hf.storage.atomic import WRITE_ERRORS, save_error, sync, sync_tree
from famus_hf.storage.run_folder import (
    ADAPTER_CONFIG,
    BASE_CONFIG,
    CONFIG,
    MODEL_FILES,
    NETWORKS_APART,
    PROCESSOR_FILES,
    UNFINISHED,
)


def save_networks_apart(folder: str | Path, ensemble: TwoNetworksForImageClassification, processor: Any) -> None:
    """Write each network of an ensemble into a separate folder, which loads like that of a run of one network.

    Their `meta_net/` is left alone: that is `save_meta_net`'s.

    Args:
        folder: Of the run; `model_a/` and `model_b/` are made in it.
        ensemble: As a training leaves it.
        processor: Of images, for both; None where there is none.

    Raises:
        OSError, SafetensorError: Something can't be written.
    """
    for name in NETWORKS_APART:
        ensemble.get_submodule(name).save_pretrained(Path(folder) / name)  # type: ignore[operator]
        if processor is not None:
            processor.save_pretrained(Path(folder) / name)


def adapted_network(network: Any) -> Any:
    """Return the network under adapters of PEFT; None where it has none."""
    if not hasattr(network, "peft_config"):  # PEFT itself takes seconds to import
        return None
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def save_base_config(folder: str | Path, network: Any) -> None:
    """Write the configuration of the network under adapters, classes included, beside them; nothing if it has none.

    PEFT leaves only the name of a base, whose own configuration has other classes.

    Raises:
        OSError: It can't be written.
    """
    base = adapted_network(network)
    config = getattr(base, "config", None)
    if isinstance(config, PretrainedConfig):
        config = copy.deepcopy(config)
        config.architectures = [type(base).__name__]
        (Path(folder) / BASE_CONFIG).write_text(config.to_json_string(), encoding="utf-8")


def holds_two_networks(folder: Path) -> bool:
    """Return whether a run of two networks left this folder, by its config.json."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == TwoNetworksConfig.model_type


@contextmanager
def atomic_write_model(folder: str | Path) -> Iterator[Path]:
    """Yield a folder to save a model to; its files take the place of an earlier model's once all are on the disk.

    config.json, or adapter_config.json, goes first and comes last: a folder with some files of either model has none,
    and does not load.

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
        for path in sorted(beside.iterdir(), key=lambda path: path.name in (CONFIG, ADAPTER_CONFIG)):
            os.replace(path, folder / path.name)
        sync(folder)
    except WRITE_ERRORS as error:
        raise save_error(folder / "model", error) from error
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)


def _of_earlier_model(folder: Path, beside: Path) -> list[Path]:
    """Return what makes room for the model beside. A folder `model_a` that is no network's is the user's, and stays.

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
    return any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, *PROCESSOR_FILES, "*.py"))
