"""Metrics computed offline, as `evaluate.Metric` objects with evaluate's names (`evaluate.load` needs the network)."""

from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.special import softmax
from sklearn.metrics import accuracy_score, average_precision_score
from transformers import EvalPrediction


class Accuracy(evaluate.Metric):
    """Share of correct predictions, `{"accuracy": …}`; a stand-in for `evaluate.load("accuracy")`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of predictions that equal the reference.",
            citation="",
            inputs_description="predictions and references: class indices.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class AveragePrecision(evaluate.Metric):
    """Area under precision against recall, `{"average_precision": …}`; here of finding wrong labels."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean precision at the places of the positives, in the order of their scores.",
            citation="",
            inputs_description="predictions: scores, high for positives; references: 1 for positives, else 0.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        return {"average_precision": float(average_precision_score(references, predictions))}


class MeanPredictions:
    """`compute_accuracy` that remembers what a network predicts of one data set, last and on average.

    Args:
        labels: Of that data set, shape (N,); others are told from it by theirs.

    Attributes:
        last: Probabilities at its last evaluation, shape (N, C); None before the first.
        mean: Their mean over all evaluations.
        scale: Of logits before the softmax.
    """

    def __init__(self, labels: np.ndarray):
        self.labels, self.scale, self.count = labels, 1.0, 0
        self.last: np.ndarray | None = None
        self.mean: np.ndarray | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        if np.array_equal(prediction.label_ids, self.labels):
            self.count += 1
            self.last = softmax(self.scale * _logits_of(prediction).astype(np.float64), axis=1)
            self.mean = self.last if self.mean is None else self.mean + (self.last - self.mean) / self.count
        return compute_accuracy(prediction)


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return top-1 accuracy in [0, 1] of logits of shape (n, C), as `compute_metrics` of a Trainer.

    Examples without a label (−100) do not count.
    """
    logits = _logits_of(prediction)
    labels = np.asarray(prediction.label_ids)
    has_label = labels != -100
    result = Accuracy().compute(predictions=np.argmax(logits, axis=1)[has_label], references=labels[has_label])
    return dict(result or {})


def _logits_of(prediction: EvalPrediction) -> np.ndarray:
    """Return the logits, which come first where the network returns more than these."""
    first = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return np.asarray(first)
