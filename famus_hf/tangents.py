"""Forward mode that does not compute again what the training pass has computed (torch only).

A second forward pass with dual tensors costs three forward passes: the values once more, and two products for each
kernel. The values of convolutions and linear maps are still in memory wherever the graph of the training pass keeps
them; taken from there, only the two products remain. Batch norm's tangent is its own backward kernel, since the
normalisation's Jacobian is symmetric; torch's rule for it is a dozen operations over the activations.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = (torch.conv1d, torch.conv2d, torch.conv3d, F.linear)  # linear in the input and in the weight


@dataclass(frozen=True)
class _Output:
    function: Callable[..., Tensor]
    tensor: weakref.ref[Tensor]
    version: int  # a later operation in place changes it


class OutputRecord(TorchFunctionMode):
    """Notes, while it is entered, what the products of a forward pass give out, without keeping any of it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[_Output] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.outputs.append(_Output(func, weakref.ref(result), result._version))
        return result


class TangentRules(TorchFunctionMode):
    """Carries dual tensors through a forward pass that repeats a recorded one: same inputs, weights and random state.

    Args:
        record: Of the recorded pass; None has all values computed again.
    """

    def __init__(self, record: OutputRecord | None = None):
        super().__init__()
        self._recorded = iter([] if record is None else record.outputs)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func in PRODUCTS:
            return self._product(func, *args, **keywords)
        if func is F.batch_norm:
            return _batch_norm(*args, **keywords)
        return func(*args, **keywords)

    def _product(
        self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kw: Any
    ) -> Tensor:
        x, x_tangent = _unpack(input)
        w, w_tangent = _unpack(weight)
        b, b_tangent = (None, None) if bias is None else _unpack(bias)
        value = self._recorded_value(func)
        if value is None:
            value = func(x, w, b, *rest, **kw)
        tangent = None
        if w_tangent is not None:
            tangent = func(x, w_tangent, b_tangent, *rest, **kw)
        elif b_tangent is not None:
            tangent = func(torch.zeros_like(x), w, b_tangent, *rest, **kw)
        if x_tangent is not None:
            moved = func(x_tangent, w, None, *rest, **kw)
            tangent = moved if tangent is None else tangent.add_(moved)
        return value if tangent is None else forward_ad.make_dual(value, tangent)

    def _recorded_value(self, func: Any) -> Tensor | None:
        output = next(self._recorded, None)
        if output is None:
            return None
        if output.function is not func:
            raise RuntimeError("the network took another path in its second pass over a batch: use derivative='finite'")
        tensor = output.tensor()
        return None if tensor is None or tensor._version != output.version else tensor.detach()


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """In training, the running statistics stay as they are."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    x, x_tangent = _unpack(input)
    w, w_tangent = (None, None) if weight is None else _unpack(weight)
    b, b_tangent = (None, None) if bias is None else _unpack(bias)
    value, mean, inverse_std = torch.native_batch_norm(x, w, b, None, None, True, momentum, eps)
    tangent = None
    if x_tangent is not None:
        tangent = torch.ops.aten.native_batch_norm_backward(
            x_tangent, x, w, None, None, mean, inverse_std, True, eps, [True, False, False]
        )[0]
    if w_tangent is not None or b_tangent is not None:
        scale = torch.zeros_like(mean) if w_tangent is None else w_tangent * inverse_std
        shift = (0 if b_tangent is None else b_tangent) - scale * mean
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale, shift = scale.view(shape).to(x.dtype), shift.view(shape).to(x.dtype)
        tangent = torch.addcmul(shift, x, scale) if tangent is None else tangent.addcmul_(x, scale).add_(shift)
    return value if tangent is None else forward_ad.make_dual(value, tangent)


def _unpack(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    value, tangent = forward_ad.unpack_dual(tensor)
    return value, tangent
