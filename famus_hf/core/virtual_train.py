"""Virtual-Train (Eq. 3): ŵ = w − α·P·∇_w J(w, θ); P is 1 or the preconditioner of an Adam-like optimizer."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_pass import without_scale
from famus_hf.core.non_finite import log_once

VIRTUAL_STEPS = ("sgd", "optimizer")


@dataclass(frozen=True)
class VirtualStep:
    """How far the virtual weights move along the gradient: α·P, by parameter name.

    Attributes:
        learning_rates: α of each parameter that moves.
        preconditioners: P of each parameter, of its shape; 1 where there is none.
    """

    learning_rates: Mapping[str, float]
    preconditioners: Mapping[str, Tensor] = field(default_factory=dict)

    def displacement(self, name: str, gradient: Tensor) -> Tensor:
        """−α·P·gradient."""
        preconditioner = self.preconditioners.get(name)
        scaled = gradient if preconditioner is None else preconditioner * gradient
        return scaled * -self.learning_rates[name]


def virtual_step_of(model: nn.Module, optimizer: Any, kind: str, moved: Collection[str] | None = None) -> VirtualStep:
    """The virtual step that belongs to the optimizer as it stands before its coming step.

    Args:
        model: The network.
        optimizer: Its optimizer. Parameters that are in none of its groups do not move.
        kind: `"sgd"`: P = 1. `"optimizer"`: for parameters that Adam or AdamW has moved t − 1 times,
            P = (1 − β₁)/(1 − β₁ᵗ) / (√v̂ + ε), the derivative of its coming step by the gradient with the second moment
            v̂ frozen; 1 at t = 1 and for SGD. Momentum and weight decay are left out, as in Eq. (3).
        moved: Names of the parameters whose P is needed. Default: all.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    learning_rates = dict.fromkeys(names.values(), 0.0)
    preconditioners = {}
    for group in optimizer.param_groups:
        steps = None  # of the group's first parameter that has moved; where it is on a GPU, reading it waits
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if name is None:
                continue
            learning_rates[name] = float(group["lr"])
            is_scaled = kind == "optimizer" and (moved is None or name in moved)
            state = optimizer.state.get(parameter, {}) if is_scaled else {}
            if "exp_avg_sq" in state:
                steps = float(state["step"]) if steps is None else steps
                preconditioners[name] = _adam_preconditioner(group, state, steps)
            elif state and "betas" in group:
                log_once(f"{type(optimizer).__name__} is no Adam of torch: Virtual-Train takes a plain gradient step")
    return VirtualStep(learning_rates, preconditioners)


def _adam_preconditioner(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> Tensor:
    beta1, beta2 = group["betas"]
    second_moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    root = (second_moment / (1 - beta2**steps)).sqrt_().add_(group["eps"])
    return root.reciprocal_().mul_((1 - beta1) / (1 - beta1 ** (steps + 1)))


def virtual_gradient(loss: Tensor, parameters: Mapping[str, Tensor], loss_scale: float = 1.0) -> dict[str, Tensor]:
    """g = ∇_w J(w, θ) of Eq. (3) by parameter name; the graph of `loss` (a scalar) is kept for Actual-Train."""
    inputs = list(parameters.values())
    gradients = torch.autograd.grad(loss * loss_scale, inputs, retain_graph=True, materialize_grads=True)
    return without_scale(dict(zip(parameters, gradients, strict=True)), loss_scale)


def virtual_parameters(
    parameters: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    step: VirtualStep,
    reusable: Set[str] = frozenset(),
) -> dict[str, Tensor]:
    """ŵ = w − α·P·g of Eq. (3), by parameter name: no momentum, no weight decay.

    Args:
        parameters: w.
        gradient: g.
        step: α and P.
        reusable: Names whose gradient is not needed afterwards: ŵ takes its memory where that belongs to it alone.
    """
    with torch.no_grad():
        if not (_is_uniform(step.learning_rates.values()) and not step.preconditioners):
            return {name: value + step.displacement(name, gradient[name]) for name, value in parameters.items()}
        alpha = next(iter(step.learning_rates.values()))
        virtual = {}
        in_place = reusable & parameters.keys() & names_with_own_memory(gradient)
        if in_place:
            names = list(in_place)
            own = [gradient[name] for name in names]
            torch._foreach_mul_(own, -alpha)
            torch._foreach_add_(own, [parameters[name] for name in names])
            virtual = dict(zip(names, own, strict=True))
        others = [name for name in parameters if name not in in_place]
        if others:
            values = torch._foreach_add(
                [parameters[name] for name in others], [gradient[name] for name in others], alpha=-alpha
            )
            virtual |= dict(zip(others, values, strict=True))
        return virtual


def names_with_own_memory(gradient: Mapping[str, Tensor]) -> set[str]:
    """Which tensors of autograd may be changed in place: contiguous ones that share their memory with no other."""
    holders = Counter(tensor.untyped_storage().data_ptr() for tensor in gradient.values())
    return {
        name
        for name, tensor in gradient.items()
        if tensor.is_contiguous() and holders[tensor.untyped_storage().data_ptr()] == 1
    }


def _is_uniform(values: Iterable[float]) -> bool:
    return len(set(values)) == 1
