"""How the meta gradient varies over meta batches, and how far the sampled one is from the exact one (torch only).

At one w and θ, for the same training batch and each of several meta batches: the gradient of L_c by θ through the
layers that the sampler has switched on ("sampled"), and through all layers ("exact").

Symbols as in `famus_hf.core.meta_train`; D draws of a meta batch, P coordinates of θ.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from famus_hf.core.autodiff.forward_pass import split_inputs
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.layers import Layer, parameters_of
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner, PerExampleLoss
from famus_hf.core.meta_train import choose_derivative, gradient_of_slope


def meta_gradients(
    training_pass: TrainingPass,
    meta_learner: MetaLearner,
    per_example_loss: PerExampleLoss,
    meta_batches: Iterable[Mapping[str, Any]],
    gradient: Mapping[str, Tensor],
    step: VirtualStep,
    on: Sequence[Layer],
    layers: Sequence[Layer],
    derivative: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return ∂L_c/∂θ (Eq. 7, 9) for each meta batch, through the layers that are on and through all. Nothing moves.

    Args:
        training_pass: The training batch's forward pass at w, with its graph, which is kept.
        meta_learner: Ψ.
        per_example_loss: ℓ.
        meta_batches: As a Trainer passes them, `labels` included.
        gradient: g = ∇_w J of Virtual-Train by name; parameters without one stay at w.
        step: α and P.
        on: Layers that the sampler has switched on; without any the gradient is zero.
        layers: All layers that Virtual-Train moves.
        derivative: A key of `famus_hf.core.autodiff.training_pass.DERIVATIVES`.

    Returns:
        The sampled and the exact gradients, each of shape (D, P), float64, on the CPU.
    """
    moves = gradient if meta_learner.has_virtual_step else {}
    sampled, exact = [], []

    def through(chosen: Sequence[Layer], validation: Mapping[str, Tensor]) -> Tensor:
        if not chosen:
            return _flatten({name: torch.zeros_like(tensor) for name, tensor in meta_learner.theta().items()})
        direction = {name: step.displacement(name, validation[name]) for name in parameters_of(chosen)}
        tangent = training_pass.logit_tangent(direction, choose_derivative(derivative, chosen))
        batch = LabelledBatch.of(training_pass, per_example_loss)
        return _flatten(gradient_of_slope(meta_learner, batch, training_pass.gathered(tangent)))

    for inputs in meta_batches:
        batch, labels, _ = split_inputs(inputs)
        names = parameters_of(layers)
        _, validation = training_pass.validation_gradient(moves, step, batch, labels, names, cross_entropy)
        exact.append(through(layers, validation))
        sampled.append(exact[-1] if len(on) == len(layers) else through(on, validation))
    return torch.stack(sampled), torch.stack(exact)


def statistics(gradients: Tensor) -> dict[str, float]:
    """Return mean and spread of D ≥ 2 draws of a gradient. gradients: shape (D, P).

    Returns:
        `norm`: of the mean. `total`: sum of the mean's coordinates. `variance`: unbiased, summed over the coordinates.
        `norm_mean` and `norm_variance`: of the draws' norms.
    """
    mean, norms = gradients.mean(0), gradients.norm(dim=1)
    return {
        "norm": mean.norm().item(),
        "total": mean.sum().item(),
        "variance": gradients.var(0).sum().item(),
        "norm_mean": norms.mean().item(),
        "norm_variance": norms.var().item(),
    }


def comparison(sampled: Tensor, exact: Tensor) -> dict[str, float]:
    """Compare the means over the draws; both arguments have the shape (D, P).

    Returns:
        `bias`: ‖E[sampled] − E[exact]‖ / ‖E[exact]‖. `cosine`: of the two. NaN where a mean is zero.
    """
    sampled_mean, exact_mean = sampled.mean(0), exact.mean(0)
    exact_norm, norms = exact_mean.norm().item(), (sampled_mean.norm() * exact_mean.norm()).item()
    return {
        "bias": (sampled_mean - exact_mean).norm().item() / exact_norm if exact_norm else math.nan,
        "cosine": (sampled_mean @ exact_mean).item() / norms if norms else math.nan,
    }


def _flatten(gradient: Mapping[str, Tensor]) -> Tensor:
    """Return all coordinates one after another, shape (P,)."""
    return torch.cat([tensor.detach().double().flatten().cpu() for tensor in gradient.values()])
