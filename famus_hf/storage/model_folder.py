"""`model_a/` and `model_b/`: what a run of two networks leaves beside their ensemble, each a folder like any run's."""

import json
from pathlib import Path
from typing import Any

from famus_hf.models.two_networks import TwoNetworksConfig, TwoNetworksForImageClassification

NETWORKS_APART = ("model_a", "model_b")  # as the ensemble's modules are called


def save_networks_apart(folder: str | Path, ensemble: TwoNetworksForImageClassification, processor: Any) -> None:
    """Writes each network of an ensemble into a folder of its own, which loads like that of a run of one network.

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


def holds_two_networks(folder: Path) -> bool:
    """Whether a run of two networks left this folder, by its config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == TwoNetworksConfig.model_type
