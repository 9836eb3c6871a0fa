"""Reading a LoRA adapter's folder, which may be hostile: the network that it adapts, and what was trained of it.

PEFT would fall back to pickles, ask the Hub, take names for patterns, and build whatever rank the settings claim.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CONFIG_MAPPING

from famus_hf.core.validation import check_choice, check_flag, check_number, check_whole
from famus_hf.data.media.modalities import modality_of_config
from famus_hf.errors import LoadError, first_few, reason_of
from famus_hf.hub.client_errors import downloaded
from famus_hf.hub.safe_backbone import (
    MAX_NUMBER,
    check_config,
    check_folder,
    read_network,
    weight_files,
)
from famus_hf.storage.run_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_CONFIG, CONFIG, LOADED_FILES
from famus_hf.storage.untrusted import Allowance, check_finite, read_json, shapes_in

BASE, REVISION = "base_model_name_or_path", "revision"
HUB_NAME = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")  # some old ones are in nobody's name
MODULE_NAME = re.compile(r"[\w.-]{1,200}")  # a dot is all of it that PEFT may take for a pattern
SAID_ELSEWHERE = (BASE, REVISION, "auto_mapping", "inference_mode", "peft_type", "peft_version")
PREFIX = "base_model.model."  # of what PEFT saves


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no whole network."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()


def load_adapted(folder: Path, *, is_local: bool, token: str | None = None) -> nn.Module:
    """Return the base with its adapter, in eval mode.

    Args:
        folder: Checked by `check_folder`.
        is_local: Whether the base may be a folder of this machine.
        token: For a base on the Hub.

    Raises:
        LoadError: As `load_backbone`, of the adapter or of its base; PEFT is not installed.
        HubError: The Hub does not give the base.
    """
    try:
        import peft  # seconds, which only adapters are worth
    except ImportError:
        raise LoadError(f"{str(folder)!r} holds an adapter, which needs PEFT: pip install peft") from None
    base = _base_of(folder, is_local, token)
    check_folder(base)
    try:
        content = read_json(folder, folder / ADAPTER_CONFIG)
        settings = _checked(content, peft.LoraConfig().to_dict(), len(shapes_in(folder, folder / ADAPTER_WEIGHTS)))
        network = _adapted(folder, base, lambda: peft.LoraConfig(**settings), peft)
    except Exception as error:  # PEFT and transformers raise anything on the values of a folder
        raise LoadError(f"{str(folder)!r} holds no adapter that can be loaded ({reason_of(error)})") from error
    for config in network.peft_config.values():  # else the folder of the download
        config.base_model_name_or_path, config.revision = content[BASE], content.get(REVISION)
    network.get_base_model().config._name_or_path = content[BASE]
    return network.eval()


def _base_of(folder: Path, is_local: bool, token: str | None) -> Path:
    """Return the folder of the network that is adapted, after a download where it is on the Hub."""
    settings = read_json(folder, folder / ADAPTER_CONFIG)
    name, revision = settings.get(BASE), settings.get(REVISION)
    if is_local and isinstance(name, str) and name and Path(name).is_dir():
        return Path(name)
    if not (isinstance(name, str) and HUB_NAME.fullmatch(name)) or not isinstance(revision, str | None):
        allowed = "a local folder, or a repository on the Hub" if is_local else "a repository on the Hub"
        raise LoadError(
            f"{str(folder)!r} adapts {str(name)[:80]!r}, and {allowed} is needed: set {BASE} in {ADAPTER_CONFIG}"
        )
    return downloaded(name, revision, token, allow=LOADED_FILES, ignore=["*/*"])


def _adapted(folder: Path, base: Path, make_settings: Callable[[], Any], peft: Any) -> Any:
    config_folder, name = (folder, BASE_CONFIG) if (folder / BASE_CONFIG).exists() else (base, CONFIG)
    content = read_json(config_folder, config_folder / name)
    files, adapter = weight_files(base), folder / ADAPTER_WEIGHTS
    saved = shapes_in(folder, adapter)
    shapes = {name: shape for path in files for name, shape in shapes_in(base, path).items()}
    check_config(content, {**shapes, **saved})
    config = CONFIG_MAPPING[content["model_type"]].from_dict(content)
    classifier = modality_of_config(config).classifier
    num_bytes = sum(path.stat().st_size for path in (*files, adapter))
    # Built once without memory: sizes that the files do not warrant are refused before anything is that large.
    with torch.device("meta"), Allowance(num_bytes, len(shapes) + len(saved)):
        planned = peft.get_peft_model(classifier.from_config(config, trust_remote_code=False), make_settings())
    expected = _saved_by(peft, planned)
    _check_names(expected, saved)
    trained = {name.removeprefix(PREFIX) for name in expected if "lora_" not in name}
    network = peft.get_peft_model(
        read_network(classifier, base, config, replaced=trained, trust_remote_code=False), make_settings()
    )
    tensors = load_file(adapter)
    check_finite(ADAPTER_WEIGHTS, tensors, tensors)
    peft.set_peft_model_state_dict(network, tensors)
    return network


def _saved_by(peft: Any, network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return name → shape of what PEFT saves of an adapted network, embeddings not among them."""
    state = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check_names(expected: Mapping[str, tuple[int, ...]], saved: Mapping[str, tuple[int, ...]]) -> None:
    problems = {
        "lacks": expected.keys() - saved.keys(),
        "has beside those of the adapter": saved.keys() - expected.keys(),
        "has in another shape": {name for name in expected.keys() & saved.keys() if expected[name] != saved[name]},
    }
    for problem, names in problems.items():
        if names:
            raise LoadError(f"{ADAPTER_WEIGHTS} {problem} {first_few(sorted(names))}")


