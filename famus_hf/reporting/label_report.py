"""Which labels of a data set are probably wrong: one row for each example, the most suspect first.

A network that learned from noisy labels with FaMUS tells what the true class of an example probably is. How often
examples of class k are labelled y is estimated over the whole data set, and Bayes' rule then gives the probability that
this very label is right (`famus_hf.core.transitions`). So a label is suspect where the network finds a class likely
that is often given this label, and not merely where it finds the label unlikely.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from famus_hf.core.judgement import judge_by_labels
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_learners.registry import raw_weights
from famus_hf.core.transitions import of_labels
from famus_hf.data.inputs.convert import raw_modality
from famus_hf.data.media.examples import beginning_of, file_names
from famus_hf.data.media.modalities import TEXT
from famus_hf.errors import DataError, first_few, reason_of
from famus_hf.reporting.figures.label_report import draw_report
from famus_hf.reporting.judged_splits import JudgedSplit
from famus_hf.reporting.label_reasons import NOT_JUDGED, reasons
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import REPORT_FILE

TRAIN, TEST = "train", "test"  # splits
TEXT_COLUMNS = ("text", "text_pair")


def label_report(
    labels: np.ndarray,
    probabilities: np.ndarray,
    losses: np.ndarray,
    class_names: Sequence[str],
    *,
    index: Sequence[int] | np.ndarray | None = None,
    details: Mapping[str, Sequence[str | None]] | None = None,
    weights: np.ndarray | None = None,
    clean_labels: Sequence[int | None] | np.ndarray | None = None,
    posteriors: np.ndarray | None = None,
    splits: Sequence[str] | None = None,
    doubt: str = "",
) -> Dataset:
    """Return the report as a data set, sorted by the probability that a label is right, the most suspect example first.

    Before them come examples whose predictions or losses are not finite: without these, and without a probability.

    Args:
        labels: Shape (N,), the given labels.
        probabilities: Shape (N, C), what the network makes of each example without its label.
        losses: Shape (N,).
        class_names: C of them.
        index: Rows of the examples in the source of their split; default: 0 to N − 1.
        details: Column → N strings by which a reader knows the examples: `file`, or `text` and `text_pair`.
        weights: Shape (N,), V of the meta-learner, where it has such weights.
        clean_labels: N of them, None where not known.
        posteriors: How likely each class is, the given label taken into account, shape (N, C); default: those by
            `probabilities` and all labels.
        splits: Of which split each example is; default: all of train.
        doubt: Why the probabilities can't be told, and are left out; the order is by them all the same.

    Returns:
        Columns `split`, `index`, those of `details`, `label`, `predicted_label` (by the network alone),
        `suggested_label` (the likeliest, the given label taken into account), `suggestion_probability`, `reason`,
        `loss`, `weight`, `clean_probability` and, where known, `clean_label`. Its `info.description` is the doubt.
    """
    finite = np.isfinite(probabilities).all(1) & np.isfinite(losses)
    known = np.zeros(probabilities.shape)
    if posteriors is not None:
        known[finite] = posteriors[finite]
    elif finite.any():
        known[finite] = judge_by_labels(labels[finite], probabilities[finite]).posteriors
    clean_probabilities = of_labels(known, labels)
    order = np.lexsort((-np.where(finite, losses, 0), clean_probabilities, finite))  # by the last key first
    names = ClassLabel(names=list(class_names))
    columns: dict[str, tuple[Any, Any]] = {
        "split": ([TRAIN] * len(labels) if splits is None else splits, Value("string")),
        "index": (np.arange(len(labels)) if index is None else np.asarray(index), Value("int64")),
        **{name: (values, Value("string")) for name, values in (details or {}).items()},
        "label": (labels, names),
        "predicted_label": (_where(finite, probabilities.argmax(1)), names),
        "suggested_label": (_where(finite, known.argmax(1)), names),
        "suggestion_probability": (None if doubt else _where(finite, known.max(1)), Value("float32")),
        "reason": (_reasons(finite, labels, known, probabilities, class_names, doubt), Value("string")),
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


def _reasons(
    finite: np.ndarray,
    labels: np.ndarray,
    posteriors: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    doubt: str,
) -> list[str]:
    told = iter(reasons(labels[finite], posteriors[finite], probabilities[finite], class_names, doubt))
    return [next(told) if is_finite else NOT_JUDGED for is_finite in finite]


def judged(report: Dataset) -> Dataset:
    """Return the report without its first rows where those are of examples that are not finite to the network."""
    unjudged = report["loss"][:].count(None)
    return report.select(range(unjudged, len(report)))


def wrong_labels(report: Dataset, deviation: float = 0.0) -> tuple[float, int, int] | None:
    """Return how many labels are wrong, as estimated, and the bounds of a 95 % interval; None where it can't be told.

    The interval covers chance in these labels, and in the examples that the share of wrong ones was estimated from;
    not that the network learned labels by heart, nor classes that it can't tell apart.

    Args:
        report: Of `label_report`.
        deviation: Standard deviation of the estimated share of wrong labels.
    """
    finite = judged(report)
    if report.info.description or not len(finite) or None in finite["clean_probability"][:]:
        return None
    sound = np.asarray(finite["clean_probability"][:])
    count, estimate = len(sound), float((1 - sound).sum())
    reach = 1.96 * float(((sound * (1 - sound)).sum() + (count * deviation) ** 2) ** 0.5)
    return estimate, max(0, round(estimate - reach)), min(count, round(estimate + reach))


def verdict(report: Dataset, interval: Sequence[int] | None = None) -> str:
    """Return how many labels are suspect, or why that can't be told, and which examples could not be judged.

    interval: In which the number of wrong labels probably lies, as `wrong_labels` tells it.
    """
    finite, words = judged(report), []
    estimate = wrong_labels(report)
    if estimate is None:
        reason = report.info.description or "there is no number for any of them"
        words.append(f"how many of {len(finite)} labels are wrong can't be told, as {reason}")
    else:
        suspect = sum(probability < 0.5 for probability in finite["clean_probability"][:])
        words.append(f"{suspect} of {len(finite)} labels are more likely wrong than right")
        if interval is not None:
            words.append(f"about {estimate[0]:.0f} are wrong in all ({interval[0]} to {interval[1]}, with 95 %)")
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
    splits: Sequence[JudgedSplit], network: Any, meta_learner: MetaLearner | None, doubt: str = ""
) -> Dataset:
    """Return the report of what a network makes of one or several splits.

    Args:
        splits: Judged.
        network: Whose configuration has the names of the classes.
        meta_learner: Ψ, if there is one.
        doubt: Why probabilities can't be told.
    """

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(split, name) for split in splits])

    losses = joined("losses")
    names = dict.fromkeys(name for split in splits for name in split.details)
    knows_clean = any(split.clean_labels is not None for split in splits)
    return label_report(
        joined("labels"),
        joined("probabilities"),
        losses,
        class_names(network, splits[0].probabilities.shape[1]),
        index=joined("index"),
        details={name: [v for split in splits for v in split.details.get(name, [None] * len(split.labels))]
                 for name in names},
        weights=raw_weights(meta_learner, losses),
        clean_labels=[v for split in splits for v in split.known_clean_labels] if knows_clean else None,
        posteriors=joined("posteriors"),
        splits=[split.name for split in splits for _ in range(len(split.labels))],
        doubt=doubt,
    )  # fmt: skip


def save_report(report: Dataset, datasets: Mapping[str, Any], meta_learner: MetaLearner | None, folder: Path) -> None:
    """Write it to label_report.parquet in a folder, and its pictures to `figures/`.

    Args:
        report: Of `report_of`.
        datasets: Split → data set, whose images are drawn where it has any.
        meta_learner: Ψ, if there is one.
        folder: Is made where it is not there.

    Raises:
        SaveError: It can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / REPORT_FILE) as path:
        report.to_parquet(path)
    draw_report(judged(report), datasets, lambda losses: raw_weights(meta_learner, losses), folder)


