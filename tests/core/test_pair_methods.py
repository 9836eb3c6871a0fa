"""Co-teaching, JoCoR and Decoupling: their formulas by hand on tiny tensors."""

import math

import pytest
import torch

from famus_hf.core.losses import CrossEntropyLoss
from famus_hf.core.pair_methods.base import EveryExample, PairBatch, smallest
from famus_hf.core.pair_methods.co_teaching import CoTeaching
from famus_hf.core.pair_methods.decoupling import Decoupling
from famus_hf.core.pair_methods.jocor import JoCoR

# Of two classes by two networks, for each of five examples; all are labelled 0.
P = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]]
Q = [[0.4, 0.6], [0.7, 0.3], [0.1, 0.9], [0.25, 0.75], [0.95, 0.05]]


def batch(forget_rate=0.0, p=P, q=Q):
    logits = tuple(torch.tensor(rows, dtype=torch.float64).log().requires_grad_() for rows in (p, q))
    return PairBatch(logits, torch.zeros(len(p), dtype=torch.long), CrossEntropyLoss(), forget_rate)


def nll(rows, chosen):
    return sum(-math.log(rows[place][0]) for place in chosen)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_a_warm_up_takes_all_examples_of_both():
    loss, weights = EveryExample().training_loss(batch())
    assert loss.item() == pytest.approx((nll(P, range(5)) + nll(Q, range(5))) / 5)
    assert weights.tolist() == [[0.2] * 5] * 2


def test_co_teaching_gives_each_network_the_smallest_losses_of_the_other():
    given = batch(forget_rate=0.4)
    loss, weights = CoTeaching().training_loss(given)
    easy_for_first, easy_for_second = (0, 4, 2), (4, 1, 0)
    assert loss.item() == pytest.approx((nll(P, easy_for_second) + nll(Q, easy_for_first)) / 3, rel=1e-12)
    assert (weights > 0).tolist() == [[place in own for place in range(5)] for own in (easy_for_second, easy_for_first)]
    loss.backward()
    for logits, rows, own in zip(given.logits, (P, Q), (easy_for_second, easy_for_first), strict=True):
        expected = [[(p0 - 1) / 3, p1 / 3] if row in own else [0, 0] for row, (p0, p1) in enumerate(rows)]
        torch.testing.assert_close(logits.grad, torch.tensor(expected, dtype=torch.float64))


def test_jocor_takes_the_smallest_joint_losses_of_both():
    given, share = batch(forget_rate=0.6), 0.9
    joint = [
        (1 - share) * (-math.log(p[0]) - math.log(q[0])) + share * (kl(p, q) + kl(q, p))
        for p, q in zip(P, Q, strict=True)
    ]
    chosen = sorted(range(5), key=joint.__getitem__)[:2]
    loss, weights = JoCoR(share).training_loss(given)
    assert set(chosen) == {3, 4}  # on which the two agree, one of them against the label
    assert loss.item() == pytest.approx(sum(joint[place] for place in chosen) / 2, rel=1e-12)
    assert (weights > 0).tolist() == [[place in chosen for place in range(5)]]
    loss.backward()  # so that both move
    assert all((logits.grad.abs().sum(1) > 0).tolist() == [place in chosen for place in range(5)]
               for logits in given.logits)  # fmt: skip


def test_decoupling_takes_what_the_two_disagree_on():
    loss, weights = Decoupling().training_loss(batch())
    assert loss.item() == pytest.approx((nll(P, (0, 1, 2)) + nll(Q, (0, 1, 2))) / 3, rel=1e-12)
    assert (weights > 0).tolist() == [[True, True, True, False, False]] * 2


def test_one_disagreement_of_many_counts_for_a_tenth_of_the_batch_and_none_for_nothing():
    p, q = [[0.9, 0.1]] * 40, [[0.4, 0.6], *[[0.8, 0.2]] * 39]
    loss, _ = Decoupling().training_loss(batch(p=p, q=q))
    assert loss.item() == pytest.approx((nll(p, (0,)) + nll(q, (0,))) / 4, rel=1e-12)
    given = batch(p=p, q=p)
    loss, weights = Decoupling().training_loss(given)
    loss.backward()
    assert loss.item() == 0 == weights.sum() and all(not logits.grad.any() for logits in given.logits)


def test_what_is_left_out_are_the_largest_losses_and_those_that_are_not_finite():
    losses = torch.tensor([[3.0, math.nan, 1.0, math.inf, 2.0]])
    assert smallest(losses, 0.4).tolist() == [pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3])]
    assert smallest(losses, 0.99).tolist() == [[0, 0, 1, 0, 0]]
    assert smallest(losses, 0.0).tolist() == [pytest.approx([0.2] * 5)]
    p = [[0.9, 0.1], [0.0, 1.0], [0.6, 0.4]]  # an infinite loss
    loss, _ = CoTeaching().training_loss(batch(0.3, p=p, q=p))
    assert loss.item() == pytest.approx(2 * nll(p, (0, 2)) / 2)
