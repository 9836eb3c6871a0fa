"""How likely each label is right, by beliefs and the transitions from true classes to given labels (numpy and scipy).

Symbols: N examples, m trusted ones, C classes, y the given label, k the true class, T_ky = P(label y | true class k).
Where trusted examples are at hand, T comes from how the network takes *them*: its own mistakes are then told from wrong
labels. Without any, T explains the labels by what the network predicts, and its predictions are taken at their word.
"""

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import norm

BY_CHANCE = 0.005  # how often labels without a wrong one are thought to have some, in one of several looks
ROUNDS = 100  # of expectation and maximisation
TOLERANCE = 1e-5  # of a transition, below which nothing is gained by a further round
SMALLEST = 1e-12  # of a probability, so that no quotient is 0/0


def clean_label_probabilities(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return P(true class = given label | example, given label) by Bayes' rule with `transition_matrix`, shape (N,).

    Args:
        labels: Shape (N,), the given labels y.
        probabilities: Shape (N, C), P(true class = k | example) of a network that has not learned these labels.
    """
    return of_labels(class_posteriors(labels, probabilities, transition_matrix(labels, probabilities)), labels)


def class_posteriors(labels: np.ndarray, probabilities: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """Return P(true class k | example, given label) by Bayes' rule, shape (N, C).

    Args:
        labels: Shape (N,), the given labels y.
        probabilities: Shape (N, C), P(true class = k | example) of a network that has not learned these labels.
        transitions: T, shape (C, C).
    """
    posteriors = np.empty(probabilities.shape)
    for label in np.unique(labels):
        rows = labels == label
        joint = _joint(probabilities[rows], transitions[:, label])
        posteriors[rows] = joint / joint.sum(1, keepdims=True)
    return posteriors


def of_labels(posteriors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the probability of each label, shape (N,), from those of all classes, (N, C)."""
    return np.asarray(posteriors[np.arange(len(labels)), labels])


def transition_matrix(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return T_ky = P(given label y | true class k) that makes the labels most likely, shape (C, C).

    Found by expectation (how likely is each class, by prediction and label) and maximisation (counts of these). Each
    row's counts start from those of C further examples, wrong as often as all are and alike into all other classes: of
    100 classes of 10 examples the counts alone would call a tenth of all right labels wrong.

    Args:
        labels: Shape (N,), the given labels.
        probabilities: Shape (N, C), P(true class = k | example).
    """
    count = probabilities.shape[1]
    matrix = uniform_transitions(count, 0.2)
    for _ in range(ROUNDS):
        counts = np.zeros((count, count))
        for label in np.unique(labels):
            joint = _joint(probabilities[labels == label], matrix[:, label])
            counts[:, label] = (joint / joint.sum(1, keepdims=True)).sum(0)
        wrong = 1 - (np.trace(counts) + 1) / (counts.sum() + 1)
        counts += count * uniform_transitions(count, wrong)
        before, matrix = matrix, counts / counts.sum(1, keepdims=True)
        if np.abs(matrix - before).max() < TOLERANCE:
            break
    return matrix


def joint_by_trusted(
    labels: np.ndarray, beliefs: np.ndarray, trusted_labels: np.ndarray, trusted_beliefs: np.ndarray
) -> np.ndarray:
    """Return P(true class k, given label y), shape (C, C), sum 1.

    With h the likeliest class of an example, P(h, y) = Σ_k P(h | k) P(k, y) where h depends on the label by the true
    class alone. P(h, y) is counted on the training examples, P(h | k) on the trusted ones, and P(k, y) is what makes
    the former most likely. As in `transition_matrix`, C further examples are counted for each class, wrong as often as
    the two accuracies tell.

    Args:
        labels: Shape (N,).
        beliefs: Shape (N, C).
        trusted_labels: Shape (m,).
        trusted_beliefs: Shape (m, C).
    """
    count = beliefs.shape[1]
    predicted, right = beliefs.argmax(1), float((trusted_beliefs.argmax(1) == trusted_labels).mean())
    by_chance = (1 - right) / (count - 1)
    wrong = (right - float((predicted == labels).mean())) / max(right - by_chance, SMALLEST)
    prior = uniform_transitions(count, float(np.clip(wrong, 0, 1)))
    confusion = uniform_transitions(count, 1 - right)  # one example more of each class, as those of all are on average
    np.add.at(confusion, (trusted_labels, trusted_beliefs.argmax(1)), 1)
    confusion /= confusion.sum(1, keepdims=True)
    seen = np.zeros((count, count))
    np.add.at(seen, (predicted, labels), 1)
    joint = (prior + SMALLEST) * seen.sum(0)
    for _ in range(ROUNDS):
        joint = joint * (confusion @ (seen / np.maximum(confusion.T @ joint, SMALLEST)))
        of_class = joint.sum(1, keepdims=True)
        joint = (joint + count * prior) * of_class / (of_class + count)
    return joint / joint.sum()


def trusted_insist(
    labels: np.ndarray, beliefs: np.ndarray, trusted_labels: np.ndarray, trusted_beliefs: np.ndarray
) -> bool:
    """Return whether a network disagrees with labels more than its mistakes on trusted examples and chance explain.

    Without a wrong label it agrees with those of a class as often as with trusted ones of that class. That is tested
    for all labels together and for each class by itself, either at the level `BY_CHANCE`. Ten trusted examples of a
    class leave much to chance: transitions by them (`joint_by_trusted`) doubted half of the right labels of rare ones.

    Args:
        labels: Shape (N,).
        beliefs: Shape (N, C).
        trusted_labels: Shape (m,).
        trusted_beliefs: Shape (m, C).
    """
    classes = beliefs.shape[1]
    excess, variance = np.zeros(classes), np.zeros(classes)
    for given, believed, sign in ((trusted_labels, trusted_beliefs, 1), (labels, beliefs, -1)):
        count = np.bincount(given, minlength=classes)
        right = np.bincount(given[believed.argmax(1) == given], minlength=classes)
        share = (right + 1) / (count + 2)  # of few examples that are all right the variance is not 0
        excess += sign * right / np.maximum(count, 1)
        variance += share * (1 - share) / (count + 2)
    known = np.bincount(trusted_labels, minlength=classes) > 0
    weight = np.bincount(labels, minlength=classes) * known / len(labels)
    of_all = weight @ excess / np.sqrt(weight**2 @ variance + SMALLEST)
    of_class = np.where(known, excess / np.sqrt(variance), -np.inf).max()
    return bool(of_all > norm.isf(BY_CHANCE) or of_class > norm.isf(BY_CHANCE / classes))


def transitions_of_joint(joint: np.ndarray) -> np.ndarray:
    """Return P(given label y | true class k) from P(k, y), both (C, C); alike to all of a class that is nowhere."""
    smoothed = joint + SMALLEST
    return np.asarray(smoothed / smoothed.sum(1, keepdims=True))


def temperature(labels: np.ndarray, beliefs: np.ndarray) -> float:
    """Return the power of beliefs, to be divided by their sum, that makes trusted labels likeliest: 1 over temperature.

    Args:
        labels: Shape (m,).
        beliefs: Shape (m, C).
    """

    def loss(logarithm: float) -> float:
        return -float(np.log(sharpened(beliefs, np.exp(logarithm))[np.arange(len(labels)), labels] + SMALLEST).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))


def with_noise_rate(clean_probabilities: np.ndarray, noise_rate: float) -> np.ndarray:
    """Return c with all odds multiplied by one factor, so that the mean of 1 − c is the noise rate; shape (N,).

    That is the posterior of the same mixture with another share of wrong labels. c of exactly 0 stays.
    """
    with np.errstate(divide="ignore"):
        odds = np.log(clean_probabilities) - np.log1p(-np.minimum(clean_probabilities, 1 - 1e-15))

    def shifted(shift: float) -> np.ndarray:
        return np.exp(-np.logaddexp(0, -(odds + shift)))

    def excess(shift: float) -> float:
        """Return the mean of 1 − c beyond the noise rate; falls with the shift, the logarithm of the factor."""
        return float(np.mean(1 - shifted(shift)) - noise_rate)

    if excess(800.0) >= 0:  # more of c than that is exactly 0
        return shifted(800.0)
    return shifted(-800.0 if excess(-800.0) <= 0 else brentq(excess, -800.0, 800.0, xtol=1e-13))


def uniform_transitions(count: int, wrong: float) -> np.ndarray:
    """Return transitions of so many classes, this share of each going alike to all others; shape (C, C)."""
    matrix = np.full((count, count), wrong / max(count - 1, 1))
    np.fill_diagonal(matrix, 1 - wrong)
    return matrix


def _joint(probabilities: np.ndarray, of_label: np.ndarray) -> np.ndarray:
    """Return P(true class k, given label | example), shape (n, C), of one label, by its column of the transitions."""
    return probabilities.clip(min=SMALLEST) * of_label


def sharpened(beliefs: np.ndarray, power: float) -> np.ndarray:
    """Return beliefs to a power, 1 over temperature, divided by their sum; both (N, C)."""
    logits = power * np.log(beliefs.astype(np.float64) + SMALLEST)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
