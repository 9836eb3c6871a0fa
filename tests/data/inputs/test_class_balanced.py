"""Epochs that take every class alike."""

import numpy as np

from famus_hf.data.inputs.class_balanced import ClassBalancedSampler


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
