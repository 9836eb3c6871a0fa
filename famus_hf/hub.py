"""The folder that is saved, pushed and loaded: backbone at its root, meta-learner and layer sampler in `meta_net/`."""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from famus_hf.backbone import check_folder, load_backbone, load_processor
from famus_hf.hub_errors import hub_reason
from famus_hf.layer_sampler import LayerSampler
from famus_hf.meta_learners import MetaLearner
from famus_hf.meta_net import META_NET, load_meta_net
from famus_hf.portable_checkpoint import LAST_CHECKPOINT

# What a push uploads: safetensors, JSON, text, Python of a backbone, pictures, records of labels, and nothing else.
PUSHED_FILES = (
    "*.json", "*.safetensors", "*.txt", "*.py", "*.model", "*.png", "README.md", "noise.parquet",
    "label_report.parquet",
)  # fmt: skip
LOADED_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
FIGURES = "figures"
NOT_PUSHED = ("trainer_state.json",)  # holds paths of the machine


def load_famus(
    repo_or_folder: str | Path, *, revision: str | None = None, token: str | None = None
) -> tuple[Any, MetaLearner | None, LayerSampler | None, Any]:
    """Loads a folder that a FaMUS run left, from disk or from the Hub.

    Only safetensors and JSON are read; no file is executed and nothing is unpickled.

    Args:
        repo_or_folder: A local folder, or `user/name` on the Hub.
        revision: Branch, tag or commit on the Hub.
        token: For private repositories; default: where huggingface_hub looks.

    Returns:
        The backbone in eval mode, the meta-learner, the layer sampler and the image processor. None stands for what
        the run did not use.

    Raises:
        ValueError: The folder is not such a folder, or something in it is damaged, absurd, not finite, or leads out of
            it; or the Hub does not give it. One sentence says what.
    """
    folder = Path(repo_or_folder)
    if not folder.is_dir():
        folder = _downloaded(str(repo_or_folder), revision, token)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(repo_or_folder)!r} has no config.json: a run's output folder or Hub repository is needed"
        )
    check_folder(folder)
    model = load_backbone(folder)
    processor = load_processor(folder)
    meta_learner, layer_sampler = load_meta_net(folder)
    return model, meta_learner, layer_sampler, processor


def _downloaded(repo_id: str, revision: str | None, token: str | None) -> Path:
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=list(LOADED_FILES),
            ignore_patterns=[f"{LAST_CHECKPOINT}/*"],
        )
    except Exception as error:  # the client's errors have no common class
        raise ValueError(f"{repo_id!r} is no folder, and can't be loaded from the Hub: {hub_reason(error)}") from error
    return Path(folder)


def files_to_push(folder: str | Path) -> list[str]:
    """Names of the files that a push uploads: the folder's own, those of `meta_net/`, and pictures in `figures/`."""
    root = Path(folder)
    paths = [*root.iterdir(), *(root / META_NET).glob("*"), *(root / FIGURES).glob("*.png")]
    return [
        path.relative_to(root).as_posix()
        for path in sorted(paths)
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in NOT_PUSHED
        and any(path.match(pattern) for pattern in PUSHED_FILES)
    ]
