"""Meta gradients of the package against those of a reference, for all layers and for subsets."""

import torch

from famus_hf.core.layers import parameters_by_layer
from famus_hf.core.meta_train import meta_gradient

LEARNING_RATE = 0.3


def subsets(model):
    names = list(parameters_by_layer(model))
    return [None, names[:1], names[-1:], names[1::3], names[len(names) // 2 :]]


def flat(gradient):
    return torch.cat([tensor.flatten() for tensor in gradient.values()])


def relative_error(found, expected):
    return ((flat(found) - flat(expected)).norm() / flat(expected).norm()).item()


def assert_exact(model, meta_learner, train, meta, derivative, reference, tolerance=1e-10):
    """For all layers and for subsets, against `reference(layers)`."""
    for layers in subsets(model):
        expected = reference(layers)
        found = meta_gradient(
            model, meta_learner, train, meta, learning_rate=LEARNING_RATE, layers=layers, derivative=derivative
        )
        assert flat(expected).norm() > 1e-8, "the reference must say something"
        assert relative_error(found, expected) < tolerance, layers
