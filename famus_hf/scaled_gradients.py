"""Weighted gradients of one batch for several sets of example weights, from one backward pass (torch only).

Where no operation couples the examples of a batch (group or layer norm, but no batch norm), the gradient of Σ c_i ℓ_i
by a layer's output is that of Σ ℓ_i, the rows scaled by c. Virtual-Train and Actual-Train differ in c alone: the pass
back through the activations is taken once, and only the products that form the layers' own gradients for each of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.layers import Layer, parameters_of

TOLERANCE = 1e-2  # relative, of float32 and bf16 alike; a coupled or an overlooked layer is off by much more


class LayerOutputs:
    """Keeps, while it is entered, what each layer gives out.

    Attributes:
        outputs: Layer → its output, with graph.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]):
        self.model, self.layers = model, layers
        self.outputs: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "LayerOutputs":
        def keep(name: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    self.outputs[name] = output

            return hook

        self._handles = [
            self.model.get_submodule(layer.name).register_forward_hook(keep(layer.name)) for layer in self.layers
        ]
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()


class ScaledGradients:
    """∇_w Σ c_i ℓ_i for any c, on the kept graph of one forward pass.

    Args:
        losses: ℓ, shape (n,), with graph.
        kept: The layers' outputs in that pass.
    """

    def __init__(self, losses: Tensor, kept: LayerOutputs):
        self.kept = kept
        outputs = list(kept.outputs.values())
        gradients = torch.autograd.grad(losses.sum(), outputs, retain_graph=True, materialize_grads=True)
        self._cotangents = dict(zip(kept.outputs, gradients, strict=True))

    def gradient(self, weights: Tensor) -> dict[str, Tensor]:
        """By parameter name. weights: c, shape (n,)."""
        found: dict[str, Tensor] = {}
        for layer in self.kept.layers:
            output, cotangent = self.kept.outputs[layer.name], self._cotangents[layer.name]
            rows = weights.detach().to(cotangent).view(-1, *[1] * (cotangent.dim() - 1))
            parameters = [self.kept.model.get_parameter(name) for name in layer.parameters]
            gradients = torch.autograd.grad(
                output, parameters, cotangent * rows, retain_graph=True, materialize_grads=True
            )
            found.update(zip(layer.parameters, gradients, strict=True))
        return found


def why_gradients_do_not_scale(model: nn.Module, losses: Tensor, kept: LayerOutputs) -> str | None:
    """Compares scaled gradients with those of autograd on a batch whose examples weigh differently.

    Args:
        model: The network.
        losses: ℓ of at least two examples, with graph.
        kept: The layers' outputs in that pass.

    Returns:
        One clause, or None where they agree.
    """
    missing = [layer.name for layer in kept.layers if layer.name not in kept.outputs]
    if missing:
        return f"layer {missing[0]!r} is not called as a module that gives out one tensor"
    if any(len(output) != len(losses) for output in kept.outputs.values() if output.dim()):
        return "a layer's output has not one row for each example"
    weights = torch.arange(1, len(losses) + 1, device=losses.device, dtype=losses.dtype)
    names = parameters_of(kept.layers)
    parameters = [model.get_parameter(name) for name in names]
    expected = torch.autograd.grad((weights * losses).sum(), parameters, retain_graph=True, materialize_grads=True)
    found = ScaledGradients(losses, kept).gradient(weights)
    size = torch.stack([gradient.norm() for gradient in expected]).norm()
    for name, gradient in zip(names, expected, strict=True):
        if (found[name] - gradient).norm() > TOLERANCE * size:
            return f"the gradient of {name!r} couples the examples of a batch (batch norm does) or has several sources"
    return None
