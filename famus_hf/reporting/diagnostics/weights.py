"""What a meta-learner makes of losses: histograms of the weights V, the learned curve, the mean of each class."""

from collections.abc import Callable

import numpy as np

BINS = 40
CURVE_POINTS = 50


def groups_of(correct: np.ndarray | None, count: int) -> dict[str, np.ndarray]:
    """Return masks of shape (n,) by kind: `"clean"` and `"wrong"`, or `"unknown"` where right labels are not known."""
    if correct is None:
        return {"unknown": np.ones(count, dtype=bool)}
    return {"clean": correct, "wrong": ~correct}


def weight_rows(
    losses: np.ndarray,
    weights: np.ndarray,
    labels: np.ndarray,
    correct: np.ndarray | None,
    weigh: Callable[[np.ndarray], np.ndarray],
) -> list[tuple[str, float, float]]:
    """Return kind, x and value, as in weights.parquet (see `storage.diagnostic_tables`), of empty bins too.

    Args:
        losses: Shape (n,); examples whose loss is not finite are left out.
        weights: V, shape (n,).
        labels: Given ones, shape (n,).
        correct: Whether a label is right, shape (n,), or None.
        weigh: Losses → V.
    """
    finite = np.isfinite(losses) & np.isfinite(weights)
    if not finite.any():
        return []
    losses, weights, labels = losses[finite], weights[finite], labels[finite]
    correct = None if correct is None else correct[finite]
    # Equal weights would make bins of no width.
    edges = np.linspace(weights.min(), max(weights.max(), weights.min() + 1e-6), BINS + 1)
    rows = []
    for kind, mask in groups_of(correct, len(losses)).items():
        counts = np.histogram(weights[mask], edges)[0]
        rows += [(kind, float(edge), float(count)) for edge, count in zip(edges[:-1], counts, strict=True)]
    grid = np.linspace(0, np.quantile(losses, 0.99), CURVE_POINTS)
    rows += [("curve", float(loss), float(weight)) for loss, weight in zip(grid, weigh(grid), strict=True)]
    rows += [("class", float(label), float(weights[labels == label].mean())) for label in np.unique(labels)]
    return rows
