"""Gates: their distribution, their gradients (Eq. 8, 10–12) by hand and by brute force, and what being off saves."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ResNetConfig, ResNetForImageClassification

from famus_hf.core.autodiff.forward_pass import cloned_buffers, get_random_state, model_logits, split_inputs
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.budget import Budget, LayerCosts, measure_layer_costs, num_timings
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
from famus_hf.core.layers import Layer, find_layers, pool_gradient, unpool_gradient
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners import MWNet
from famus_hf.core.meta_train import MetaObjective, meta_train
from tests.helpers import brute_force
from tests.helpers.models import build_batch, build_model

LEARNING_RATE = 0.3


@pytest.fixture
def setting():
    """A batch-norm net, its layers, and one training pass at w in float64."""
    torch.manual_seed(0)
    model, meta_learner = build_model("batch norm"), MWNet().double()
    train, meta = build_batch("batch norm", 6, seed=1), build_batch("batch norm", 5, seed=2)
    inputs, labels, _ = split_inputs(train)
    layers = find_layers(model, inputs)
    logits = model_logits(model, inputs, cloned_buffers(model))
    training_pass = TrainingPass(model, inputs, labels, logits, get_random_state(labels.device))
    loss = meta_learner.training_loss(logits, labels, cross_entropy)
    gradient = training_pass.virtual_gradient(loss, dict(model.named_parameters()))
    return model, meta_learner, train, meta, layers, training_pass, gradient


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


def layers_of_width(width, count):
    return [Layer(f"layer {i}", (), width) for i in range(count)]


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


def test_pooling_averages_all_but_the_first_dimension_and_keeps_biases():
    weight, bias, scale = torch.arange(24.0).reshape(2, 3, 2, 2), torch.tensor([5.0, 6.0]), torch.tensor(7.0)
    pooled = pool_gradient([weight, bias, scale])
    assert pooled.tolist() == [5.5, 17.5, 5.0, 6.0, 7.0]


def test_unpooling_is_the_transpose_of_pooling():
    tensors = [torch.randn(4, 3, 2), torch.randn(5), torch.randn(())]
    pooled = torch.randn(10)
    spread = unpool_gradient(pooled, tensors)
    assert [s.shape for s in spread] == [t.shape for t in tensors]
    left = pooled @ pool_gradient(tensors)
    torch.testing.assert_close(left, sum((s * t).sum() for s, t in zip(spread, tensors, strict=True)))


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
    loss = meta_learner.training_loss(logits, labels, cross_entropy)
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


def test_layers_stand_in_order_of_their_first_call_and_frozen_ones_are_none():
    model = build_model("batch norm")
    model.blocks[1].conv1.weight.requires_grad_(False)
    inputs, _, _ = split_inputs(build_batch("batch norm"))
    names = [layer.name for layer in find_layers(model, inputs)]
    assert names[0] == "stem" and names[-2:] == ["bn", "classifier"]
    assert names.index("blocks.1.bn1") < names.index("blocks.1.shortcut") < names.index("blocks.1.bn2")
    assert "blocks.1.conv1" not in names
    shares = [layer.share for layer in find_layers(model, inputs)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True)


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


def test_residual_blocks_are_found_in_different_architectures():
    def blocks(layers):
        return {layer.name: layer.block for layer in layers if layer.block is not None}

    found = blocks(layers_of("batch norm"))
    assert {block for block in found.values()} == {1, 2, 3}
    assert found["blocks.0.bn1"] == 1 and found["blocks.2.shortcut"] == 3 and "stem" not in found and "bn" not in found
    found = blocks(layers_of("vit"))
    assert set(found.values()) == {1, 2} and all(name.startswith("vit.layers.") for name in found)
    found = blocks(layers_of("bert"))
    assert set(found.values()) == {1, 2} and all(name.startswith("bert.encoder.layer.") for name in found)
    assert blocks(layers_of("group norm")) == {}


def test_resnet_blocks_are_its_basic_layers_and_not_their_parts():
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 2], layer_type="basic", num_channels=3, num_labels=2
    )
    model = ResNetForImageClassification(config)
    layers = find_layers(model, {"pixel_values": torch.randn(2, 3, 32, 32)})
    assert sorted({layer.block for layer in layers if layer.block is not None}) == [1, 2, 3]


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


COSTS = LayerCosts(
    alone=[1.2, 0.9, 0.3, 0.5, 0.1], beside={"forward": [0.02] * 5, "reverse": [0.1, 0.08, 0.06, 0.05, 0.01]},
    ways=["forward", "forward", "reverse", "reverse", "reverse"],
)  # fmt: skip


def test_cost_of_a_set_by_hand():
    assert COSTS.cost([False] * 5) == 0
    assert COSTS.cost([False, False, False, False, True]) == pytest.approx(0.1)
    assert COSTS.cost([False, False, True, True, True]) == pytest.approx(0.5 + 0.06 + 0.01), "0.5 is the dearest"
    assert COSTS.cost([True, False, True, False, False]) == pytest.approx(1.2 + 0.02), "the dearest decides the way"
    assert replace(COSTS, always=True).cost([False] * 5) == pytest.approx(0.1)


def test_expected_cost_equals_the_mean_over_all_sets():
    p = [0.3, 0.6, 0.2, 0.9, 0.5]
    for costs in (COSTS, replace(COSTS, always=True)):
        mean = 0.0
        for on in itertools.product([False, True], repeat=5):
            chance = math.prod(own if is_on else 1 - own for own, is_on in zip(p, on, strict=True))
            mean += chance * costs.cost(on)
        assert costs.expected(np.array([p]))[0] == pytest.approx(mean)


@pytest.mark.parametrize("share, bias", [(0.11, 0.0), (0.3, 4.0), (0.8, 0.0), (1.2, 4.0)])
def test_gates_keep_to_the_budget_on_average(share, bias):
    sampler = LearnedSampler(initial_bias=bias)
    sampler.build(layers_of_width(8, 5))
    sampler.budget = Budget(share, COSTS)
    pooled = {f"layer {i}": torch.randn(8) for i in range(5)}
    spent = [COSTS.cost((sampler(pooled, step_generator(1, step)) > 0).tolist()) for step in range(600)]
    deviation = np.std(spent) / len(spent) ** 0.5
    assert abs(np.mean(spent) - share) < 5 * deviation + 1e-3


def test_a_budget_for_everything_switches_everything_on():
    sampler = LearnedSampler()
    sampler.build(layers_of_width(8, 5))
    sampler.budget = Budget(2.0, COSTS)
    gates = sampler({f"layer {i}": torch.randn(8) for i in range(5)}, step_generator(0, 0))
    assert gates.tolist() == [1] * 5


def test_a_budget_below_the_cheapest_layer_is_refused_with_its_cost():
    with pytest.raises(ValueError, match=r"cheapest layer's cost of 0\.100 plain steps: choose at least 0\.1$"):
        Budget(0.05, COSTS)


def test_costs_are_measured_for_every_layer_and_leave_no_trace(setting):
    model, _, _, meta, layers, training_pass, _ = setting
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    inputs, labels, _ = split_inputs(meta)
    ticks = []
    costs = measure_layer_costs(training_pass, inputs, labels, layers, "auto", on_progress=lambda: ticks.append(1))
    assert len(costs.alone) == len(layers) == len(costs.ways) and min(costs.alone) > 0
    assert set(costs.beside) == {"forward", "reverse"}
    assert len(ticks) == num_timings(len(layers))
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_budget_learns_what_layers_really_cost():
    """Everything takes half as much again as measured at the start, so the gates must spend less by that measure."""
    sampler = LearnedSampler(initial_bias=4.0)
    sampler.build(layers_of_width(8, 5))
    sampler.budget = Budget(0.6, COSTS)
    sampler.budget.calibrate(measured=45.0, predicted=30.0)
    pooled = {f"layer {i}": torch.randn(8) for i in range(5)}
    spent = [1.5 * COSTS.cost((sampler(pooled, step_generator(1, step)) > 0).tolist()) for step in range(600)]
    assert np.mean(spent) == pytest.approx(0.6, abs=0.06)
    sampler.budget.calibrate(measured=1e6, predicted=1.0)
    assert sampler.budget.share / sampler.budget.scale == pytest.approx(COSTS.cheapest), "one layer is always possible"
