"""What run_famus.py says of a run: the summary of its label report, a row of a table or a card, its command line."""

import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from famus_hf.cli.arguments import SOURCE, TOPICS, DataArguments
from famus_hf.cli.config_files import with_values
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.data.sources.idx import is_called_fashion, is_idx_folder
from famus_hf.data.sources.load_source import DATA_LICENSES, HUB_DATASETS
from famus_hf.metrics import AveragePrecision
from famus_hf.reporting.label_reasons import given_to_believed
from famus_hf.reporting.label_report import judged, wrong_labels
from famus_hf.reporting.true_accuracy import are_known
from famus_hf.two_networks.peer import Peer


def summary_of(report: Dataset, deviation: float = 0.0) -> dict[str, Any]:
    """Return what all_results.json says of a label report.

    Examples that could not be judged count in nothing else than their own number, the first rows of the report.

    Args:
        report: See `famus_hf.reporting.label_report`.
        deviation: Standard deviation of its estimated share of wrong labels.
    """
    finite = judged(report)
    summary: dict[str, Any] = {"suspect_labels": None, "estimated_noise_rate_by_label_report": None}
    wrong = wrong_labels(report, deviation)
    if report.info.description:
        summary["label_report_doubt"] = report.info.description
    elif wrong is not None:
        summary |= {
            "suspect_labels": int((np.asarray(finite["clean_probability"][:]) < 0.5).sum()),
            "estimated_noise_rate_by_label_report": wrong[0] / len(finite),
            "wrong_labels": wrong[0],
            "wrong_labels_interval": list(wrong[1:]),
            "given_to_believed": given_to_believed(finite),
        }
    summary["judged_labels"] = dict(Counter(finite["split"][:]))
    if len(finite) < len(report):
        summary["examples_not_finite"] = len(report) - len(finite)
    return {**summary, **_precision_of(finite)}


def _precision_of(report: Dataset) -> dict[str, float]:
    """Return how well wrong labels are found among the examples, of whatever split, whose clean label is known."""
    if "clean_label" not in report.features:
        return {}
    pairs = zip(report["label"][:], report["clean_label"][:], strict=True)
    wrong = np.array([label != clean for label, clean in pairs if clean is not None])
    if not wrong.any():
        return {}
    ranks = -np.arange(len(wrong), dtype=float)
    score = AveragePrecision().compute(predictions=ranks, references=wrong.astype(int))
    return {"wrong_label_average_precision": score["average_precision"]}


def layers_of(metas: Sequence[MetaUpdate]) -> dict[str, Any]:
    """Return which layers carried the meta gradient; of two networks the mean of both."""
    shares = [meta.share_of_steps_on for meta in metas]
    names = dict.fromkeys(name for share in shares for name in share)
    return {
        "mean_active_layers": statistics.fmean(meta.mean_active_layers for meta in metas) if metas else 0.0,
        "share_of_steps_on": {
            name: statistics.fmean(share[name] for share in shares if name in share) for name in names
        },
    }


def divisions_of(peers: Sequence[Peer]) -> dict[str, dict[str, Any]]:
    """Return how two networks last divided the training set, by network; nothing before they have."""
    return {
        peer.name: {
            "labelled": len(peer.division),
            "unlabelled": len(peer.division.unlabelled),
            "precision": peer.division.purity,
            "recall": peer.division.recall,
            "estimated_noise_rate": peer.division.estimated_noise_rate,
            "mixture_noise_rate": peer.division.mixture_noise_rate,
        }
        for peer in peers
        if peer.division.epoch >= 0
    }


def as_baseline(results: dict[str, Any]) -> dict[str, Any]:
    """Return a finished run as a row of another's model card."""
    return {
        "method": results["method"],
        "last": results["eval_accuracy"],
        "best": results["best_eval_accuracy"],
        "seconds_per_step": results["train_seconds_per_step"],
        **({} if are_known(results) else {"true": results["estimated_true_accuracy"]}),
    }


def command_of(argv: list[str]) -> str:
    """Return the command line for the model card, without what concerns this machine and its user."""
    kept = []
    for flag, values in with_values(argv):
        if not flag.startswith(("--hub_", "--output_dir", "--push_to_hub", "--resume_from_checkpoint")):
            kept += [flag, *map(shown, values)]
    return f"accelerate launch scripts/run_famus.py {shlex.join(kept)}".strip()


def shown(value: str) -> str:
    """Return a value of the command line without the path of a file or folder."""
    return known_name(value) or (Path(value).resolve().name if Path(value).exists() else value)


def known_name(folder: str) -> str | None:
    """Return the name that leads to the same images and labels as a local folder, where there is one."""
    path = Path(folder)
    is_known = bool(folder) and path.is_dir() and is_idx_folder(path) and is_called_fashion(path)
    return "fashion_mnist" if is_known else None


def data_facts(data_args: DataArguments, shown_name: str, dataset: Dataset) -> dict[str, Any]:
    """Return what the model card says of the data set."""
    name = known_name(data_args.dataset_name or "") or data_args.dataset_name or ""
    is_folder = Path(name).is_dir()
    return {
        "dataset_name": name if name in HUB_DATASETS else shown_name,
        "dataset_id": HUB_DATASETS.get(name, (name if "/" in name and not is_folder else None,))[0],
        "data_license": DATA_LICENSES.get(name) or getattr(dataset.info, "license", None) or None,
        "imbalance_factor": data_args.imbalance_factor,
    }


def release_command(data_args: DataArguments, folder: str, repository: str, revision: str | None) -> str:
    """Return the command that pushes a finished run once more."""
    words = ["python", "scripts/release.py", "--run", folder, "--hub_model_id", repository]
    words += [] if revision is None else ["--hub_revision", revision]
    for name in (*TOPICS[SOURCE], "max_eval_samples"):  # which lead to the test set
        value = getattr(data_args, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)