def read_report(path: Path) -> Dataset:
    """Return what `save_report` wrote. Raise DataError where it can't be read, or is no such file."""
    with tempfile.TemporaryDirectory() as cache:
        try:  # in memory, as it outlives the folder of the cache
            report = Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        except Exception as error:  # of datasets and pyarrow
            raise DataError(f"label report {str(path)!r} can't be read: {reason_of(error)}") from error
    missing = [name for name in ("index", "label", "predicted_label", "loss") if name not in report.features]
    if missing:
        raise DataError(f"label report {str(path)!r} has no column {missing[0]!r}: take the one of a run")
    return report


def details_of(dataset: Any) -> dict[str, list[str | None]]:
    """Return what tells a reader which example it is: column of a report → values."""
    raw = getattr(dataset, "raw", dataset)
    modality = raw_modality(raw)
    if not isinstance(raw, Dataset) or modality is None:
        return {}
    if modality is TEXT:
        return {
            name: [text and beginning_of(text) for text in raw[name]]
            for name in TEXT_COLUMNS
            if name in raw.column_names
        }
    names = file_names(raw, modality.column)
    return {} if names is None else {"file": names}


def suggestion_column(report: Dataset) -> str:
    """Return the column of the label that is suggested; reports of earlier versions have the predicted one alone."""
    return "suggested_label" if "suggested_label" in report.features else "predicted_label"


def names_of(dataset: Dataset, column: str) -> list[str | None]:
    """Return the labels in a column as names of classes, None where there is none."""
    feature = dataset.features[column]
    to_name = feature.int2str if isinstance(feature, ClassLabel) else str
    return [None if label is None else to_name(label) for label in dataset[column][:]]
