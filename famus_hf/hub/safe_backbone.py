"""Reading a backbone's folder, which may be hostile, as far as transformers does not look after that itself.

transformers runs no code of the folder and unpickles nothing (`trust_remote_code=False`, `use_safetensors=True`), but
builds whatever size config.json claims, fills up missing weights at random, and follows names to other repositories.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig

from famus_hf.data.media.modalities import modality_of_config
from famus_hf.errors import LoadError, first_few, reason_of
from famus_hf.models.bilateral_branch import BilateralBranchConfig
from famus_hf.models.timm_wrapper import TIMM_WRAPPER, check_timm, check_timm_config
from famus_hf.models.two_networks import TwoNetworksConfig
from famus_hf.storage.run_folder import ADAPTER_CONFIG, CONFIG
from famus_hf.storage.untrusted import Allowance, check_finite, check_inside, read_json, shapes_in

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NESTED = {  # kinds of networks that are made of others → under which names their configuration has those
    TwoNetworksConfig.model_type: ("network_a", "network_b"),
    BilateralBranchConfig.model_type: ("network",),
}
MAX_NUMBER = 2**20  # of a whole number in a configuration: a vocabulary has fewer entries
# What makes transformers fetch or run more than the folder holds.
REFUSED_FILES = (ADAPTER_CONFIG,)
CLASS_COUNTS = ("num_labels", "num_classes")  # the latter in configurations of timm
REFUSED_KEYS = ("quantization_config", "use_pretrained_backbone")
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")  # others may be kernels from the Hub


def load_backbone(folder: Path) -> nn.Module:
    """Return the backbone in eval mode.

    Raises:
        LoadError: Weights that are missing, of other names or shapes than the configuration asks for, not finite, or
            in another format than safetensors; a configuration that is absurd or needs code of the folder.
    """
    try:
        files = weight_files(folder)
        shapes = {name: shape for path in files for name, shape in shapes_in(folder, path).items()}
        check_config(read_json(folder, folder / CONFIG), shapes)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        classifier = modality_of_config(config).classifier
        # Built once without memory: sizes that the files do not warrant are refused before anything is that large.
        with torch.device("meta"), Allowance(sum(path.stat().st_size for path in files), len(shapes)):
            classifier.from_config(config, trust_remote_code=False)
        return read_network(classifier, folder, config, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on the values of a folder
        raise LoadError(f"{str(folder)!r} holds no backbone that can be loaded ({reason_of(error)})") from error


def read_network(
    kind: Any, folder: str | Path, config: Any, *, replaced: Collection[str] | None = None, **keywords: Any
) -> nn.Module:
    """Call `kind.from_pretrained`, and refuse what transformers would only warn of.

    Args:
        kind: A network's class, or an Auto-class.
        folder: Of the weights.
        config: Of the network.
        replaced: Weights that an adapter brings, which the folder may lack or have in another shape; it may then hold
            others beside, as of the head that the base was pretrained with. None: there is no adapter.
        keywords: Of `from_pretrained`.

    Raises:
        LoadError: Weights that are missing, too many, of other shapes or not finite.
    """
    network, info = kind.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # to name them here
        output_loading_info=True,
        **keywords,
    )
    problems = {
        "missing_keys": "lack",
        "mismatched_keys": "have in another shape",
        "unexpected_keys": "have beside those of the network",
    }
    for keys, problem in problems.items():
        names = {str(key[0] if isinstance(key, tuple) else key) for key in info[keys]}
        if replaced is not None:
            names = set() if keys == "unexpected_keys" else names - set(replaced)
        if names:
            raise LoadError(f"its weights {problem} {first_few(sorted(names))}")
    check_finite("its weights", network.state_dict(), {name for name, _ in network.named_parameters()})
    return network


def weight_files(folder: Path) -> list[Path]:
    """Return model.safetensors, or the files that its index names. Raise LoadError where there are none."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        raise LoadError(f"there is no {WEIGHTS}; weights in other formats, such as the pickle of torch, are not read")
    weight_map = read_json(folder, folder / INDEX).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else [""]
    names = set(files) if all(isinstance(name, str) for name in files) else {""}
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise LoadError(f"{INDEX} names files that are no safetensors of this folder")
    return [folder / name for name in sorted(names)]


def check_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise LoadError on what would run code, fetch other files, or fill memory before a tensor is made."""
    _check_kind(CONFIG, "its", config)
    networks = _networks_of(config)
    for name, network in networks.items():
        _check_kind(f"{name} of config.json", f"its {name}'s", network)
    longest_side = max((side for shape in shapes.values() for side in shape), default=0)
    check_values(CONFIG, config, max(MAX_NUMBER, longest_side), longest_side)
    if any(network.get("model_type") == TIMM_WRAPPER for network in (config, *networks.values())):
        check_timm("it")


def _check_kind(source: str, whose: str, config: Mapping[str, Any]) -> None:
    """Raise LoadError on one network's configuration: an unknown model type, a key that is not supported."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        code = ", and code of the folder is never run" if "auto_map" in config else ""
        raise LoadError(
            f"{whose} model_type is {str(kind)[:80]!r}, which transformers does not know{code}: import the package "
            "that registers it first"
        )
    for key in REFUSED_KEYS:
        if config.get(key):
            raise LoadError(f"{source} has a {key}, which is not supported")
    if kind == TIMM_WRAPPER:
        check_timm_config(config)


def _networks_of(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the configurations of the networks that this one is made of; none where it is made of none."""
    networks = {name: config.get(name) for name in NESTED.get(config["model_type"], ())}
    for name, network in networks.items():
        if not isinstance(network, dict):
            raise LoadError(f"its {name} is a {type(network).__name__} and no object: a network is needed")
        if str(network.get("model_type")) in NESTED:
            raise LoadError(f"its {name} is made of other networks itself: single ones are taken")
    return networks  # type: ignore[return-value]  # mypy does not see that each is a dict


def check_values(source: str, content: Mapping[str, Any], limit: int, classes: int | None = None) -> None:
    """Raise LoadError on a value, however deep, that is too large or names code from elsewhere.

    transformers makes lists as long as such numbers say.
    """
    pending: list[tuple[str, Any]] = list(content.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{key}.{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            pending += [(key, inner) for inner in value]
        elif isinstance(value, str) and "_implementation" in key and value not in IMPLEMENTATIONS:
            raise LoadError(f"{source} has {key[:80]!r} {value[:80]!r}, and code from elsewhere is never run")
        elif isinstance(value, int) and not -limit <= value <= limit:
            raise LoadError(f"{source} has a {key[:80]!r} beyond {limit}")
        elif isinstance(value, int) and key.rpartition(".")[2] in CLASS_COUNTS and value > max(classes or value, 2):
            raise LoadError(f"{source} has {value} labels, and no tensor has a side of more than {classes}")


def check_folder(folder: Path, refused: Collection[str] = REFUSED_FILES) -> None:
    """Raise LoadError where the files that transformers would read are links out of the folder, or lead elsewhere."""
    try:
        for name in refused:
            if (folder / name).exists():
                raise LoadError(f"it holds {name}: give the whole network and no adapter")
        for pattern in ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"):
            for path in folder.glob(pattern):
                if path.is_symlink():
                    check_inside(folder, path)
    except ValueError as error:
        raise LoadError(f"{str(folder)!r} can't be loaded: {reason_of(error)}") from error