# ---- Settings ----


def _checked(content: Mapping[str, Any], defaults: Mapping[str, Any], num_tensors: int) -> dict[str, Any]:
    """Return the settings of LoRA that are taken. Raise LoadError on others that do something, and on absurd values."""
    check_choice("peft_type", content.get("peft_type"), ("LORA",))
    checks = _checks_of(num_tensors)
    for name, value in content.items():
        if name in checks and value is not None:
            checks[name](name, value)
        elif name not in (*checks, *SAID_ELSEWHERE) and value and value != defaults.get(name):
            raise LoadError(f"{ADAPTER_CONFIG} has a {name[:80]!r}, which is not supported")
    return {name: content[name] for name in checks if content.get(name) is not None}


def _checks_of(num_tensors: int) -> dict[str, Callable[[str, Any], None]]:
    """Return setting → what raises on a value that is not taken. num_tensors: How many the adapter has."""

    def check_names(name: str, value: Any) -> None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(n, str) and MODULE_NAME.fullmatch(n) for n in names):
            raise LoadError(f"{ADAPTER_CONFIG} has {name}={str(value)[:80]!r}, and a list of modules' names is needed")
        _check_count(name, names, num_tensors)

    def check_places(name: str, value: Any) -> None:
        places = value if isinstance(value, list) else [value]
        _check_count(name, places, num_tensors)
        for place in places:
            _check_size(name, place, at_least=0)

    def check_pattern(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise LoadError(f"{ADAPTER_CONFIG} has {name}={str(value)[:80]!r}, and an object is needed")
        check_names(name, list(value))
        for inner in value.values():
            (_check_size if name == "rank_pattern" else check_number)(name, inner)

    lists = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern")
    flags = ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias")
    return {
        "r": _check_size,
        "lora_alpha": check_number,
        "lora_dropout": check_number,
        "rank_pattern": check_pattern,
        "alpha_pattern": check_pattern,
        "layers_to_transform": check_places,
        "init_lora_weights": _check_start,
        "bias": lambda name, value: check_choice(name, value, ("none", "all", "lora_only")),
        "task_type": lambda name, value: check_choice(name, value, ("SEQ_CLS", "FEATURE_EXTRACTION")),
        **dict.fromkeys(lists, check_names),
        **dict.fromkeys(flags, check_flag),
    }


def _check_size(name: str, value: Any, at_least: int = 1) -> None:
    check_whole(name, value, at_least)
    if value > MAX_NUMBER:
        raise LoadError(f"{ADAPTER_CONFIG} has a {name} beyond {MAX_NUMBER}")


def _check_count(name: str, values: list[Any], num_tensors: int) -> None:
    if len(values) > num_tensors:
        raise LoadError(f"{ADAPTER_CONFIG} has {len(values)} {name}, and the adapter has {num_tensors} tensors")


def _check_start(name: str, value: Any) -> None:
    """Refuse starts that change the base's weights, or want data."""
    if not isinstance(value, bool):
        check_choice(name, value, ("gaussian", "orthogonal"))
