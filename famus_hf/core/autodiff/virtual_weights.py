"""The virtual weights ŵ = w − α·P·g of Eq. (3)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class VirtualStep:
    """How far the virtual weights move along the gradient: α·P, by parameter name.

    Attributes:
        learning_rates: α of each parameter that moves.
        preconditioners: P of each parameter, of its shape; 1 where there is none.
    """

    learning_rates: Mapping[str, float]
    preconditioners: Mapping[str, Tensor] = field(default_factory=dict)

    def relative(self) -> "VirtualStep":
        """Return the plain step whose largest α is 1; where all are 0, as at the start of a warm-up, all are 1."""
        largest = max(self.learning_rates.values(), default=0.0)
        return VirtualStep({name: rate / largest if largest else 1.0 for name, rate in self.learning_rates.items()})

    def displacement(self, name: str, gradient: Tensor) -> Tensor:
        """Return −α·P·gradient."""
        preconditioner = self.preconditioners.get(name)
        scaled = gradient if preconditioner is None else preconditioner * gradient
        return scaled * -self.learning_rates[name]


def virtual_parameters(
    parameters: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    step: VirtualStep,
    reusable: Set[str] = frozenset(),
) -> dict[str, Tensor]:
    """Return ŵ = w − α·P·g of Eq. (3), by parameter name: no momentum, no weight decay.

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
            reused = [gradient[name] for name in names]
            # `_foreach` takes a few kernels for all tensors, not two for each.
            torch._foreach_mul_(reused, -alpha)
            torch._foreach_add_(reused, [parameters[name] for name in names])
            virtual = dict(zip(names, reused, strict=True))
        others = [name for name in parameters if name not in in_place]
        if others:
            values = torch._foreach_add(
                [parameters[name] for name in others], [gradient[name] for name in others], alpha=-alpha
            )
            virtual |= dict(zip(others, values, strict=True))
        return virtual


def names_with_own_memory(gradient: Mapping[str, Tensor]) -> set[str]:
    """Return which tensors of autograd may be changed in place: contiguous ones whose memory no other shares."""
    holders = Counter(tensor.untyped_storage().data_ptr() for tensor in gradient.values())
    return {
        name
        for name, tensor in gradient.items()
        if tensor.is_contiguous() and holders[tensor.untyped_storage().data_ptr()] == 1
    }


def _is_uniform(values: Iterable[float]) -> bool:
    return len(set(values)) == 1
