"""Iterative noisy cross-validation: its formulas by brute force, its turns by hand; Co-teaching on what it selects."""

import math

import numpy as np
import pytest
import torch

from famus_hf.core.cross_validation import (
    OPEN,
    NoisyCrossValidation,
    noise_rate_by_agreement,
    wrong_share_of_selected,
)
from famus_hf.core.losses import CrossEntropyLoss
from famus_hf.core.pair_methods.base import PairBatch
from famus_hf.core.pair_methods.incv import INCV

# ---- Formulas ----


def agreement_and_wrong(rate, classes):
    """How often prediction and label of an example agree, and do so wrongly, over all pairs of them."""

    def probability(shown):  # of class 0 being called `shown`
        return 1 - rate if shown == 0 else rate / (classes - 1)

    pairs = [(p, q) for p in range(classes) for q in range(classes)]
    agree = sum(probability(p) * probability(q) for p, q in pairs if p == q)
    return agree, sum(probability(p) * probability(q) for p, q in pairs if p == q != 0)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2, 0.4])
def test_the_noise_rate_is_that_of_labels_which_are_predicted_as_often(rate, classes):
    agreement, wrong = agreement_and_wrong(rate, classes)
    assert noise_rate_by_agreement(agreement, classes) == pytest.approx(rate, abs=1e-7)
    assert wrong_share_of_selected(rate, classes) == pytest.approx(wrong / agreement, rel=1e-12)


@pytest.mark.parametrize(("agreement", "classes"), [(0.9, 10), (0.35, 4), (0.25, 4), (0.1, 4), (0.55, 2), (0.0, 2)])
def test_it_is_the_smallest_rate_with_no_more_agreement_and_else_that_of_chance(agreement, classes):
    rates = np.linspace(0, 1, 100_001)
    enough = rates[(1 - rates) ** 2 + rates**2 / (classes - 1) <= agreement + 1e-9]
    expected = enough[0] if len(enough) else (classes - 1) / classes
    assert noise_rate_by_agreement(agreement, classes) == pytest.approx(expected, abs=1e-4)


# ---- Turns ----


def test_the_halves_of_a_round_change_places_and_what_is_selected_in_it_joins_the_next():
    own = NoisyCrossValidation(10, rounds=2, drop=0.5, seed=3)
    learned, judged = own.halves()
    assert sorted([*learned, *judged]) == list(range(10)) and len(learned) == 5
    own.take(np.array([True, True, False, False, False]), np.array([0.0, 0.1, 2.0, 5.0, 1.0]))
    chosen, dropped = judged[:2], judged[3:4]  # the largest loss, one for two that are selected
    assert own.rows.tolist() == chosen.tolist() and (own.settled_at[dropped] == 0).all()
    assert [half.tolist() for half in own.halves()] == [judged.tolist(), learned.tolist()], "none of them joins yet"
    own.take(np.array([False, True, True, True, True]), np.array([math.nan, 9.0, 9.0, 9.0, 9.0]))
    assert sorted(own.rows) == sorted([*chosen, *learned[1:]]) and own.settled_at[learned[0]] == 1
    open_ones = np.flatnonzero(own.settled_at == OPEN)
    assert len(open_ones) == 2 and own.turn == 2 and (own.judged, own.agreed) == (10, 6)
    assert own.noise_rate(4) == noise_rate_by_agreement(0.6, 4)
    learned, judged = own.halves()
    assert sorted([*learned, *judged]) == sorted([*own.rows, *open_ones]) and len(judged) == 1
    assert set(own.rows) < set(learned) and not set(dropped) & {*learned, *judged}
    own.take(np.array([True]), np.array([0.0]))
    assert own.halves()[1].tolist() == [row for row in open_ones if row not in judged], "by the round's candidates"
    own.take(np.array([False]), np.array([0.0]))
    assert own.is_over and own.noise_rate(4) == noise_rate_by_agreement(0.6, 4), "the first round alone tells it"


def test_it_ends_early_where_nothing_is_left_to_be_halved():
    own = NoisyCrossValidation(6, rounds=9, drop=0.0, seed=0)
    for _ in range(2):
        assert not own.is_over
        own.take(np.full(3, True), np.zeros(3), np.array([True, False, True]))
    assert own.is_over and len(own.rows) == 6 and own.precision == pytest.approx(4 / 6)


def test_what_was_saved_goes_on_as_it_would_have():
    def judge(own, turns):
        for _ in range(turns):
            judged = own.halves()[1]
            own.take(judged % 3 == own.turn % 3, np.sin(judged), judged % 2 == 0)

    whole, first, again = (NoisyCrossValidation(40, 3, 0.4, seed=7) for _ in range(3))
    judge(whole, 6)
    judge(first, 3)
    again.load_state_dict(first.state_dict())
    judge(again, 3)
    for name, value in whole.state_dict().items():
        assert torch.equal(torch.as_tensor(again.state_dict()[name]), torch.as_tensor(value)), name


# ---- Co-teaching on the selected ----


def test_as_many_are_left_out_as_are_wrong_among_the_selected():
    right = torch.linspace(0.95, 0.05, 10, dtype=torch.float64)
    logits = torch.stack([right, 1 - right], 1).log()
    batch = PairBatch((logits, logits.flip(0)), torch.zeros(10, dtype=torch.long), CrossEntropyLoss(), 0.4)
    loss, weights = INCV().training_loss(batch)
    kept = round(10 * (1 - 0.16 / (0.36 + 0.16)))  # of ε = 0.4 and two classes
    assert kept == 7 and (weights > 0).sum(1).tolist() == [kept, kept]
    assert (weights > 0).tolist() == [[False] * 3 + [True] * 7, [True] * 7 + [False] * 3]
    assert loss.item() == pytest.approx(2 * sum(-math.log(p) for p in right[3:].tolist()) / kept, rel=1e-12)
