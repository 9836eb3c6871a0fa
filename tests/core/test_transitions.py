"""How likely a label is right: against brute force, on exact posteriors, and with a network that makes mistakes."""

import numpy as np
import pytest

from famus_hf.core.judgement import judge_by_trusted
from famus_hf.core.transitions import (
    clean_label_probabilities,
    joint_by_trusted,
    of_labels,
    temperature,
    transition_matrix,
    trusted_insist,
)


def posteriors(count, of_class, sharpness, seed=0):
    """Exact posteriors, and classes drawn by them."""
    rng = np.random.default_rng(seed)
    scores = np.exp(sharpness * rng.normal(size=(count * of_class, count)))
    probabilities = scores / scores.sum(1, keepdims=True)
    return probabilities, np.array([rng.choice(count, p=row) for row in probabilities])


def corrupted(labels, kind, count, seed=1):
    rng = np.random.default_rng(seed)
    struck = rng.random(len(labels)) < {"none": 0, "symmetric 20": 0.2}.get(kind, 0.4)
    wrong = (labels + 1) % count if kind == "pair 40" else rng.integers(count, size=len(labels))
    return np.where(struck, wrong, labels)


def likelihood(labels, probabilities, matrix, wrong):
    """Logarithm of the likelihood, with that of C examples of each class that are wrong as often as all are."""
    count = len(matrix)
    total = sum(np.log(sum(row[k] * matrix[k, label] for k in range(count)))
                for row, label in zip(probabilities, labels, strict=True))  # fmt: skip
    prior = [[1 - wrong if k == y else wrong / (count - 1) for y in range(count)] for k in range(count)]
    return total + sum(count * prior[k][y] * np.log(matrix[k, y]) for k in range(count) for y in range(count))


def test_transitions_make_the_labels_most_likely():
    """No nearby matrix is better, by a slow rewriting."""
    probabilities, classes = posteriors(3, 40, 3)
    labels = corrupted(classes, "pair 40", 3)
    matrix = transition_matrix(labels, probabilities)
    assert np.allclose(matrix.sum(1), 1)
    joint = probabilities * matrix[:, labels].T
    right = (joint[np.arange(len(labels)), labels] / joint.sum(1)).sum()
    wrong = 1 - (right + 1) / (len(labels) + 1)
    best = likelihood(labels, probabilities, matrix, wrong)
    for seed in range(50):
        other = matrix * np.exp(0.02 * np.random.default_rng(seed).normal(size=(3, 3)))
        assert likelihood(labels, probabilities, other / other.sum(1, keepdims=True), wrong) < best + 1e-6


@pytest.mark.parametrize("kind", ["symmetric 20", "symmetric 40", "pair 40"])
def test_the_share_of_wrong_labels_is_estimated_and_each_probability_is_that_of_bayes_rule(kind):
    probabilities, classes = posteriors(5, 400, 4)
    labels = corrupted(classes, kind, 5)
    found, matrix = clean_label_probabilities(labels, probabilities), transition_matrix(labels, probabilities)
    assert 1 - found.mean() == pytest.approx(np.mean(labels != classes), abs=0.03)
    for row in range(0, len(labels), 97):
        joint = [probabilities[row, true] * matrix[true, labels[row]] for true in range(5)]
        assert found[row] == pytest.approx(joint[labels[row]] / sum(joint))


@pytest.mark.parametrize(("count", "of_class", "most"), [(10, 100, 0.01), (10, 1000, 0.01), (100, 10, 0.05)])
@pytest.mark.parametrize("sharpness", [5, 8])
def test_of_clean_labels_by_exact_posteriors_hardly_any_is_called_wrong(count, of_class, most, sharpness):
    probabilities, labels = posteriors(count, of_class, sharpness)
    assert (probabilities.argmax(1) == labels).mean() < 0.9, "one label in ten or more is not the likeliest class"
    assert 1 - clean_label_probabilities(labels, probabilities).mean() < most


def test_a_likely_confusion_is_more_suspect_than_an_unlikely_one_of_the_same_loss():
    """Class 0 is often labelled 1, and never 2: the same 30 % for the given label mean different things."""
    probabilities = np.array([[0.9, 0.05, 0.05]] * 60 + [[0.05, 0.05, 0.9]] * 60 + [[0.7, 0.3, 0.0], [0.0, 0.3, 0.7]])
    labels = np.array([0] * 30 + [1] * 30 + [2] * 60 + [1, 1])
    confused, odd = clean_label_probabilities(labels, probabilities)[-2:]
    assert confused < 0.5 * odd


def test_impossible_predictions_give_probabilities_all_the_same():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = clean_label_probabilities(np.array([1, 1]), probabilities)
    assert np.isfinite(found).all() and found[0] < 1e-6 and found[1] > 0.99


# ---- With trusted examples ----


