"""Meta-Train as functions of tensors (torch only); Virtual-Train is in `virtual_train`.

Symbols: n training batch, m meta batch, C classes, w weights of the network, θ of the meta-learner, α learning rate
of w, J(w, θ) the meta-learner's training loss, ŵ the virtual weights, L_c the mean cross-entropy of the meta batch at
ŵ. With v = ∂L_c/∂ŵ held constant, the meta gradient is ∂L_c/∂θ = −α ∂/∂θ ⟨v, ∇_w J(w, θ)⟩, and J depends on w only
through the logits: one directional derivative of the logits (`TrainingPass.logit_tangent`) replaces the second-order
graph, exactly, for any set of layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.agreement import BackwardReference
from famus_hf.core.autodiff.forward_pass import (
    differentiable_attention,
    logits_without_trace,
    preserve_rng_state,
    split_inputs,
)
from famus_hf.core.autodiff.training_pass import (
    DERIVATIVES,
    REVERSE_SHARE,
    TrainingPass,
    training_pass_without_trace,
)
from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.layers import (
    Layer,
    find_layers,
    parameters_by_layer,
    parameters_of,
    pool_gradient,
    select_layers,
    unpool_gradient,
)
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner, PerExampleLoss
from famus_hf.core.non_finite import all_finite, log_once
from famus_hf.core.parallel.dtensor import is_sharded, whole
from famus_hf.core.timer import NO_TIMER, Timer
from famus_hf.errors import SettingsError


def gradient_of_slope(meta_learner: MetaLearner, batch: LabelledBatch, tangent: Tensor) -> dict[str, Tensor]:
    """Return ∂/∂θ of the slope of J along a direction d, ⟨∂J/∂z (z; θ), ż⟩: first order in θ, on tensors of n × C.

    Args:
        meta_learner: Ψ.
        batch: With logits z, shape (n, C).
        tangent: ż = (∂z/∂w)·d, shape (n, C).

    Returns:
        The gradient by name in `meta_learner.theta()`.
    """
    with torch.enable_grad():
        z = batch.logits.detach().requires_grad_()
        loss = meta_learner.training_loss(replace(batch, logits=z))
        (loss_gradient,) = torch.autograd.grad(loss, z, create_graph=True)
        if batch.sample_weights is not None:
            tangent = batch.sample_weights.to(tangent)[:, None] * tangent
        slope = (loss_gradient * tangent).sum()
        theta = meta_learner.theta()
        if not theta:
            return {}
        gradients = torch.autograd.grad(slope, list(theta.values()), materialize_grads=True)
    return dict(zip(theta, gradients, strict=True))


def choose_derivative(derivative: str, layers: Sequence[Layer]) -> str:
    """Resolve `"auto"` by how much of the network lies above the lowest of the given layers."""
    if derivative != "auto":
        return derivative
    return "reverse" if max(layer.share for layer in layers) <= REVERSE_SHARE else "forward"


@dataclass(frozen=True)
class MetaObjective:
    """The settings of Eq. (12): L = L_c + λ1·(Σ_l r_l − K)² + λ2·‖ḡ_L^tra − ḡ_L^val‖².

    Attributes:
        expected_layers: K.
        sparsity_weight: λ1.
        gradient_match_weight: λ2.
        derivative: One of `famus_hf.core.autodiff.training_pass.DERIVATIVES`.
    """

    expected_layers: float = 4.0
    sparsity_weight: float = 0.0
    gradient_match_weight: float = 0.0
    derivative: str = "auto"


@dataclass(frozen=True)
class MetaTrain:
    """What one Meta-Train step found.

    Attributes:
        meta_loss: L_c, or None where no layer was evaluated.
        learner_gradient: g' by name of θ; empty where no layer was evaluated (θ then stays as it is).
        gate_slopes: −α⟨v_l, g_l⟩, each gate's own effect on L_c, shape (L,); zero where the gate is off, as v_l does
            not exist there.
        switched_on: Whether each gate is on, of length L.
        is_finite: Whether θ and the gates could move by these numbers.
    """

    meta_loss: Tensor | None
    learner_gradient: dict[str, Tensor]
    gate_slopes: Tensor
    switched_on: list[bool]
    is_finite: bool = True


def meta_train(
    training_pass: TrainingPass,
    meta_learner: MetaLearner,
    per_example_loss: PerExampleLoss,
    meta_inputs: Mapping[str, Any],
    meta_labels: Tensor,
    gradient: Mapping[str, Tensor],
    step: VirtualStep,
    candidates: Sequence[Layer],
    gates: Tensor,
    last_layer: Layer,
    objective: MetaObjective,
    clock: Timer = NO_TIMER,
    keep_gradient: bool = True,
) -> MetaTrain:
    """Return the gradients of Eq. (12) w.r.t. θ and, but for Eq. (10), the gates.

    Nothing is computed for a layer that is off.

    Args:
        training_pass: The training batch's forward pass at w, with its graph.
        meta_learner: Ψ.
        per_example_loss: ℓ.
        meta_inputs: The meta batch's keyword arguments of the model.
        meta_labels: Shape (m,).
        gradient: g = ∇_w J of Virtual-Train over the global batch, by name; parameters without one stay at w. Where the
            meta-learner has no virtual step (ŵ = w), g is read for the gates only, and empty where they need none.
        step: α and P.
        candidates: The layers that have a gate, in order.
        gates: r, shape (L,), 0 or 1.
        last_layer: L, evaluated for Eq. (11) even where its gate is off.
        objective: K, λ1, λ2.
        clock: Takes the time of `"validation forward"`, `"validation backward"` and `"derivative"`.
        keep_gradient: Whether `gradient` is needed afterwards; where not, its memory may become ŵ.
    """
    switched_on = [r > 0 for r in gates.tolist()]  # the one host synchronisation of a step
    on = [layer for layer, is_on in zip(candidates, switched_on, strict=True) if is_on]
    matched = [last_layer] if objective.gradient_match_weight > 0 else []
    evaluated = on + [layer for layer in matched if layer not in on]
    slopes = torch.zeros_like(gates)
    meta_loss, learner_gradient = None, {}
    if evaluated:
        moves = gradient if meta_learner.has_virtual_step else {}
        read_later = gradient if keep_gradient else parameters_of(candidates if gates.requires_grad else matched)
        meta_loss, validation = training_pass.validation_gradient(
            moves,
            step,
            meta_inputs,
            meta_labels,
            parameters_of(evaluated),
            cross_entropy,
            reusable=set(moves).difference(read_later),
            clock=clock,
        )
        direction = {name: step.displacement(name, validation[name]) for name in parameters_of(on)}
        if gates.requires_grad and on:
            slopes[gates.detach() > 0] = torch.stack(
                [
                    torch.stack([whole((direction[name] * gradient[name]).sum()) for name in layer.parameters]).sum()
                    for layer in on
                ]
            ).to(slopes)
        if meta_learner.only_ratios_count:
            relative = step.relative()
            direction = {name: relative.displacement(name, validation[name]) for name in direction}
        for layer in matched:
            _add_matching_direction(direction, layer, gradient, validation, objective.gradient_match_weight)
        with clock("derivative"):
            tangent = training_pass.logit_tangent(direction, choose_derivative(objective.derivative, evaluated))
        batch = LabelledBatch.of(training_pass, per_example_loss)
        learner_gradient = gradient_of_slope(meta_learner, batch, training_pass.gathered(tangent))
    is_finite = all_finite([*learner_gradient.values(), slopes, gates])  # what is wrong with g shows here
    return MetaTrain(meta_loss, learner_gradient, slopes, switched_on, is_finite)


def _add_matching_direction(
    direction: dict[str, Tensor],
    layer: Layer,
    gradient: Mapping[str, Tensor],
    validation: Mapping[str, Tensor],
    weight: float,
) -> None:
    """Add 2λ2·Poolᵀ(ḡ^tra − ḡ^val) on layer L: the slope of J along it has the θ-gradient of λ2·L_g (Eq. 11).

    Paper: ḡ^val is held constant here, though it too depends on θ through ŵ.
    """
    gradients = [gradient[name] for name in layer.parameters]
    difference = pool_gradient(gradients) - pool_gradient([validation[name] for name in layer.parameters])
    for name, spread in zip(layer.parameters, unpool_gradient(2 * weight * difference, gradients), strict=True):
        direction[name] = direction[name] + spread if name in direction else spread


def meta_gradient(
    model: nn.Module,
    meta_learner: MetaLearner,
    train_inputs: Mapping[str, Any],
    meta_inputs: Mapping[str, Any],
    *,
    learning_rate: float,
    layers: Sequence[str] | None = None,
    derivative: str = "auto",
    beliefs: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of L_c w.r.t. the meta-learner's θ through the named layers (Eq. 7, 9), usable alone.

    Model, buffers, `.grad` and random state stay as they were; the model's own train or eval mode is used. The
    meta-learner's `begin_step` is called: what lives for one step (L2R, `MLC(keep_matrix=False)`) starts afresh.

    Args:
        model: Any classifier whose output has `.logits` of shape (n, C).
        meta_learner: Ψ, for example `MWNet()`.
        train_inputs: A training batch as a Trainer passes it, `labels` of shape (n,) included.
        meta_inputs: A meta batch likewise, `labels` of shape (m,).
        learning_rate: α of the virtual step.
        layers: Paths in `model.named_modules()` of modules that directly own trainable parameters (`""` is the root);
            None means all.
        derivative: `"forward"`, `"reverse"` or `"finite"` (see `famus_hf.core.autodiff.training_pass`); `"auto"` takes
            the first that the network has and that agrees with its backward pass: an exact one, else finite
            differences.
        beliefs: q of the training batch, for a meta-learner that needs them, shape (n, C).

    Returns:
        The gradient by name in `meta_learner.named_parameters()`. Of those that have none, what they learn of the
        batch, of shape (n,): `"weights"` of `L2R`, `"given"` and `"predicted"` of `L2B`, `"residuals"` of
        `ClassBalancedResidual`.

    Raises:
        SettingsError: An unknown layer or derivative, or parameters that are sharded.
    """
    if derivative not in DERIVATIVES:
        raise SettingsError(f"derivative={derivative!r} is unknown: choose one of {', '.join(DERIVATIVES)}")
    if is_sharded(model):
        raise SettingsError("the model's parameters are sharded (DTensor): call famus_hf.sharded_meta_gradient instead")
    on = parameters_by_layer(model) if layers is None else select_layers(model, layers)
    inputs, labels, _ = split_inputs(train_inputs)
    if not on:
        meta_learner.begin_step(logits_without_trace(model, inputs))
        return meta_learner.outcome({name: torch.zeros_like(t) for name, t in meta_learner.theta().items()})
    device = next(model.parameters()).device
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    step = VirtualStep(dict.fromkeys(parameters, learning_rate))
    with preserve_rng_state(device), torch.enable_grad(), differentiable_attention():
        training_pass = training_pass_without_trace(model, inputs, labels)
        batch = replace(LabelledBatch.of(training_pass, cross_entropy), beliefs=beliefs)
        meta_learner.begin_step(training_pass.logits)
        gradient = {}
        if meta_learner.has_virtual_step:
            loss = meta_learner.training_loss(batch)
            gradient = training_pass.virtual_gradient(loss, parameters)
        names = [name for tensors in on.values() for name in tensors]
        meta_batch, meta_labels, _ = split_inputs(meta_inputs)
        _, validation = training_pass.validation_gradient(gradient, step, meta_batch, meta_labels, names, cross_entropy)
        moving = step.relative() if meta_learner.only_ratios_count else step
        direction = {name: moving.displacement(name, value) for name, value in validation.items()}
        if derivative == "auto":
            tangent = _tangent_that_agrees(training_pass, direction, _ways(model, inputs, on))
        else:
            tangent = training_pass.logit_tangent(direction, derivative)
    return meta_learner.outcome(gradient_of_slope(meta_learner, batch, tangent))


