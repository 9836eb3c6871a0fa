"""MWNet: shapes, normalisation, where it starts, what it does with degenerate batches."""

import pytest
import torch

from famus_hf import MWNet
from famus_hf.losses import cross_entropy


def test_raw_weights_are_sigmoids_of_shape_n():
    weights = MWNet()(torch.tensor([0.0, 1.0, 5.0, 100.0]))
    assert weights.shape == (4,) and ((weights > 0) & (weights < 1)).all()
    assert len(set(weights.tolist())) == 4, "different losses, different weights"


@pytest.mark.parametrize("seed", range(5))
def test_training_starts_close_to_plain_training(seed):
    torch.manual_seed(seed)
    assert (MWNet()(torch.linspace(0, 5, 50)) - 0.5).abs().max() < 0.15


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
    loss = meta_learner.training_loss(logits, labels, cross_entropy)
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
    with pytest.raises(ValueError, match="choose 'sum' or 'mean'"):
        MWNet(weight_normalization="softmax")
