"""Meta-learners alone: shapes, normalisation, where they start, how θ moves, degenerate batches."""

import math

import pytest
import torch

from famus_hf import L2R, MLC, MWNet, meta_gradient
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch
from tests.helpers.models import build_batch, build_model


def test_raw_weights_are_sigmoids_of_shape_n():
    weights = MWNet()(torch.tensor([0.0, 1.0, 5.0, 100.0]))
    assert weights.shape == (4,) and ((weights > 0) & (weights < 1)).all()
    assert len(set(weights.tolist())) == 4, "different losses, different weights"


@pytest.mark.parametrize("normalization", ["sum", "mean"])
@pytest.mark.parametrize("seed", range(5))
def test_training_starts_close_to_plain_training(seed, normalization):
    torch.manual_seed(seed)
    weights = MWNet(weight_normalization=normalization).example_weights(torch.linspace(0, 5, 50))
    relative = weights / weights.mean()
    assert (relative - 1).abs().max() < (0.3 if normalization == "mean" else 0.6)


def test_raw_weights_start_far_from_saturation():
    assert MWNet()(torch.linspace(0, 5, 50)).max() < 0.2
    assert MWNet(weight_normalization="mean")(torch.zeros(1)).item() == pytest.approx(0.5, abs=0.1)


def test_weights_are_divided_by_their_sum_or_by_the_batch_size():
    losses = torch.rand(7) * 3
    meta_learner = MWNet()
    raw = meta_learner(losses)
    torch.testing.assert_close(meta_learner.example_weights(losses), raw / raw.sum())
    meta_learner.weight_normalization = "mean"
    torch.testing.assert_close(meta_learner.example_weights(losses), raw / 7)


def test_training_loss_is_the_weighted_sum_with_detached_losses_in_the_weights():
    logits, labels = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.arange(6) % 3
    meta_learner = MWNet().double()
    losses = cross_entropy(logits, labels)
    weights = meta_learner.example_weights(losses.detach()).detach()
    loss = meta_learner.training_loss(LabelledBatch(logits, labels, cross_entropy))
    torch.testing.assert_close(loss, (weights * losses).sum())
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad((weights * losses).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_weights_that_sum_to_zero_give_zero_and_no_nan():
    meta_learner = MWNet()
    with torch.no_grad():
        meta_learner.output.bias.fill_(-1e4)
    weights = meta_learner.example_weights(torch.rand(5))
    assert weights.tolist() == [0] * 5
    (gradient,) = torch.autograd.grad(weights.sum(), meta_learner.output.bias)
    assert torch.isfinite(gradient).all()


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="choose one of sum, mean"):
        MWNet(weight_normalization="softmax")


def test_l2r_weights_by_hand():
    meta_learner = L2R()
    meta_learner.begin_step(torch.zeros(4, 3))
    assert meta_learner.example_weights(torch.rand(4)).tolist() == [0.25] * 4, "nothing known yet"
    meta_learner.move({"weights": torch.tensor([-3.0, 2.0, -1.0, 0.0])}, None)
    assert meta_learner.example_weights(torch.rand(4)).tolist() == [0.75, 0, 0.25, 0]
    logits, labels = torch.randn(4, 3), torch.arange(4) % 3
    expected = (torch.tensor([0.75, 0, 0.25, 0]) * cross_entropy(logits, labels)).sum()
    torch.testing.assert_close(
        meta_learner.training_loss(LabelledBatch(logits, labels, cross_entropy)).detach(), expected
    )
    meta_learner.move({"weights": torch.tensor([3.0, 2.0, 1.0, 0.0])}, None)
    assert meta_learner.example_weights(torch.rand(4)).tolist() == [0] * 4, "no example helps"


@pytest.mark.parametrize("derivative", ["forward", "reverse", "finite", "auto"])
def test_l2r_weights_do_not_depend_on_the_size_of_the_learning_rate(derivative):
    model = build_model("batch norm", torch.float32)
    train, meta = (build_batch("batch norm", dtype=torch.float32, seed=seed) for seed in (1, 2))

    def weights(learning_rate):
        return meta_gradient(
            model, L2R(), train, meta, learning_rate=learning_rate, layers=["classifier"], derivative=derivative
        )["weights"]

    expected = weights(0.1)
    assert 0 < (expected > 0).sum() < len(expected)
    for learning_rate in (0.0, 1e-44, 1e-38, 10.0):
        torch.testing.assert_close(weights(learning_rate), expected)


