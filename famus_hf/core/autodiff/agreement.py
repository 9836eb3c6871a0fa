"""Which way of the derivative agrees with the network's own backward pass, measured on a pass of it (torch only).

⟨u, (∂z/∂w)·d⟩ = ⟨∇_w ⟨u, z⟩, d⟩ for any cotangent u and direction d, and the right side takes a first backward alone,
which every network that is trained has. It is also what is meant: the meta gradient is the slope of ∇_w J as the
network's backward gives it, straight-through estimators, hooks and all.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from famus_hf.core.autodiff.forward_pass import differentiable_attention, uncompiled
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.errors import reason_of

COTANGENTS = 2
FLOOR = 0.03  # of the largest tensor's gradient: a smaller one is moved no further than one of that size
TOLERANCE = 3e-3  # one tensor of 300 that is left out shows
TOLERANCE_OF_16_BITS = 0.1


class BackwardReference:
    """What a backward pass of the network says of the derivative of its logits.

    Args:
        training_pass: Whose graph is kept.
        names: Parameters that directions move. Default: all that are trained.
    """

    def __init__(self, training_pass: TrainingPass, names: Sequence[str] | None = None):
        self.training_pass = training_pass
        if names is None:
            names = [name for name, parameter in training_pass.model.named_parameters() if parameter.requires_grad]
        generator = torch.Generator().manual_seed(0)  # leaves the generators of training alone
        logits = training_pass.logits
        self._cotangents = [torch.randn(logits.shape, generator=generator).to(logits) for _ in range(COTANGENTS)]
        self._gradients = [self._gradient(cotangent, names) for cotangent in self._cotangents]

    def error(self, direction: Mapping[str, Tensor], tangent: Tensor) -> float:
        """Return how far ż is off, relative; 0 where the reference is zero or not finite.

        Args:
            direction: d by parameter name.
            tangent: ż along it, shape (n, C).
        """
        expected = torch.stack(
            [
                torch.stack([(gradients[name] * moved).sum() for name, moved in direction.items()]).sum()
                for gradients in self._gradients
            ]
        ).double()
        found = torch.stack([(cotangent * tangent).sum() for cotangent in self._cotangents]).double()
        if not expected.isfinite().all() or not expected.any():
            return 0.0
        error = float((found - expected).norm() / expected.norm())
        return math.inf if math.isnan(error) else error

    def error_of(self, way: str) -> float:
        """Return the error of a way of the derivative, along a direction in which each tensor moves the logits.

        Raises:
            RuntimeError: An operation of the network has no such derivative.
        """
        direction = self._balanced_direction()
        with differentiable_attention():
            return self.error(direction, self.training_pass.logit_tangent(direction, way))

    def fault_of(self, way: str) -> str | None:
        """Return why a way of the derivative is wrong for the network, in one clause; None where it is right."""
        try:
            error = self.error_of(way)
        except torch.OutOfMemoryError:  # a RuntimeError too, of which the network is not to blame
            raise
        except RuntimeError as error_of_torch:
            return reason_of(error_of_torch)
        if error <= self.tolerance:
            return None
        return f"it is off by {100 * error:.2g} % of what the network's own backward pass gives"

    @property
    def tolerance(self) -> float:
        """The error up to which two ways agree in the precision that the network computes in."""
        device_type = self.training_pass.logits.device.type
        dtypes = {self.training_pass.logits.dtype, *(p.dtype for p in self.training_pass.model.parameters())}
        is_low = torch.is_autocast_enabled(device_type) or bool(dtypes & {torch.float16, torch.bfloat16})
        return TOLERANCE_OF_16_BITS if is_low else TOLERANCE

    def _balanced_direction(self) -> dict[str, Tensor]:
        """Return d, by parameter name, along which each tensor moves ⟨u, z⟩ of the first cotangent as far as another.

        But for those whose gradient is hardly more than rounding.
        """
        gradients = self._gradients[0]
        squares = {name: gradient.double().square().sum() for name, gradient in gradients.items()}
        floor = (FLOOR**2 * torch.stack(list(squares.values())).max()).clamp_min(torch.finfo(torch.float64).tiny)
        return {name: (gradient / squares[name].clamp_min(floor)).to(gradient) for name, gradient in gradients.items()}

    def _gradient(self, cotangent: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return ∇_w ⟨u, z⟩ by name. cotangent: u, shape (n, C)."""
        parameters = [self.training_pass.model.get_parameter(name) for name in names]
        logits = self.training_pass.logits
        with uncompiled():
            gradients = torch.autograd.grad(logits, parameters, cotangent, retain_graph=True, materialize_grads=True)
        return dict(zip(names, gradients, strict=True))
