"""Measures what each layer costs in Meta-Train, on the machine, network and batches of a run."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from famus_hf.core.autodiff.forward_pass import cloned_buffers, model_logits, preserve_rng_state
from famus_hf.core.autodiff.training_pass import TrainingPass, logit_tangent
from famus_hf.core.budget import LayerCosts
from famus_hf.core.layers import Layer, parameters_of
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_train import choose_derivative, validation_gradient
from famus_hf.core.timer import Timer

MAX_DEPTHS = 12  # at which sets of all layers above are measured, beside each layer alone
ROUNDS = 3  # of all measurements, of which the median counts


def measure_layer_costs(
    training_pass: TrainingPass,
    meta_inputs: Mapping[str, Any],
    meta_labels: Tensor,
    candidates: Sequence[Layer],
    derivative: str,
    *,
    always: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> LayerCosts:
    """Times each candidate layer alone, and all layers above a dozen depths, on the batches given. Leaves no trace.

    Args:
        training_pass: A training batch's forward pass, with its graph.
        meta_inputs: A meta batch's keyword arguments of the model.
        meta_labels: Shape (m,).
        candidates: The layers to time.
        derivative: As in `MetaObjective`.
        always: See `LayerCosts`.
        on_progress: Called after each timing, `num_timings(len(candidates))` times.
    """
    depths = _depths(len(candidates))
    sets = [[layer] for layer in candidates] + [list(candidates[lowest:]) for lowest in depths]
    _seconds_of_layers(training_pass, meta_inputs, meta_labels, sets[-1], derivative)  # warms up
    rounds = []
    for _ in range(ROUNDS):
        plain = [_seconds_of_plain_step(training_pass)]
        seconds = []
        for count, layers in enumerate(sets, 1):
            seconds.append(_seconds_of_layers(training_pass, meta_inputs, meta_labels, layers, derivative))
            if count % 4 == 0:  # all along, so that a slow spell of the machine hits both
                plain.append(_seconds_of_plain_step(training_pass))
            on_progress()
        rounds.append([value / median(plain) for value in seconds])
    costs = [median(values) for values in zip(*rounds, strict=True)]
    alone = costs[: len(candidates)]
    together = dict(zip(depths, costs[len(candidates) :], strict=True))
    ways = [choose_derivative(derivative, [layer]) for layer in candidates]
    beside = {way: _own_costs(way, candidates, alone, together, ways) for way in sorted(set(ways))}
    return LayerCosts(alone, beside, ways, always)


def num_timings(num_candidates: int) -> int:
    """How often `measure_layer_costs` reports progress."""
    return ROUNDS * (num_candidates + len(_depths(num_candidates)))


def _depths(num_candidates: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, num_candidates - 1, MAX_DEPTHS)})


def _seconds_of_layers(
    training_pass: TrainingPass,
    meta_inputs: Mapping[str, Any],
    meta_labels: Tensor,
    layers: Sequence[Layer],
    derivative: str,
) -> float:
    """Seconds of the validation backward and of the derivative with these layers on."""
    model = training_pass.model
    clock = Timer(training_pass.logits.device)
    virtual = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    _, direction = validation_gradient(model, virtual, meta_inputs, meta_labels, parameters_of(layers), clock)
    with clock("derivative"):
        logit_tangent(training_pass, direction, choose_derivative(derivative, layers))
    return clock.seconds["validation backward"] + clock.seconds["derivative"]


def _own_costs(
    way: str, candidates: Sequence[Layer], alone: list[float], together: Mapping[int, float], ways: list[str]
) -> list[float]:
    """What each layer adds where a dearer one is on: a part for its operations and one for being a layer, fitted to
    what all layers above a depth cost beyond the dearest of them."""
    shares = [layer.share for layer in candidates]
    operations = [here - above for here, above in zip(shares, [*shares[1:], 0.0], strict=True)]
    rows, targets = [], []
    for lowest, cost in together.items():
        dearest = max(range(lowest, len(candidates)), key=lambda i: alone[i])
        if ways[lowest] == way and lowest + 1 < len(candidates):
            rows.append([sum(operations[lowest:]) - operations[dearest], len(candidates) - lowest - 1])
            targets.append(cost - alone[dearest])
    if not rows:
        return [0.0] * len(candidates)
    (per_operation, per_layer), _ = nnls(np.array(rows), np.array(targets).clip(0))
    return [float(per_operation * own + per_layer) for own in operations]


def _seconds_of_plain_step(training_pass: TrainingPass) -> float:
    """Forward and backward of the training batch with mean cross-entropy, gradients thrown away."""
    model, labels = training_pass.model, training_pass.labels
    clock = Timer(training_pass.logits.device)
    with clock("plain"), preserve_rng_state(labels.device):
        logits = model_logits(model, training_pass.inputs, cloned_buffers(model))
        parameters = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(cross_entropy(logits, labels).mean(), parameters, allow_unused=True)
    return clock.seconds["plain"]
