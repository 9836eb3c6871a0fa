"""Virtual-Train (Eq. 3): ŵ = w − α·P·∇_w J(w, θ); P is 1 or the preconditioner of an Adam-like optimizer."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.non_finite import log_once

VirtualStepKind = Literal["sgd", "optimizer"]


def virtual_step_of(model: nn.Module, optimizer: Any, kind: str, moved: Collection[str] | None = None) -> VirtualStep:
    """Return the virtual step that belongs to the optimizer as it stands before its coming step.

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
