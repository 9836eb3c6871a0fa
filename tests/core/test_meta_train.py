"""Every meta-learner's meta gradient by core/autodiff/ against brute-force double backward, float64."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from famus_hf.core.autodiff.forward_mode import ForwardRecord
from famus_hf.core.autodiff.forward_pass import (
    differentiable_attention,
    get_random_state,
    model_logits,
    preserve_rng_state,
    split_inputs,
)
from famus_hf.core.autodiff.training_pass import TrainingPass, training_pass_without_trace
from famus_hf.core.autodiff.virtual_weights import VirtualStep, virtual_parameters
from famus_hf.core.layer_samplers import AllLayers
from famus_hf.core.layers import find_layers
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner
from famus_hf.core.meta_learners.l2r import L2R
from famus_hf.core.meta_learners.mlc import MLC
from famus_hf.core.meta_learners.mw_net import MWNet
from famus_hf.core.meta_train import MetaObjective, meta_gradient, meta_train
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.three_stages import StepSettings, ThreeStages
from famus_hf.core.virtual_train import virtual_step_of
from tests.helpers import brute_force
from tests.helpers.exact_meta_gradients import LEARNING_RATE, assert_exact, relative_error, subsets
from tests.helpers.models import CLASSES, build_batch, build_model

KINDS = ["batch norm", "group norm", "vit", "bert"]


def setting(kind):
    torch.manual_seed(3)
    return build_model(kind), MWNet().double(), build_batch(kind, 6, seed=1), build_batch(kind, 5, seed=2)


@pytest.mark.parametrize("derivative, tolerance", [("forward", 1e-10), ("reverse", 1e-10), ("finite", 1e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_meta_gradient_equals_double_backward_for_all_layers_and_for_subsets(kind, derivative, tolerance):
    model, meta_learner, train, meta = setting(kind)
    assert_exact(
        model, meta_learner, train, meta, derivative,
        lambda layers: brute_force.mw_net_gradient(model, meta_learner, train, meta, LEARNING_RATE, layers),
        tolerance,
    )  # fmt: skip


class Overwriting(torch.nn.Module):
    """Products whose values are changed in place, used twice, or kept by nothing."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.classifier = torch.nn.Linear(4, CLASSES)

    def forward(self, pixel_values, labels=None):
        hidden = self.first(pixel_values).tanh_()
        hidden = hidden + self.second(self.norm(self.second(hidden)))
        features = hidden.mean((2, 3))
        return SimpleNamespace(logits=self.classifier(features) + torch.tanh(features @ self.classifier.weight.t()))


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
def test_meta_gradient_is_exact_where_products_are_overwritten_or_forgotten(derivative):
    torch.manual_seed(3)
    model, meta_learner = Overwriting().double(), MWNet().double()
    train, meta = build_batch("batch norm", 6, seed=1), build_batch("batch norm", 5, seed=2)
    assert_exact(
        model, meta_learner, train, meta, derivative,
        lambda layers: brute_force.mw_net_gradient(model, meta_learner, train, meta, LEARNING_RATE, layers),
    )  # fmt: skip


