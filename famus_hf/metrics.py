"""Metrics computed offline, as `evaluate.Metric` objects with evaluate's names (`evaluate.load` needs the network)."""

from typing import Any

import datasets
import evaluate
import numpy as np
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


def compute_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return top-1 accuracy in [0, 1] of logits of shape (n, C), as `compute_metrics` of a Trainer.

    Examples without a label (−100) do not count.
    """
    # A tuple where the network returns more than logits, which come first.
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = np.asarray(prediction.label_ids)
    has_label = labels != -100
    result = Accuracy().compute(predictions=np.argmax(logits, axis=1)[has_label], references=labels[has_label])
    return dict(result or {})
