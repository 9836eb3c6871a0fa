"""The folder `meta_net/`: meta-learner and layer sampler as JSON and safetensors, and how they come back.

What is read may be hostile: nothing is executed or unpickled, and nothing of a size that config.json claims is made
before the sizes of the tensor files are known.
"""

import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from famus_hf.core.layer_samplers import LAYER_SAMPLERS, LayerSampler
from famus_hf.core.layers import Layer
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_learners.registry import META_LEARNERS
from famus_hf.core.pretrained import Pretrained
from famus_hf.errors import LoadError, reason_of
from famus_hf.hub.client_errors import downloaded
from famus_hf.storage.run_folder import CONFIG, LAYER_SAMPLER_WEIGHTS, META_LEARNER_WEIGHTS, META_NET
from famus_hf.storage.untrusted import Allowance, check_inside, read_json, read_tensors, shapes_in

TENSORS = {"meta_learner": META_LEARNER_WEIGHTS, "layer_sampler": LAYER_SAMPLER_WEIGHTS}
Component = TypeVar("Component", MetaLearner, LayerSampler)
Kind = TypeVar("Kind", bound=Pretrained)


# ---- Writing ----


def save_meta_net(
    folder: str | PathLike[str], meta_learner: MetaLearner | None, layer_sampler: LayerSampler | None
) -> None:
    """Write `meta_net/` below the folder: config.json, model.safetensors, layer_sampler.safetensors.

    A component without parameters is in config.json alone.
    """
    target = Path(folder) / META_NET
    if target.is_dir():
        shutil.rmtree(target)  # of another run: its files would be taken for this one's
    if meta_learner is None:
        return
    target.mkdir(parents=True, exist_ok=True)
    _save_tensors(meta_learner, target / TENSORS["meta_learner"])
    if layer_sampler is not None:
        _save_tensors(layer_sampler, target / TENSORS["layer_sampler"])
    config = _config_of(meta_learner, layer_sampler)
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config_of(meta_learner: MetaLearner, layer_sampler: LayerSampler | None) -> dict[str, Any]:
    config = {"meta_learner": {"type": _type_name(meta_learner, META_LEARNERS), **meta_learner.config()}}
    if layer_sampler is not None:
        config["layer_sampler"] = {
            "type": _type_name(layer_sampler, LAYER_SAMPLERS),
            **layer_sampler.config(),
            "layers": [{**asdict(layer), "parameters": list(layer.parameters)} for layer in layer_sampler.layers],
        }
    return config


def _type_name(component: Any, known: Mapping[str, type[Any]]) -> str:
    return next((name for name, kind in known.items() if type(component) is kind), type(component).__name__)


def _save_tensors(module: nn.Module, path: Path) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    if tensors:
        save_file(tensors, path, metadata={"format": "pt"})


# ---- Reading ----


def load_into(folder: str | Path, meta_learner: MetaLearner, layer_sampler: LayerSampler) -> None:
    """Read a checkpoint's `meta_net/` into the components of a run, which must be of the same kind and settings.

    Raises:
        LoadError: It is missing, damaged, or was made with other settings; the components are then as they were.
    """
    root = Path(folder)
    try:
        saved = _read_config(root, root / META_NET)
        for key, present in _config_of(meta_learner, layer_sampler).items():
            if saved.get(key) != json.loads(json.dumps(present)):  # JSON has made lists of tuples
                raise LoadError(f"its {key.replace('_', ' ')} has other settings")
        modules: dict[str, nn.Module] = {"meta_learner": meta_learner, "layer_sampler": layer_sampler}
        # Both files are read before either module changes, so that a damaged one leaves both as they were.
        states = {key: read_tensors(module, root, root / META_NET / TENSORS[key]) for key, module in modules.items()}
        for key, module in modules.items():
            module.load_state_dict(states[key])
    except Exception as error:  # a registered class may raise anything
        raise LoadError(
            f"checkpoint {str(folder)!r} does not fit: its meta-learner or layer sampler is missing or was made "
            f"with other settings ({reason_of(error)})"
        ) from error


def load_meta_net(folder: str | Path) -> tuple[MetaLearner | None, LayerSampler | None]:
    """Return what `save_meta_net` wrote; None for what was not used.

    Raises:
        LoadError: Something in `meta_net/` is missing, of an unknown type, does not fit, or is more than a run writes.
    """
    root = Path(folder)
    if not os.path.lexists(root / META_NET):
        return None, None
    with _refusing(root / META_NET):
        config = _read_config(root, root / META_NET)
        meta_learner = _load_component(root, root / META_NET, "meta_learner", config, META_LEARNERS)
        return meta_learner, _load_component(root, root / META_NET, "layer_sampler", config, LAYER_SAMPLERS)


def load_kind(
    kind: type[Kind], repo_or_folder: str | PathLike[str], subfolder: str, revision: str | None, token: str | None
) -> Kind:
    """Load a meta-learner or a layer sampler, for its `from_pretrained`; the other of the two is not made.

    Raises:
        LoadError: There is no such folder, nothing of this kind in it; or as in `load_meta_net`.
        HubError: The Hub does not give it.
    """
    root = _local_root(repo_or_folder, subfolder, revision, token)
    folder, source = root / subfolder, repr(str(repo_or_folder))
    if not folder.is_dir():
        raise LoadError(
            f"{source} has no folder {subfolder or '.'!r}: give a run's output folder or Hub repository, or the "
            "subfolder with its config.json"
        )
    is_learner = issubclass(kind, MetaLearner)
    key, known = ("meta_learner", META_LEARNERS) if is_learner else ("layer_sampler", LAYER_SAMPLERS)
    what = "meta-learner" if is_learner else "layer sampler"
    with _refusing(folder):
        component: Any = _load_component(root, folder, key, _read_config(root, folder), known)
    if component is None:
        raise LoadError(f"{source} holds no {what}: the run that wrote it had none")
    if not isinstance(component, kind):
        name, base = type(component).__name__, "MetaLearner" if is_learner else "LayerSampler"
        raise LoadError(
            f"{source} holds a {what} of the kind {name}, and {kind.__name__} was asked for: call "
            f"from_pretrained of {name}, or of {base} for whatever is there"
        )
    return component  # type: ignore[no-any-return]


