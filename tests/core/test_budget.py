"""Gates that keep to a budget, and, of core/layer_costs.py, what layers cost."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from famus_hf.core.autodiff.forward_pass import split_inputs
from famus_hf.core.budget import Budget, LayerCosts, measure_layer_costs, num_timings
from famus_hf.core.layer_samplers import (
    LearnedSampler,
    step_generator,
)
from tests.helpers.models import layers_of_width

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


def test_the_cheapest_set_is_the_last_layer_where_that_is_always_on():
    assert COSTS.cheapest == 0.1
    dear_end = replace(COSTS, alone=[1.2, 0.9, 0.3, 0.5, 0.4])
    assert (dear_end.cheapest, replace(dear_end, always=True).cheapest) == (0.3, 0.4)


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
