"""How often a classifier is right, told by test labels of which nobody knows which are wrong (numpy and scipy).

Symbols: n test examples, C classes, y the given label, k the true class, h the class that the network takes for the
likeliest, ε the share of wrong labels, T_ky = P(label y | true class k), u the rank of an example by how sure the
network is of h, from 0 for the surest to 1.

The surest predictions are taken to be right, and mistakes to grow with the square of u: P(h = k | u) = 1 − δu². Where
labels contradict even the surest predictions, the labels are wrong. So ε and δ are those that make the agreements h = y
likeliest, and where wrong labels go is counted among the surest predictions. With this T, P(h, y) = Σ_k P(h, k) T_ky is
solved for P(h, k), whose trace is the accuracy. Trusted examples that the network did not learn from say it directly.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from famus_hf.core.transitions import SMALLEST, joint_by_trusted

GROWTH = 2  # of mistakes with the rank; from 1.5 to 2 estimates were within 3 points, see docs/data.md
SUREST = 0.3  # share of predictions, among whose labels it is counted where wrong ones go
BINS = 50  # of ranks
ROUNDS = 300  # of expectation and maximisation
DRAWS = 40  # of the examples, with replacement, for the interval
FEWEST = 100  # test examples
MOST_NOISE, WIDEST = 0.6, 0.2  # above which nothing is told: wrong labels, and the interval from end to end
FEW_EXAMPLES = f"there are fewer than {FEWEST} test examples"
TOO_WIDE = "the test labels contradict the network too often, or too unevenly"


@dataclass(frozen=True)
class TrueAccuracy:
    """An estimate of the accuracy by the true classes.

    Attributes:
        value: In [0, 1].
        low: Lower end of a 95 % interval, of what the draw of the examples alone makes uncertain.
        high: Its upper end.
        noise_rate: Share of the test labels that are wrong, likewise estimated.
    """

    value: float
    low: float
    high: float
    noise_rate: float


def estimate_true_accuracy(
    labels: np.ndarray,
    probabilities: np.ndarray,
    trusted_labels: np.ndarray | None = None,
    trusted_probabilities: np.ndarray | None = None,
) -> TrueAccuracy | str:
    """Return the accuracy on test examples some of whose labels are wrong; in words why it can't be told, where so.

    Args:
        labels: Shape (n,), given ones.
        probabilities: Shape (n, C), of a network that did not learn from these labels.
        trusted_labels: Shape (m,), of trusted examples that it did not learn from either, if there are any.
        trusted_probabilities: Shape (m, C), of the same network.
    """
    if len(labels) < FEWEST:
        return FEW_EXAMPLES
    predicted, sureness, count = probabilities.argmax(1), probabilities.max(1), probabilities.shape[1]
    generator = np.random.default_rng(0)
    draws = generator.integers(len(labels), size=(DRAWS, len(labels)))
    value, noise_rate = _by_sureness(labels, predicted, sureness, count)
    variance = float(np.var([_by_sureness(labels[rows], predicted[rows], sureness[rows], count)[0] for rows in draws]))
    if trusted_labels is not None and trusted_probabilities is not None and len(trusted_labels):
        given = labels, probabilities, trusted_labels, trusted_probabilities
        by_trusted, of_trusted = _by_trusted(*given)
        share = variance / max(variance + of_trusted, SMALLEST)
        value, variance = value + share * (by_trusted - value), variance * (1 - share)
        noise_rate = 1 - float(np.trace(joint_by_trusted(*given)))
    spread = 1.96 * float(np.sqrt(variance))
    if noise_rate > MOST_NOISE or 2 * spread > WIDEST:
        return TOO_WIDE
    return TrueAccuracy(value, max(0.0, value - spread), min(1.0, value + spread), noise_rate)


def _by_sureness(labels: np.ndarray, predicted: np.ndarray, sureness: np.ndarray, count: int) -> tuple[float, float]:
    """Return the accuracy and ε, by how labels agree with predictions of which the network is more or less sure."""
    order = np.argsort(-sureness, kind="stable")
    labels, predicted = labels[order], predicted[order]
    noise_rate = _noise_rate(labels == predicted, count)
    surest = slice(0, max(1, round(SUREST * len(labels))))
    transitions = _transitions(predicted[surest], labels[surest], noise_rate, count)
    seen = np.zeros((count, count))
    np.add.at(seen, (predicted, labels), 1)
    return _accuracy(seen / len(labels), transitions), noise_rate


def _noise_rate(agree: np.ndarray, count: int) -> float:
    """Return ε that makes the agreements likeliest, with δ.

    Args:
        agree: Whether h = y, of the surest example first, shape (n,).
        count: C.
    """
    bins = np.array_split(agree, min(BINS, len(agree)))
    agreeing, sizes = np.array([part.sum() for part in bins]), np.array([len(part) for part in bins])
    mistakes = ((np.arange(len(bins)) + 0.5) / len(bins)) ** GROWTH

    def loss(parameters: np.ndarray) -> float:
        noise_rate, delta = parameters
        by_chance = noise_rate / max(count - 1, 1)  # a mistake that a wrong label shares
        shares = by_chance + (1 - noise_rate - by_chance) * (1 - delta * mistakes)
        shares = shares.clip(1e-6, 1 - 1e-6)
        return -float((agreeing * np.log(shares) + (sizes - agreeing) * np.log1p(-shares)).mean())

    found = minimize(loss, np.array([0.2, 0.3]), bounds=[(0.0, 0.9), (0.0, 1.0)], method="L-BFGS-B")
    return float(found.x[0])


def _transitions(predicted: np.ndarray, labels: np.ndarray, noise_rate: float, count: int) -> np.ndarray:
    """Return T, shape (C, C), with ε in each row, which goes where the labels that contradict predictions go."""
    counts = np.full((count, count), 0.5)
    np.add.at(counts, (predicted, labels), 1)
    np.fill_diagonal(counts, 0)
    transitions = noise_rate * counts / np.maximum(counts.sum(1, keepdims=True), SMALLEST)
    np.fill_diagonal(transitions, 1 - noise_rate)
    return transitions


def _accuracy(seen: np.ndarray, transitions: np.ndarray) -> float:
    """Return the trace of P(h, k) that makes P(h, y) likeliest.

    Args:
        seen: P(h, y), shape (C, C), sum 1.
        transitions: T, shape (C, C).
    """
    joint = np.full_like(seen, 1 / len(seen) ** 2) + np.diag(seen.sum(1))
    for _ in range(ROUNDS):
        joint = joint * ((seen / np.maximum(joint @ transitions, SMALLEST)) @ transitions.T)
    return float(np.trace(joint))


def _by_trusted(
    labels: np.ndarray, probabilities: np.ndarray, trusted_labels: np.ndarray, trusted_probabilities: np.ndarray
) -> tuple[float, float]:
    """Return the accuracy on trusted examples, classes weighed as in the test set by their true ones; its variance."""
    of_class = joint_by_trusted(labels, probabilities, trusted_labels, trusted_probabilities).sum(1)
    weights = (of_class / np.bincount(trusted_labels, minlength=len(of_class)).clip(min=1))[trusted_labels]
    weights /= weights.sum()
    right = trusted_probabilities.argmax(1) == trusted_labels
    value = float((weights * right).sum())
    smoothed = (value * len(right) + 1) / (len(right) + 2)  # else no mistake among few examples would be no doubt
    return value, float((weights**2).sum() * smoothed * (1 - smoothed))
