"""The gradient of a weighted loss for new example weights, from the backward pass for old ones (torch only).

Where no operation couples the examples of a batch (group or layer norm, but no batch norm), the gradient of Σ c_i ℓ_i
with respect to a layer's output is, row by row, c_i times that of ℓ_i. Virtual-Train and Actual-Train differ in c
alone: so the first pass keeps these gradients, and for the second only the products that form the gradients of the
layers' parameters are left.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_mode import Call, ForwardRecord
from famus_hf.core.autodiff.forward_pass import without_scale

TOLERANCE = 1e-2  # relative, of float32 and bf16 alike; coupled examples are off by much more


class ScaledGradients:
    """∇_w Σ c_i ℓ_i, first for one c and then for another.

    Args:
        loss: Σ c_i ℓ_i, a scalar whose graph is kept.
        weights: c, shape (n,), greater than 0.
        parameters: By name; all of them among `record.captured`.
        record: Of the forward pass.
        loss_scale: As in `TrainingPass`; the gradients come without it.

    Attributes:
        first: ∇_w Σ c_i ℓ_i by parameter name.
    """

    def __init__(
        self,
        loss: Tensor,
        weights: Tensor,
        parameters: Mapping[str, nn.Parameter],
        record: ForwardRecord,
        loss_scale: float = 1.0,
    ):
        self._weights, self._parameters = weights.detach(), parameters
        self._loss_scale = loss_scale
        self._names_of = record.captured(parameters)
        edges: list[Any] = [call.edge for call in self._names_of]
        inputs = [*parameters.values(), *edges]
        gradients = torch.autograd.grad(loss * loss_scale, inputs, retain_graph=True, materialize_grads=True)
        self.first = without_scale(dict(zip(parameters, gradients, strict=False)), loss_scale)
        self.has_row_each = all(call.output_shape[:1] == weights.shape for call in self._names_of)
        self._rows: dict[Call, Tensor] = dict(zip(self._names_of, gradients[len(parameters) :], strict=True))

    def can_scale_to(self, weights: Tensor) -> bool:
        """Return whether the new weights are a finite multiple of the old ones, and each layer's output has their rows.

        One host synchronisation.
        """
        return self.has_row_each and bool((weights / self._weights).isfinite().all())

    def scaled_to(self, weights: Tensor) -> dict[str, Tensor]:
        """Return ∇_w Σ c_i ℓ_i for new weights c of shape (n,), by name; once only, as what was kept is set free."""
        factors = weights / self._weights
        gradients: dict[str, Tensor] = {}
        for call in list(self._rows):
            rows = self._rows.pop(call)
            rows = rows.view(call.output_shape)
            rows = (rows * factors.to(rows).view(-1, *[1] * (rows.dim() - 1))).view(call.edge_shape)
            names = self._names_of[call]
            parameters = [self._parameters[name] for name in names]
            edges: list[Any] = [call.edge]
            gradients.update(zip(names, torch.autograd.grad(edges, parameters, [rows], retain_graph=True), strict=True))
        return without_scale(gradients, self._loss_scale)


def why_gradients_do_not_scale(
    losses: Tensor, parameters: Mapping[str, nn.Parameter], record: ForwardRecord
) -> str | None:
    """Return why scaled gradients differ from those of autograd, compared for two different sets of weights.

    Args:
        losses: ℓ of at least two examples, with graph.
        parameters: All that are trained, by name.
        record: Of the forward pass.

    Returns:
        One clause, or None where they agree.
    """
    captured = {name for names in record.captured(parameters).values() for name in names}
    for name in parameters:
        if name not in captured:
            return f"{name!r} is used elsewhere than in a single convolution, linear map or norm"
    old = torch.arange(1, len(losses) + 1, device=losses.device, dtype=losses.dtype)
    new = old.flip(0)
    scaled = ScaledGradients((old * losses).sum(), old, parameters, record)
    if not scaled.has_row_each:
        return "a layer's output has not one row for each example"
    actual = scaled.scaled_to(new)
    expected = torch.autograd.grad((new * losses).sum(), list(parameters.values()), retain_graph=True)
    size = torch.stack([gradient.norm() for gradient in expected]).norm()
    for name, gradient in zip(parameters, expected, strict=True):
        if (actual[name] - gradient).norm() > TOLERANCE * size:
            return f"the gradient of {name!r} couples the examples of a batch, as batch norm does"
    return None
