"""The folder that is saved, pushed and loaded: backbone at its root, meta-learner and layer sampler in `meta_net/`.

A run of two networks leaves two such folders, `model_a/` and `model_b/`, and the ensemble of both around them.
"""

import json
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from famus_hf.core.layer_samplers import LayerSampler
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.data.media.modalities import modality_of_config
from famus_hf.errors import LoadError
from famus_hf.hub.client_errors import downloaded
from famus_hf.hub.meta_net_files import load_meta_net
from famus_hf.hub.safe_adapter import is_adapter, load_adapted
from famus_hf.hub.safe_backbone import check_folder, load_backbone
from famus_hf.hub.safe_processor import load_processor
from famus_hf.storage.model_folder import holds_two_networks
from famus_hf.storage.run_folder import (
    CONFIG,
    LAST_CHECKPOINT,
    LOADED_FILES,
    NETWORKS_APART,
    OF_A_RUN,
    OF_NETWORKS_APART,
    RECORDS,
    is_among,
)


def load_famus(
    repo_or_folder: str | Path, *, subfolder: str = "", revision: str | None = None, token: str | None = None
) -> tuple[Any, MetaLearner | None, LayerSampler | None, Any]:
    """Load a folder that a FaMUS run left, from disk or from the Hub.

    Only safetensors and JSON are read; no file is executed and nothing is unpickled. Of a run that trained adapters of
    PEFT (LoRA) the network that they adapt is loaded too: from the Hub or, of a local folder, from another one.

    Args:
        repo_or_folder: A local folder, or `user/name` on the Hub.
        subfolder: Of that; "model_a" or "model_b" for one network of two.
        revision: Branch, tag or commit on the Hub.
        token: For private repositories; default: where huggingface_hub looks.

    Returns:
        The backbone in eval mode, the meta-learner, the layer sampler and the image processor, tokenizer or feature
        extractor. None stands for what the run did not use. Of two networks, the folder itself gives their ensemble
        and neither meta-learner nor layer sampler: each network has its own, in its subfolder.

    Raises:
        LoadError: The folder is not such a folder, or something in it is damaged, absurd, not finite, or leads out of
            it. One sentence says what.
        HubError: The Hub does not give it.
    """
    root = Path(repo_or_folder)
    is_local = root.is_dir()
    if not is_local:
        prefix = f"{subfolder}/" if subfolder else ""
        ignored_folders = () if subfolder else (LAST_CHECKPOINT, *NETWORKS_APART)
        root = downloaded(
            str(repo_or_folder),
            revision,
            token,
            allow=[f"{prefix}{pattern}" for pattern in LOADED_FILES],
            ignore=[f"{name}/*" for name in ignored_folders],
        )
    folder = root / subfolder
    if not folder.resolve().is_relative_to(root.resolve()):
        raise LoadError(
            f"subfolder {subfolder!r} leads out of {str(repo_or_folder)!r}: give the name of a folder in it"
        )
    if not (folder / CONFIG).is_file() and not is_adapter(folder):
        where = f" in {subfolder!r}" if subfolder else ""
        raise LoadError(
            f"{str(repo_or_folder)!r} has no config.json{where}: a run's output folder or Hub repository is needed"
        )
    if is_adapter(folder):
        check_folder(folder, refused=())
        model = load_adapted(folder, is_local=is_local, token=token)
    else:
        check_folder(folder)
        model = load_backbone(folder)
    processor = load_processor(folder, modality_of_config(model.config))
    meta_learner, layer_sampler = load_meta_net(folder)
    return model, meta_learner, layer_sampler, processor


def files_to_push(folder: str | Path, newer_than: float = 0.0) -> list[str]:
    """Return the names of the files of a run that a push uploads.

    Args:
        folder: Of the run.
        newer_than: Records of a training (its noise, results, label report and pictures) that were written before this
            time are of an earlier one, and left out. Seconds, as of `time.time()`.
    """
    root = Path(folder)
    paths = [path for pattern in ("*", "*/*") for path in root.glob(pattern)]
    allowed: tuple[str, ...] = OF_A_RUN
    code = code_files(root)
    if holds_two_networks(root):  # else these folders are of an earlier run
        paths += [path for network in NETWORKS_APART for path in (root / network).glob("*/*")]
        allowed += OF_NETWORKS_APART
        code |= {f"{network}/{name}" for network in NETWORKS_APART for name in code_files(root / network)}
    names = [path.relative_to(root).as_posix() for path in sorted(paths)]
    return [
        name
        for name in names
        if (root / name).is_file()
        and (is_among(name, allowed) or name in code)
        and not (is_among(name, RECORDS) and (root / name).stat().st_mtime < newer_than)
    ]


def code_files(folder: Path) -> set[str]:
    """Return the Python files that config.json names as the backbone's, and those that they import relatively."""
    try:
        auto_map = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("auto_map", {})
        modules = {f"{str(value).rpartition('.')[0]}.py" for value in auto_map.values()}
    except (OSError, ValueError, AttributeError):
        return set()
    return modules.union(*(_imported_by(folder / name) for name in modules))


def _imported_by(path: Path) -> set[str]:
    try:
        return {Path(imported).name for imported in get_relative_import_files(path)}
    except (OSError, ValueError):  # one of them is missing, or no text
        return set()
