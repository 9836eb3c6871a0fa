"""The folder that is saved, pushed and loaded: backbone at its root, meta-learner and layer sampler in `meta_net/`.

Only safetensors and JSON are read; no file is executed and nothing is unpickled.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from famus_hf.layer_sampler import AllLayers, BlockSampler, LayerSampler, LearnedSampler, RandomLayers
from famus_hf.layers import Layer
from famus_hf.meta_learners import L2R, MLC, MetaLearner, MWNet

META_NET = "meta_net"
META_LEARNERS: dict[str, type[MetaLearner]] = {"mw-net": MWNet, "l2r": L2R, "mlc": MLC}
LAYER_SAMPLERS: dict[str, type[LayerSampler]] = {
    "learned": LearnedSampler,
    "all": AllLayers,
    "block": BlockSampler,
    "random": RandomLayers,
}
# What a push uploads: nothing that is not safetensors, JSON, text, Python of a backbone, or the record of the noise.
PUSHED_FILES = ("*.json", "*.safetensors", "*.txt", "*.py", "*.model", "README.md", "noise.parquet", "*.png")
NOT_PUSHED = ("trainer_state.json",)  # holds paths of the machine


def register_meta_learner(kind: type[MetaLearner]) -> type[MetaLearner]:
    """Makes `load_famus` know a meta-learner of your own, by its class name; also a decorator of the class.

    Its `config()` must give the arguments of its constructor. Nothing of it is taken from the folder that is loaded but
    these arguments and tensors.
    """
    META_LEARNERS[kind.__name__] = kind
    return kind


def register_layer_sampler(kind: type[LayerSampler]) -> type[LayerSampler]:
    """The same for a layer sampler of your own."""
    LAYER_SAMPLERS[kind.__name__] = kind
    return kind


def save_meta_net(folder: str | Path, meta_learner: MetaLearner | None, layer_sampler: LayerSampler | None) -> None:
    """Writes `meta_net/` below the folder: config.json, model.safetensors, layer_sampler.safetensors.

    A part without parameters is in config.json alone.
    """
    target = Path(folder) / META_NET
    if target.is_dir():
        shutil.rmtree(target)  # of another run: its files would be taken for this one's
    if meta_learner is None:
        return
    target.mkdir(parents=True, exist_ok=True)
    _save_tensors(meta_learner, target / "model.safetensors")
    if layer_sampler is not None:
        _save_tensors(layer_sampler, target / "layer_sampler.safetensors")
    config = _config_of(meta_learner, layer_sampler)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config_of(meta_learner: MetaLearner, layer_sampler: LayerSampler | None) -> dict[str, Any]:
    config = {"meta_learner": {"type": _type_name(meta_learner, META_LEARNERS), **meta_learner.config()}}
    if layer_sampler is not None:
        config["layer_sampler"] = {
            "type": _type_name(layer_sampler, LAYER_SAMPLERS),
            **layer_sampler.config(),
            "layers": [{**asdict(layer), "parameters": list(layer.parameters)} for layer in layer_sampler.layers],
        }
    return config


def load_into(folder: str | Path, meta_learner: MetaLearner, layer_sampler: LayerSampler) -> None:
    """Reads a checkpoint's `meta_net/` into the parts of a run that must be of the same kind and settings.

    Raises:
        ValueError: It is missing, or was made with other settings.
    """
    source = Path(folder) / META_NET
    try:
        saved = json.loads((source / "config.json").read_text(encoding="utf-8"))
        for part, present in _config_of(meta_learner, layer_sampler).items():
            if saved[part] != present:
                raise ValueError(f"its {part.replace('_', ' ')} has other settings")
        _load_tensors(meta_learner, source / "model.safetensors")
        _load_tensors(layer_sampler, source / "layer_sampler.safetensors")
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"checkpoint {str(folder)!r} does not fit: its meta-learner or layer sampler is missing or was made "
            f"with other settings ({reason})"
        ) from error


def load_meta_net(folder: str | Path) -> tuple[MetaLearner | None, LayerSampler | None]:
    """What `save_meta_net` wrote; None for what was not used.

    Raises:
        ValueError: Something in `meta_net/` is missing, of an unknown type or does not fit.
    """
    source = Path(folder) / META_NET
    if not source.is_dir():
        return None, None
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        learner = dict(config["meta_learner"])
        meta_learner = _kind_of(source, learner, META_LEARNERS, "meta_learner")(**learner)
        _load_tensors(meta_learner, source / "model.safetensors")
        if "layer_sampler" not in config:
            return meta_learner, None
        sampler = dict(config["layer_sampler"])
        layers = [Layer(**{**entry, "parameters": tuple(entry["parameters"])}) for entry in sampler.pop("layers")]
        layer_sampler = _kind_of(source, sampler, LAYER_SAMPLERS, "layer_sampler")(**sampler)
        layer_sampler.build(layers)
        _load_tensors(layer_sampler, source / "layer_sampler.safetensors")
    except (OSError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(source)!r} is no meta-net of famus_hf ({type(error).__name__}: {error})") from error
    return meta_learner, layer_sampler


def load_famus(
    repo_or_folder: str | Path, *, revision: str | None = None, token: str | None = None
) -> tuple[Any, MetaLearner | None, LayerSampler | None, Any]:
    """Loads a folder that a FaMUS run left, from disk or from the Hub.

    Args:
        repo_or_folder: A local folder, or `user/name` on the Hub.
        revision: Branch, tag or commit on the Hub.
        token: For private repositories; default: where huggingface_hub looks.

    Returns:
        The backbone in eval mode, the meta-learner, the layer sampler and the image processor. None stands for what
        the run did not use.

    Raises:
        ValueError: The folder is not such a folder.
    """
    folder = Path(repo_or_folder)
    if not folder.is_dir():
        patterns = [pattern for pattern in PUSHED_FILES if pattern != "*.py"]
        folder = Path(snapshot_download(str(repo_or_folder), revision=revision, token=token, allow_patterns=patterns))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(repo_or_folder)!r} has no config.json: a run's output folder or Hub repository is needed"
        )
    model = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    has_processor = (folder / "preprocessor_config.json").is_file()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False) if has_processor else None
    meta_learner, layer_sampler = load_meta_net(folder)
    return model, meta_learner, layer_sampler, processor


def files_to_push(folder: str | Path) -> list[str]:
    """Names of the folder's own files and those of `meta_net/` that a push uploads; other folders stay on disk."""
    root = Path(folder)
    paths = [*root.iterdir(), *(root / META_NET).glob("*")]
    return [
        path.relative_to(root).as_posix()
        for path in sorted(paths)
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in NOT_PUSHED
        and any(path.match(pattern) for pattern in PUSHED_FILES)
    ]


def _kind_of(source: Path, config: dict[str, Any], known: dict[str, type[Any]], part: str) -> type[Any]:
    kind = str(config.pop("type"))
    if kind not in known:
        raise ValueError(
            f"{str(source)!r} is no meta-net of famus_hf alone: its {part} is of the type {kind!r}; import that class "
            f"and call famus_hf.register_{part} with it first"
        )
    return known[kind]


def _type_name(part: Any, known: dict[str, type[Any]]) -> str:
    return next((name for name, kind in known.items() if type(part) is kind), type(part).__name__)


def _save_tensors(module: torch.nn.Module, path: Path) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    if tensors:
        save_file(tensors, path, metadata={"format": "pt"})


def _load_tensors(module: torch.nn.Module, path: Path) -> None:
    """Copies a safetensors file into a module whose names and shapes it must match exactly."""
    if module.state_dict():
        module.load_state_dict(load_file(path))