def _tangent_that_agrees(training_pass: TrainingPass, direction: Mapping[str, Tensor], ways: Sequence[str]) -> Tensor:
    """Return ż by the first of the ways that works and agrees with the backward pass, else by the one that is nearest.

    Args:
        training_pass: Whose graph is kept.
        direction: d by parameter name.
        ways: Of the derivative, the preferred one first.

    Raises:
        RuntimeError: None of them works.
    """
    reference = BackwardReference(training_pass, list(direction))
    found: dict[str, tuple[float, Tensor]] = {}
    for way in ways:
        try:
            tangent = training_pass.logit_tangent(direction, way)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if way == ways[-1] and not found:
                raise
            continue
        error = reference.error(direction, tangent)
        if error <= reference.tolerance:
            return tangent
        found[way] = error, tangent
    nearest = min(found, key=lambda way: found[way][0])
    error, tangent = found[nearest]
    log_once(
        f"the derivative is taken by {nearest!r}, the nearest, off by {100 * error:.1g} % of what the network's own "
        "backward pass gives"
    )
    return tangent


def _ways(model: nn.Module, inputs: Mapping[str, Any], on: Mapping[str, Any]) -> list[str]:
    """Return the ways that `"auto"` tries one after another: exact ones first, and of them the cheaper."""
    is_cheap_backward = (
        len(on) < len(parameters_by_layer(model))
        and choose_derivative("auto", [layer for layer in find_layers(model, inputs) if layer.name in on]) == "reverse"
    )
    return ["reverse", "forward", "finite"] if is_cheap_backward else ["forward", "reverse", "finite"]
