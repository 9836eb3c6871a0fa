"""Which labels of a data set are probably wrong: one row for each example, the most suspect first.

A network that learned from noisy labels with FaMUS tells what the true class of an example probably is. How often
examples of class k are labelled y is counted over the whole data set, and Bayes' rule then gives the probability that
this very label is right. So a label is suspect where the network finds a class likely that is often given this label,
and not merely where it finds the label unlikely.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from famus_hf.core.meta_learners import MetaLearner, raw_weights
from famus_hf.data.inputs.convert import raw_modality
from famus_hf.data.media.examples import file_names
from famus_hf.data.media.modalities import TEXT
from famus_hf.data.per_example import PerExample
from famus_hf.reporting.figures.label_report import draw_report
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import REPORT_FILE

TEXT_COLUMNS = ("text", "text_pair")
SHOWN_LENGTH = 200  # characters of a text in a report
SMALLEST = 1e-12  # of a probability, so that no quotient is 0/0
CHUNK = 2**14  # examples at once, as all at once would take several times the memory of their probabilities


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
) -> Dataset:
    """Return the report as a data set, sorted by `clean_probability`, the most suspect example first.

    Args:
        labels: Shape (N,), the given labels.
        probabilities: Shape (N, C), what the network predicts.
        losses: Shape (N,).
        class_names: C of them.
        index: Rows of the examples in their source; default: 0 to N − 1.
        details: Column → N strings by which a reader knows the examples: `file`, or `text` and `text_pair`.
        weights: Shape (N,), V of the meta-learner, where it has such weights.
        clean_labels: Shape (N,), where known.

    Returns:
        Columns `index`, those of `details`, `label`, `predicted_label`, `loss`, `weight`, `clean_probability`
        and, where known, `clean_label`.
    """
    clean_probabilities = clean_label_probabilities(labels, probabilities)
    order = np.lexsort((-losses, clean_probabilities))  # by the last key first
    names = ClassLabel(names=list(class_names))
    columns: dict[str, tuple[Any, Any]] = {
        "index": (np.arange(len(labels)) if index is None else np.asarray(index), Value("int64")),
        **{name: (values, Value("string")) for name, values in (details or {}).items()},
        "label": (labels, names),
        "predicted_label": (probabilities.argmax(1), names),
        "loss": (losses, Value("float32")),
        "weight": (weights, Value("float32")),
        "clean_probability": (clean_probabilities, Value("float32")),
        "clean_label": (clean_labels, names),
    }
    if clean_labels is None:
        columns.pop("clean_label")
    rows = order.tolist()
    content = {
        name: [None] * len(rows) if values is None else [values[row] for row in rows]
        for name, (values, _) in columns.items()
    }
    return Dataset.from_dict(content, features=Features({name: feature for name, (_, feature) in columns.items()}))


def clean_label_probabilities(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return P(true class = given label | example, given label), shape (N,).

    Args:
        labels: Shape (N,), the given labels y.
        probabilities: Shape (N, C), P(true class = k | example).
    """
    matrix = transition_matrix(labels, probabilities)
    clean_probabilities = np.empty(len(labels))
    for start in range(0, len(labels), CHUNK):
        given = labels[start : start + CHUNK]
        joint = probabilities[start : start + CHUNK].clip(min=SMALLEST) * matrix[:, given].T  # of true class and label
        clean_probabilities[start : start + CHUNK] = joint[np.arange(len(given)), given] / joint.sum(1)
    return clean_probabilities


def transition_matrix(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return T_ky = P(given label y | true class k), shape (C, C): examples count for the class that is predicted.

    Whole examples are counted, and not their probabilities: a network that has memorised the wrong labels explains them
    all, and by its probabilities no label would ever be wrong. Each count starts from one.

    Args:
        labels: Shape (N,), the given labels.
        probabilities: Shape (N, C), P(true class = k | example).
    """
    counts = np.ones((probabilities.shape[1],) * 2)
    np.add.at(counts, (probabilities.argmax(1), labels), 1)
    return counts / counts.sum(1, keepdims=True)


def class_names(model: Any, num_labels: int) -> list[str]:
    """Return a network's names of its classes, from its configuration; numbers where these are not all different."""
    known = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = [str(known.get(label, label)) for label in range(num_labels)]
    return names if len(set(names)) == num_labels else [str(label) for label in range(num_labels)]


# ---- Of a run ----


def report_of(examples: PerExample, dataset: Any, network: Any, meta_learner: MetaLearner | None) -> Dataset:
    """Return the report of what a network makes of a data set.

    Args:
        examples: What the network makes of each, with probabilities.
        dataset: Whose examples are named in it.
        network: Whose configuration has the names of the classes.
        meta_learner: Ψ, if there is one.
    """
    probabilities = cast(np.ndarray, examples.probabilities)
    return label_report(
        examples.labels,
        probabilities,
        examples.losses,
        class_names(network, probabilities.shape[1]),
        index=examples.index,
        details=details_of(dataset),
        weights=raw_weights(meta_learner, examples.losses),
        clean_labels=examples.clean_labels,
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
    draw_report(report, dataset, lambda losses: raw_weights(meta_learner, losses), folder)


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
