"""The clean meta set and, of data/inputs/meta_batches.py, its batches."""

import numpy as np
import pytest

from famus_hf.data.inputs.meta_batches import MetaBatchSampler
from famus_hf.data.labels.meta_set import check_no_overlap, class_balanced_holdout, default_num_meta


def test_meta_set_is_balanced_disjoint_and_seeded():
    labels = np.random.default_rng(0).integers(5, size=400)
    meta, rest = class_balanced_holdout(labels, 52, 5, seed=0)
    assert np.bincount(labels[meta]).tolist() == [11, 11, 10, 10, 10]
    assert sorted([*meta, *rest]) == list(range(400))
    assert np.array_equal(meta, class_balanced_holdout(labels, 52, 5, seed=0)[0])
    assert not np.array_equal(meta, class_balanced_holdout(labels, 52, 5, seed=1)[0])


def test_default_size_of_the_meta_set():
    assert [default_num_meta(size, 10) for size in (50_000, 1437, 90)] == [1000, 140, 0]


@pytest.mark.parametrize(
    "num_meta, sentence",
    [
        (3, "choose at least 5"),
        (406, "more than the 405 examples that 5 classes have to spare, as each keeps 1 .* choose at most 405"),
    ],
)
def test_impossible_meta_sets_are_refused(num_meta, sentence):
    labels = np.repeat(np.arange(5), [100, 100, 100, 100, 10])
    with pytest.raises(ValueError, match=sentence):
        class_balanced_holdout(labels, num_meta, 5, seed=0)


def test_rare_classes_give_what_they_have_to_spare_and_others_make_up_for_it(caught):
    labels = np.repeat([0, 1, 2, 4], [50, 50, 4, 1])  # of class 3 there is none
    meta, rest = class_balanced_holdout(labels, 41, 5, seed=0, names=list("abcde"))
    assert np.bincount(labels[meta], minlength=5).tolist() == [19, 19, 3, 0, 0]
    assert set(labels[rest]) == {0, 1, 2, 4}
    assert "too few examples for an even share of the meta set (c has 4, e has 1): others make up for" in caught.text
    caught.clear()
    class_balanced_holdout(labels, 12, 5, seed=0)
    assert "e has 1" not in caught.text and "(4 has 1)" in caught.text, "three to spare are an even share of twelve"
    whole, _ = class_balanced_holdout(labels, 105, 5, seed=0, kept=0)
    assert len(whole) == 105
    with pytest.raises(ValueError, match=r"each keeps 1 to train on: give trusted examples of their own \(meta_dir\)"):
        class_balanced_holdout([0, 1, 2], 3, 3, seed=0)


def test_overlap_is_refused_with_the_offenders():
    check_no_overlap([1, 2], [3, 4])
    with pytest.raises(ValueError, match=r"2 meta examples are also in the training set \(index 3, 4\)"):
        check_no_overlap([1, 3, 4], [3, 4, 5])


def test_meta_batch_of_a_step_depends_on_seed_and_step_alone():
    sampler = MetaBatchSampler(11, 4, seed=3)
    stream = iter(sampler)
    first = [next(stream) for _ in range(6)]
    later = iter(MetaBatchSampler(11, 4, seed=3, start=4))
    assert [next(later), next(later)] == first[4:]
    assert len(set(first[0] + first[1])) == 8, "no example twice within a round"
    assert first != [MetaBatchSampler(11, 4, seed=4).batch(step) for step in range(6)]
    assert sorted(MetaBatchSampler(3, 8, seed=0).batch(5)) == [0, 1, 2], "a small meta set is used whole"
