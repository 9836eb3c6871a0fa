"""Refined and guessed labels, mixing, and the loss of two networks, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from famus_hf.core.losses import cross_entropy, one_hot
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_learners.mlc import MLC
from famus_hf.core.meta_learners.mw_net import MWNet
from famus_hf.core.meta_train import meta_gradient
from famus_hf.two_networks.semi_supervised import (
    EqualWeights,
    SemiSupervisedLoss,
    confidence_penalty,
    guessed_labels,
    mixed,
    mixing_share,
    prior_term,
    ramped_up,
    refined_labels,
    sharpened,
    squared_errors,
)
from tests.helpers import brute_force
from tests.helpers.exact_meta_gradients import LEARNING_RATE, assert_exact, flat
from tests.helpers.models import CLASSES, build_batch, build_model


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def logits_of(*probabilities):
    """Logits with these probabilities, each row shifted by another constant, which must not matter."""
    return rows(*probabilities).log() + torch.arange(len(probabilities)).double().unsqueeze(1)


def assert_close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


# ---- Labels ----


def test_half_a_temperature_gives_squares_over_their_sum():
    found = sharpened(rows([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]), 0.5)
    assert_close(found, [[25 / 38, 9 / 38, 4 / 38], [4 / 44, 4 / 44, 36 / 44]])


def test_a_temperature_of_one_changes_nothing_and_a_third_gives_cubes():
    assert_close(sharpened(rows([0.5, 0.3, 0.2]), 1.0), [[0.5, 0.3, 0.2]])
    assert_close(sharpened(rows([0.5, 0.3, 0.2]), 1 / 3), [[125 / 160, 27 / 160, 8 / 160]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_zero_stay_zero_and_finite(dtype):
    found = sharpened(torch.tensor([[1, 0, 0], [0.6, 0.4, 0]], dtype=dtype), 0.5)
    torch.testing.assert_close(found, torch.tensor([[1, 0, 0], [36 / 52, 16 / 52, 0]], dtype=dtype))
    assert found.dtype == dtype and (found[:, 2] == 0).all()


def test_refined_labels_keep_a_part_c_of_the_given_label():
    given, predictions = rows([1, 0], [0, 1], [1, 0]), rows([0.2, 0.8], [0.6, 0.4], [0.1, 0.9])
    c = torch.tensor([0.5, 1.0, 0.0])  # half: (0.6, 0.4); wholly: (0, 1); not at all: the prediction
    assert_close(refined_labels(given, predictions, c, 1.0), [[0.6, 0.4], [0, 1], [0.1, 0.9]])
    assert_close(refined_labels(given, predictions, c, 0.5), [[36 / 52, 16 / 52], [0, 1], [1 / 82, 81 / 82]])


def test_guessed_labels_are_the_sharpened_mean_over_two_views_and_two_networks():
    one, other = rows([0.9, 0.1]), rows([0.5, 0.5])  # of the network in training
    third, fourth = rows([0.8, 0.2]), rows([0.6, 0.4])  # of its peer; the mean of all is (0.7, 0.3)
    found = guessed_labels(torch.stack([one, other, third, fourth]), 0.5)
    assert_close(found, [[49 / 58, 9 / 58]])


def test_one_hot_are_the_unit_vectors_of_indices_and_soft_targets_stay():
    found = one_hot(torch.tensor([2, 0]), 3)
    assert found.dtype == torch.float32 and found.tolist() == [[0, 0, 1], [1, 0, 0]]
    soft = rows([0.3, 0.7])
    assert one_hot(soft, 2) is soft


# ---- Mixing ----


@pytest.mark.parametrize(
    "alpha, beta_cdf",
    [
        (1, lambda x: x),
        (2, lambda x: 3 * x**2 - 2 * x**3),
        (4, lambda x: 35 * x**4 - 84 * x**5 + 70 * x**6 - 20 * x**7),
    ],
    ids=["1", "2", "4"],
)
def test_the_larger_share_of_a_pair_is_distributed_as_max_of_beta_and_its_complement(alpha, beta_cdf):
    generator = np.random.default_rng(0)
    shares = np.sort([mixing_share(alpha, generator) for _ in range(4000)])
    assert shares[0] >= 0.5 and shares[-1] <= 1
    expected = 2 * beta_cdf(shares) - 1  # P(max(λ, 1 − λ) ≤ x) = F(x) − F(1 − x), and F is symmetric
    distance = np.abs(np.arange(1, 4001) / 4000 - expected).max()
    assert distance < 1.63 / math.sqrt(4000), "Kolmogorov and Smirnov at 1 %"


def test_the_share_is_a_function_of_the_generator():
    one, same, other = (mixing_share(4.0, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == same != other and type(one) is float


def test_alpha_of_zero_mixes_nothing():
    assert mixing_share(0, np.random.default_rng(0)) == 1
    values = torch.randn(3, 2)
    assert torch.equal(mixed(values, torch.randn(3, 2), 1.0), values)


def test_mixed_examples_have_the_larger_share_of_the_first():
    assert_close(mixed(rows([1, 0], [4, 8]), rows([0, 1], [0, 4]), 0.75), [[0.75, 0.25], [3, 7]])


def test_the_ramp_starts_at_zero_grows_linearly_and_stays_at_the_weight():
    assert [ramped_up(50, epochs, 16) for epochs in (-1, 0, 4, 8.5, 16, 200)] == [0, 0, 12.5, 26.5625, 50, 50]


def test_no_epochs_of_ramp_are_the_whole_weight_at_once():
    assert ramped_up(50, 0, 0) == 50


# ---- Parts of the loss ----


def test_squared_errors_are_means_over_the_classes():
    logits = logits_of([0.5, 0.3, 0.2], [0.2, 0.2, 0.6])
    found = squared_errors(logits, rows([1, 0, 0], [0.2, 0.2, 0.6]))
    assert_close(found, [(0.25 + 0.09 + 0.04) / 3, 0])


def test_the_prior_term_is_zero_where_the_mean_prediction_is_uniform():
    assert_close(prior_term(logits_of([0.9, 0.1], [0.1, 0.9])), 0.0)


def test_the_prior_term_is_the_divergence_of_the_mean_prediction_from_uniform():
    found = prior_term(logits_of([0.9, 0.1], [0.6, 0.4]))  # mean (0.75, 0.25)
    assert_close(found, 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


def test_a_class_that_no_example_is_given_has_a_finite_prior_term_that_pulls_it_back():
    logits = torch.tensor([[0.0, 0.0, -300.0], [0.0, 1.0, -300.0]], requires_grad=True)  # e^−300 is 0 in float32
    loss = prior_term(logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    # log of the mean prediction of that class by hand: −300 − log 2 and −300 − log(1 + e), averaged
    lost = -300 + math.log((1 / 2 + 1 / (1 + math.e)) / 2)
    others = [math.log((1 / 2 + 1 / (1 + math.e)) / 2), math.log((1 / 2 + math.e / (1 + math.e)) / 2)]
    assert loss.item() == pytest.approx(-math.log(3) - (lost + sum(others)) / 3, rel=1e-6)
    assert gradient[:, 2].sum().item() == pytest.approx(-1 / 3, rel=1e-4), "its logits are to rise"


def test_the_confidence_penalty_is_the_negative_entropy():
    found = confidence_penalty(logits_of([0.5, 0.5], [0.25, 0.75]))
    assert_close(found, [-math.log(2), 0.25 * math.log(0.25) + 0.75 * math.log(0.75)])
    assert confidence_penalty(torch.tensor([[0.0, -200.0]])).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_of_the_loss_are_computed_in_float32_from_logits_of_16_bits(dtype):
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.full((64, 10), 0.1)
    for part in (prior_term, confidence_penalty, lambda z: squared_errors(z, targets)):
        assert part(logits).dtype == torch.float32
        assert torch.equal(part(logits), part(logits.float()))


# ---- J ----

PREDICTIONS = ([0.5, 0.5], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8])
TARGETS = ([1, 0], [0.5, 0.5], [0.3, 0.7], [1, 0])
ENTROPIES = [  # cross-entropies of the targets
    -math.log(0.5),
    -0.5 * math.log(0.8) - 0.5 * math.log(0.2),
    -0.3 * math.log(0.1) - 0.7 * math.log(0.9),
    -math.log(0.2),
]
ERRORS = [0.25, (0.3**2 + 0.3**2) / 2, (0.2**2 + 0.2**2) / 2, 0.8**2]
DIVERGENCE = 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6)  # the mean prediction is (0.4, 0.6)


def loss_with(meta_learner, is_labelled=(True, True, False, False), weight=3.0):
    loss = SemiSupervisedLoss(meta_learner)
    loss.is_labelled, loss.unlabelled_weight = torch.tensor(is_labelled), weight
    return loss


def value_of(loss):
    return loss.training_loss(LabelledBatch(logits_of(*PREDICTIONS), rows(*TARGETS), cross_entropy))


@pytest.mark.parametrize("labelled", [(0, 1), (0, 3), (2,)], ids=str)
def test_with_equal_weights_it_is_the_loss_of_dividemix(labelled):
    unlabelled = [i for i in range(4) if i not in labelled]
    expected = sum(ENTROPIES[i] for i in labelled) / len(labelled)
    expected += 3 * sum(ERRORS[i] for i in unlabelled) / len(unlabelled) + DIVERGENCE
    assert_close(value_of(loss_with(EqualWeights(), [i in labelled for i in range(4)])), expected)


def test_the_prior_term_is_one_over_both_halves():
    loss = loss_with(EqualWeights(), (True, False), weight=0)
    logits = logits_of([0.9, 0.1], [0.6, 0.4])
    found = loss.training_loss(LabelledBatch(logits, rows([1, 0], [1, 0]), cross_entropy))
    assert_close(found, -math.log(0.9) + 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))


def test_without_a_weight_of_the_unlabelled_half_its_targets_do_not_matter():
    loss = loss_with(EqualWeights(), weight=0.0)
    assert_close(value_of(loss), (ENTROPIES[0] + ENTROPIES[1]) / 2 + DIVERGENCE)
    targets = rows(*TARGETS[:2], [math.nan, math.nan], [math.nan, math.nan])
    assert loss.training_loss(LabelledBatch(logits_of(*PREDICTIONS), targets, cross_entropy)) == value_of(loss)


def rising_mw_net():
    """One hidden unit: V = sigmoid(2·ℓ − 1), as a loss of cross-entropy is not negative."""
    meta_learner = MWNet(hidden_size=1).double()
    with torch.no_grad():
        meta_learner.hidden.weight.fill_(2)
        meta_learner.hidden.bias.zero_()
        meta_learner.output.weight.fill_(1)
        meta_learner.output.bias.fill_(-1)
    return meta_learner


def weights_by_hand(*entropies):
    raw = [1 / (1 + math.exp(1 - 2 * entropy)) for entropy in entropies]
    return [value / sum(raw) for value in raw]


def test_with_mw_net_each_half_has_weights_of_its_own_from_cross_entropies():
    labelled, unlabelled = weights_by_hand(*ENTROPIES[:2]), weights_by_hand(*ENTROPIES[2:])
    expected = sum(v * entropy for v, entropy in zip(labelled, ENTROPIES[:2], strict=True))
    expected += 3 * sum(v * error for v, error in zip(unlabelled, ERRORS[2:], strict=True)) + DIVERGENCE
    assert_close(value_of(loss_with(rising_mw_net())), expected)


def test_weights_are_constants_to_the_network():
    """The gradient by the logits is that of the same weights as numbers."""
    logits = logits_of(*PREDICTIONS).requires_grad_()
    loss = loss_with(rising_mw_net()).training_loss(LabelledBatch(logits, rows(*TARGETS), cross_entropy))
    (found,) = torch.autograd.grad(loss, logits)
    p, t = rows(*PREDICTIONS), rows(*TARGETS)
    v = rows(weights_by_hand(*ENTROPIES[:2]) + weights_by_hand(*ENTROPIES[2:])).t()
    of_entropies = v * (p - t)
    slopes = 2 * (p - t) / 2  # of the errors by the probabilities
    of_errors = 3 * v * p * (slopes - (p * slopes).sum(1, keepdim=True))
    slopes_of_prior = -(1 / 2) / rows([0.4, 0.6]) / 4  # −(1/C) / mean / n
    of_prior = p * (slopes_of_prior - (p * slopes_of_prior).sum(1, keepdim=True))
    assert_close(found, (torch.cat([of_entropies[:2], of_errors[2:]]) + of_prior).tolist())


def test_example_weights_of_each_part_sum_to_its_share_of_the_batch():
    found = loss_with(rising_mw_net(), (True, False, True, True)).example_weights(rows(ENTROPIES)[0])
    labelled = weights_by_hand(ENTROPIES[0], ENTROPIES[2], ENTROPIES[3])
    assert_close(found, [3 / 4 * labelled[0], 1 / 4, 3 / 4 * labelled[1], 3 / 4 * labelled[2]])
    assert found.sum().item() == pytest.approx(1.0)


def test_equal_weights_are_one_over_n_and_have_no_parameters():
    assert_close(EqualWeights().example_weights(rows(ENTROPIES)[0]), [0.25] * 4)
    assert_close(EqualWeights().raw_weights(rows(ENTROPIES)[0]), [1.0] * 4)
    assert SemiSupervisedLoss(EqualWeights()).theta() == {}


def test_a_meta_learner_without_weights_by_losses_is_refused():
    with pytest.raises(TypeError, match="MLC gives examples no weights by their losses"):
        value_of(loss_with(MLC(2).double()))


def test_its_theta_settings_and_rates_are_those_of_the_meta_learner():
    meta_learner = MWNet(hidden_size=7)
    loss = SemiSupervisedLoss(meta_learner)
    assert loss.theta().keys() == {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
    assert all(loss.theta()[name] is parameter for name, parameter in meta_learner.named_parameters())
    assert loss.config() == meta_learner.config()
    for name in ("keeps_theta", "has_virtual_step", "default_learning_rate", "momentum"):
        assert getattr(loss, name) == getattr(meta_learner, name)
    losses = torch.rand(3)
    assert torch.equal(loss.raw_weights(losses), meta_learner.raw_weights(losses))


def test_theta_moves_by_the_gradient_under_its_own_names():
    loss = SemiSupervisedLoss(MWNet(hidden_size=2))
    before = {name: parameter.detach().clone() for name, parameter in loss.theta().items()}
    loss.move({name: torch.ones_like(p) for name, p in before.items()}, torch.optim.SGD(loss.parameters(), lr=0.25))
    for name, parameter in loss.theta().items():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.25)


# ---- The meta gradient ----


def by_hand(mw_net, is_labelled, weight):
    """Logits, targets → J, written out once more."""

    def loss(logits, targets):
        log_p = logits - logits.exp().sum(1, keepdim=True).log()
        p, entropies = log_p.exp(), -(targets * log_p).sum(1)
        trusted = mw_net(entropies.detach()[is_labelled])
        guessed = mw_net(entropies.detach()[~is_labelled])
        errors = ((p - targets) ** 2).sum(1)[~is_labelled] / CLASSES
        prior = -math.log(CLASSES) - p.mean(0).log().sum() / CLASSES
        return (
            (trusted * entropies[is_labelled]).sum() / trusted.sum()
            + weight * (guessed * errors).sum() / guessed.sum()
            + prior
        )

    return loss


def setting(kind, weight=5.0):
    """A network, J around MWNet, a training batch with soft targets, a meta batch."""
    torch.manual_seed(3)
    model, loss = build_model(kind), loss_with(MWNet().double(), (True, False, False, True, True, False), weight)
    train, meta = build_batch(kind, 6, seed=1), build_batch(kind, 5, seed=2)
    train["labels"] = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(4), dtype=torch.float64).softmax(
        1
    )
    return model, loss, train, meta


@pytest.mark.parametrize("derivative, tolerance", [("forward", 1e-10), ("reverse", 1e-10), ("finite", 1e-2)])
@pytest.mark.parametrize("kind", ["batch norm", "group norm", "vit"])
def test_meta_gradient_through_both_halves_equals_double_backward(kind, derivative, tolerance):
    model, loss, train, meta = setting(kind)
    expected_loss = by_hand(loss.meta_learner, loss.is_labelled, loss.unlabelled_weight)
    assert_exact(
        model, loss, train, meta, derivative,
        lambda layers: brute_force.gradient_of(
            loss.theta(), model, expected_loss, train, meta, LEARNING_RATE, layers
        ),
        tolerance,
    )  # fmt: skip


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
def test_meta_gradient_without_a_weight_of_the_unlabelled_half_is_that_of_the_labelled_one(derivative):
    model, loss, train, meta = setting("group norm", weight=0.0)
    expected_loss = by_hand(loss.meta_learner, loss.is_labelled, 0.0)
    assert_exact(
        model, loss, train, meta, derivative,
        lambda layers: brute_force.gradient_of(
            loss.theta(), model, expected_loss, train, meta, LEARNING_RATE, layers
        ),
    )  # fmt: skip


def test_both_halves_teach_theta():
    """Nearly all of the gradient is another one where the unlabelled half weighs more."""
    found = []
    for weight in (0.0, 5.0):
        model, loss, train, meta = setting("group norm", weight)
        found.append(flat(meta_gradient(model, loss, train, meta, learning_rate=LEARNING_RATE)))
    assert (found[1] - found[0]).norm() > 0.1 * found[0].norm() > 0


def test_equal_weights_have_an_empty_meta_gradient():
    model, _, train, meta = setting("group norm")
    loss = loss_with(EqualWeights(), (True, True, True, False, False, False))
    assert meta_gradient(model, loss, train, meta, learning_rate=LEARNING_RATE) == {}
