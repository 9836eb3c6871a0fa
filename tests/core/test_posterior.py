"""Posterior targets: their loss by hand, their meta gradient by double backward in float64, counted transitions."""

import pytest
import torch
from torch.nn import functional as F

from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_learners.corrections import ForwardCorrection
from famus_hf.core.meta_learners.label_noise import counted_transitions
from famus_hf.core.meta_learners.posterior import PosteriorTargets
from famus_hf.core.meta_train import meta_gradient
from famus_hf.errors import SettingsError
from tests.helpers import brute_force
from tests.helpers.models import CLASSES, build_batch, build_model

FORMS = ["posterior", "likelihood"]


def transitions():
    drawn = torch.rand(CLASSES, CLASSES, generator=torch.Generator().manual_seed(5))
    return (torch.eye(CLASSES) * 4 + drawn).softmax(1).double()


def counted(learner):
    """The learner, in float64 and away from its start, with transitions."""
    learner = learner.double()
    learner.set_transitions(transitions())
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return learner


def beliefs(count):
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(7)).double().softmax(1)


def rows_by_hand(learner, q, labels, losses):
    """V of each example and T_ky of each label, one at a time, with a graph to θ."""
    counts = transitions()
    for example, label in enumerate(labels.tolist()):
        wrong = []
        for k in range(CLASSES):
            others = [j for j in range(CLASSES) if j != k]
            scores = torch.stack(
                [(counts[k, j] / (1 - counts[k, k])).log() + learner.transitions[k, j] for j in others]
            )
            wrong.append(scores.softmax(0)[others.index(label)] if label != k else torch.zeros(()).double())
        wrong = torch.stack(wrong)
        stays = counts[label, label].clamp(0.3, 0.98)
        with torch.no_grad():
            features = [
                losses[example], -q[example, label].log(), q[example].max(), -(q[example] * q[example].log()).sum(),
                (q[example] * wrong).sum().log(), (q[example, label] * stays).log(),
            ]  # fmt: skip
        residual = learner.output(torch.relu(learner.hidden(torch.stack(features)))).squeeze()
        yield torch.sigmoid((stays / (1 - stays)).log() + residual), wrong


def loss_by_hand(learner, q):
    """J: logits, labels → scalar, with a graph to θ."""

    def loss(logits, labels):
        losses, total = F.cross_entropy(logits, labels, reduction="none").detach(), 0
        for example, (v, wrong) in enumerate(rows_by_hand(learner, q, labels, losses)):
            label, p = labels[example], logits[example].softmax(0)
            if learner.form == "likelihood":
                total = total - (v * p[label] + (1 - v) * (p * wrong).sum()).log()
                continue
            target = (1 - v) * q[example] * wrong + F.one_hot(label, CLASSES) * v * q[example, label]
            total = total - (target / target.sum() * p.log()).sum()
        return total / len(labels)

    return loss


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
@pytest.mark.parametrize("kind", ["batch norm", "vit"])
@pytest.mark.parametrize("form", FORMS)
def test_meta_gradient_of_posterior_targets_equals_double_backward(form, kind, derivative):
    torch.manual_seed(3)
    model, train, meta = build_model(kind), build_batch(kind, 6, seed=1), build_batch(kind, 5, seed=2)
    learner, q = counted(PosteriorTargets(CLASSES, form, hidden_size=8)), beliefs(6)
    names = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    for layers in (None, names[-2:], names[1:3]):
        found = meta_gradient(
            model, learner, train, meta, learning_rate=0.5, layers=layers, derivative=derivative, beliefs=q
        )
        expected = brute_force.gradient_of(
            dict(learner.named_parameters()), model, loss_by_hand(learner, q), train, meta, 0.5, layers
        )
        assert expected["transitions"].norm() > 0 and expected["hidden.weight"].norm() > 0
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_v_of_one_is_plain_training_and_a_trusted_label_is_taken_as_it_is(form):
    learner, q = counted(PosteriorTargets(CLASSES, form)), beliefs(8)
    logits, labels = torch.randn(8, CLASSES).double(), torch.arange(8) % CLASSES
    plain = F.cross_entropy(logits, labels)
    trusted = LabelledBatch(logits, labels, cross_entropy, q, is_trusted=torch.ones(8, dtype=torch.bool))
    torch.testing.assert_close(learner.training_loss(trusted), plain)
    batch = LabelledBatch(logits, labels, cross_entropy, q)
    assert (learner.training_loss(batch) - plain).abs() > 1e-3
    with torch.no_grad():
        learner.output.bias.fill_(50.0)
    torch.testing.assert_close(learner.training_loss(batch), plain)
    assert PosteriorTargets(CLASSES, form).training_loss(batch) == plain, "nothing was counted yet"


