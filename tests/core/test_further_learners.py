"""Soft targets, L2B, class-balanced residuals, gold transitions: by hand, and by double backward in float64."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch.nn import functional as F

from famus_hf import (
    L2B,
    BackwardCorrection,
    ClassBalancedResidual,
    ForwardCorrection,
    LabelledBatch,
    SoftTargets,
    meta_gradient,
)
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners import label_noise
from famus_hf.core.meta_learners.label_noise import transitions_of_anchors
from famus_hf.core.meta_learners.m_correction import MCorrection, fit_beta_mixture
from famus_hf.core.meta_learners.mentor_net import MentorNet
from famus_hf.core.meta_learners.soft import class_groups
from tests.helpers import brute_force
from tests.helpers.models import CLASSES, build_batch, build_model

COUNTS = [40, 4, 12, 1]


def beliefs(count):
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(7)).double().softmax(1)


def moved(learner):
    """The learner, in float64 and away from its start."""
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in learner.double().parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return learner


def drawn(count=8):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(count, CLASSES, generator=generator).double(), torch.arange(count) % CLASSES


def batch_of(count=8, **described):
    return LabelledBatch(*drawn(count), cross_entropy, beliefs(count), **described)


def soft_loss_by_hand(learner, q):
    """J: logits, labels → scalar, example by example, with a graph to θ."""

    def loss(logits, labels):
        total = 0
        for example, label in enumerate(labels.tolist()):
            log_p = logits[example].log_softmax(0)
            features = [-log_p[label].detach()]
            if learner.features == "beliefs":
                own = q[example]
                features += [-own[label].log(), own.max(), -(own * own.log()).sum()]
            outputs = learner.output(torch.relu(learner.hidden(torch.stack(features))))
            v = torch.sigmoid(outputs[0 if learner.class_groups is None else learner.class_groups[label]])
            total = total + v * -log_p[label] + (1 - v) * -(q[example] * log_p).sum()
        return total / len(labels)

    return loss


def compared(kind, learner, theta, loss, q=None, expected_of=dict):
    """Compare `meta_gradient` with double backward, through all layers and some."""
    model, train, meta = build_model(kind), build_batch(kind, 6, seed=1), build_batch(kind, 5, seed=2)
    names = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    for layers in (None, names[-2:], names[1:3]):
        found = meta_gradient(model, learner, train, meta, learning_rate=0.5, layers=layers, beliefs=q)
        expected = expected_of(brute_force.gradient_of(theta, model, loss, train, meta, 0.5, layers))
        assert found.keys() == expected.keys() and torch.cat([v.flatten() for v in expected.values()]).norm() > 0
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["batch norm", "vit"])
@pytest.mark.parametrize("features, groups", [("loss", None), ("beliefs", [0, 1, 1, 2])])
def test_meta_gradient_of_soft_targets_equals_double_backward(features, groups, kind):
    learner, q = moved(SoftTargets(features, groups, hidden_size=8)), beliefs(6)
    compared(kind, learner, dict(learner.named_parameters()), soft_loss_by_hand(learner, q), q)


@pytest.mark.parametrize("kind", ["batch norm", "vit"])
def test_weights_of_l2b_equal_double_backward(kind):
    theta = {name: torch.zeros(6, dtype=torch.float64, requires_grad=True) for name in ("given", "predicted")}

    def loss(logits, labels):  # from zero weights, so that the virtual step moves nothing
        log_p = logits.log_softmax(1)
        of_label, of_own = (-log_p[range(6), classes] for classes in (labels, logits.argmax(1)))
        return (theta["given"] * of_label + theta["predicted"] * of_own).sum()

    def weights(gradient):
        helps = {name: (-value).clamp(min=0) for name, value in gradient.items()}
        return {name: value / sum(each.sum() for each in helps.values()) for name, value in helps.items()}

    compared(kind, L2B(), theta, loss, expected_of=weights)


@pytest.mark.parametrize("kind", ["batch norm", "vit"])
def test_residuals_of_class_balanced_weights_equal_double_backward(kind):
    theta = {"residuals": torch.zeros(6, dtype=torch.float64, requires_grad=True)}
    numbers = [(1 - 0.9**count) / (1 - 0.9) for count in COUNTS]
    prior = torch.tensor([CLASSES / number / sum(1 / each for each in numbers) for number in numbers]).double()
    learner = ClassBalancedResidual(COUNTS, beta=0.9)
    learner.class_weights = prior  # its own are in float32
    torch.testing.assert_close(ClassBalancedResidual(COUNTS, beta=0.9).class_weights, prior.float())

    def loss(logits, labels):
        return ((prior[labels] + theta["residuals"]) * F.cross_entropy(logits, labels, reduction="none")).mean()

    compared(kind, learner, theta, loss, expected_of=lambda g: {"residuals": -0.01 * g["residuals"]})


# ---- Soft targets ----


def test_soft_targets_go_from_the_label_to_the_belief():
    learner, batch = SoftTargets("beliefs").double(), batch_of()
    targets = learner.label_posteriors(batch.beliefs, batch.labels, batch.losses)
    is_other = F.one_hot(batch.labels, CLASSES) == 0
    torch.testing.assert_close(targets[is_other], 0.05 * batch.beliefs[is_other], rtol=0.3, atol=0)
    torch.testing.assert_close(cross_entropy(batch.logits, targets).mean(), learner.training_loss(batch))
    for bias, expected in ((50.0, batch.labels), (-50.0, batch.beliefs)):
        with torch.no_grad():
            learner.output.bias.fill_(bias)
        torch.testing.assert_close(learner.training_loss(batch), F.cross_entropy(batch.logits, expected))


def test_soft_targets_of_trusted_soft_and_mixed_labels():
    learner = moved(SoftTargets("beliefs", [0, 1, 0, 1]))
    batch = batch_of()
    plain, soft = F.cross_entropy(batch.logits, batch.labels), F.one_hot(batch.labels, CLASSES).double()
    trusted = batch_of(is_trusted=torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(learner.training_loss(trusted), plain)
    by_vector = LabelledBatch(batch.logits, soft, cross_entropy, batch.beliefs)
    torch.testing.assert_close(learner.training_loss(by_vector), learner.training_loss(batch))
    partner, losses = torch.arange(8).flip(0), cross_entropy(*drawn())
    mixed = batch_of(mixture=(partner, torch.full((8,), 0.75)), label_losses=losses)
    own = learner.label_posteriors(batch.beliefs, batch.labels, losses)
    expected = cross_entropy(batch.logits, 0.75 * own + 0.25 * own[partner]).mean()
    torch.testing.assert_close(learner.training_loss(mixed), expected)


def test_weights_by_losses_alone_are_told_where_v_is_of_the_loss_alone():
    losses = torch.tensor([0.0, 2.0])
    assert SoftTargets().raw_weights(losses).tolist() == pytest.approx([0.95, 0.95], abs=0.02)
    assert SoftTargets("beliefs").raw_weights(losses) is SoftTargets("loss", [0, 1]).raw_weights(losses) is None


def test_classes_are_grouped_by_the_logarithms_of_their_counts():
    assert class_groups([1000, 9, 90, 1100, 100, 10], 3) == [2, 0, 1, 2, 1, 0]
    assert class_groups([50, 50, 50], 3) == [0, 0, 0] and class_groups([0, 1, 50], 3) == [0, 0, 1]


# ---- L2B ----


def test_l2b_starts_plainly_and_divides_by_the_sum_of_both_weights():
    learner, batch = L2B(), batch_of(4)
    learner.begin_step(batch.logits)
    torch.testing.assert_close(learner.training_loss(batch), F.cross_entropy(batch.logits, batch.labels))
    learner.move({"given": torch.tensor([-3.0, 2, 0, 0]), "predicted": torch.tensor([1.0, -1, 0, -4])}, None)
    assert learner.given.tolist() == [0.375, 0, 0, 0] and learner.predicted.tolist() == [0, 0.125, 0, 0.5]
    of_label, of_own = batch.losses, -batch.logits.log_softmax(1).max(1).values
    expected = 0.375 * of_label[0] + 0.125 * of_own[1] + 0.5 * of_own[3]
    torch.testing.assert_close(learner.training_loss(batch), expected)
    trusted = batch_of(4, is_trusted=torch.tensor([False, True, False, False]))
    changed = 0.375 * of_label[0] + 0.125 * of_label[1] + 0.5 * of_own[3]
    assert batch.logits[1].argmax() != batch.labels[1]
    torch.testing.assert_close(learner.training_loss(trusted), changed)


# ---- Class-balanced residuals ----


def test_a_mixed_example_has_the_class_weights_of_both_labels():
    learner, partner = ClassBalancedResidual(COUNTS), torch.arange(8).flip(0)
    mixed = batch_of(mixture=(partner, torch.full((8,), 0.75)))
    learner.begin_step(mixed.logits)
    learner.move({"residuals": 100 * torch.arange(8.0)}, None)
    of_labels = learner.class_weights[mixed.labels]
    weights = 0.75 * of_labels + 0.25 * of_labels[partner] - torch.arange(8.0)
    assert weights.min() < 0, "nothing is clamped"
    torch.testing.assert_close(learner.training_loss(mixed), (weights * mixed.losses).mean())


@pytest.mark.parametrize("counts, words", [([3, -1], "at least 0"), ([0, 0], "all zero"), ([2.5, 1], "whole number")])
def test_counts_that_are_none_are_refused(counts, words):
    with pytest.raises(ValueError, match=words):
        ClassBalancedResidual(counts)


# ---- Corrections by transitions ----


def test_gold_transitions_are_mean_predictions_of_trusted_examples():
    learner = ForwardCorrection(3, "trusted").double()
    predictions = torch.tensor([[0.9, 0.1, 0.0], [0.7, 0.1, 0.2], [0.5, 0.4, 0.1]]).double()
    learner.observe_beliefs(predictions, torch.tensor([0, 0, 1]))
    assert learner.stays.tolist() == pytest.approx([0.8, 0.4, 1.0]), "of class 2 nothing is known"
    logits, labels = torch.randn(2, 3).double(), torch.tensor([1, 2])
    transitions = torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.4, 0.1], [0, 0, 1]]).double()
    expected = -(logits.softmax(1) @ transitions)[[0, 1], labels].log().mean()
    torch.testing.assert_close(learner.training_loss(LabelledBatch(logits, labels, cross_entropy)), expected)


def test_calibrated_transitions_are_those_of_the_labels_and_not_the_mistakes_of_the_network():
    """It takes a third of class 2 for class 1; labels of class 0 go wrong, to class 1, one in four."""
    rng = np.random.default_rng(0)
    mistakes = np.array([[0.95, 0.05, 0], [0.02, 0.93, 0.05], [0, 0.35, 0.65]])
    wrong = np.array([[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1]])

    def drawn(true, of_class):
        return torch.tensor([rng.choice(3, p=of_class[k]) for k in true])

    def beliefs_of(true):
        return 0.7 * torch.eye(3, dtype=torch.float64)[drawn(true, mistakes)] + 0.1

    true, trusted = rng.integers(3, size=6000), np.arange(600) % 3
    beliefs, labels, by_trusted = beliefs_of(true), drawn(true, wrong), (beliefs_of(trusted), torch.tensor(trusted))
    too_few = by_trusted[0][:14], by_trusted[1][:14]
    counted = [0.734, 0.709, 0.929]  # of each class the share of its label, among what is taken for it
    for source, others, expected in (
        ("calibrated", by_trusted, [0.75, 1, 1]), ("counts", by_trusted, counted), ("calibrated", too_few, counted)
    ):  # fmt: skip
        learner = ForwardCorrection(3, source).double()
        learner.observe_beliefs(beliefs, labels, others)
        assert learner.stays.tolist() == pytest.approx(expected, abs=0.05), (source, len(others[1]))


def test_backward_correction_by_hand_and_unbiased():
    """Its mean over labels that are drawn by T is cross-entropy by the true classes."""
    matrix = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.3, 0.3, 0.4]]).double()
    learner = BackwardCorrection(3, "given").double()
    learner.set_transitions(matrix)
    torch.manual_seed(1)
    logits, inverse = torch.randn(4, 3).double(), matrix.inverse()
    labels = torch.tensor([0, 2, 1, 1])
    log_p = logits.log_softmax(1)
    by_hand = -sum(inverse[y] @ log_p[i] for i, y in enumerate(labels.tolist())) / 4
    loaded = BackwardCorrection(3).double()
    loaded.load_state_dict(learner.state_dict())
    for known in (learner, loaded):
        torch.testing.assert_close(known.training_loss(LabelledBatch(logits, labels, cross_entropy)), by_hand)
    for true in range(3):
        losses = [
            learner.training_loss(LabelledBatch(logits[:1], torch.tensor([given]), cross_entropy)) for given in range(3)
        ]
        expected = sum(chance * loss for chance, loss in zip(matrix[true], losses, strict=True))
        torch.testing.assert_close(expected, -log_p[0, true])


def test_backward_correction_takes_a_trusted_label_as_it_is_and_bears_a_matrix_without_inverse():
    learner = BackwardCorrection(3, "given").double()
    learner.set_transitions(torch.full((3, 3), 1 / 3).double())
    logits, labels = torch.randn(2, 3).double(), torch.tensor([0, 1])
    trusted = LabelledBatch(logits, labels, cross_entropy, is_trusted=torch.tensor([True, True]))
    torch.testing.assert_close(learner.training_loss(trusted), F.cross_entropy(logits, labels))
    untrusted = learner.training_loss(LabelledBatch(logits, labels, cross_entropy))
    torch.testing.assert_close(untrusted, -logits.log_softmax(1).mean(1).mean(), msg="labels tell nothing")


def test_classes_are_counted_by_labels_where_beliefs_miss_the_rare_ones(monkeypatch):
    """Of 100 examples 4 are of class 2, which the network never takes for the likeliest."""
    monkeypatch.setattr(label_noise, "ROWS_AT_ONCE", 7)
    learner = ForwardCorrection(3, "given").double()
    matrix = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]]).double()
    learner.set_transitions(matrix)
    labels = torch.tensor([0] * 60 + [1] * 36 + [2] * 4)
    q = torch.tensor([[0.7, 0.2, 0.1]] * 60 + [[0.2, 0.7, 0.1]] * 36 + [[0.5, 0.3, 0.2]] * 4).double()
    joint = q * matrix[:, labels].T
    expected = (joint / joint.sum(1, keepdim=True)).sum(0)
    torch.testing.assert_close(learner.class_counts(q, labels), expected)
    assert expected[2].item() == pytest.approx(4) and q.argmax(1).bincount(minlength=3)[2] == 0


def test_anchors_are_at_the_97th_percentile_of_belief_in_a_class():
    belief = torch.linspace(0.02, 0.98, 100).double()
    q = torch.stack([belief, 0.75 * (1 - belief), 0.25 * (1 - belief)], 1)
    found = transitions_of_anchors(q)
    torch.testing.assert_close(found[0], q[96])
    torch.testing.assert_close(found[1], q[3])
    learner = ForwardCorrection(3, "anchors").double()
    learner.observe_beliefs(q, torch.zeros(100, dtype=torch.int64))
    torch.testing.assert_close(learner.stays, found.diagonal())
    one = torch.tensor([[0.5, 0.3, 0.2]])
    assert transitions_of_anchors(one).tolist() == one.expand(3, 3).tolist()


def test_given_transitions_need_no_plain_part_and_are_not_counted():
    learner, batch = ForwardCorrection(CLASSES, "given"), batch_of()
    assert not learner.needs_beliefs and learner.plain_share == 0 < ForwardCorrection(CLASSES).plain_share
    learner.set_transitions(torch.full((CLASSES, CLASSES), 1 / CLASSES))
    learner.observe_beliefs(batch.beliefs, batch.labels)
    assert learner.training_loss(batch).item() == pytest.approx(math.log(CLASSES), rel=1e-5), "labels tell nothing"


# ---- M-correction and MentorNet ----


def test_a_mixture_of_two_beta_distributions_is_found_again():
    rng = np.random.default_rng(0)
    values = torch.from_numpy(np.concatenate([rng.beta(2, 12, 6000), rng.beta(9, 3, 4000)]))
    shapes, shares = fit_beta_mixture(values, iterations=300)
    means = shapes[:, 0] / shapes.sum(1)
    assert means.tolist() == pytest.approx([2 / 14, 9 / 12], abs=0.01)
    assert shares.tolist() == pytest.approx([0.6, 0.4], abs=0.02)


def test_m_correction_by_hand():
    """Labels of a third are wrong; B is by scipy's densities, the target between label and likeliest class."""
    rng = np.random.default_rng(1)
    q = torch.from_numpy(rng.dirichlet([0.3, 0.3, 0.3], 300))
    labels = torch.from_numpy(np.where(np.arange(300) % 3 == 0, q.argmin(1), q.argmax(1)))
    learner = MCorrection().double()
    batch = LabelledBatch(torch.randn(6, 3).double(), labels[:6], cross_entropy, q[:6])
    torch.testing.assert_close(learner.training_loss(batch), batch.losses.mean(), msg="plain before it has looked")
    learner.observe_beliefs(q, labels)
    losses = -q[range(300), labels].log().numpy()
    low, high = np.float32(np.quantile(losses.astype(np.float32), 0.05)), np.quantile(losses.astype(np.float32), 0.95)
    scaled = np.clip((losses - low) / (high - low), 1e-3, 1 - 1e-3)
    (first, second), shares = learner.shapes.numpy(), learner.shares.numpy()
    joint = np.array([share * beta.pdf(scaled, *shape) for share, shape in zip(shares, (first, second), strict=True)])
    wrong = np.clip(joint[1] / joint.sum(0), 1e-4, 1 - 1e-4)
    np.testing.assert_allclose(learner.wrong_probabilities(torch.from_numpy(losses)), wrong, rtol=1e-4, atol=1e-6)
    assert wrong[::3].mean() > 2 * np.delete(wrong, np.s_[::3]).mean()
    expected, log_p = 0.0, batch.logits.log_softmax(1)
    for i in range(6):
        target = (1 - wrong[i]) * F.one_hot(labels[i], 3) + wrong[i] * F.one_hot(q[i].argmax(), 3)
        expected = expected - (target * log_p[i]).sum() / 6
    expected = expected + sum((1 / 3) * ((1 / 3) / mean).log() for mean in log_p.exp().mean(0))
    torch.testing.assert_close(learner.training_loss(batch), expected, rtol=1e-4, atol=1e-6)
    trusted = LabelledBatch(
        batch.logits, batch.labels, cross_entropy, q[:6], is_trusted=torch.ones(6, dtype=torch.bool)
    )
    by_label = batch.losses.mean() + sum((1 / 3) * ((1 / 3) / mean).log() for mean in log_p.exp().mean(0))
    torch.testing.assert_close(learner.training_loss(trusted), by_label)


