"""Accuracy by the true classes, from labels some of which are wrong: near the truth, or why it can't be told."""

import numpy as np
import pytest

from famus_hf.core.true_accuracy import FEW_EXAMPLES, TOO_NOISY, estimate_true_accuracy

CLASSES = 10


def drawn(rate, kind, count=1500, mistakes=0.4, seed=0):
    """Given labels, probabilities and true classes; the network is the more often wrong the less sure it is."""
    rng = np.random.default_rng(seed)
    true, rank = rng.integers(CLASSES, size=count), rng.random(count)
    other = (true + rng.integers(1, CLASSES, size=count)) % CLASSES
    predicted = np.where(rng.random(count) < mistakes * rank**2, other, true)
    sureness = 1 - 0.8 * rank
    probabilities = np.repeat((1 - sureness)[:, None] / (CLASSES - 1), CLASSES, axis=1)
    probabilities[np.arange(count), predicted] = sureness
    wrong = (true + (1 if kind == "pair" else rng.integers(1, CLASSES, size=count))) % CLASSES
    return np.where(rng.random(count) < rate, wrong, true), probabilities, true


@pytest.mark.parametrize("kind, rate", [("symmetric", 0.2), ("symmetric", 0.4), ("pair", 0.25)])
@pytest.mark.parametrize("mistakes", [0.1, 0.6])
def test_it_is_near_the_truth_whatever_the_agreement_is(kind, rate, mistakes):
    labels, probabilities, true = drawn(rate, kind, mistakes=mistakes)
    accuracy, agreement = (float((probabilities.argmax(1) == given).mean()) for given in (true, labels))
    found = estimate_true_accuracy(labels, probabilities)
    assert abs(found.value - accuracy) < 0.05 < accuracy - agreement, found
    assert found.low < accuracy < found.high and abs(found.noise_rate - rate) < 0.06


def test_of_right_labels_it_is_the_accuracy():
    labels, probabilities, true = drawn(0.0, "pair")
    assert (labels == true).all()
    found = estimate_true_accuracy(labels, probabilities)
    assert abs(found.value - (probabilities.argmax(1) == true).mean()) < 0.02 and found.noise_rate < 0.03


def test_a_network_that_is_sure_of_mistakes_is_judged_by_its_mean_over_the_training():
    labels, average, true = drawn(0.25, "pair")
    rng = np.random.default_rng(1)
    last = np.eye(CLASSES)[np.where(rng.random(len(true)) < 0.15, (true + 1) % CLASSES, average.argmax(1))]
    accuracy = float((last.argmax(1) == true).mean())
    errors = [abs(estimate_true_accuracy(labels, last, view).value - accuracy) for view in (average, None)]
    assert errors[0] < 0.05 < errors[1]


def test_where_it_cannot_be_told_it_says_so_unless_trusted_examples_tell_it():
    labels, probabilities, true = drawn(0.45, "pair")
    assert estimate_true_accuracy(labels, probabilities) == TOO_NOISY
    _, of_trusted, trusted = drawn(0.0, "pair", count=300, seed=1)
    found = estimate_true_accuracy(labels, probabilities, None, trusted, of_trusted)
    accuracy = float((of_trusted.argmax(1) == trusted).mean())
    assert abs(found.value - accuracy) < 0.03 and found.low < (probabilities.argmax(1) == true).mean() < found.high
    assert estimate_true_accuracy(labels[:99], probabilities[:99]) == FEW_EXAMPLES


def test_trusted_examples_narrow_the_interval():
    labels, probabilities, true = drawn(0.2, "symmetric", count=400)
    _, of_trusted, trusted = drawn(0.0, "symmetric", count=400, seed=2)
    alone, both = (estimate_true_accuracy(labels, probabilities, None, *given) for given in ((), (trusted, of_trusted)))
    assert both.high - both.low < alone.high - alone.low
    assert abs(both.value - (probabilities.argmax(1) == true).mean()) < 0.04