def _local_root(repo_or_folder: str | PathLike[str], subfolder: str, revision: str | None, token: str | None) -> Path:
    """Return a local folder itself; of a repository on the Hub, the folder that its subfolder is fetched into."""
    if Path(repo_or_folder).is_dir():
        return Path(repo_or_folder)
    names = [f"{subfolder}/*.json", f"{subfolder}/*.safetensors"] if subfolder else [CONFIG, *TENSORS.values()]
    return downloaded(str(repo_or_folder), revision, token, allow=names)


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn whatever is raised while a folder is read into a LoadError that names it."""
    try:
        yield
    except Exception as error:  # a constructor may raise anything on the values of a folder
        raise LoadError(f"{str(folder)!r} is no meta-net of famus_hf ({reason_of(error)})") from error


def _read_config(root: Path, folder: Path) -> dict[str, Any]:
    """Return config.json of a `meta_net/` that holds only files that a run writes. root: the folder around it."""
    if not folder.is_dir():
        raise LoadError(f"there is no folder {META_NET}")
    for path in sorted(folder.iterdir()):
        if path.name not in (CONFIG, *TENSORS.values()) and not path.name.startswith("."):
            raise LoadError(f"it holds {path.name[:80]!r}, which no run writes: remove that, or update famus_hf")
    config = read_json(root, folder / CONFIG)
    _check_keys(CONFIG, config, {"meta_learner"}, {"layer_sampler"})
    for key, settings in config.items():
        if not isinstance(settings, dict):
            raise LoadError(f"its {key} is a {type(settings).__name__} and no object")
    if "layer_sampler" not in config and (folder / TENSORS["layer_sampler"]).exists():
        raise LoadError(f"it holds {TENSORS['layer_sampler']} and no settings of a layer_sampler")
    return config


def _load_component(
    root: Path, folder: Path, key: str, config: Mapping[str, Any], known: Mapping[str, type[Component]]
) -> Component | None:
    """Make a meta-learner or a layer sampler, no larger than its tensor file warrants, and fill it from that."""
    if key not in config:
        return None
    settings = dict(config[key])
    layers = _read_layers(settings.pop("layers", None)) if key == "layer_sampler" else []
    name = settings.pop("type", None)
    kind = known.get(name) if isinstance(name, str) else None
    if kind is None:
        raise LoadError(
            f"its {key} is of the type {str(name)[:80]!r}; import that class and call famus_hf.register_{key} with "
            "it first"
        )
    _check_arguments(key, kind, settings)
    path = folder / TENSORS[key]
    num_bytes, num_tensors = 0, 0
    if path.exists():
        check_inside(root, path)
        num_bytes, num_tensors = path.stat().st_size, len(shapes_in(root, path))
    with Allowance(num_bytes, num_tensors):
        component = kind(**settings)
        if isinstance(component, LayerSampler):
            component.build(layers)
    component.load_state_dict(read_tensors(component, root, path))
    return component


def _check_arguments(key: str, kind: type[Any], arguments: Mapping[str, Any]) -> None:
    """Raise LoadError where the constructor does not know an argument, or lacks one."""
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) for parameter in parameters):
        return
    required = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
    _check_keys(f"its {key}", arguments, required, {parameter.name for parameter in parameters})


def _check_keys(where: str, content: Mapping[str, Any], required: set[str], optional: set[str]) -> None:
    unknown = [key for key in content if key not in required | optional]
    if unknown:
        raise LoadError(f"{where} has the key {unknown[0][:80]!r}, which this version does not know: update famus_hf")
    missing = sorted(required - content.keys())
    if missing:
        raise LoadError(f"{where} lacks the key {missing[0]!r}")


def _read_layers(entries: Any) -> list[Layer]:
    """Return the candidate layers. Raise LoadError on what `find_layers` can't have found."""
    if not isinstance(entries, list):
        raise LoadError("its layer_sampler has no list of layers")
    layers = [_read_layer(position, entry) for position, entry in enumerate(entries)]
    if len({layer.name for layer in layers}) < len(layers):
        raise LoadError("its layer_sampler names a layer twice")
    return layers


def _read_layer(position: int, entry: Any) -> Layer:
    where = f"layer {position} of its layer_sampler"
    if not isinstance(entry, dict):
        raise LoadError(f"{where} is a {type(entry).__name__} and no object")
    _check_keys(where, entry, {"name", "parameters", "width"}, {"share", "block"})
    name, parameters, width = entry["name"], entry["parameters"], entry["width"]
    share, block = entry.get("share", 1.0), entry.get("block")
    is_named = isinstance(name, str) and isinstance(parameters, list) and len(parameters) > 0
    if not is_named or not all(isinstance(p, str) and p.rpartition(".")[0] == name for p in parameters):
        raise LoadError(f"{where} has a name that is not that of the module which owns its parameters")
    if len(set(parameters)) < len(parameters):
        raise LoadError(f"{where} names a parameter twice")
    if type(width) is not int or width < 0:
        raise LoadError(f"{where} has a width that is no whole number of at least 0")
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise LoadError(f"{where} has a share outside of [0, 1]")
    if block is not None and (type(block) is not int or block < 1):
        raise LoadError(f"{where} has a block that is no whole number of at least 1")
    return Layer(name, tuple(parameters), width, share, block)