@pytest.mark.parametrize("form, dim", [("logits", 0), ("probabilities", 1)])
def test_mlc_matrix_moves_stays_non_negative_and_is_normalised(form, dim):
    meta_learner = MLC(3, form)
    optimizer = torch.optim.SGD(meta_learner.parameters(), lr=0.5)
    gradient = torch.tensor([[0.2, -0.4, 9.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.6]])
    moved = (torch.eye(3) - 0.5 * gradient).clamp(min=0)
    meta_learner.move({"matrix": gradient}, optimizer)
    torch.testing.assert_close(meta_learner.matrix.detach(), moved / moved.sum(dim, keepdim=True))


def test_mlc_class_that_lost_everything_starts_over():
    meta_learner = MLC(3)
    optimizer = torch.optim.SGD(meta_learner.parameters(), lr=1.0)
    meta_learner.move({"matrix": torch.tensor([[5.0, 0, 0], [5.0, 0, 0], [5.0, 0, 0]])}, optimizer)
    assert torch.equal(meta_learner.matrix.detach(), torch.eye(3))


def test_mlc_at_the_identity_is_plain_training_in_both_forms():
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 4
    for form in ("logits", "probabilities"):
        meta_learner = MLC(4, form).double()
        loss = meta_learner.training_loss(LabelledBatch(logits, labels, cross_entropy))
        torch.testing.assert_close(loss, cross_entropy(logits, labels).mean())


def test_mlc_forward_correction_by_hand():
    """Wrong labels drawn with T: the corrected loss of true class probabilities p is −log (p T)_y."""
    matrix = torch.tensor([[0.7, 0.3], [0.1, 0.9]])
    meta_learner = MLC(2, "probabilities")
    with torch.no_grad():
        meta_learner.matrix.copy_(matrix)
    probabilities = torch.tensor([[0.2, 0.8]])
    loss = meta_learner.training_loss(LabelledBatch(probabilities.log(), torch.tensor([0]), cross_entropy))
    assert loss.item() == pytest.approx(-math.log(0.2 * 0.7 + 0.8 * 0.1), rel=1e-5)


def test_mlc_forward_correction_is_the_likelihood_as_a_function_of_its_matrix():
    """−log (p T)_y, of whose gradient by T nothing is lost by p T being a distribution."""
    meta_learner = MLC(3, "probabilities").double()
    torch.manual_seed(0)
    with torch.no_grad():
        meta_learner.matrix.copy_(torch.rand(3, 3, dtype=torch.float64).softmax(1))
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    loss = meta_learner.training_loss(LabelledBatch(logits, labels, cross_entropy))
    expected = -((logits.softmax(1) @ meta_learner.matrix)[torch.arange(5), labels]).log().mean()
    for found, reference in zip(
        *(torch.autograd.grad(value, meta_learner.matrix) for value in (loss, expected)), strict=True
    ):
        torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-12)


def test_rates_of_meta_learners_are_those_of_their_papers():
    assert (MWNet().default_learning_rate, MWNet().default_optimizer) == (1e-3, "adam")
    assert (MLC(2).default_learning_rate, MLC(2).default_optimizer, MLC(2).momentum) == (1.0, "sgd", 0.0)
    assert MLC(2, keep_matrix=False).default_learning_rate == 0.11


def test_mlc_matrix_is_kept_or_made_afresh_in_each_step():
    for keep in (True, False):
        meta_learner = MLC(2, keep_matrix=keep)
        with torch.no_grad():
            meta_learner.matrix.fill_(0.5)
        meta_learner.begin_step(torch.zeros(3, 2))
        assert torch.equal(meta_learner.matrix.detach(), torch.full((2, 2), 0.5) if keep else torch.eye(2))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: MLC(3, form="log"), "choose one of logits, probabilities"),
        (lambda: MLC(3, reduction="max"), "choose one of mean, sum"),
        (lambda: MLC(1), "at least 2"),
        (lambda: MLC(3)(torch.zeros(2, 5)), "made for 3 classes"),
    ],
)
def test_impossible_mlc_settings_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()
