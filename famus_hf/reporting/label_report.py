"""Which labels of a data set are probably wrong: one row for each example, the most suspect first.

A network that learned from noisy labels with FaMUS tells what the true class of an example probably is. How often
examples of class k are labelled y is estimated over the whole data set, and Bayes' rule then gives the probability that
this very label is right (`famus_hf.core.transitions`). So a label is suspect where the network finds a class likely
that is often given this label, and not merely where it finds the label unlikely.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value
from torch import Tensor

from famus_hf.core.beliefs import HonestBeliefs
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_learners.registry import raw_weights
from famus_hf.core.transitions import clean_label_probabilities, clean_label_probabilities_by_trusted
from famus_hf.data.inputs.convert import raw_modality
from famus_hf.data.media.examples import file_names
from famus_hf.data.media.modalities import TEXT
from famus_hf.data.per_example import PerExample
from famus_hf.errors import first_few
from famus_hf.reporting.figures.label_report import draw_report
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import REPORT_FILE

TEXT_COLUMNS = ("text", "text_pair")
SHOWN_LENGTH = 200  # characters of a text in a report


def label_report(
    labels: np.ndarray,
    probabilities: np.ndarray,
    losses: np.ndarray,
    class_names: Sequence[str],
    *,
    index: Sequence[int] | np.ndarray | None = None,
    details: Mapping[str, Sequence[str | None]] | None = None,
    weights: np.ndarray | None = None,
    clean_labels: np.ndarray | None = None,
    clean_probabilities: np.ndarray | None = None,
    doubt: str = "",
) -> Dataset:
    """Return the report as a data set, sorted by the probability that a label is right, the most suspect example first.

    Before them come examples whose predictions or losses are not finite: without these, and without a probability.

    Args:
        labels: Shape (N,), the given labels.
        probabilities: Shape (N, C), what the network predicts.
        losses: Shape (N,).
        class_names: C of them.
        index: Rows of the examples in their source; default: 0 to N − 1.
        details: Column → N strings by which a reader knows the examples: `file`, or `text` and `text_pair`.
        weights: Shape (N,), V of the meta-learner, where it has such weights.
        clean_labels: Shape (N,), where known.
        clean_probabilities: Shape (N,); default: those by `probabilities`.
        doubt: Why the probabilities can't be told, and are left out; the order is by them all the same.

    Returns:
        Columns `index`, those of `details`, `label`, `predicted_label`, `loss`, `weight`, `clean_probability`
        and, where known, `clean_label`. Its `info.description` is the doubt.
    """
    finite = np.isfinite(probabilities).all(1) & np.isfinite(losses)
    if clean_probabilities is None:
        clean_probabilities = np.zeros(len(labels))
        clean_probabilities[finite] = clean_label_probabilities(labels[finite], probabilities[finite])
    order = np.lexsort((-np.where(finite, losses, 0), clean_probabilities, finite))  # by the last key first
    names = ClassLabel(names=list(class_names))
    columns: dict[str, tuple[Any, Any]] = {
        "index": (np.arange(len(labels)) if index is None else np.asarray(index), Value("int64")),
        **{name: (values, Value("string")) for name, values in (details or {}).items()},
        "label": (labels, names),
        "predicted_label": (_where(finite, probabilities.argmax(1)), names),
        "loss": (_where(finite, losses), Value("float32")),
        "weight": (None if weights is None else _where(finite, weights), Value("float32")),
        "clean_probability": (None if doubt else _where(finite, clean_probabilities), Value("float32")),
        "clean_label": (clean_labels, names),
    }
    if clean_labels is None:
        columns.pop("clean_label")
    rows = order.tolist()
    content = {
        name: [None] * len(rows) if values is None else [values[row] for row in rows]
        for name, (values, _) in columns.items()
    }
    report = Dataset.from_dict(content, features=Features({name: feature for name, (_, feature) in columns.items()}))
    report.info.description = doubt
    return report


def _where(finite: np.ndarray, values: np.ndarray) -> list[Any]:
    return [value if is_finite else None for value, is_finite in zip(values.tolist(), finite, strict=True)]


def judged(report: Dataset) -> Dataset:
    """Return the report without its first rows where those are of examples that are not finite to the network."""
    unjudged = report["loss"][:].count(None)
    return report.select(range(unjudged, len(report)))


def verdict(report: Dataset) -> str:
    """Return how many labels are suspect, or why that can't be told, and which examples could not be judged."""
    finite, words = judged(report), []
    suspect = sum(probability < 0.5 for probability in finite["clean_probability"][:] if probability is not None)
    if report.info.description or len(finite) == finite["clean_probability"][:].count(None):
        reason = report.info.description or "there is no number for any of them"
        words.append(f"how many of {len(finite)} labels are wrong can't be told, as {reason}")
    else:
        words.append(f"{suspect} of {len(finite)} labels are more likely wrong than right")
    unjudged = report["index"][: len(report) - len(finite)]
    if unjudged:
        words.append(
            f"{len(unjudged)} examples, the first rows, could not be judged, as what the network makes of them is not "
            f"finite (index {first_few(unjudged)})"
        )
    return "; ".join(words)


