"""How often a classifier is right, told by test labels of which nobody knows which are wrong (numpy and scipy).

Symbols: n test examples, C classes, y the given label, k the true class, h the class that the network takes for the
likeliest, g the one by the mean of its predictions over the training, ε the share of wrong labels, T_ky = P(label y |
true class k), u the rank of an example by how sure that mean is, from 0 for the surest to 1.

The surest predictions are taken to be right, and mistakes to grow as a power of u: P(g = k | u) = 1 − δu^γ. Where
labels contradict even these, the labels are wrong. So ε and δ are those that make the agreements g = y likeliest, and
where wrong labels go is counted among the surest. With this T, P(h, y) = Σ_k P(h, k) T_ky is solved for P(h, k), whose
trace is the accuracy a; so is what solves P(h = y) = a(1 − ε) + (1 − a)·P(h = y | h ≠ k). The former is too low where
examples are few, the latter rather too high, and their mean is taken. The mean over the training stands for the
network, since one that has learned wrong labels by heart is sure of its mistakes. Trusted examples that the network did
not learn from say its accuracy directly.

Where one wrong class takes more than a quarter of the labels of another, a network learns that, too, and its mistakes
can't be told from wrong labels: then trusted examples alone say it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from famus_hf.core.transitions import SMALLEST, joint_by_trusted

GROWTH = 2.0  # γ; chosen with MODEL_ERROR on Fashion-MNIST, see docs/data.md
MODEL_ERROR = 0.03  # standard deviation of the estimate around the truth, beyond what the draw of examples explains
SUREST = 0.3  # share of predictions, among whose labels it is counted where wrong ones go
BINS = 50  # of ranks
ROUNDS = 300  # of expectation and maximisation
TOLERANCE = 1e-5  # of probability that a round moves, below which nothing is gained by a further one
DRAWS = 40  # of the examples, with replacement, for the interval
FEWEST = 100  # test examples
MOST_NOISE, MOST_ALIKE = 0.6, 0.27  # share of wrong labels, and of those that go to one class: beyond, nothing is told
WIDEST = 0.25  # interval, from end to end
FEW_EXAMPLES = f"there are fewer than {FEWEST} test examples"
TOO_NOISY = "there are no trusted examples (--meta_dir), and too many test labels contradict the network, or too evenly"
TOO_WIDE = "there are too few test examples for so many wrong labels"


@dataclass(frozen=True)
class TrueAccuracy:
    """An estimate of the share of examples that are put into their true classes.

    Attributes:
        value: In [0, 1].
        low: Lower end of a 95 % interval.
        high: Its upper end.
        noise_rate: Share of the test labels that are wrong, likewise estimated.
    """

    value: float
    low: float
    high: float
    noise_rate: float


@dataclass(frozen=True)
class BySureness:
    """What sure predictions tell.

    Attributes:
        value: The accuracy.
        noise_rate: ε.
        alike: Share of a class's labels that go to one wrong class, over all classes.
        shared: P(h = y | h ≠ k): how often a wrong label is the network's mistake.
    """

    value: float
    noise_rate: float
    alike: float
    shared: float


def estimate_true_accuracy(
    labels: np.ndarray,
    probabilities: np.ndarray,
    average: np.ndarray | None = None,
    trusted_labels: np.ndarray | None = None,
    trusted_probabilities: np.ndarray | None = None,
) -> TrueAccuracy | str:
    """Return the accuracy on test examples some of whose labels are wrong; in words why it can't be told, where so.

    Args:
        labels: Shape (n,), given ones.
        probabilities: Shape (n, C), of a network that did not learn from these labels.
        average: Shape (n, C), mean of its predictions over the training; default: as `probabilities`.
        trusted_labels: Shape (m,), of trusted examples that it did not learn from either, if there are any.
        trusted_probabilities: Shape (m, C), of the same network.
    """
    if len(labels) < FEWEST:
        return FEW_EXAMPLES
    average = probabilities if average is None else average
    views = labels, probabilities.argmax(1), average.argmax(1), average.max(1)
    found = _by_sureness(*views, probabilities.shape[1])
    value, noise_rate = found.value, found.noise_rate
    variance = _variance(*views, probabilities.shape[1], found.shared) + MODEL_ERROR**2
    is_told = noise_rate <= MOST_NOISE and found.alike <= MOST_ALIKE
    if trusted_labels is not None and trusted_probabilities is not None and len(trusted_labels):
        given = labels, probabilities, trusted_labels, trusted_probabilities
        by_trusted, of_trusted = _by_trusted(*given)
        share = variance / (variance + of_trusted) if is_told else 1.0
        value, variance = value + share * (by_trusted - value), share * of_trusted
        noise_rate = 1 - float(np.trace(joint_by_trusted(*given)))
    elif not is_told:
        return TOO_NOISY
    spread = 1.96 * float(np.sqrt(variance))
    if 2 * spread > WIDEST:
        return TOO_WIDE
    return TrueAccuracy(value, max(0.0, value - spread), min(1.0, value + spread), noise_rate)


def _by_sureness(
    labels: np.ndarray, predicted: np.ndarray, believed: np.ndarray, sureness: np.ndarray, count: int
) -> BySureness:
    """Return what is told by how labels agree with predictions of which the network is more or less sure.

    Args:
        labels: y, shape (n,).
        predicted: h, shape (n,).
        believed: g, shape (n,).
        sureness: Of g, shape (n,).
        count: C.
    """
    order = np.argsort(-sureness, kind="stable")
    noise_rate = _noise_rate((labels == believed)[order], count)
    surest = order[: max(1, round(SUREST * len(labels)))]
    contradicting = _counts(believed[surest], labels[surest], count)
    np.fill_diagonal(contradicting, 0)
    alike = noise_rate * float(contradicting.max(1).sum() / max(contradicting.sum(), 1))
    transitions = _transitions(contradicting, noise_rate)
    joint = _joint(_counts(predicted, labels, count) / len(labels), transitions)
    by_pairs, agreeing = float(np.trace(joint)), joint * transitions.T
    shared = float(agreeing.sum() - np.trace(agreeing)) / max(1 - by_pairs, SMALLEST)
    by_agreement = _solved(float((predicted == labels).mean()), noise_rate, shared)
    return BySureness((by_pairs + by_agreement) / 2, noise_rate, alike, shared)


def _variance(
    labels: np.ndarray,
    predicted: np.ndarray,
    believed: np.ndarray,
    sureness: np.ndarray,
    count: int,
    shared: float,
) -> float:
    """Return the variance of the accuracy over draws of the examples, by `_solved`.

    The first arguments are those of `_by_sureness`.
    """
    agree, order = labels == predicted, np.argsort(-sureness, kind="stable")
    values = []
    for rows in np.random.default_rng(0).integers(len(labels), size=(DRAWS, len(labels))):
        chosen = order[np.sort(rows)]
        noise_rate = _noise_rate((labels == believed)[chosen], count)
        values.append(_solved(float(agree[chosen].mean()), noise_rate, shared))
    return float(np.var(values))


def _solved(agreement: float, noise_rate: float, shared: float) -> float:
    """Return a of P(h = y) = a(1 − ε) + (1 − a)·shared, in [0, 1]."""
    return min(1.0, max(0.0, (agreement - shared) / max(1 - noise_rate - shared, SMALLEST)))


def _counts(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Return how often two classes meet, shape (C, C)."""
    counts = np.zeros((count, count))
    np.add.at(counts, (first, second), 1)
    return counts


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


def _transitions(contradicting: np.ndarray, noise_rate: float) -> np.ndarray:
    """Return T, shape (C, C), with ε in each row, which goes where the labels that contradict sure predictions go."""
    counts = contradicting + 0.5
    np.fill_diagonal(counts, 0)
    transitions = noise_rate * counts / np.maximum(counts.sum(1, keepdims=True), SMALLEST)
    np.fill_diagonal(transitions, 1 - noise_rate)
    return transitions


def _joint(seen: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """Return P(h, k) that makes P(h, y) likeliest, shape (C, C).

    Args:
        seen: P(h, y), shape (C, C), sum 1.
        transitions: T, shape (C, C).
    """
    joint = np.full_like(seen, 1 / len(seen) ** 2) + np.diag(seen.sum(1))
    for _ in range(ROUNDS):
        before, joint = joint, joint * ((seen / np.maximum(joint @ transitions, SMALLEST)) @ transitions.T)
        if np.abs(joint - before).sum() < TOLERANCE:
            break
    return joint


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