def with_mistakes(count, of_class, right, seed):
    """What an overconfident network believes that takes three of ten mistakes for the next class. Beliefs, classes."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(count), of_class)
    near = rng.random(len(classes)) < 0.3
    other = np.where(near, classes + 1, classes + rng.integers(1, count, size=len(classes))) % count
    predicted = np.where(rng.random(len(classes)) < right, classes, other)
    scores = rng.normal(size=(len(classes), count))
    scores[np.arange(len(classes)), predicted] += 8
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(1, keepdims=True), classes


@pytest.mark.parametrize("right", [0.75, 0.95])
@pytest.mark.parametrize("kind", ["none", "symmetric 20", "symmetric 40", "pair 40"])
def test_mistakes_of_the_network_are_told_from_wrong_labels(kind, right):
    beliefs, classes = with_mistakes(10, 200, right, seed=2)
    trusted = with_mistakes(10, 60, right, seed=3)
    labels = corrupted(classes, kind, 10)
    posteriors = judge_by_trusted(labels, beliefs, trusted[1], trusted[0]).posteriors
    assert np.allclose(posteriors.sum(1), 1)
    found = of_labels(posteriors, labels)
    assert 1 - found.mean() == pytest.approx(np.mean(labels != classes), abs=0.065)
    joint = joint_by_trusted(labels, beliefs, trusted[1], trusted[0])
    assert joint.sum() == pytest.approx(1) and found.mean() == pytest.approx(np.trace(joint), abs=1e-6)
    if kind != "none":
        assert found[labels != classes].mean() < 0.65 * found[labels == classes].mean()


def test_the_joint_distribution_is_that_of_expectation_and_maximisation_by_hand():
    (beliefs, classes), (trusted, trusted_labels) = with_mistakes(3, 30, 0.8, 2), with_mistakes(3, 8, 0.8, 3)
    labels = corrupted(classes, "pair 40", 3)
    predicted, of_trusted = beliefs.argmax(1), trusted.argmax(1)
    right, agree = np.mean(of_trusted == trusted_labels), np.mean(predicted == labels)
    wrong = min(max((right - agree) / (right - (1 - right) / 2), 0), 1)
    confusion = [[right if k == h else (1 - right) / 2 for h in range(3)] for k in range(3)]
    for k, h in zip(trusted_labels, of_trusted, strict=True):
        confusion[k][h] += 1
    confusion = [[cell / sum(row) for cell in row] for row in confusion]
    prior = [[1 - wrong if k == y else wrong / 2 for y in range(3)] for k in range(3)]
    joint = [[prior[k][y] * np.sum(labels == y) for y in range(3)] for k in range(3)]
    for _ in range(100):
        new = [[0.0] * 3 for _ in range(3)]
        for h, y in zip(predicted, labels, strict=True):  # expectation, example by example
            shares = [confusion[k][h] * joint[k][y] for k in range(3)]
            for k in range(3):
                new[k][y] += shares[k] / sum(shares)
        for k in range(3):  # maximisation, with three examples more of each class
            size = sum(new[k])
            joint[k] = [(new[k][y] + 3 * prior[k][y]) * size / (size + 3) for y in range(3)]
    expected = np.array(joint) / np.sum(joint)
    found = joint_by_trusted(labels, beliefs, trusted_labels, trusted)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_temperature_is_the_best_of_a_fine_grid():
    beliefs, classes = with_mistakes(5, 40, 0.8, 4)

    def loss(power):
        powers = beliefs**power
        return -np.log(powers[np.arange(len(classes)), classes] / powers.sum(1)).mean()

    grid = np.exp(np.linspace(-2, 2, 4001))
    found = temperature(classes, beliefs)
    assert found < 0.5 and found == pytest.approx(grid[np.argmin([loss(power) for power in grid])], rel=0.01)


def test_trusted_examples_insist_on_wrong_labels_and_not_on_mistakes_of_the_network():
    """A network that is right about 0.9 … 0.4 of a class, rare ones less; of a tail's labels none is wrong, or some."""
    classes, sizes = 5, np.array([2000, 600, 200, 60, 20])
    accuracy = np.array([0.9, 0.85, 0.7, 0.5, 0.4])

    def drawn(rng, true):
        mistaken = rng.random(len(true)) > accuracy[true]
        return np.eye(classes)[np.where(mistaken, (true + 1) % classes, true)]

    def insists(seed, wrong_share, trusted_of_class):
        rng = np.random.default_rng(seed)
        true, trusted = np.repeat(np.arange(classes), sizes), np.repeat(np.arange(classes), trusted_of_class)
        wrong = rng.random(len(true)) < np.asarray(wrong_share)[true]
        labels = np.where(wrong, (true + 2) % classes, true)
        return trusted_insist(labels, drawn(rng, true), trusted, drawn(rng, trusted))

    none, some, one_class = np.zeros(classes), np.full(classes, 0.3), np.array([0, 0.5, 0, 0, 0])
    assert sum(insists(seed, none, 10) for seed in range(200)) <= 6  # two tests at 0.5 %
    assert all(insists(seed, some, 30) for seed in range(50))
    assert sum(insists(seed, one_class, 100) for seed in range(50)) >= 48


def test_a_class_without_a_trusted_example_tells_nothing():
    rng = np.random.default_rng(0)
    labels, trusted = rng.integers(3, size=900), np.repeat([0, 1], 30)
    beliefs, by_trusted = np.eye(3)[np.where(labels == 2, 0, labels)], np.eye(3)[trusted]
    assert not trusted_insist(labels, beliefs, trusted, by_trusted)
