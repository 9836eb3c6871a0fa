"""meta_gradient against brute-force double backward, float64."""

import brute_force
import pytest
import torch
from models import build_batch, build_model

from famus_hf.layers import parameters_by_layer
from famus_hf.meta_learners import MWNet
from famus_hf.stages import meta_gradient

KINDS = ["batch norm", "group norm", "vit", "bert"]
LEARNING_RATE = 0.3


def setting(kind):
    torch.manual_seed(3)
    return build_model(kind), MWNet().double(), build_batch(kind, 6, seed=1), build_batch(kind, 5, seed=2)


def subsets(model):
    names = list(parameters_by_layer(model))
    return [None, names[:1], names[-1:], names[1::3], names[len(names) // 2 :]]


def flat(gradient):
    return torch.cat([tensor.flatten() for tensor in gradient.values()])


def relative_error(found, expected):
    return ((flat(found) - flat(expected)).norm() / flat(expected).norm()).item()


@pytest.mark.parametrize("derivative, tolerance", [("forward", 1e-10), ("reverse", 1e-10), ("finite", 1e-2)])
@pytest.mark.parametrize("kind", KINDS)
def test_meta_gradient_equals_double_backward_for_all_layers_and_for_subsets(kind, derivative, tolerance):
    model, meta_learner, train, meta = setting(kind)
    for layers in subsets(model):
        expected = brute_force.meta_gradient(model, meta_learner, train, meta, LEARNING_RATE, layers)
        found = meta_gradient(
            model, meta_learner, train, meta, learning_rate=LEARNING_RATE, layers=layers, derivative=derivative
        )
        assert flat(expected).norm() > 1e-8, "the reference must say something"
        assert relative_error(found, expected) < tolerance, layers
