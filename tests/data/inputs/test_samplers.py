"""Epochs that take every class alike, that go through chosen rows, and that give each row a partner of a rare class."""

import numpy as np

from famus_hf.data.inputs.samplers import ChosenRowsSampler, ClassBalancedSampler, PartnerSampler


def test_balanced_epochs_take_every_class_alike():
    labels = np.repeat([0, 1, 2], [1000, 60, 5])
    sampler = ClassBalancedSampler(labels, 300, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 300 and np.bincount(labels[first]).tolist() == [100, 100, 100]
    assert len(set(first[:100])) > 60 and max(np.bincount(first)[labels == 0]) == 1
    assert set(np.bincount(first)[1000:1060]) == {1, 2}, "a class that is too small is gone through again"
    assert first == list(ClassBalancedSampler(labels, 300, seed=0)), "an epoch is a function of seed and number"
    sampler.set_epoch(1)
    assert list(sampler) != first
    counts = np.bincount(labels[list(ClassBalancedSampler(labels, 10, seed=0))])
    assert sorted(counts) == [3, 3, 4]


def test_chosen_rows_fill_an_epoch_each_as_often_as_another_or_once_more():
    chosen = np.array([3, 5, 8])
    sampler = ChosenRowsSampler(lambda: chosen, 10, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 10 and sorted(np.bincount(first)[[3, 5, 8]]) == [3, 3, 4]
    assert sorted(first[:3]) == [3, 5, 8] and first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    chosen = np.array([1])
    assert list(sampler) == [1] * 10, "they are asked for when an epoch begins"


def test_partners_are_drawn_by_the_inverse_of_class_sizes_and_alike_within_a_class():
    labels = np.repeat([0, 1, 3], [6000, 300, 12])
    sampler = PartnerSampler([*labels, -100], seed=0)
    inverse = np.array([1 / 6000, 1 / 300, 1 / 12])
    np.testing.assert_allclose(sampler.class_shares, inverse / inverse.sum(), rtol=1e-12)
    own, partners = map(np.array, zip(*sampler, strict=True))
    assert sorted(own) == list(range(6313)) and partners.max() < 6312
    counts = np.bincount(labels[partners], minlength=4)
    expected = 6313 * sampler.class_shares
    assert (abs(counts[[0, 1, 3]] - expected) < 4 * np.sqrt(expected)).all() and counts[2] == 0
    each = np.bincount(partners, minlength=6313)[6300:6312]
    assert (abs(each - counts[3] / 12) < 5 * np.sqrt(counts[3] / 12)).all()
    assert list(zip(own, partners, strict=True)) == list(sampler)
    sampler.set_epoch(1)
    assert list(zip(own, partners, strict=True)) != list(sampler)
