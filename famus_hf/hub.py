"""The folder that is saved, pushed and loaded: backbone at its root, meta-learner and layer sampler in `meta_net/`."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from famus_hf.backbone import check_folder, load_backbone, load_processor
from famus_hf.hub_errors import downloaded
from famus_hf.label_report import REPORT_FILE
from famus_hf.layer_sampler import LayerSampler
from famus_hf.meta_learners import MetaLearner
from famus_hf.meta_net import META_NET, load_meta_net
from famus_hf.portable_checkpoint import LAST_CHECKPOINT

FIGURES = "figures"
# Those that say something of a training, and would be taken for the next one's.
RECORDS = (
    "noise.parquet", REPORT_FILE, f"{FIGURES}/*.png", "all_results.json", "train_results.json", "eval_results.json",
)  # fmt: skip
# What a run writes; a push uploads these, and the files of a backbone's code, and nothing else.
OF_A_RUN = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "adapter_config.json",
    "adapter_model.safetensors", "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "vocab.*",
    "merges.txt", "added_tokens.json", f"{META_NET}/*.json", f"{META_NET}/*.safetensors", "README.md", *RECORDS,
)  # fmt: skip
LOADED_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


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
        folder = downloaded(str(repo_or_folder), revision, token, allow=LOADED_FILES, ignore=(f"{LAST_CHECKPOINT}/*",))
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(repo_or_folder)!r} has no config.json: a run's output folder or Hub repository is needed"
        )
    check_folder(folder)
    model = load_backbone(folder)
    processor = load_processor(folder)
    meta_learner, layer_sampler = load_meta_net(folder)
    return model, meta_learner, layer_sampler, processor


def files_to_push(folder: str | Path, newer_than: float = 0.0) -> list[str]:
    """Names of the files of a run that a push uploads.

    Args:
        folder: Of the run.
        newer_than: Records of a training (its noise, results, label report and pictures) that were written before this
            time are of an earlier one, and left out. Seconds, as of `time.time()`.
    """
    root = Path(folder)
    names = [path.relative_to(root).as_posix() for path in sorted([*root.glob("*"), *root.glob("*/*")])]
    code = code_files(root)
    return [
        name
        for name in names
        if (root / name).is_file()
        and (is_among(name, OF_A_RUN) or name in code)
        and not (is_among(name, RECORDS) and (root / name).stat().st_mtime < newer_than)
    ]


def is_among(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file's name fits a pattern, folder by folder."""
    return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in patterns)


def code_files(folder: Path) -> set[str]:
    """The Python files that a folder's config.json names as its backbone's."""
    try:
        auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
        return {f"{str(value).rpartition('.')[0]}.py" for value in auto_map.values()}
    except (OSError, ValueError, AttributeError):
        return set()
