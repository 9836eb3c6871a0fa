"""The training set as a network's losses divide it: what becomes labelled, what is kept, what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

from famus_hf.core.transitions import with_noise_rate
from famus_hf.data.labels.pseudo_clean import MIXTURE, clean_probabilities, scaled_to_one
from famus_hf.data.per_example import PerExample
from famus_hf.two_networks.co_divide import (
    CoDivide,
    Part,
    collated,
    labelled_examples,
    noise_rate_by_anchors,
)
from tests.helpers.hostile import fuzz, refused

NAN, INF = math.nan, math.inf


def array(*values):
    return np.array(values, dtype=np.float64)


def labelled_rows(losses, probabilities, labels=None, batch_size=2, threshold=0.5):
    labels = np.zeros(len(losses), dtype=int) if labels is None else np.asarray(labels)
    found = labelled_examples(np.asarray(losses, float), np.asarray(probabilities), labels, batch_size, threshold)
    assert found.dtype == bool and found.shape == (len(losses),)
    return np.flatnonzero(found).tolist()


# ---- Which examples are labelled ----


def test_labelled_are_those_whose_probability_is_above_the_threshold():
    losses, c = range(8), array(0.9, 0.1, 0.51, 0.5, 0.2, 0.7, 0.49, 0.0)
    assert labelled_rows(losses, c) == [0, 2, 5]
    assert labelled_rows(losses, c, threshold=0.6) == [0, 5]
    assert labelled_rows(losses, c, threshold=0.15) == [0, 2, 3, 4, 5, 6]


def test_fewer_than_a_batch_of_them_give_way_to_the_half_with_the_smaller_losses():
    losses, c = [5, 1, 7, 2, 6, 3, 8, 4], array(0, 0, 0, 0, 0, 0, 0.9, 0)
    assert labelled_rows(losses, c) == [1, 3, 5, 7]
    assert labelled_rows(losses, c, batch_size=1) == [6], "a batch of one is no fewer than one"


@pytest.mark.parametrize("c", [0.0, 0.5, 1.0])
def test_probabilities_that_are_all_equal_give_the_half_with_the_smaller_losses(c):
    assert labelled_rows([5, 1, 7, 2, 6, 3, 8, 4], np.full(8, c)) == [1, 3, 5, 7]


def test_of_nearly_all_a_batch_with_the_largest_losses_is_unlabelled():
    losses, c = [5, 1, 7, 2, 6, 3, 8, 4], array(1, 1, 0.2, 1, 1, 1, 1, 1)  # one unlabelled, and not the largest
    assert labelled_rows(losses, c, batch_size=3) == [0, 1, 3, 5, 7]


def test_of_a_class_without_any_a_tenth_with_the_smallest_losses_is_labelled():
    labels = np.repeat([0, 1], 30)
    losses = np.concatenate([np.arange(30), 100 - np.arange(30)])  # of class 1 the last are the smallest
    c = (labels == 0) * 0.9
    assert labelled_rows(losses, c, labels) == [*range(30), 57, 58, 59]


def test_of_a_small_class_without_any_one_example_is_labelled():
    labels = [0] * 10 + [1, 1] + [2]
    assert labelled_rows([*range(10), 12, 11, 13], array(*[0.9] * 6, *[0.1] * 7), labels) == [*range(6), 11, 12]


def test_classes_without_any_take_nothing_from_the_last_batch_of_unlabelled_ones():
    labels = [0] * 5 + [1, 2, 3]
    c = array(0.9, 0.9, 0.9, 0.9, 0.9, 0, 0, 0)
    assert labelled_rows(range(8), c, labels, batch_size=2) == [0, 1, 2, 3, 4, 5], "class 1 alone"
    assert labelled_rows(range(8), c, labels, batch_size=3) == [0, 1, 2, 3, 4], "none"


def test_losses_that_are_not_finite_are_the_last_to_be_labelled():
    assert labelled_rows([NAN, 1, -INF, 4, INF, 2, 3, 5], np.full(8, 0.5)) == [1, 3, 5, 6]


@st.composite
def judged_examples(draw):
    count = draw(st.integers(2, 40))
    some = draw(st.sampled_from([st.floats(0, 10), st.sampled_from([0.0, 1.0]), st.sampled_from([NAN, INF, 1.0])]))
    losses = draw(st.lists(some, min_size=count, max_size=count))
    share = draw(st.sampled_from([st.floats(0, 1), st.sampled_from([0.0, 1.0]), st.just(0.5)]))
    c = draw(st.lists(share, min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, draw(st.integers(0, 9))), min_size=count, max_size=count))
    return losses, np.array(c), labels, draw(st.integers(1, count // 2)), draw(st.sampled_from([0.01, 0.5, 0.99]))


@fuzz(300)
@given(judged_examples())
def test_whatever_the_losses_there_is_a_batch_of_either_kind_and_where_there_is_room_of_every_class(examples):
    losses, c, labels, batch_size, threshold = examples
    labelled = labelled_rows(losses, c, labels, batch_size, threshold)
    others = len(losses) - len(labelled)
    assert len(labelled) >= batch_size and others >= batch_size
    assert others == batch_size or {labels[row] for row in labelled} == set(labels)


# ---- The mixture ----


def overlapping_losses():
    generator = np.random.default_rng(2)
    return np.concatenate([generator.gamma(2, 0.3, 60), 1.2 + 0.5 * generator.standard_normal(90)])


def mixture_of(losses, **changes):
    settings = {"n_components": 2, "max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4, "random_state": 7, **changes}
    scaled = ((losses - losses.min()) / (losses.max() - losses.min()))[:, None]
    mixture = GaussianMixture(**settings).fit(scaled)
    return mixture.predict_proba(scaled)[:, mixture.means_.ravel().argmin()]


def test_each_setting_of_the_mixture_counts():
    losses = overlapping_losses()
    expected = mixture_of(losses)
    assert np.array_equal(clean_probabilities(losses, seed=7), expected)
    others = {"n_components": 3}, {"tol": 1e-3}, {"tol": 2e-2}, {"reg_covar": 1e-6}, {"reg_covar": 1e-3}
    assert all(np.abs(mixture_of(losses, **change) - expected).max() > 1e-2 for change in others)
    assert MIXTURE["max_iter"] == 10, "which that tolerance hardly ever needs"


def test_probabilities_do_not_depend_on_the_scale_of_losses():
    losses = overlapping_losses()
    np.testing.assert_allclose(clean_probabilities(64 * losses + 16), clean_probabilities(losses), atol=1e-9)


def test_losses_are_scaled_to_lie_between_zero_and_one():
    assert scaled_to_one(array(3, 1, 2, 5)).tolist() == [0.5, 0, 0.25, 1]
    assert scaled_to_one(array(3, NAN, 2, INF, 5, -INF)).tolist() == pytest.approx([1 / 3, 1, 0, 1, 1, 1])
    assert scaled_to_one(array(2, 2, NAN)).tolist() == [0, 0, 1]
    assert scaled_to_one(array(NAN, NAN)).tolist() == [1, 1]


def test_a_loss_that_is_not_finite_is_no_sign_of_a_right_label():
    """A broad group of small losses and a narrow one of large ones: beyond that the mixture believes in the broad."""
    generator = np.random.default_rng(0)
    losses = np.concatenate([generator.normal(1.2, 0.6, 300).clip(0), generator.normal(2.3, 0.08, 700), [NAN, INF]])
    assert clean_probabilities(losses)[-2:].tolist() == [0, 0]


@pytest.mark.parametrize("losses", [[0.7] * 20, [NAN] * 20, [0.7] * 17 + [NAN, INF, NAN]], ids=["equal", "NaN", "both"])
def test_losses_that_tell_nothing_leave_half_labelled(losses):
    division = divided(losses, batch_size=4)
    assert division.rows.tolist() == list(range(10)) and division.unlabelled.tolist() == list(range(10, 20))
    assert division.mixture_noise_rate == 1 - np.where(np.isfinite(losses), 0.5, 0).mean()


def test_two_components_with_equal_means_leave_a_batch_of_either_kind():
    losses = np.concatenate([np.tile([0.9, 1.1], 30), np.tile([0.0, 2.0], 10)])  # narrow and broad, both around 1
    for seed in range(5):
        division = divided(losses, batch_size=8, seed=seed)
        assert len(division.rows) >= 8 and len(division.unlabelled) >= 8
        assert sorted([*division.rows, *division.unlabelled]) == list(range(80))
        assert np.isfinite(division.clean_probabilities).all()


def test_a_single_loss_apart_leaves_a_batch_of_either_kind():
    losses = array(*[0.5] * 19, 9.0)
    division = divided(losses, batch_size=6)
    assert len(division.unlabelled) == 6 and 19 in division.unlabelled
    division = divided(-losses, batch_size=6)
    assert len(division.rows) >= 6 and 19 in division.rows


# ---- A division ----


def examined(losses, labels=None, clean_labels=None):
    labels = np.zeros(len(losses), dtype=np.int64) if labels is None else np.asarray(labels)
    clean_labels = None if clean_labels is None else np.asarray(clean_labels)
    return PerExample(labels, np.asarray(losses, dtype=np.float32), None, clean_labels, None)


def divide(division, found, judged=None, *, batch_size=2, threshold=0.5, history=1, seed=0, epoch=3):
    division.divide(found, judged, batch_size=batch_size, threshold=threshold, history=history, seed=seed, epoch=epoch)
    return division


def divided(losses, labels=None, clean_labels=None, **settings):
    return divide(CoDivide(range(len(losses))), examined(losses, labels, clean_labels), **settings)


LOSSES = [0.1, 2.1, 0.2, 1.9, 0.15, 2.0, 0.12, 2.2, 0.18, 1.8]  # even rows are small


def test_before_the_first_division_all_rows_are_labelled():
    division = CoDivide(range(5))
    assert division.rows.tolist() == [0, 1, 2, 3, 4] and len(division.unlabelled) == 0 and division.epoch == -1
    assert division.noise_rate is division.mixture_noise_rate is division.purity is division.recall is None
    assert division.clean_probabilities.tolist() == [0] * 5 and division.history.shape == (0, 5)


def test_rows_are_labelled_and_unlabelled_ones_of_the_training_set():
    division = divided(LOSSES)
    assert division.rows.tolist() == [0, 2, 4, 6, 8] and division.unlabelled.tolist() == [1, 3, 5, 7, 9]
    assert division.epoch == 3
    assert len(division) == 5 and [division[place] for place in range(5)] == [0, 2, 4, 6, 8], "a meta set of these"


def test_precision_and_recall_are_those_of_the_right_labels():
    labels = np.zeros(10, dtype=int)
    clean_labels = array(0, 0, 0, 1, 1, 1, 0, 0, 0, 1)  # right: 0, 1, 2, 6, 7, 8; four of five labelled, four of six
    division = divided(LOSSES, labels, clean_labels)
    assert division.purity == 4 / 5 and division.recall == 4 / 6


def test_where_no_label_is_right_precision_is_zero_and_there_is_no_recall():
    division = divided(LOSSES, [0] * 10, [1] * 10)
    assert division.purity == 0 and division.recall is None


def test_what_is_not_known_later_is_not_kept_from_before():
    division = divided(LOSSES, [0] * 10, [0] * 10)
    assert division.purity == 1 and division.recall == 0.5
    divide(division, examined(LOSSES))
    assert division.purity is division.recall is None


def test_the_noise_rate_is_the_mean_probability_of_a_wrong_label():
    losses = overlapping_losses().astype(np.float32)
    division = divided(losses, seed=7)
    expected = mixture_of(losses.astype(np.float64))
    np.testing.assert_allclose(division.clean_probabilities, expected)
    assert division.mixture_noise_rate == pytest.approx(np.mean(1 - expected))
    assert division.rows.tolist() == np.flatnonzero(expected > 0.5).tolist()


def test_only_judged_rows_are_divided_and_counted():
    judged = np.arange(5, 25, 2)
    division = divide(CoDivide(range(30)), examined(LOSSES, [0] * 10, [0] * 5 + [1] * 5), judged)
    assert division.rows.tolist() == [5, 9, 13, 17, 21] and division.unlabelled.tolist() == [7, 11, 15, 19, 23]
    whole = divided(LOSSES)
    assert np.array_equal(division.clean_probabilities[judged], whole.clean_probabilities)
    assert division.clean_probabilities.sum() == whole.clean_probabilities.sum(), "0 elsewhere"
    assert division.mixture_noise_rate == whole.mixture_noise_rate
    assert division.purity == 3 / 5 and division.recall == 3 / 5


def test_judged_rows_may_be_in_any_order_and_those_of_before_are_forgotten():
    division = divided([*LOSSES, *LOSSES])
    divide(division, examined(LOSSES), np.arange(19, 9, -1))
    assert division.rows.tolist() == [19, 17, 15, 13, 11] and division.unlabelled.tolist() == [18, 16, 14, 12, 10]
    assert (division.clean_probabilities[:10] == 0).all()


def test_a_class_without_clean_examples_keeps_a_tenth_of_its_own():
    labels = [0, 1] * 5 + [0] * 10
    division = divided([*LOSSES, *[0.1] * 10], labels)
    assert division.rows.tolist() == [0, 2, 4, 6, 8, 9, *range(10, 20)], "of class 1 the smallest loss is that of row 9"


def test_nearly_all_clean_leaves_a_batch_unlabelled():
    losses = [0.1 + 0.001 * row for row in range(39)] + [5.0]
    assert divided(losses, batch_size=4).unlabelled.tolist() == [36, 37, 38, 39]


def test_fewer_clean_examples_than_a_batch_are_made_up_to_half():
    losses = [0.1] + [5.0 - 0.001 * row for row in range(39)]
    assert divided(losses, batch_size=4).rows.tolist() == [0, *range(21, 40)]


def test_losses_of_the_last_epochs_count_each_scaled_by_itself():
    epochs = [np.roll(LOSSES, 1), np.array(LOSSES) * 10, np.array(LOSSES) ** 2]  # of which the first is forgotten
    division = CoDivide(range(10))
    for epoch, losses in enumerate(epochs):
        divide(division, examined(losses), history=2, epoch=epoch)
    second, third = ((losses - losses.min()) / np.ptp(losses) for losses in np.float64(np.float32(epochs[1:])))
    np.testing.assert_allclose(division.history, [second, third])
    expected = mixture_of((second + third) / 2, random_state=0)
    np.testing.assert_allclose(division.clean_probabilities, expected, atol=1e-12)


def test_a_loss_that_is_not_finite_spoils_no_later_average():
    division = CoDivide(range(10))
    divide(division, examined([NAN, *LOSSES[1:]]), history=3)
    assert division.history[0, 0] == 1 and 0 not in division.rows
    divide(division, examined(LOSSES), history=3)
    assert division.history.shape == (2, 10) and np.isfinite(division.clean_probabilities).all()


# ---- Checkpoints ----


def full_division():
    division = CoDivide(range(10))
    for epoch in (3, 4):
        divide(division, examined(LOSSES, [0] * 10, [0, 0, 0, 1, 1] * 2), history=2, epoch=epoch)
    return division


def facts(division):
    arrays = division.rows, division.unlabelled, division.clean_probabilities, division.history
    bits = [(values.dtype, values.shape, values.tobytes()) for values in arrays]
    return *bits, division.epoch, division.purity, division.recall, division.noise_rate, division.mixture_noise_rate


@pytest.mark.parametrize("make", [full_division, lambda: CoDivide(range(10)), lambda: divided(LOSSES)])
def test_a_division_comes_back_bit_for_bit(tmp_path, make):
    division, other = make(), divided(LOSSES[::-1], [0] * 10, [0] * 10, history=2)
    torch.save(division.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert facts(other) == facts(division)
    for each in (division, other):
        divide(each, examined(LOSSES), history=2, epoch=5)
    assert facts(other) == facts(division), "and goes on in the same way"


def tensor(*values, **kind):
    return torch.tensor(values, **kind)


DOUBLE = {"dtype": torch.float64}
TAMPERED = {
    "a row beyond the training set": {"rows": tensor(0, 10)},
    "a negative row": {"rows": tensor(-1, 2)},
    "a row twice": {"rows": tensor(2, 2)},
    "no rows": {"rows": torch.zeros(0).long()},
    "rows in a table": {"rows": tensor([0], [2])},
    "rows as numbers with a point": {"rows": tensor(0.0, 2.0)},
    "rows that are true or false": {"rows": tensor(True, False)},
    "rows as a list": {"rows": [0, 2]},
    "an unlabelled row beyond the training set": {"unlabelled": tensor(1, 10)},
    "a negative unlabelled row": {"unlabelled": tensor(-1, 1)},
    "an unlabelled row twice": {"unlabelled": tensor(1, 1)},
    "unlabelled rows in a table": {"unlabelled": tensor([1], [3])},
    "one unlabelled row and no list": {"unlabelled": torch.tensor(1)},
    "unlabelled rows as numbers with a point": {"unlabelled": tensor(1.0, 3.0)},
    "unlabelled rows that are true or false": {"unlabelled": tensor(True, False)},
    "too many unlabelled rows": {"unlabelled": torch.arange(11)},
    "a row that is labelled and unlabelled": {"unlabelled": tensor(0, 1, 3)},
    "unlabelled rows as a list": {"unlabelled": [1, 3]},
    "too few probabilities": {"clean_probabilities": torch.zeros(9, **DOUBLE)},
    "probabilities in a table": {"clean_probabilities": torch.zeros(1, 10, **DOUBLE)},
    "probabilities in float32": {"clean_probabilities": torch.zeros(10)},
    "a probability that is NaN": {"clean_probabilities": tensor(NAN, *[0.5] * 9, **DOUBLE)},
    "a probability above 1": {"clean_probabilities": tensor(1.5, *[0.5] * 9, **DOUBLE)},
    "a negative probability": {"clean_probabilities": tensor(-0.5, *[0.5] * 9, **DOUBLE)},
    "probabilities that are none": {"clean_probabilities": None},
    "a history of other data": {"history": torch.zeros(2, 9, **DOUBLE)},
    "a history of one dimension": {"history": torch.zeros(10, **DOUBLE)},
    "a history in float32": {"history": torch.zeros(2, 10)},
    "a history with NaN": {"history": torch.full((1, 10), NAN, **DOUBLE)},
    "a history without end": {"history": torch.full((1, 10), INF, **DOUBLE)},
    "a history above 1": {"history": torch.full((1, 10), 1.5, **DOUBLE)},
    "a negative history": {"history": torch.full((1, 10), -0.5, **DOUBLE)},
    "a noise rate above 1": {"noise_rate": 1.5},
    "a negative noise rate": {"noise_rate": -0.1},
    "a noise rate that is NaN": {"noise_rate": NAN},
    "a noise rate that is a tensor": {"noise_rate": torch.tensor(0.5)},
    "a noise rate that is true": {"noise_rate": True},
    "a recall above 1": {"recall": 1.5},
    "a recall that is NaN": {"recall": NAN},
    "a recall that is a word": {"recall": "0.5"},
    "a purity above 1": {"purity": 1.5},
    "a purity that is NaN": {"purity": NAN},
    "an epoch before all": {"epoch": -2},
    "an epoch with a point": {"epoch": 1.0},
    "something more": {"more": 1},
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_tampered_division_is_refused_and_nothing_changes(change):
    division = full_division()
    before = facts(division)
    state = {**divided(LOSSES[::-1]).state_dict(), "rows": tensor(0, 2), "unlabelled": tensor(1, 3)}
    refused("the division has", division.load_state_dict, {**state, **change})
    assert facts(division) == before
    division.load_state_dict(state)
    assert division.rows.tolist() == [0, 2], "and it was that alone"


@pytest.mark.parametrize("name", full_division().state_dict())
def test_a_division_that_lacks_something_is_refused_and_nothing_changes(name):
    division, state = full_division(), divided(LOSSES[::-1]).state_dict()
    before = facts(division)
    del state[name]
    refused("division|pseudo-clean set", division.load_state_dict, state)
    assert facts(division) == before


@pytest.mark.parametrize(
    "state",
    [None, [], 3, {"rows": torch.arange(3), "epoch": 1, "purity": None}],
    ids=["none", "list", "number", "choice"],
)
def test_what_is_no_division_is_refused(state):
    refused("the division (is no dict|lacks the key)", CoDivide(range(10)).load_state_dict, state)


def test_values_that_carry_a_gradient_are_taken_as_values():
    division, state = CoDivide(range(10)), full_division().state_dict()
    expected = full_division()
    division.load_state_dict({**state, "clean_probabilities": state["clean_probabilities"].requires_grad_()})
    assert facts(division) == facts(expected)


# ---- Parts ----


def test_a_part_is_the_examples_of_its_rows_each_with_its_probability():
    part = Part("abcdef", np.array([4, 1]), array(0, 0.25, 0, 0, 0.75, 0))
    assert len(part) == 2 and [part[0], part[1]] == [("e", 0.75), ("b", 0.25)]
    assert part.__getitems__([1, 0]) == [("b", 0.25), ("e", 0.75)]


def test_a_part_fetches_a_batch_at_once_where_the_training_set_can():
    class Table(list):
        def __getitems__(self, rows):
            assert all(type(row) is int for row in rows)
            return [f"{self[row]} at once" for row in rows]

    part = Part(Table("abc"), np.array([2, 0]), array(0.5, 0, 1))
    assert part.__getitems__([0, 1]) == [("c at once", 1.0), ("a at once", 0.5)]


def test_a_batch_of_a_part_is_the_collated_examples_and_their_probabilities():
    def collate(examples):
        return {"labels": torch.tensor([example["labels"] for example in examples])}

    batch = collated(collate, [({"labels": 3}, 0.25), ({"labels": 1}, 1.0)])
    assert batch.keys() == {"labels", "clean_probability"} and batch["labels"].tolist() == [3, 1]
    assert batch["clean_probability"].dtype == torch.float32 and batch["clean_probability"].tolist() == [0.25, 1]


# ---- The noise rate by the surest predictions ----


def test_the_surest_predictions_of_a_class_tell_its_share_of_right_labels():
    """By hand: of class 0 probabilities 0.5, 0.6, …, 1.0, whose 80 % quantile is 0.9; of class 1 always 0.7."""
    largest = [0.5 + 0.1 * step for step in range(6)]
    probabilities = np.array([[p, 1 - p] for p in largest] + [[0.3, 0.7]] * 2)
    assert noise_rate_by_anchors(probabilities) == pytest.approx(1 - (6 * 0.9 + 2 * 0.7) / 8)


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.4, 0.8])
def test_calibrated_probabilities_have_the_noise_rate_keep_their_order_and_multiply_odds_alike(rate):
    c = np.sort(np.random.default_rng(0).beta(0.3, 0.2, 500))
    found = with_noise_rate(c, rate)
    assert (1 - found).mean() == pytest.approx(rate, abs=1e-9)
    assert (np.diff(found) >= 0).all() and ((found >= 0) & (found <= 1)).all()
    inner = (c > 1e-6) & (c < 1 - 1e-6) & (found > 1e-6) & (found < 1 - 1e-6)
    factors = found[inner] / (1 - found[inner]) / (c[inner] / (1 - c[inner]))
    assert inner.sum() > 100 and np.ptp(np.log(factors)) < 1e-6


def test_certainties_and_rates_that_can_not_be_reached_stay_finite():
    c = np.array([0.0, 0.0, 1e-300, 0.5, 1.0])
    for rate in (0.0, 0.1, 1.0):
        found = with_noise_rate(c, rate)
        assert np.isfinite(found).all() and (found[:2] == 0).all()


@pytest.mark.parametrize(
    ("sure", "expected"),
    [(0.95, 0.0), (0.88, 0.15), (0.83, 0.2), (0.7, 0.3), (0.3, 0.5)],
    ids=[
        "none to tell",
        "a quarter more at most",
        "as the mixture says",
        "more than the mixture says",
        "too little is learned",
    ],
)
def test_the_share_of_wrong_labels_is_held_near_the_estimate(sure, expected):
    """The mixture says 20 %; the estimate 1 − sure; a rate below a tenth counts as none, beyond a half as a half."""
    generator = np.random.default_rng(0)
    losses = np.concatenate([generator.normal(0.3, 0.1, 80), generator.normal(1.2, 0.15, 20)])
    labels = np.arange(100) % 4
    probabilities = np.full((100, 4), (1 - sure) / 3)
    probabilities[np.arange(100), labels] = sure
    division = CoDivide([None] * 100)
    division.divide(PerExample(labels, losses, probabilities, None, None), None, batch_size=4, threshold=0.5, history=1,
                    is_calibrated=True, seed=0, epoch=1)  # fmt: skip
    assert division.mixture_noise_rate == pytest.approx(0.2, abs=0.01)
    assert division.noise_rate == pytest.approx(1 - sure)
    assert (1 - division.clean_probabilities).mean() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("seed", range(6))
def test_a_noise_rate_of_about_none_leaves_out_one_batch_alone(seed):
    """Calibrated to zero, all c may round to exactly 1; that is no mixture that tells nothing."""
    generator = np.random.default_rng(seed)
    losses, probabilities = generator.exponential(0.1, 1000 + seed), np.tile([0.97, 0.03], (1000 + seed, 1))
    found = PerExample(np.zeros(len(losses), int), losses.astype(np.float32), probabilities, None, None)
    division = CoDivide(range(len(losses)))
    division.divide(found, None, batch_size=50, threshold=0.5, history=1, is_calibrated=True, seed=0, epoch=0)
    assert len(division.unlabelled) == 50


def test_predictions_that_are_not_finite_say_nothing_of_the_noise_rate():
    sound = np.tile([0.6, 0.4], (20, 1))
    assert noise_rate_by_anchors(np.concatenate([sound, [[NAN, NAN]]])) == pytest.approx(0.4)
    assert noise_rate_by_anchors(np.full((3, 2), NAN)) == 1
