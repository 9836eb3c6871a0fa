"""Virtual-Train (Eq. 3): ŵ = w − α·P·∇_w J(w, θ); P is 1, or what the optimizer's coming step makes of the gradient.

Paper: P is 1. Steps of Adam and its like are about 1000 times as long as their learning rate times the gradient, so
that θ, whose gradient is proportional to ŵ − w, would stand still.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.non_finite import log_once
from famus_hf.core.parallel.dtensor import whole

VirtualStepKind = Literal["sgd", "optimizer"]
STEP_DECAY = 0.9  # of the running means of `StepSizes`

# ---- Optimizers whose step is known ----
#
# Each function returns P of one parameter, a number or a tensor of its shape: the derivative of the coming step by the
# gradient, in units of −α, with the denominator (√v̂ + ε, …) that the last step had. Momentum and weight decay are left
# out, as in Eq. (3). Where there was no gradient yet, and so no denominator, P has 1 in its place.
# Arguments: the optimizer's group, its state of the parameter, in how many steps it has moved the parameter.


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> float:
    if group["momentum"] == 0:
        return 1.0
    share = 1.0 if state.get("momentum_buffer") is None else 1.0 - group["dampening"]
    return 1.0 + group["momentum"] * share if group["nesterov"] else share


def _adam(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> Tensor | float:
    if steps == 0:
        return 1.0
    second_moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    return _inverse(_root(group, second_moment, steps), group["eps"]).mul_(_share_in_mean(group, steps))


def _nadam(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> Tensor | float:
    if steps == 0:
        return 1.0
    beta1, decay = float(group["betas"][0]), group["momentum_decay"]
    now, after = (beta1 * (1 - 0.5 * 0.96 ** (step * decay)) for step in (steps + 1, steps + 2))
    product = float(state["mu_product"]) * now
    share = (1 - now) / (1 - product) + (1 - beta1) * after / (1 - product * after)
    return _inverse(_root(group, state["exp_avg_sq"], steps), group["eps"]).mul_(share)


def _radam(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> Tensor | float:
    beta2, coming = float(group["betas"][1]), steps + 1
    share = _share_in_mean(group, steps)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * coming * beta2**coming / (1 - beta2**coming)
    if length <= 5 or steps == 0:  # the variance of the second moment is not to be had: a step of momentum
        return share
    rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    correction = 1 - beta2**steps
    return _inverse(state["exp_avg_sq"].sqrt(), group["eps"], (rectified * correction) ** 0.5).mul_(share)


def _adamax(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> Tensor | float:
    if steps == 0:
        return 1.0
    largest = state["exp_inf"]  # holds ε already
    return largest.reciprocal().masked_fill_(largest <= group["eps"], 1.0).mul_(_share_in_mean(group, steps))


def _adagrad(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> Tensor | float:
    return _inverse(state["sum"].sqrt(), group["eps"]).div_(1 + steps * group["lr_decay"])


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> Tensor | float:
    if steps == 0:
        return 1.0
    variance = state["square_avg"]
    if group["centered"]:
        variance = variance.addcmul(state["grad_avg"], state["grad_avg"], value=-1).clamp_min_(0)
    return _inverse(variance.sqrt(), group["eps"])


def _adadelta(group: Mapping[str, Any], state: Mapping[str, Any], steps: float) -> Tensor | float:
    if steps == 0:
        return 1.0
    return ((state["acc_delta"] + group["eps"]) / (state["square_avg"] + group["eps"])).sqrt_()


def _share_in_mean(group: Mapping[str, Any], steps: float) -> float:
    """Return the share of the coming gradient in the first moment, (1 − β₁)/(1 − β₁ᵗ) with t = steps + 1."""
    beta1 = float(group["betas"][0])
    return (1 - beta1) / (1 - beta1 ** (steps + 1))


def _root(group: Mapping[str, Any], second_moment: Tensor, steps: float) -> Tensor:
    """Return √v̂ after so many steps."""
    return (second_moment / (1 - float(group["betas"][1]) ** steps)).sqrt_()


def _inverse(root: Tensor, eps: float, factor: float = 1.0) -> Tensor:
    """Return factor/(root + ε), and 1 where the root is 0, as no gradient came by (rows of an embedding, at first)."""
    return (root + eps).reciprocal_().mul_(factor).masked_fill_(root == 0, 1.0)


# Of these classes themselves: a subclass may take another step.
PRECONDITIONERS: dict[type, Callable[[Mapping[str, Any], Mapping[str, Any], float], Tensor | float]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _nadam,
    torch.optim.RAdam: _radam,
    torch.optim.Adamax: _adamax,
    torch.optim.Adagrad: _adagrad,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adadelta: _adadelta,
}


# ---- Any other optimizer ----


class StepSizes:
    """How long an optimizer's steps are, where their derivative is not known: of each parameter, a single number.

    P of a parameter is the mean length of its steps divided by α, over the mean length of its gradients; running means,
    1 before the first step. So the virtual step has the gradient's direction and the length of the optimizer's own.

    Attributes:
        lengths: Name → both means.
    """

    def __init__(self) -> None:
        self.lengths: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks: list[Any] = []
        self._before: dict[str, tuple[Tensor, Tensor, float]] = {}  # of the step being taken: w, gradient, α

    def watch(self, network: nn.Module, optimizer: Any, kind: str) -> None:
        """Measure each step that the optimizer takes from now on, if it is one that needs it, and say so.

        Args:
            network: Whose parameters are measured.
            optimizer: In place of the one that was watched before.
            kind: See `virtual_step_of`.
        """
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        optimizer = _unwrapped(optimizer)
        if kind == "sgd" or type(optimizer) in PRECONDITIONERS:
            return
        name = f"{type(optimizer).__module__.partition('.')[0]}.{type(optimizer).__name__}"  # not torch's, if of AdamW
        log_once(
            f"the derivative of {name}'s step is not known: Virtual-Train takes a gradient step, of each parameter as "
            "long as the optimizer's own steps are on average"
        )
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *arguments: self._begin(network, optimizer)),
            optimizer.register_step_post_hook(lambda *arguments: self._end(network)),
        ]

    @torch.no_grad()
    def _begin(self, network: nn.Module, optimizer: Any) -> None:
        rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        self._before = {
            name: (parameter.detach().clone(), parameter.grad, float(rates[id(parameter)]))
            for name, parameter in network.named_parameters()
            if parameter.grad is not None and float(rates.get(id(parameter), 0)) > 0
        }
        if self._before:
            gradients = torch._foreach_norm([gradient for _, gradient, _ in self._before.values()])
            self._before = {
                name: (weight, length, rate)
                for (name, (weight, _, rate)), length in zip(self._before.items(), gradients, strict=True)
            }

    @torch.no_grad()
    def _end(self, network: nn.Module) -> None:
        before, self._before = self._before, {}
        if not before:
            return
        steps = torch._foreach_sub([network.get_parameter(name) for name in before], [w for w, _, _ in before.values()])
        for (name, (_, gradient, rate)), length in zip(before.items(), torch._foreach_norm(steps), strict=True):
            present = whole(length).float() / rate, whole(gradient).float()
            earlier = self.lengths.get(name)
            # Of the first one all, so that both means have the same weights whatever was measured.
            self.lengths[name] = (
                present
                if earlier is None
                else (
                    STEP_DECAY * earlier[0] + (1 - STEP_DECAY) * present[0],
                    STEP_DECAY * earlier[1] + (1 - STEP_DECAY) * present[1],
                )
            )

    def preconditioner(self, name: str) -> Tensor | float:
        """Return P of a parameter, a scalar."""
        if name not in self.lengths:
            return 1.0
        step, gradient = self.lengths[name]
        return torch.where(gradient > 0, step / gradient, 1.0)

    def state_dict(self) -> dict[str, list[float]]:
        return {name: [float(step), float(gradient)] for name, (step, gradient) in self.lengths.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self.lengths = {name: (torch.tensor(step), torch.tensor(gradient)) for name, (step, gradient) in state.items()}


# ---- The virtual step ----


def virtual_step_of(
    model: nn.Module,
    optimizer: Any,
    kind: str,
    moved: Collection[str] | None = None,
    sizes: StepSizes | None = None,
) -> VirtualStep:
    """Return the virtual step that belongs to the optimizer as it stands before its coming step.

    Args:
        model: The network.
        optimizer: Its optimizer. Parameters that are in none of its groups do not move.
        kind: `"sgd"`: P = 1. `"optimizer"`: P of `PRECONDITIONERS` where the optimizer is in it, for Adam and AdamW
            P = (1 − β₁)/(1 − β₁ᵗ) / (√v̂ + ε) of a parameter that they have moved t − 1 times, and 1 at t = 1; else a
            number for each parameter, by the lengths of the optimizer's steps.
        moved: Names of the parameters whose P is needed. Default: all.
        sizes: Lengths of the steps of an optimizer that is not in the table; P = 1 without.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    learning_rates = dict.fromkeys(names.values(), 0.0)
    preconditioners: dict[str, Tensor] = {}
    optimizer = _unwrapped(optimizer)
    formula = PRECONDITIONERS.get(type(optimizer))
    groups = [
        (group, parameter, names[id(parameter)])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    ]
    is_scaled = {name for _, _, name in groups if kind == "optimizer" and (moved is None or name in moved)}
    states = {name: optimizer.state.get(parameter, {}) for _, parameter, name in groups if name in is_scaled}
    steps = _numbers({name: state["step"] for name, state in states.items() if "step" in state}) if formula else {}
    for group, _, name in groups:
        learning_rates[name] = float(group["lr"])
        if name not in is_scaled:
            continue
        if formula is not None:
            factor = formula(group, states[name], steps.get(name, 0.0))
            factor = -factor if group["maximize"] else factor
        else:
            factor = 1.0 if sizes is None else sizes.preconditioner(name)
        if isinstance(factor, Tensor):
            preconditioners[name] = factor
        else:
            learning_rates[name] *= factor
    return VirtualStep(learning_rates, preconditioners)


def _unwrapped(optimizer: Any) -> Any:
    """Return the optimizer within accelerate's wrapper."""
    return optimizer.optimizer if type(optimizer).__name__ == "AcceleratedOptimizer" else optimizer


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return tensors and numbers as numbers; those on a GPU are read at once, as each reading waits for it."""
    numbers = {name: float(value) for name, value in values.items() if not _is_on_device(value)}
    others = {name: value for name, value in values.items() if _is_on_device(value)}
    if others:
        read = torch.stack([whole(value).reshape(()) for value in others.values()]).tolist()
        numbers |= dict(zip(others, read, strict=True))
    return numbers


def _is_on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"