def class_names(model: Any, num_labels: int) -> list[str]:
    """Return a network's names of its classes, from its configuration; numbers where these are not all different."""
    known = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = [str(known.get(label, label)) for label in range(num_labels)]
    return names if len(set(names)) == num_labels else [str(label) for label in range(num_labels)]


# ---- Of a run ----


def report_of(
    examples: PerExample,
    dataset: Any,
    network: Any,
    meta_learner: MetaLearner | None,
    beliefs: HonestBeliefs | None,
    doubt: str,
    posteriors: Tensor | None = None,
) -> Dataset:
    """Return the report of what a network makes of a data set.

    Args:
        examples: What the network makes of each, with probabilities.
        dataset: Whose examples are named in it.
        network: Whose configuration has the names of the classes.
        meta_learner: Ψ, if there is one.
        beliefs: Of the network before it learned from these labels, in the order of the data set, where they are known:
            by them labels are judged and classes predicted.
        doubt: Why probabilities can't be told.
        posteriors: How likely each class is of each example, shape (N, C), where the meta-learner says so; then it is
            these by which labels are judged and classes predicted. Rows of 0: of examples that had not come by.
    """
    probabilities, sound = cast(np.ndarray, examples.probabilities), None
    if posteriors is not None:
        found = posteriors.numpy(force=True)
        finite = np.isfinite(probabilities).all(1)
        probabilities = np.where(finite[:, None], np.where(found.any(1, keepdims=True), found, probabilities), np.nan)
        sound = np.nan_to_num(probabilities[np.arange(len(finite)), examples.labels])
    elif beliefs is not None:
        believed = beliefs.probabilities.numpy(force=True)
        came_by = believed.any(1, keepdims=True)  # of others the network has not learned the labels at all
        finite = np.isfinite(probabilities).all(1)
        probabilities = np.where(finite[:, None], np.where(came_by, believed, probabilities), np.nan)
        trusted = beliefs.trusted_labels.numpy(force=True), beliefs.trusted.numpy(force=True)
        sound = np.zeros(len(finite))
        sound[finite] = clean_label_probabilities_by_trusted(examples.labels[finite], probabilities[finite], *trusted)
    return label_report(
        examples.labels,
        probabilities,
        examples.losses,
        class_names(network, probabilities.shape[1]),
        index=examples.index,
        details=details_of(dataset),
        weights=raw_weights(meta_learner, examples.losses),
        clean_labels=examples.clean_labels,
        clean_probabilities=sound,
        doubt=doubt,
    )


def save_report(report: Dataset, dataset: Any, meta_learner: MetaLearner | None, folder: Path) -> None:
    """Write it to label_report.parquet in a folder, and its pictures to `figures/`.

    Args:
        report: Of `report_of`.
        dataset: Whose images are drawn where it has any.
        meta_learner: Ψ, if there is one.
        folder: Is made where it is not there.

    Raises:
        SaveError: It can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / REPORT_FILE) as path:
        report.to_parquet(path)
    draw_report(judged(report), dataset, lambda losses: raw_weights(meta_learner, losses), folder)


def details_of(dataset: Any) -> dict[str, list[str | None]]:
    """Return what tells a reader which example it is: column of a report → values."""
    raw = getattr(dataset, "raw", dataset)
    modality = raw_modality(raw)
    if not isinstance(raw, Dataset) or modality is None:
        return {}
    if modality is TEXT:
        return {name: [_beginning(text) for text in raw[name]] for name in TEXT_COLUMNS if name in raw.column_names}
    names = file_names(raw, modality.column)
    return {} if names is None else {"file": names}


def _beginning(text: str | None) -> str | None:
    return text if text is None or len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 1]}…"
