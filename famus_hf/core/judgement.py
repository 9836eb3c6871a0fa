"""What beliefs and given labels say of each label: how likely every class is, with trusted examples and without.

Symbols as in `transitions`: N examples, C classes, y the given label, T_ky = P(label y | true class k).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from famus_hf.core.transitions import (
    SMALLEST,
    class_posteriors,
    joint_by_trusted,
    of_labels,
    sharpened,
    temperature,
    transition_matrix,
    transitions_of_joint,
    with_noise_rate,
)

Transitions = Callable[[np.ndarray], np.ndarray]
OF_TEMPERATURE, OF_TRANSITIONS = 2_000_000, 20_000_000  # beliefs, at most, that these are fitted to
CHANCE = 3.0  # deviations by which two estimates may be apart
PARTS = 5  # of the examples, by whose differences the estimate's deviation is known


@dataclass(frozen=True)
class Judgement:
    """How likely each class is of each example.

    Attributes:
        posteriors: P(true class k | example, given label), shape (N, C), rows sum to 1.
        transitions: T, shape (C, C).
        deviation: Standard deviation of the estimated share of wrong labels, by chance in the examples that T was
            learned from.
    """

    posteriors: np.ndarray
    transitions: np.ndarray
    deviation: float


def judge_by_trusted(
    labels: np.ndarray, beliefs: np.ndarray, trusted_labels: np.ndarray, trusted_beliefs: np.ndarray
) -> Judgement:
    """Judge labels by how the network takes trusted examples.

    Beliefs get the temperature that fits the trusted ones, transitions are those of `joint_by_trusted`, and all odds
    one factor, so that the mean of given labels is the share of right ones by the latter.

    Args:
        labels: Shape (N,).
        beliefs: Shape (N, C), of a network that has not learned these labels by heart.
        trusted_labels: Shape (m,).
        trusted_beliefs: Shape (m, C), of the same network.
    """
    joint = joint_by_trusted(labels, beliefs, trusted_labels, trusted_beliefs)
    transitions = transitions_of_joint(joint)
    fitted = sharpened(beliefs, temperature(trusted_labels, trusted_beliefs))
    posteriors = class_posteriors(labels, fitted, transitions)
    deviation = _deviation_by_trusted(labels, beliefs, trusted_labels, trusted_beliefs)
    return Judgement(_with_noise_rate(posteriors, labels, 1 - float(np.trace(joint))), transitions, deviation)


def judge_by_both(
    labels: np.ndarray, beliefs: np.ndarray, trusted_labels: np.ndarray, trusted_beliefs: np.ndarray
) -> Judgement:
    """Judge labels by themselves, as `judge_by_labels` does, as far as the trusted examples confirm it.

    There are more of them, but beliefs that lean to given labels would have these right too often. If the two shares of
    wrong labels are no further apart than by chance, the mean counts, weighed by precision; else the trusted examples.

    Args:
        labels: Shape (N,).
        beliefs: Shape (N, C).
        trusted_labels: Shape (m,).
        trusted_beliefs: Shape (m, C).
    """
    alone = judge_by_labels(labels, beliefs)
    by_trusted = judge_by_trusted(labels, beliefs, trusted_labels, trusted_beliefs)
    rates = [1 - float(of_labels(found.posteriors, labels).mean()) for found in (alone, by_trusted)]
    deviations = [alone.deviation, by_trusted.deviation]
    if abs(rates[0] - rates[1]) > CHANCE * float(np.linalg.norm(deviations)):
        return by_trusted
    precisions = 1 / np.maximum(deviations, SMALLEST) ** 2
    posteriors = _with_noise_rate(alone.posteriors, labels, float(precisions @ rates / precisions.sum()))
    return Judgement(posteriors, _transitions_by(posteriors, labels), float(precisions.sum() ** -0.5))


def judge_by_labels(labels: np.ndarray, beliefs: np.ndarray) -> Judgement:
    """Judge labels without trusted examples: temperature and transitions are those that make the labels most likely.

    With beliefs that are too sure the network's mistakes count as wrong labels, with beliefs that are not sure enough
    wrong labels as its doubts. Both explain the labels worse: labels are wrong where it is sure as often as elsewhere.

    Args:
        labels: Shape (N,).
        beliefs: Shape (N, C), of a network that has not learned these labels by heart.
    """
    rows = _sample(beliefs.shape, OF_TEMPERATURE)
    power = _likeliest_power(labels[rows], beliefs[rows], lambda fitted: transition_matrix(labels[rows], fitted))
    fitted = sharpened(beliefs, power)
    rows = _sample(beliefs.shape, OF_TRANSITIONS)
    transitions = transition_matrix(labels[rows], fitted[rows])
    deviation = _deviation_by_parts(labels[rows], fitted[rows])
    return Judgement(class_posteriors(labels, fitted, transitions), transitions, deviation)


def judge_with(judgement: Judgement, labels: np.ndarray, predictions: np.ndarray) -> Judgement:
    """Judge labels that the network never learned from, with the transitions of others.

    Args:
        judgement: Of examples whose labels go wrong in the same way.
        labels: Shape (n,).
        predictions: Shape (n, C); they get the temperature that makes the labels most likely.
    """
    fitted = sharpened(predictions, _likeliest_power(labels, predictions, lambda _: judgement.transitions))
    posteriors = class_posteriors(labels, fitted, judgement.transitions)
    return Judgement(posteriors, judgement.transitions, judgement.deviation)


def _transitions_by(posteriors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return T, shape (C, C), as counted from posteriors (N, C) of labels (N,)."""
    joint = np.zeros((posteriors.shape[1],) * 2)
    np.add.at(joint.T, labels, posteriors)
    return transitions_of_joint(joint)


