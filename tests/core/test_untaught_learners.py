"""MentorMix, D2L and LCCN, which no meta set teaches: by hand in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from famus_hf import LabelledBatch
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners import d2l
from famus_hf.core.meta_learners.d2l import D2L, local_dimensions, mean_local_dimension
from famus_hf.core.meta_learners.lccn import LCCN
from famus_hf.core.meta_learners.mentor_mix import MentorMix

CLASSES = 3


def drawn(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, CLASSES, generator=generator).double(), torch.arange(count) % CLASSES


# ---- MentorMix ----


def test_a_mentor_prefers_partners_of_small_losses_and_gives_the_others_the_smaller_share():
    learner, losses = MentorMix(0.5).double(), torch.tensor([0.5, 3.0, 0.1, 9.0]).double()
    shares, generator = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.Generator().manual_seed(0)
    found = [learner.mixture(losses, shares, generator) for _ in range(3000)]
    for _, share in found[:1]:
        assert share.tolist() == pytest.approx([0.9, 0.2, 0.7, 0.4])  # v = 1, 0, 1, 0, as m = 1.75
    partners = torch.cat([partner for partner, _ in found]).bincount(minlength=4) / (4 * 3000)
    expected = [math.e / (2 * math.e + 2), 1 / (2 * math.e + 2)] * 2
    assert partners.tolist() == pytest.approx(expected, abs=0.015)
    assert learner.raw_weights(torch.tensor([1.7, 1.8])).tolist() == [1, 0]
    assert learner.threshold.isinf(), "which is of the mixed examples"


def test_mixed_examples_are_judged_again_by_a_threshold_of_their_own():
    learner, (logits, labels) = MentorMix(0.5, 0.5).double(), drawn(4)
    learner.mixture(torch.tensor([10.0, 20.0]).double(), torch.ones(2), torch.Generator())
    partner, share = torch.tensor([1, 0, 0, 2]), torch.tensor([0.9, 0.2, 0.7, 0.4]).double()
    mixed = LabelledBatch(logits, labels, cross_entropy, mixture=(partner, share))
    log_p = logits.log_softmax(1)
    losses = [
        -(s * log_p[i, labels[i]] + (1 - s) * log_p[i, labels[j]])
        for i, (j, s) in enumerate(zip(partner.tolist(), share.tolist(), strict=True))
    ]
    middle = np.sort(losses)[1:3].mean()
    torch.testing.assert_close(learner.training_loss(mixed), sum(sorted(losses)[:2]) / 4)
    assert learner.threshold.item() == pytest.approx(middle, rel=1e-6)
    assert learner.unmixed_threshold.item() == pytest.approx(15)
    learner.follow(learner.unmixed_threshold, torch.tensor([5.0, 5.0]))
    assert learner.unmixed_threshold.item() == pytest.approx(10)
    learner.follow(learner.unmixed_threshold, torch.tensor([5.0, math.nan]))
    assert learner.unmixed_threshold.item() == pytest.approx(10), "a batch that is not finite tells nothing"


# ---- D2L ----


def dimension_by_hand(points, i, k):
    distances = sorted(d for d in (math.dist(points[i], other) for other in points) if d > 0)[:k]
    return -k / sum(math.log(d / distances[-1]) for d in distances)


def test_local_dimensions_by_hand_copies_left_out():
    points = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()
    points[7] = points[2]
    expected = [dimension_by_hand(points.tolist(), i, 4) for i in range(12)]
    np.testing.assert_allclose(local_dimensions(points, 4), expected, rtol=1e-10)


def test_points_of_a_line_a_plane_and_a_room_have_about_as_many_dimensions():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3):
        flat = torch.rand(1280, count, generator=generator).double()
        turned = flat @ torch.linalg.qr(torch.randn(9, count, generator=generator).double())[0].T
        assert mean_local_dimension(turned) == pytest.approx(count, rel=0.2)


def test_the_mean_dimension_is_of_whole_groups_and_nan_of_points_that_are_all_alike():
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(1)).double()
    groups = [local_dimensions(group, 20) for group in (points[:128], points[128:256])]
    assert mean_local_dimension(points) == pytest.approx(torch.cat(groups).mean().item())
    assert mean_local_dimension(points[:9]) == pytest.approx(local_dimensions(points[:9], 8).mean().item())
    assert math.isnan(mean_local_dimension(torch.ones(30, 2))) and math.isnan(mean_local_dimension(points[:1]))


def shown(learner, dimensions, plain=0, epochs=20):
    """What a learner answers to these dimensions, epoch by epoch."""
    return [
        learner.observe_features(torch.tensor(dimension), (t + 1) / epochs, t < plain)
        for t, dimension in enumerate(dimensions)
    ]


@pytest.fixture
def told(monkeypatch):
    """Has features be dimensions."""
    monkeypatch.setattr(d2l, "mean_local_dimension", float)


FALLS_AND_RISES = [8.0, 6.0, 5.0, 5.2, 5.1, 5.3, 5.2, 9.0, 6.0]


def test_the_turning_point_stands_out_of_the_five_epochs_before(told):
    learner = D2L().double()
    assert learner.may_go_back
    window = np.array(FALLS_AND_RISES[2:7])
    assert FALLS_AND_RISES[7] > window.mean() + 2 * window.std() > FALLS_AND_RISES[6]
    assert shown(learner, FALLS_AND_RISES[:8]) == [False] * 7 + [True]
    assert not learner.may_go_back
    assert learner.label_share.item() == pytest.approx(math.exp(-8 / 20 * 9 / 5))
    assert not learner.observe_features(torch.tensor(6.0), 9 / 20, False), "there is one such point"
    assert learner.label_share.item() == pytest.approx(math.exp(-9 / 20 * 6 / 5))
    assert learner.notes() == {"local_dimension": 6.0, "label_share": pytest.approx(math.exp(-9 / 20 * 6 / 5))}


def test_no_epoch_turns_in_the_plain_part_among_the_first_five_or_within_two_deviations(told):
    assert not any(shown(D2L(), FALLS_AND_RISES, plain=8))
    assert not any(shown(D2L(), [1.0, 1.1, 1.0, 1.1, 9.0]))
    window = np.array(FALLS_AND_RISES[2:7])
    for deviations, turns in ((1.9, False), (2.1, True)):
        dimensions = [*FALLS_AND_RISES[:7], window.mean() + deviations * window.std()]
        assert shown(D2L().double(), dimensions)[-1] == turns
    learner = D2L()
    shown(learner, [5.0, math.nan, math.inf])
    assert learner.smallest == 5 and learner.recent.count_nonzero() == 1, "what is no number tells nothing"


def test_targets_of_d2l_by_hand(told):
    learner, (logits, labels) = D2L().double(), drawn(4)
    plain = LabelledBatch(logits, labels, cross_entropy)
    torch.testing.assert_close(learner.training_loss(plain), F.cross_entropy(logits, labels))
    shown(learner, FALLS_AND_RISES[:8])
    a, log_p = math.exp(-8 / 20 * 9 / 5), logits.log_softmax(1)
    own = logits.argmax(1)
    assert (own != labels).any()
    of_label, of_own = -log_p[range(4), labels], -log_p[range(4), own]
    torch.testing.assert_close(learner.training_loss(plain), (a * of_label + (1 - a) * of_own).mean())
    trusted = LabelledBatch(logits, labels, cross_entropy, is_trusted=torch.tensor([True, False, True, False]))
    expected = torch.where(trusted.is_trusted, of_label, a * of_label + (1 - a) * of_own).mean()
    torch.testing.assert_close(learner.training_loss(trusted), expected)
    partner, share = torch.tensor([1, 2, 3, 0]), torch.tensor([0.5, 0.6, 0.7, 0.8]).double()
    mixed = LabelledBatch(logits, labels, cross_entropy, mixture=(partner, share))
    of_both = share * of_label + (1 - share) * -log_p[range(4), labels[partner]]
    torch.testing.assert_close(learner.training_loss(mixed), (a * of_both + (1 - a) * of_own).mean())


# ---- LCCN ----


def counts_by_hand(learner, labels, left_out=None):
    """N_zy over the examples that have come by, but for one."""
    counts = np.zeros((CLASSES, CLASSES))
    for row, z in enumerate(learner.latent.tolist()):
        if z >= 0 and row != left_out:
            counts[z, labels[row]] += 1
    return counts


def chances_by_hand(learner, p, labels, row):
    counts = counts_by_hand(learner, labels, row)
    chances = [
        p[z] * (learner.prior + counts[z, labels[row]]) / (CLASSES * learner.prior + counts[z].sum())
        for z in range(CLASSES)
    ]
    return np.array(chances) / sum(chances)


@pytest.fixture
def sampled():
    """A learner of 20 examples that have all come by, their labels, and predictions."""
    learner = LCCN(CLASSES, 20, prior=0.5).double()
    logits, labels = drawn(20, 3)
    learner.draw(torch.arange(20), logits.softmax(1), labels)
    return learner, logits, labels


def test_latent_classes_are_drawn_by_the_counts_of_all_other_examples(sampled):
    learner, logits, labels = sampled
    for row in (3, 11):
        p, copies = logits[row].softmax(0), torch.full((20_000,), row)
        expected = chances_by_hand(learner, p.tolist(), labels.tolist(), row)
        found = learner.draw(copies, p.expand(len(copies), -1), labels[copies])
        assert (found.bincount(minlength=CLASSES) / len(copies)).tolist() == pytest.approx(expected.tolist(), abs=0.01)
    again = LCCN(CLASSES, 20, prior=0.5)
    again.load_state_dict(learner.state_dict())
    drawn_again = [each.draw(copies, p.expand(len(copies), -1), labels[copies]) for each in (learner, again)]
    assert torch.equal(*drawn_again), "a function of seed and batches before"


def test_counts_follow_latent_classes_and_trusted_examples_and_copies_are_counted_no_more(sampled):
    learner, logits, labels = sampled
    for rows in ([5, 1, 9], [5, 5, 2], [4, 20, 23]):
        given = torch.tensor([labels[row] if row < 20 else 0 for row in rows])
        learner.draw(torch.tensor(rows), logits[:3].softmax(1), given)
        np.testing.assert_array_equal(learner.counts, counts_by_hand(learner, labels.tolist()))
        assert learner.counts.sum() == 20
    assert learner.draws == 4
    learner.observe_beliefs(logits.softmax(1), labels)
    assert learner.counts.sum() == 0 and (learner.latent == -1).all(), "of other data, perhaps"


def test_the_loss_is_of_the_latent_classes_and_of_a_trusted_example_of_its_label(sampled):
    learner, logits, labels = sampled
    learner.is_counted.fill_(1)
    rows = torch.tensor([0, 1, 2, 20])
    trusted = LabelledBatch(logits[:4], labels[:4], cross_entropy, is_trusted=rows >= 20, rows=rows)
    loss = learner.training_loss(trusted)
    classes = [*learner.latent[:3].tolist(), int(labels[3])]
    torch.testing.assert_close(loss, F.cross_entropy(logits[:4], torch.tensor(classes)))


def test_the_first_draws_are_by_transitions_of_the_plain_part():
    """Label 1 comes of class 0 alone, whatever the network thinks."""
    learner, matrix = LCCN(CLASSES, 500).double(), torch.tensor([[0.2, 0.8, 0], [0, 0, 1.0], [0.5, 0, 0.5]]).double()
    batch = LabelledBatch(torch.zeros(2, 3).double(), torch.tensor([1, 1]), cross_entropy, rows=torch.tensor([0, 1]))
    torch.testing.assert_close(learner.training_loss(batch), batch.losses.mean(), msg="plain before they are counted")
    learner.set_transitions(matrix)
    rows, p = torch.arange(500), torch.tensor([[0.1, 0.6, 0.3]]).double().expand(500, 3)
    labels = torch.tensor([1] * 250 + [2] * 250)
    found = learner.draw(rows, p, labels)
    assert (found[:250] == 0).all()
    chances = torch.tensor([0.0, 0.6 * 1, 0.3 * 0.5])
    expected = (chances / chances.sum()).tolist()
    assert (found[250:].bincount(minlength=3) / 250).tolist() == pytest.approx(expected, abs=0.06)
    posteriors = learner.label_posteriors(p[:1], labels[:1], torch.zeros(1))
    counts = learner.counts.double() + 1
    joint = p[0] * counts[:, 1] / counts.sum(1)
    torch.testing.assert_close(posteriors[0], joint / joint.sum())


@pytest.mark.parametrize("settings", [{"num_examples": 0}, {"prior": 0.0}, {"prior": math.inf}, {"num_labels": 1}])
def test_numbers_of_lccn_that_are_none_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        LCCN(**{"num_labels": 3, "num_examples": 5, **settings})
