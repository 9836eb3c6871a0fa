"""Noise models against their definitions, and, of class_maps.py, which classes are mistaken for which."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from scipy.stats import chisquare, kstest

from famus_hf import corrupt_labels
from famus_hf.data.labels.class_maps import CIFAR10_CLASSES, known_class_map
from famus_hf.data.labels.long_tail import long_tail_rows
from famus_hf.data.labels.meta_set import class_balanced_holdout
from famus_hf.data.labels.noise import NOISE_TYPES, generator_for

LABELS = np.repeat(np.arange(10), 2000)
CLASS_MAP = np.array([0, 1, 0, 5, 7, 3, 6, 7, 8, 1])
FEATURES = np.random.default_rng(0).integers(256, size=(len(LABELS), 12)).astype(np.uint8)
LEVEL = 0.001  # of every chi-square test here


def corrupt(noise, noise_type, seed=0, **settings):
    if noise_type == "asymmetric":
        settings["class_map"] = CLASS_MAP
    if noise_type == "instance":
        settings["features"] = FEATURES
    return corrupt_labels(LABELS, noise, noise_type, 10, seed, **settings)


def transitions(noisy):
    return np.stack([np.bincount(noisy[label == LABELS], minlength=10) for label in range(10)])


def expected_transitions(noise_type, noise):
    """Transition matrices written down from the definitions."""
    eye, every = np.eye(10), np.ones((10, 10))
    return {
        "symmetric": (1 - noise) * eye + noise / 10 * every,
        "symmetric-exclusive": (1 - noise) * eye + noise / 9 * (every - eye),
        "pair": (1 - noise) * eye + noise * np.roll(eye, 1, axis=1),
        "asymmetric": (1 - noise) * eye + noise * eye[CLASS_MAP],
    }[noise_type]


@pytest.mark.parametrize("noise_type", ["symmetric", "symmetric-exclusive", "pair", "asymmetric"])
@pytest.mark.parametrize("noise", [0.2, 0.45])
def test_transition_matrices_are_those_of_the_definitions(noise_type, noise):
    noisy, realised = corrupt(noise, noise_type)
    expected = expected_transitions(noise_type, noise)
    for found, row in zip(transitions(noisy), expected, strict=True):
        possible = row > 0
        assert found[~possible].sum() == 0
        if possible.sum() > 1:
            assert chisquare(found[possible], 2000 * row[possible]).pvalue > LEVEL
    assert realised == np.mean(noisy != LABELS)
    assert realised == pytest.approx(1 - np.trace(expected) / 10, abs=0.011)


@pytest.mark.parametrize("noise_type, targets", [("flip", 1), ("flip2", 2)])
def test_flips_go_to_fixed_other_classes_of_each_class_in_equal_parts(noise_type, targets):
    noisy, _ = corrupt(0.4, noise_type)
    for label, found in enumerate(transitions(noisy)):
        others = np.delete(np.arange(10), label)
        hit = others[found[others] > 0]
        assert len(hit) == targets
        assert chisquare([found[label], *found[hit]], [1200, *[800 / targets] * targets]).pvalue > LEVEL
    first_targets = [transitions(corrupt(0.4, noise_type, seed)[0])[0, 1:].argmax() for seed in range(40)]
    assert len(set(first_targets)) > 4, "the other classes are drawn from the seed"


def test_instance_noise_follows_xia_2020():
    """Wrong classes as a slow rewriting of the algorithm has them; rates around r, as the truncated normal's mean."""
    noisy, realised = corrupt(0.4, "instance")
    assert realised == pytest.approx(0.4, abs=0.01)
    twins = np.zeros((len(LABELS), 12))  # the same features for all: one distribution for each class
    same, _ = corrupt_labels(LABELS, 0.4, "instance", 10, 0, features=twins)
    for label, found in enumerate(transitions(same)):
        assert chisquare(np.delete(found, label)).pvalue > LEVEL, "without features all other classes are alike"
    changed, _ = corrupt_labels(LABELS, 0.4, "instance", 10, 0, features=255 - FEATURES)
    assert np.array_equal(noisy != LABELS, changed != LABELS), "features decide the class, not whether it is wrong"
    assert np.mean(noisy[noisy != LABELS] != changed[noisy != LABELS]) > 0.3


def test_rates_of_instance_noise_are_truncated_normal():
    """Over 2000 seeds, how often one example is struck at r = 0.1: the mean of the normal truncated at 0 is 0.1288."""
    struck = [
        corrupt_labels([0, 1], 0.1, "instance", 3, seed, features=np.zeros((2, 1)))[0] != [0, 1] for seed in range(2000)
    ]
    hits = int(np.sum(struck))
    assert chisquare([hits, 4000 - hits], [4000 * 0.1288, 4000 * 0.8712]).pvalue > LEVEL