class Convolutions(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten.convolution.default
        return function(*args, **(kwargs or {}))


def test_forward_mode_computes_no_value_again_that_the_graph_still_holds():
    model, _, train, _ = setting("batch norm")
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    inputs, labels, _ = split_inputs(train)
    training_pass = training_pass_without_trace(model, inputs, labels)
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    products = 2 * convolutions - 1  # the images have no tangent
    with Convolutions() as forgetful:
        expected = replace(training_pass, record=ForwardRecord()).logit_tangent(direction, "forward")
    assert forgetful.count == products + convolutions
    with Convolutions() as recording:
        found = training_pass.logit_tangent(direction, "forward")
    before_batch_norm = 1 + sum(name.endswith("conv1") for name, _ in model.named_modules())  # which keeps its input
    assert recording.count == products + convolutions - before_batch_norm
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
@pytest.mark.parametrize("kind", ["batch norm", "vit"])
def test_mw_net_whose_losses_are_not_detached_equals_double_backward(kind, derivative):
    model, _, train, meta = setting(kind)
    meta_learner = MWNet(detach_losses=False).double()
    loss, theta = brute_force.mw_net_loss(meta_learner, detach=False), dict(meta_learner.named_parameters())
    assert_exact(
        model, meta_learner, train, meta, derivative,
        lambda layers: brute_force.gradient_of(theta, model, loss, train, meta, LEARNING_RATE, layers),
    )  # fmt: skip


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", ["logits", "probabilities"])
@pytest.mark.parametrize("kind", KINDS)
def test_mlc_equals_double_backward_through_its_matrix(kind, form, reduction, derivative):
    model, _, train, meta = setting(kind)
    meta_learner = MLC(CLASSES, form=form, reduction=reduction).double()
    with torch.no_grad():  # away from the identity
        meta_learner.matrix.copy_(0.8 * torch.eye(CLASSES) + 0.2 * torch.rand(CLASSES, CLASSES))
    loss, theta = brute_force.mlc_loss(meta_learner.matrix, form, reduction), {"matrix": meta_learner.matrix}
    assert_exact(
        model, meta_learner, train, meta, derivative,
        lambda layers: brute_force.gradient_of(theta, model, loss, train, meta, LEARNING_RATE, layers),
    )  # fmt: skip


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
@pytest.mark.parametrize("kind", KINDS)
def test_l2r_weights_equal_autograd_through_epsilon(kind, derivative):
    model, _, train, meta = setting(kind)
    for layers in subsets(model):
        expected = brute_force.l2r_weights(model, train, meta, LEARNING_RATE, layers)
        assert 0 < (expected > 0).sum() < len(expected), "some examples help and some do not"
        found = meta_gradient(
            model, L2R(), train, meta, learning_rate=LEARNING_RATE, layers=layers, derivative=derivative
        )
        assert found.keys() == {"weights"}
        torch.testing.assert_close(found["weights"].double(), expected, rtol=1e-6, atol=1e-8)


def test_virtual_step_of_adam_equals_double_backward_with_its_state_frozen():
    """The preconditioner by hand, and by what the optimizer itself does when only the gradient changes."""
    model, meta_learner, train, meta = setting("vit")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    first = virtual_step_of(model, optimizer, "optimizer")
    assert first.preconditioners == {} and set(first.learning_rates.values()) == {LEARNING_RATE}
    for seed in (5, 6, 7):
        batch = build_batch("vit", seed=seed)
        torch.nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    step = virtual_step_of(model, optimizer, "optimizer")
    assert virtual_step_of(model, optimizer, "sgd").preconditioners == {}
    by_hand = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        second_moment = state["exp_avg_sq"] / (1 - 0.95**3)
        by_hand[name] = (1 - 0.8) / (1 - 0.8**4) / (second_moment.sqrt() + 1e-6)
        torch.testing.assert_close(step.preconditioners[name], by_hand[name])
    some = virtual_step_of(model, optimizer, "optimizer", moved={"classifier.weight"})
    assert some.preconditioners.keys() == {"classifier.weight"} and some.learning_rates == step.learning_rates
    assert torch.equal(some.preconditioners["classifier.weight"], step.preconditioners["classifier.weight"])

    inputs, labels, _ = split_inputs(train)
    layers = find_layers(model, inputs)
    random_state = get_random_state(labels.device)
    with preserve_rng_state(labels.device), differentiable_attention():
        logits = model_logits(model, inputs)
        training_pass = TrainingPass(model, inputs, labels, logits, random_state)
        loss = meta_learner.training_loss(LabelledBatch(logits, labels, cross_entropy))
        gradient = training_pass.virtual_gradient(loss, dict(model.named_parameters()))
        meta_inputs, meta_labels, _ = split_inputs(meta)
        for on in ([True] * len(layers), [i % 3 == 0 for i in range(len(layers))]):
            found = meta_train(
                training_pass, meta_learner, cross_entropy, meta_inputs, meta_labels, gradient, step, layers,
                torch.tensor(on, dtype=torch.float64), layers[-1], MetaObjective(),
            )  # fmt: skip
            names = [layer.name for layer, is_on in zip(layers, on, strict=True) if is_on]
            with preserve_rng_state(labels.device, random_state):
                expected = brute_force.mw_net_gradient(
                    model, meta_learner, train, meta, LEARNING_RATE, names, preconditioners=by_hand
                )
            assert relative_error(found.learner_gradient, expected) < 1e-9


def test_virtual_step_of_sgd_is_the_plain_one_and_knows_parameter_groups():
    model = build_model("batch norm")
    head = list(model.classifier.parameters())
    rest = [parameter for name, parameter in model.named_parameters() if not name.startswith("classifier")]
    optimizer = torch.optim.SGD([{"params": rest, "lr": 0.01}, {"params": head, "lr": 0.5}], lr=1.0, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    step = virtual_step_of(model, optimizer, "optimizer")
    assert step.preconditioners == {}
    parameters = dict(model.named_parameters())
    ones = {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
    for name, virtual in virtual_parameters(parameters, ones, step).items():
        rate = 0.5 if name.startswith("classifier") else 0.01
        torch.testing.assert_close(virtual, parameters[name].detach() - rate)


class ClassWeights(MetaLearner):
    """A user's own: one weight for each class."""

    def __init__(self, num_labels):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.randn(num_labels))

    def training_loss(self, batch):
        return (self.scores[batch.labels].softmax(0) * batch.losses).sum()


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
def test_a_meta_learner_of_the_users_own_equals_double_backward(derivative):
    model, _, train, meta = setting("batch norm")
    meta_learner = ClassWeights(CLASSES).double()

    def loss(logits, labels):
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        scores = meta_learner.scores[labels]
        return (scores.exp() / scores.exp().sum() * losses).sum()

    theta = {"scores": meta_learner.scores}
    assert_exact(
        model, meta_learner, train, meta, derivative,
        lambda layers: brute_force.gradient_of(theta, model, loss, train, meta, LEARNING_RATE, layers),
    )  # fmt: skip


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("derivative", ["forward", "reverse"])
def test_a_step_with_early_learning_regularization_equals_double_backward_over_all_of_it(derivative, reused):
    model, meta_learner, train, meta = setting("batch norm")
    targets = 0.7 * torch.rand(6, CLASSES, generator=torch.Generator().manual_seed(4)).double().softmax(1)
    weighted = brute_force.mw_net_loss(meta_learner)

    def loss(logits, labels):
        return weighted(logits, labels) + 3.0 * (1 - (logits.softmax(1) * targets).sum(1)).log().mean()

    def gradient_of_step():
        found = torch.autograd.grad(
            loss(model(train["pixel_values"]).logits, train["labels"]), list(model.parameters()), materialize_grads=True
        )
        return dict(zip(dict(model.named_parameters()), found, strict=True))

    theta = dict(meta_learner.named_parameters())
    expected = brute_force.gradient_of(theta, model, loss, train, meta, LEARNING_RATE)
    without = brute_force.mw_net_gradient(model, meta_learner, train, meta, LEARNING_RATE)
    assert relative_error(without, expected) > 0.01, "ŵ is elsewhere"
    before = gradient_of_step()

    objective, settings = MetaObjective(derivative=derivative), StepSettings("sgd", reused, elr_weight=3.0)
    layers = find_layers(model, split_inputs(train)[0])
    update = MetaUpdate(meta_learner, AllLayers(), layers, objective=objective, learning_rate=10.0, optimizer="sgd")
    stages = ThreeStages(model, update, cross_entropy, settings=settings)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    training_pass = stages.forward(model, train, is_meta_step=True)
    training_pass.elr_targets = targets
    virtual = stages.virtual_train(training_pass, optimizer)
    outcome = stages.meta_train(training_pass, virtual, meta)
    assert relative_error(outcome.learner_gradient, expected) < 1e-10
    stages.actual_train(training_pass, virtual)
    actual = {name: parameter.grad for name, parameter in model.named_parameters()}
    after = gradient_of_step()  # at θ'
    assert relative_error(actual, before if reused else after) < 1e-10 and relative_error(before, after) > 1e-6


def test_gradients_that_share_memory_are_not_overwritten():
    """Autograd hands out one tensor for two parameters that are only added, and an expanded one for a sum."""
    parameters = {name: torch.randn(3, requires_grad=True) for name in ("a", "b", "c", "d")}
    loss = ((parameters["a"] + parameters["b"]) ** 2).sum() + parameters["c"].sum() + (parameters["d"] ** 2).sum()
    gradient = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert gradient["a"].data_ptr() == gradient["b"].data_ptr()
    expected = {name: (parameters[name] - 0.5 * gradient[name]).detach() for name in parameters}
    kept = {name: gradient[name].clone() for name in parameters}
    step = VirtualStep(dict.fromkeys(parameters, 0.5))
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    found = virtual_parameters(detached, gradient, step, reusable={"a", "b", "c", "d"})
    torch.testing.assert_close(found, expected)
    assert all(torch.equal(gradient[name], kept[name]) for name in ("a", "b", "c"))
    assert found["d"].data_ptr() == gradient["d"].data_ptr(), "memory that belongs to one alone is used again"
