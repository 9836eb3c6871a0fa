"""What one forward pass leaves behind for the directional derivative of its logits (torch only).

A second forward pass with dual tensors costs three forward passes: the values once more, and two products for each
kernel. The values of convolutions and linear maps are still in memory wherever the graph of the training pass keeps
them; taken from there, only the two products remain. Batch norm's tangent is its own backward kernel, since the
normalisation's Jacobian is symmetric; torch's rule for it is a dozen operations over the activations.

Reverse mode starts at what a layer gives out where it can, and not at its parameters: a layer that is linear in its
parameters moves its output along d by the layer itself with d in place of its parameters, a single product.
"""

import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from famus_hf.core.autodiff.embedding import embedding_of_duals

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
PRODUCTS: dict[Callable[..., Tensor], tuple[str, ...]] = {  # linear in the input and in the weight
    torch.conv1d: _CONVOLUTION,
    torch.conv2d: _CONVOLUTION,
    torch.conv3d: _CONVOLUTION,
    F.linear: ("input", "weight", "bias"),
}
LINEAR_IN_PARAMETERS: dict[Callable[..., Tensor], tuple[str, ...]] = {
    **PRODUCTS,
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
}


class _Weak:
    """A tensor that is there as long as someone else keeps it, unchanged."""

    def __init__(self, tensor: Tensor):
        self._tensor, self._version = weakref.ref(tensor), tensor._version

    def get(self) -> Tensor | None:
        tensor = self._tensor()
        return None if tensor is None or tensor._version != self._version else tensor.detach()


@dataclass(frozen=True, eq=False)
class Call:
    """Of a function that is linear in its parameters; keeps no activation alive.

    Attributes:
        function: A key of `LINEAR_IN_PARAMETERS`.
        input, output: Of the call.
        shape: Of the input.
        output_shape: Of the output.
        edge: Where its output stands in the graph; None where it has no gradient.
        edge_shape: The shape that it has there.
        arguments: All others, by name; `weight` and `bias` among them.
        autocast: Device type, whether autocast was on, and its precision.
    """

    function: Callable[..., Tensor]
    input: _Weak
    output: _Weak
    shape: torch.Size
    output_shape: torch.Size
    edge: GradientEdge | None
    edge_shape: torch.Size
    arguments: dict[str, Any]
    autocast: tuple[str, bool, torch.dtype]

    def moved_output(self, tangents: Mapping[int, Tensor]) -> Tensor | None:
        """Return (∂output/∂parameters)·d as it is at the edge, or None where the input is gone.

        tangents: id of a parameter → d.
        """
        value = self.input.get()
        if value is None:
            return None
        arguments = dict(self.arguments)
        for name in ("weight", "bias"):
            parameter = arguments.get(name)
            if parameter is not None:
                tangent = tangents.get(id(parameter))
                arguments[name] = torch.zeros_like(parameter) if tangent is None else tangent
        if arguments.get("training"):
            arguments |= {"running_mean": None, "running_var": None}  # which stay as they are
        device_type, enabled, dtype = self.autocast
        with torch.no_grad(), torch.autocast(device_type, dtype, enabled):
            return self.function(value, **arguments).reshape(self.edge_shape)