@pytest.mark.parametrize("form", FORMS)
def test_a_one_hot_target_is_its_label(form):
    learner, q = counted(PosteriorTargets(CLASSES, form)), beliefs(8)
    logits, labels = torch.randn(8, CLASSES).double(), torch.arange(8) % CLASSES
    by_label = learner.training_loss(LabelledBatch(logits, labels, cross_entropy, q))
    soft = F.one_hot(labels, CLASSES).double()
    torch.testing.assert_close(learner.training_loss(LabelledBatch(logits, soft, cross_entropy, q)), by_label)


def test_posteriors_of_a_report_are_the_targets_of_training():
    learner, q = counted(PosteriorTargets(CLASSES)), beliefs(8)
    logits, labels = torch.randn(8, CLASSES).double(), torch.arange(8) % CLASSES
    batch = LabelledBatch(logits, labels, cross_entropy, q)
    posteriors = learner.label_posteriors(q, labels, batch.losses)
    torch.testing.assert_close(posteriors.sum(1), torch.ones(8).double())
    torch.testing.assert_close(cross_entropy(logits, posteriors).mean(), learner.training_loss(batch))
    assert PosteriorTargets(CLASSES).label_posteriors(q, labels, batch.losses) is None


def test_forward_correction_by_hand():
    learner, matrix = counted(ForwardCorrection(CLASSES)), transitions()
    logits, labels = torch.randn(6, CLASSES).double(), torch.arange(6) % CLASSES
    expected = -torch.stack([(logits[i].softmax(0) @ matrix[:, labels[i]]).log() for i in range(6)]).mean()
    torch.testing.assert_close(learner.training_loss(LabelledBatch(logits, labels, cross_entropy)), expected)


def test_transitions_are_counted_on_the_surest_examples():
    q = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.55, 0.45], [0.1, 0.9], [0.2, 0.8], [0.4, 0.6]])
    labels = torch.tensor([0, 1, 1, 1, 1, 0])
    # of class 0 (mean 0.75) the first two count, with labels 0 and 1; of class 1 (mean 0.767) both with label 1
    found = counted_transitions(q, labels)
    torch.testing.assert_close(found, torch.tensor([[2, 1.001], [0.001, 3]]).double() / 3.001)


def test_more_classes_than_a_full_matrix_is_learned_for():
    learner = PosteriorTargets(1001)
    assert sum(parameter.numel() for parameter in learner.parameters()) < 1001 * 20
    rows = learner.wrong_transitions()
    torch.testing.assert_close(rows.sum(1), torch.ones(1001))
    assert rows.diagonal().max() == 0


@pytest.mark.parametrize(
    "matrix, sentence",
    [
        (torch.eye(3), "shape \\(3, 3\\)"),
        (torch.full((CLASSES, CLASSES), 1.0), "sum to 1"),
        (torch.eye(CLASSES) * 2 - 1 / CLASSES, "probabilities"),
    ],
)
def test_transitions_that_are_none_are_refused(matrix, sentence):
    with pytest.raises(SettingsError, match=sentence):
        ForwardCorrection(CLASSES).set_transitions(matrix)
