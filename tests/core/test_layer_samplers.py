"""Gates: their distribution, their gradients (Eq. 8, 10–12) by hand and by brute force, and what being off saves."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from famus_hf.core.autodiff.forward_pass import get_random_state, model_logits, split_inputs
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.layer_samplers import (
    AllLayers,
    BlockSampler,
    LearnedSampler,
    RandomLayers,
    pooled_gradients,
    sampler_input,
    sparsity_gradient,
    step_generator,
)
from famus_hf.core.layers import Layer, find_layers, pool_gradient
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_learners.mw_net import MWNet
from famus_hf.core.meta_train import MetaObjective, meta_train
from famus_hf.core.meta_update import MetaUpdate
from tests.helpers import brute_force
from tests.helpers.models import build_batch, build_model, layers_of_width

LEARNING_RATE = 0.3


def plain_step(model):
    return VirtualStep(dict.fromkeys(dict(model.named_parameters()), LEARNING_RATE))


def run_meta_train(setting, gates, **objective):
    model, meta_learner, _, meta, layers, training_pass, gradient = setting
    inputs, labels, _ = split_inputs(meta)
    return meta_train(
        training_pass, meta_learner, cross_entropy, inputs, labels, gradient, plain_step(model), layers, gates,
        layers[-1], MetaObjective(**objective),
    )  # fmt: skip


def some_gates(count, *on):
    gates = torch.zeros(count, dtype=torch.float64)
    gates[list(on)] = 1
    return gates.requires_grad_()


def test_gates_are_on_as_often_as_their_log_odds_say():
    sampler = LearnedSampler(initial_bias=1.0)
    sampler.build(layers_of_width(8, 50))
    pooled = {f"layer {i}": torch.randn(8) for i in range(50)}
    share = torch.stack([sampler(pooled, step_generator(0, step)) for step in range(400)]).mean()
    assert share.item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.01)  # 20 000 draws


def test_gates_are_a_function_of_seed_and_step():
    sampler = LearnedSampler()
    sampler.build(layers_of_width(8, 40))
    pooled = {f"layer {i}": torch.randn(8) for i in range(40)}
    torch.manual_seed(1)
    first = sampler(pooled, step_generator(3, 7))
    torch.manual_seed(2)
    assert torch.equal(first, sampler(pooled, step_generator(3, 7)))
    assert not torch.equal(first, sampler(pooled, step_generator(3, 8)))
    assert not torch.equal(first, sampler(pooled, step_generator(4, 7)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_gates_learn_through_the_soft_sample_of_their_temperature(temperature):
    """∂r/∂(log-odds) is that of σ((log-odds + noise)/T), by hand: σ(1 − σ)/T."""
    sampler = LearnedSampler(temperature=temperature, initial_bias=0.3)
    sampler.build(layers_of_width(8, 6))
    pooled = {f"layer {i}": torch.randn(8) for i in range(6)}
    (stack,) = sampler.stacks.values()
    gates = sampler(pooled, step_generator(0, 1))
    exponential = torch.empty(6, 2).exponential_(generator=step_generator(0, 1))
    noise = -exponential.log()
    soft = torch.sigmoid((0.3 + noise[:, 1] - noise[:, 0]) / temperature)
    assert gates.tolist() == (soft > 0.5).float().tolist()
    (slope,) = torch.autograd.grad(gates.sum(), stack.output_bias)
    torch.testing.assert_close(slope.flatten(0, -2)[:, 1], soft * (1 - soft) / temperature, rtol=1e-4, atol=1e-6)


def test_relative_slopes_are_divided_by_their_running_mean_size(setting):
    _, meta_learner, _, _, layers, _, _ = setting
    update = MetaUpdate(meta_learner, LearnedSampler(), layers, objective=MetaObjective(), relative_slopes=True)
    first, second = (torch.zeros(len(layers)) for _ in range(2))
    first[:2], second[1] = torch.tensor([2.0, -4.0]), torch.tensor(13.0)
    torch.testing.assert_close(update._scaled(first), first / 3)
    torch.testing.assert_close(update._scaled(second), second / (0.95 * 3 + 0.05 * 13))


def test_stacked_samplers_equal_one_network_per_layer():
    torch.manual_seed(0)
    widths = {"a": 6, "b": 3, "c": 6}
    sampler = LearnedSampler()
    sampler.build([Layer(name, (), width) for name, width in widths.items()])
    for stack in sampler.stacks.values():
        torch.nn.init.normal_(stack.output_weight)
    pooled = {name: torch.randn(width) for name, width in widths.items()}
    found = sampler.log_odds(pooled)
    for row, (name, width) in enumerate(widths.items()):
        stack = sampler.stacks[str(width)]
        member = [other for other in widths if widths[other] == width].index(name)
        hidden = sampler_input(pooled[name]) @ stack.hidden_weight[member] + stack.hidden_bias[member, 0]
        hidden = torch.nn.functional.prelu(hidden, stack.slope[member].flatten())
        expected = hidden @ stack.output_weight[member] + stack.output_bias[member, 0]
        torch.testing.assert_close(found[row], expected)


def test_sampler_input_is_standardised_detached_and_bounded():
    values = sampler_input(torch.randn(10_000, requires_grad=True) * 1e-5)
    assert len(values) == 4096 and not values.requires_grad
    assert abs(values.mean()) < 1e-4 and abs(values.std(unbiased=False) - 1) < 1e-3
    assert sampler_input(torch.tensor([3.0])).tolist() == [3.0]
    assert sampler_input(torch.full((5,), 2.0)).abs().max() == 0


def test_sparsity_gradient_by_hand():
    gates = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    found = sparsity_gradient(gates, expected_layers=2.0, sparsity_weight=0.1)
    assert found.tolist() == pytest.approx([0.6] * 6)  # λ1·(5 − 2)² has the derivative 2·0.1·3 for every gate


def test_gate_gradient_equals_brute_force(setting):
    model, meta_learner, train, meta, layers, _, _ = setting
    on = [1, 4, len(layers) - 1]
    gates = some_gates(len(layers), *on)
    found = run_meta_train(setting, gates)
    sparsity = sparsity_gradient(gates, sparsity_weight=0.1, expected_layers=4)
    named = {layer.name: gate for layer, gate in zip(layers, gates, strict=True)}
    value, _, _ = brute_force.meta_loss(
        model, brute_force.mw_net_loss(meta_learner), train, meta, LEARNING_RATE, [layers[i].name for i in on], named
    )
    total = value + 0.1 * (gates.sum() - 4) ** 2
    (expected,) = torch.autograd.grad(total, gates)
    torch.testing.assert_close(found.gate_slopes + sparsity, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.meta_loss, value.detach())


def test_the_sampler_moves_against_the_gradient_of_its_objective(setting):
    """η ← η − δ·∂/∂η Σ_l r_l·(slope_l + ∂λ1(Σ r − K)²/∂r_l), by hand, from the slopes that the step reports."""
    model, meta_learner, _, meta, layers, training_pass, gradient = setting
    sampler = LearnedSampler()
    objective = MetaObjective(expected_layers=2.0, sparsity_weight=0.1)
    update = MetaUpdate(meta_learner, sampler, layers, objective=objective, sampler_learning_rate=0.5, seed=3)
    before = copy.deepcopy(sampler)
    inputs, labels, _ = split_inputs(meta)
    outcome = update.step(training_pass, cross_entropy, inputs, labels, gradient, plain_step(model))
    assert outcome.gate_slopes.abs().max() > 0 and 0 < sum(outcome.switched_on) < len(layers)
    gates = before(pooled_gradients(layers, gradient), step_generator(3, 0))
    total = (gates * outcome.gate_slopes).sum() + 0.1 * (gates.sum() - 2) ** 2
    slopes = torch.autograd.grad(total, list(before.parameters()), materialize_grads=True)
    for old, new, slope in zip(before.parameters(), sampler.parameters(), slopes, strict=True):
        torch.testing.assert_close(new, old - 0.5 * slope, rtol=1e-5, atol=1e-7)
    assert sum(slope.abs().sum() for slope in slopes) > 0


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
@pytest.mark.parametrize("last_is_on", [True, False])
def test_gradient_match_equals_brute_force(setting, derivative, last_is_on):
    """λ2·‖ḡ_L^tra(θ) − ḡ_L^val‖² with ḡ_L^val constant, differentiated by autograd through ∇_w J(w, θ)."""
    model, meta_learner, train, meta, layers, _, _ = setting
    on = [2, 5] + ([len(layers) - 1] if last_is_on else [])
    found = run_meta_train(setting, some_gates(len(layers), *on), gradient_match_weight=0.1, derivative=derivative)
    names = [layers[i].name for i in on]
    loss = brute_force.mw_net_loss(meta_learner)
    value, gradients, virtual = brute_force.meta_loss(model, loss, train, meta, LEARNING_RATE, names)
    last = layers[-1].parameters
    validation = torch.autograd.grad(value, [virtual[name] for name in last], retain_graph=True)
    training_pool = pool_gradient([gradients[name] for name in last])
    matching = ((training_pool - pool_gradient(validation).detach()) ** 2).sum()
    expected = torch.autograd.grad(value + 0.1 * matching, list(meta_learner.parameters()))
    for tensor, reference in zip(found.learner_gradient.values(), expected, strict=True):
        torch.testing.assert_close(tensor, reference, rtol=1e-8, atol=1e-12)


def test_no_layer_on_and_no_matching_skips_the_meta_pass(setting):
    model = setting[0]
    calls = []
    handle = model.register_forward_hook(lambda *arguments: calls.append(1))
    gates = some_gates(len(setting[4]))
    found = run_meta_train(setting, gates)
    handle.remove()
    assert calls == []
    assert found.meta_loss is None and found.learner_gradient == {} and not any(found.switched_on)
    assert found.gate_slopes.tolist() == [0] * len(gates)


class ConvolutionGradients(TorchDispatchMode):
    """Shapes of the convolution weights whose gradient was really computed."""

    def __init__(self):
        super().__init__()
        self.formed = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function == torch.ops.aten.convolution_backward.default and args[-1][1]:
            self.formed.append(tuple(args[2].shape[:2]))
        return function(*args, **(kwargs or {}))


class ConvChain(torch.nn.Sequential):
    def __init__(self):
        convs = [torch.nn.Conv1d(i, i + 1, 1, dtype=torch.float64) for i in (2, 3, 4, 5)]
        super().__init__(*[module for conv in convs for module in (conv, torch.nn.Tanh())])

    def forward(self, x):
        return {"logits": super().forward(x).mean(2)}


@pytest.mark.parametrize("derivative", ["forward", "reverse", "finite"])
def test_gradients_of_a_layer_that_is_off_are_never_formed(derivative):
    model, meta_learner = ConvChain(), MWNet().double()
    inputs, labels = {"x": torch.randn(5, 2, 3, dtype=torch.float64)}, torch.arange(5)
    layers = find_layers(model, inputs)
    logits = model_logits(model, inputs)
    training_pass = TrainingPass(model, inputs, labels, logits, get_random_state(labels.device))
    loss = meta_learner.training_loss(LabelledBatch(logits, labels, cross_entropy))
    gradient = training_pass.virtual_gradient(loss, dict(model.named_parameters()))
    with ConvolutionGradients() as computed:
        meta_train(
            training_pass, meta_learner, cross_entropy, inputs, labels, gradient, plain_step(model), layers,
            some_gates(4, 2), layers[-1], MetaObjective(derivative=derivative),
        )  # fmt: skip
    # of the four layers only the third, (5, 4): v at ŵ, and with reverse once more at w
    assert computed.formed == [(5, 4)] * (2 if derivative == "reverse" else 1)


def test_gradients_through_single_layers_add_up_and_the_others_contribute_nothing(setting):
    count = len(setting[4])
    both = run_meta_train(setting, some_gates(count, 3, 6)).learner_gradient
    alone = [run_meta_train(setting, some_gates(count, i)).learner_gradient for i in (3, 6)]
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, alone[0][name] + alone[1][name], rtol=1e-9, atol=1e-13)


def test_all_layers_switches_everything_on():
    sampler = AllLayers()
    sampler.build(layers_of_width(3, 2))
    assert sampler({}).tolist() == [1, 1]


def test_pooled_gradients_have_the_width_of_their_layer(setting):
    model, layers, gradient = setting[0], setting[4], setting[6]
    pooled = pooled_gradients(layers, gradient)
    for layer in layers:
        assert len(pooled[layer.name]) == sum(model.get_parameter(name).shape[0] for name in layer.parameters)


def layers_of(kind):
    inputs, _, _ = split_inputs(build_batch(kind))
    return find_layers(build_model(kind), inputs)


def test_block_sampler_switches_one_block_on():
    layers = layers_of("batch norm")
    sampler = BlockSampler(2)
    sampler.build(layers)
    on = [layer.name for layer, gate in zip(layers, sampler({}), strict=True) if gate > 0]
    assert on and all(name.startswith("blocks.1.") for name in on)
    assert len(on) == sum(layer.name.startswith("blocks.1.") for layer in layers)


def test_block_that_is_not_there_lists_those_that_are():
    with pytest.raises(ValueError, match=r"the blocks there are 1 \(from blocks.0.bn1\), 2 .*, 3"):
        BlockSampler(7).build(layers_of("batch norm"))
    with pytest.raises(ValueError, match="the blocks there are none"):
        BlockSampler(1).build(layers_of("group norm"))


def test_random_layers_are_uniform_distinct_and_a_function_of_seed_and_step():
    sampler = RandomLayers(3)
    sampler.build(layers_of_width(4, 12))
    drawn = torch.stack([sampler({}, step_generator(0, step)) for step in range(4000)])
    assert (drawn.sum(1) == 3).all()
    # each layer is on in a quarter of the steps: 1000 ± 5 standard deviations of 27
    assert (drawn.sum(0) - 1000).abs().max() < 137
    assert torch.equal(sampler({}, step_generator(0, 5)), drawn[5])