class ForwardRecord(TorchFunctionMode):
    """Notes, while it is entered, the calls of a forward pass in which layers take part.

    Attributes:
        calls: In order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._uses: Counter[int] = Counter()  # id of a parameter → calls that it enters

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        result = func(*args, **keywords)
        names = LINEAR_IN_PARAMETERS.get(func)
        if names is not None:
            arguments = {**dict(zip(names, args, strict=False)), **keywords}
            value = arguments.pop("input")
            source = _source(result)
            edge = get_gradient_edge(source) if source.requires_grad else None
            device_type = result.device.type
            autocast = (device_type, torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type))
            self.calls.append(
                Call(
                    func,
                    _Weak(value),
                    _Weak(result),
                    value.shape,
                    result.shape,
                    edge,
                    source.shape,
                    arguments,
                    autocast,
                )
            )
        # A look at a shape or a dtype comes through here too, but uses no values of the parameter.
        if not isinstance(result, bool | int | torch.Size | torch.dtype | torch.device):
            self._uses.update(id(parameter) for parameter in _parameters_in([*args, *keywords.values()]))
        return result

    def captured(self, parameters: Mapping[str, nn.Parameter]) -> dict[Call, list[str]]:
        """Return call → names of those of the given parameters that enter it, which is linear in them, and no other.

        Parameters whose gradient a hook changes are in none.
        """
        call_of = {
            id(parameter): call
            for call in self.calls
            if call.edge is not None
            for parameter in (call.arguments.get("weight"), call.arguments.get("bias"))
            if parameter is not None
        }
        names_of: dict[Call, list[str]] = {}
        for name, parameter in parameters.items():
            if self._uses[id(parameter)] == 1 and id(parameter) in call_of and not parameter._backward_hooks:
                names_of.setdefault(call_of[id(parameter)], []).append(name)
        return names_of

    def captures(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Return whether all of the given parameters are captured."""
        return sum(map(len, self.captured(parameters).values())) == len(parameters)


def _source(result: Tensor) -> Tensor:
    """Return what a result is a view of in another shape, as that of a linear map with bias of three dimensions is.

    Where such a result is changed in place, gradients no longer pass by it, but by its source.
    """
    base = result._base
    is_reshaped = base is not None and base.is_contiguous() and result.is_contiguous()
    return base if base is not None and is_reshaped and base.numel() == result.numel() else result


def _parameters_in(values: Sequence[Any]) -> list[nn.Parameter]:
    parameters = []
    for value in values:
        if isinstance(value, list | tuple):
            parameters += _parameters_in(value)
        elif isinstance(value, nn.Parameter):
            parameters.append(value)
    return parameters


class TangentRules(TorchFunctionMode):
    """Carries dual tensors through a forward pass that repeats a recorded one: same inputs, weights and random state.

    A call takes the value that the same function had with the same weight, as often called before.

    Args:
        record: Of the recorded pass; None, or an empty one, has all values computed again.
        originals: id of a tensor that stands for a parameter in this pass → that parameter.
    """

    def __init__(self, record: ForwardRecord | None = None, originals: Mapping[int, Tensor] | None = None):
        super().__init__()
        self._originals = originals or {}
        self._recorded: dict[tuple[Any, int], deque[Call]] = defaultdict(deque)
        self._is_recorded = record is not None and bool(record.calls)
        parameters = {id(parameter) for parameter in self._originals.values()}
        for call in record.calls if record is not None else ():
            if call.function in PRODUCTS and id(call.arguments.get("weight")) in parameters:
                self._recorded[call.function, id(call.arguments["weight"])].append(call)
        self._is_unlike = False

    @property
    def has_strayed(self) -> bool:
        """Return whether this pass made other calls than the recorded one, whose values then are not this one's."""
        return self._is_unlike or any(self._recorded.values())

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func in PRODUCTS:
            return self._product(func, *args, **keywords)
        if func is F.batch_norm:
            return _batch_norm(*args, **keywords)
        if func is F.embedding:
            return embedding_of_duals(*args, **keywords)
        return func(*args, **keywords)

    def _product(
        self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kw: Any
    ) -> Tensor:
        x, x_tangent = _unpack(input)
        w, w_tangent = _unpack(weight)
        b, b_tangent = (None, None) if bias is None else _unpack(bias)
        value = self._recorded_value(func, x, weight)
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

    def _recorded_value(self, func: Any, input: Tensor, weight: Tensor) -> Tensor | None:
        original = self._originals.get(id(weight))
        if original is None or not self._is_recorded:
            return None
        calls = self._recorded[func, id(original)]
        call = calls.popleft() if calls else None
        self._is_unlike |= call is None or call.shape != input.shape
        return None if call is None or self._is_unlike else call.output.get()


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
    """Return batch norm of dual tensors. In training, the running statistics stay as they are."""
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