def _sample(shape: tuple[int, ...], cells: int) -> np.ndarray:
    """Return rows from all over a table of this shape, (N, C), with so many cells at most; all if it has no more."""
    return np.linspace(0, shape[0] - 1, min(shape[0], max(1, cells // shape[1]))).round().astype(int)


def _deviation_by_parts(labels: np.ndarray, fitted: np.ndarray) -> float:
    """Return the deviation of the share of wrong labels, by its differences between parts of the examples."""
    parts = [slice(part, None, PARTS) for part in range(PARTS)]
    if len(labels) < PARTS:
        return 1.0
    rates = []
    for given, beliefs in ((labels[part], fitted[part]) for part in parts):
        posteriors = class_posteriors(given, beliefs, transition_matrix(given, beliefs))
        rates.append(1 - of_labels(posteriors, given).mean())
    return float(np.std(rates, ddof=1) / PARTS**0.5)


def _likeliest_power(labels: np.ndarray, beliefs: np.ndarray, transitions_by: Transitions) -> float:
    """Return the power of beliefs, 1 over temperature, that makes given labels likeliest.

    Args:
        labels: Shape (n,).
        beliefs: Shape (n, C).
        transitions_by: Beliefs with their temperature → T.
    """

    def loss(logarithm: float) -> float:
        fitted = sharpened(beliefs, np.exp(logarithm))
        return -float(np.log((fitted * transitions_by(fitted)[:, labels].T).sum(1) + SMALLEST).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded", options={"xatol": 0.02}).x))


def _with_noise_rate(posteriors: np.ndarray, labels: np.ndarray, noise_rate: float) -> np.ndarray:
    """Return posteriors whose mean of given labels is 1 − the noise rate, by one factor of all odds; shape (N, C)."""
    before = of_labels(posteriors, labels)
    after = with_noise_rate(before, noise_rate)
    scaled = posteriors * ((1 - after) / np.maximum(1 - before, SMALLEST))[:, None]
    scaled[np.arange(len(labels)), labels] = after
    return scaled


def _deviation_by_trusted(
    labels: np.ndarray, beliefs: np.ndarray, trusted_labels: np.ndarray, trusted_beliefs: np.ndarray
) -> float:
    """Return the deviation of (right − agree) / (right − by chance), to first order; half a hit and miss are added.

    `right` is the share of trusted examples that the network is right about, `agree` that of given labels.
    """
    count, trusted = beliefs.shape[1], len(trusted_labels)
    hits = int((trusted_beliefs.argmax(1) == trusted_labels).sum())
    right, agree = (hits + 0.5) / (trusted + 1), float((beliefs.argmax(1) == labels).mean())
    by_chance = (1 - right) / (count - 1)
    slope = (agree - by_chance) / max(right - by_chance, SMALLEST) ** 2
    return float(abs(slope) * (right * (1 - right) / trusted) ** 0.5)
