"""The layers of a network, as FaMUS switches them on and off (torch only).

A layer is a module that directly owns trainable parameters; all its tensors are switched together. Frozen parameters
are no layers. A tensor shared by two modules belongs to the first of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from famus_hf.core.autodiff.forward_pass import in_mode, logits_without_trace
from famus_hf.core.parallel.dtensor import spread_like, whole
from famus_hf.errors import SettingsError


@dataclass(frozen=True)
class Layer:
    """
    Attributes:
        name: The module's path in `model.named_modules()` (`""` is the root).
        parameters: Full names of its trainable tensors.
        width: D_out, the length of its pooled gradient.
        share: Share in [0, 1] of a forward pass's floating-point operations that run from its first call to the end.
        block: Index of its residual block from 1, in order of the blocks' first layers; None outside of blocks.
    """

    name: str
    parameters: tuple[str, ...]
    width: int
    share: float = 1.0
    block: int | None = None


def parameters_by_layer(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return layer name → full names of its trainable tensors, in order of registration."""
    owned: dict[str, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = name.rpartition(".")[0]
            owned[owner] = (*owned.get(owner, ()), name)
    return owned


def find_layers(model: nn.Module, inputs: Mapping[str, Any]) -> list[Layer]:
    """Return the layers in the order of their first call, by one forward pass in eval mode that leaves no trace.

    In train mode LayerDrop would leave out layers by lot.

    A module whose parameters are used without a call of its own (`nn.MultiheadAttention.out_proj`) comes right after
    the nearest module around it that is called.

    Args:
        model: Any network.
        inputs: Keyword arguments of its forward, without labels.
    """
    owned = parameters_by_layer(model)
    first_call: dict[str, int] = {}  # module path → operations counted before its first call
    with FlopCounterMode(display=False) as counter:

        def record(name: str) -> None:
            first_call.setdefault(name, counter.get_total_flops())

        handles = [
            module.register_forward_pre_hook(lambda module, arguments, name=name: record(name))
            for name, module in model.named_modules()
        ]
        try:
            with torch.no_grad(), in_mode(model, training=False):
                logits_without_trace(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        total = max(counter.get_total_flops(), 1)

    order = {name: position for position, name in enumerate(first_call)}

    def called_ancestor(name: str) -> str:
        while name not in order and name:
            name = name.rpartition(".")[0]
        return name

    names = sorted(owned, key=lambda name: order[called_ancestor(name)])
    block_of = _residual_blocks(model, names)
    return [
        Layer(
            name,
            owned[name],
            pooled_width([model.get_parameter(tensor).shape for tensor in owned[name]]),
            1 - first_call[called_ancestor(name)] / total,
            block_of.get(name),
        )
        for name in names
    ]


def _residual_blocks(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """Return layer name → index of its block from 1.

    A block is the innermost numbered module (an element of a ModuleList or Sequential) around at least two layers that
    hold a matrix or a kernel: `blocks.3`, `encoder.layer.0`.
    """

    def is_numbered(path: str) -> bool:
        return path.rpartition(".")[2].isdigit()

    inside: dict[str, list[str]] = {}  # numbered module → layers in it
    for name in names:
        parts = name.split(".")
        for end in range(1, len(parts)):
            path = ".".join(parts[:end])
            if is_numbered(path):
                inside.setdefault(path, []).append(name)
    matrices = {
        path: sum(any(p.dim() > 1 for p in model.get_submodule(name).parameters(recurse=False)) for name in layers)
        for path, layers in inside.items()
    }
    candidates = [path for path, count in matrices.items() if count >= 2]
    innermost = [path for path in candidates if not any(other.startswith(path + ".") for other in candidates)]
    ordered = sorted(innermost, key=lambda path: names.index(inside[path][0]))
    return {name: index for index, path in enumerate(ordered, 1) for name in inside[path]}


def parameters_of(layers: Sequence[Layer]) -> list[str]:
    """Return the full names of all tensors of the given layers."""
    return [name for layer in layers for name in layer.parameters]


def select_layers(model: nn.Module, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the named entries of `parameters_by_layer`. Raise SettingsError on a name that is no layer."""
    owned = parameters_by_layer(model)
    unknown = [name for name in names if name not in owned]
    if unknown:
        known = ", ".join(repr(name) for name in list(owned)[:8]) + (", …" if len(owned) > 8 else "")
        raise SettingsError(
            f"layers: {unknown[0]!r} is not a module that directly owns trainable parameters; this model has {known}"
        )
    return {name: owned[name] for name in names}


def pool_gradient(gradients: Sequence[Tensor]) -> Tensor:
    """Return Avg-Pool of Eq. (8): tensors averaged over all but their first dimension, biases as they are, joined.

    Args:
        gradients: The gradients of one layer's tensors, each of shape (D, …), (D,) or (), sharded or not.

    Returns:
        Shape (D_out,), D_out = sum of the first dimensions; the same in all processes.
    """
    return torch.cat([whole(g.flatten(1).mean(1) if g.dim() > 1 else g.reshape(-1)) for g in gradients])


def pooled_width(shapes: Sequence[torch.Size]) -> int:
    """Return D_out, the length of the pooled gradient of a layer whose tensors have these shapes."""
    return sum(shape[0] if shape else 1 for shape in shapes)


def unpool_gradient(pooled: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Spread a vector (D_out,) over tensors shaped and sharded as `like`: the transpose of `pool_gradient`."""
    widths = [tensor.shape[0] if tensor.dim() else 1 for tensor in like]
    spread = []
    for values, tensor in zip(pooled.split(widths), like, strict=True):
        averaged = tensor.numel() // len(values)
        even = (values / averaged).unsqueeze(1).expand(-1, averaged).reshape(tensor.shape)
        spread.append(spread_like(even, tensor))
    return spread