def test_m_correction_of_losses_that_are_all_alike_stays_plain():
    learner = MCorrection()
    learner.observe_beliefs(torch.full((20, 4), 0.25), torch.arange(20) % 4)
    assert not learner.shares.any() and learner.wrong_probabilities(torch.ones(3)).tolist() == [0, 0, 0]


def test_mentor_net_by_hand():
    learner = MentorNet(0.5, 0.5)
    assert learner.raw_weights(torch.tensor([9.0])).tolist() == [1], "before the first step none waits"

    def step(*losses):
        logits = torch.tensor([[0.0, math.log(math.expm1(loss))] for loss in losses], requires_grad=True)
        batch = LabelledBatch(logits, torch.zeros(len(losses), dtype=torch.int64), cross_entropy)
        loss = learner.training_loss(batch)
        loss.backward()
        return loss.item(), (logits.grad.abs().sum(1) > 0).tolist()

    assert step(1.0, 2.0, 3.0) == (pytest.approx(1 / 3), [True, False, False])  # m = 2
    assert step(2.5, 0.5, 4.5, 3.9) == (pytest.approx(3.0 / 4), [True, True, False, False])  # m = (2 + 3.2) / 2
    assert learner.threshold.item() == pytest.approx(2.6)
    assert learner.example_weights(torch.tensor([2.5, 2.7])).tolist() == [0.5, 0]


@pytest.mark.parametrize("settings", [{"quantile": 0}, {"quantile": 1.0}, {"decay": math.nan}, {"decay": "x"}])
def test_numbers_of_mentor_net_that_are_none_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        MentorNet(**settings)