@pytest.mark.parametrize("noise_type", ["symmetric", "symmetric-exclusive", "pair", "asymmetric", "flip", "flip2"])
def test_an_exact_count_strikes_exactly_so_many(noise_type):
    counts = {int(np.sum(corrupt(0.25, noise_type, seed, exact_count=True)[0] != LABELS)) for seed in range(4)}
    if noise_type in ("symmetric", "asymmetric"):  # some are struck and keep their class
        assert max(counts) < 5000
    else:
        assert counts == {5000}


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
def test_noise_follows_the_seed_and_rate_zero_changes_nothing(noise_type):
    first, _ = corrupt(0.3, noise_type, seed=1)
    assert np.array_equal(first, corrupt(0.3, noise_type, seed=1)[0])
    assert not np.array_equal(first, corrupt(0.3, noise_type, seed=2)[0])
    untouched, realised = corrupt(0.0, noise_type, seed=1)
    assert np.array_equal(untouched, LABELS) and realised == 0


def test_where_labels_are_wrong_does_not_hang_on_the_class():
    noisy, _ = corrupt(0.4, "pair")
    places = np.flatnonzero(noisy != LABELS) / len(LABELS)
    assert kstest(places, "uniform").pvalue > LEVEL


@pytest.mark.parametrize(
    "arguments, settings, sentence",
    [
        ((LABELS, 1.0, "symmetric", 10, 0), {}, "from 0 to below 1"),
        ((LABELS, -0.1, "symmetric", 10, 0), {}, "from 0 to below 1"),
        ((LABELS, float("nan"), "symmetric", 10, 0), {}, "from 0 to below 1"),
        ((LABELS, 0.4, "sym", 10, 0), {}, "choose one of symmetric, symmetric-exclusive, asymmetric, pair, flip"),
        ((LABELS, 0.4, "pair", 9, 0), {}, r"not inside 0\.\.8"),
        ((LABELS, 0.4, "asymmetric", 10, 0), {}, "which class is mistaken for which"),
        ((LABELS, 0.4, "asymmetric", 10, 0), {"class_map": [1, 2]}, "one class index for each of the 10 classes"),
        ((LABELS, 0.4, "instance", 10, 0), {}, "give features"),
        ((LABELS, 0.4, "instance", 10, 0), {"exact_count": True}, "does not go with noise_type 'instance'"),
        (([0, 1], 0.4, "flip2", 2, 0), {}, "at least 3 classes"),
        (([0, 0], 0.4, "symmetric", 1, 0), {}, "at least two classes"),
    ],
)
def test_impossible_noise_is_refused(arguments, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        corrupt_labels(*arguments, **settings)


def test_cifar_classes_are_mistaken_as_in_the_literature():
    rows = Dataset.from_dict({"label": [0]}, Features({"label": ClassLabel(names=CIFAR10_CLASSES)}))
    moved = {source: int(target) for source, target in enumerate(known_class_map(rows)) if source != target}
    assert moved == {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
    fine, coarse = [0, 1, 2, 3, 4, 5, 0], [1, 0, 1, 0, 1, 2, 1]
    features = Features({"label": ClassLabel(names=list("abcdef")), "superclass": Value("int64")})
    rows = Dataset.from_dict({"label": fine, "superclass": coarse}, features)
    assert known_class_map(rows).tolist() == [2, 3, 4, 1, 0, 5], "the next of the superclass, round and round"
    with pytest.raises(ValueError, match=r"1 classes are in more than one superclass \(a\)"):
        known_class_map(Dataset.from_dict({"label": fine, "superclass": [1, 0, 1, 0, 1, 2, 0]}, features))


def test_draws_of_other_purposes_or_of_a_user_by_the_same_seed_do_not_repeat_those_of_the_noise():
    """Labels that were drawn by `default_rng(seed)` itself once got no symmetric noise at all."""
    rows, labels = np.arange(2000), np.zeros(2000, dtype=int)
    for seed in range(3):
        users = np.random.default_rng(seed).integers(10, size=20_000)
        assert corrupt_labels(users, 0.4, "symmetric", 10, seed)[1] == pytest.approx(0.36, abs=0.015)
        held_out, _ = class_balanced_holdout(labels, 200, 1, seed)
        long_tailed = long_tail_rows(np.repeat([0, 1], [2000, 1]), 2, 5, seed)[:200]
        by_user = np.random.default_rng(seed)
        chosen = [by_user.choice(rows, 200, replace=False), np.random.default_rng(seed).permutation(rows)[:1000]]
        for drawn, users_own, expected in ((held_out, chosen[0], 20), (long_tailed, chosen[1], 100)):
            assert np.isin(drawn, users_own).sum() == pytest.approx(expected, abs=40), "as often as by chance"
    assert generator_for("a", 1).random() != generator_for("b", 1).random()


def test_an_exact_count_is_rounded_and_not_cut():
    assert 0.29 * 100 < 29
    _, rate = corrupt_labels(np.arange(100) % 5, 0.29, "pair", 5, seed=0, exact_count=True)
    assert rate == 0.29
