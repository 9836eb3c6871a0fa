"""An average of weights against its formula, written out for each number."""

import pytest
import torch
from torch import nn

from famus_hf.core.weight_average import WeightAverage, put_into, weights_of


class Tied(nn.Module):
    """One matrix under two names, running statistics, a frozen number, and a buffer that is not saved."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.to(dtype)

    def forward(self, x):
        return self.norm(self.second(self.first(x)))


def moved(network, seed):
    """The network after a step: other weights, other running statistics."""
    generator = torch.Generator().manual_seed(seed)
    network.train()(torch.randn(5, 3, generator=generator).to(network.first.weight.dtype))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return network


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_is_the_formulas(decay):
    network = Tied()
    average, expected = WeightAverage(network, decay), {}
    for step in range(20):
        moved(network, step)
        average.update()
        kept = min(decay, (1 + step) / (10 + step)) if step else 0.0
        for name, tensor in network.state_dict().items():
            before = expected.get(name, tensor)
            expected[name] = kept * before + (1 - kept) * tensor if tensor.is_floating_point() else tensor.clone()
    found = average.tensors()
    assert average.steps == 20 and set(found) == set(expected) - {"second.weight"}
    assert found["norm.num_batches_tracked"] == 20 and torch.equal(found["frozen"], network.frozen)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])
    assert not torch.equal(found["norm.running_mean"], network.norm.running_mean)


def test_the_network_has_the_average_in_the_body_and_then_its_own_weights():
    network = Tied()
    average = WeightAverage(network, 0.9)
    for step in range(3):
        moved(network, step)
        average.update()
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(KeyError), average.in_place():
        with average.in_place():
            pass
        assert torch.equal(network.second.weight, average.tensors()["first.weight"])
        assert torch.equal(network.norm.running_var, average.tensors()["norm.running_var"])
        raise KeyError
    assert not average.is_in_use
    assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
    average.take_place()
    assert all(torch.equal(tensor, average.tensors()[name]) for name, tensor in weights_of(network).items())


def test_small_changes_of_weights_of_16_bits_are_not_lost():
    network = Tied(torch.bfloat16)
    average = WeightAverage(network, 0.999)
    average.update()
    average.restore(10**6, {})
    put_into(network, {"first.weight": torch.ones(3, 3)})
    with average.in_place():
        start = network.first.weight.clone()
    for _ in range(2000):
        average.update()
    found = average.tensors()["first.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 1 - 0.999**2000 * (1 - start.float()), rtol=1e-4, atol=1e-4)
    with average.in_place():
        torch.testing.assert_close(network.first.weight, found.bfloat16())
    assert torch.equal(network.first.weight, torch.ones(3, 3, dtype=torch.bfloat16))


def test_a_saved_average_goes_on_as_it_would_have():
    network = Tied()
    average = WeightAverage(network, 0.9)
    for step in range(4):
        moved(network, step)
        average.update()
        if step == 1:
            saved = {name: tensor.clone() for name, tensor in average.tensors().items()}
            again = WeightAverage(network, 0.9)
            again.restore(2, saved)
        elif step > 1:
            again.update()
    assert again.steps == 4
    assert all(torch.equal(tensor, average.tensors()[name]) for name, tensor in again.tensors().items())
