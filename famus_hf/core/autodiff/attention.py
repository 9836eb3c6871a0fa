"""Which attention kernel the meta step takes, and what that costs.

torch's fused kernels of scaled dot-product attention have neither forward mode nor a second backward; its math kernel
has both, and is slower. The training pass of a meta step, and the derivative of its logits, take it; all other passes
keep the fused ones, and so does everything where the derivative is by finite differences.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from famus_hf.core.autodiff.forward_pass import differentiable_attention, logits_without_trace

TIMINGS = 3  # of each kernel, of which the shortest counts


class AttentionCalls(TorchFunctionMode):
    """Counts, while it is entered, the calls of scaled dot-product attention."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def report_attention(model: nn.Module, inputs: Mapping[str, Any], now: Callable[[], float]) -> str | None:
    """Return one sentence on the choice and its cost; None for a network without such attention.

    Args:
        model: The network.
        inputs: A few examples, as keyword arguments of its forward; nothing of their pass remains.
        now: Returns the seconds on a clock that waits for the device.
    """

    def shortest_pass() -> float:
        timings = []
        for _ in range(TIMINGS):
            started = now()
            logits_without_trace(model, inputs)
            timings.append(now() - started)
        return min(timings)

    with torch.no_grad():
        with AttentionCalls() as calls:
            logits = logits_without_trace(model, inputs)
        if not calls.count:
            return None
        fused_seconds = shortest_pass()
        with differentiable_attention():
            math_seconds = shortest_pass()
    return (
        "attention is computed by torch's math kernel in the training pass and the derivative of a meta step, as the "
        f"fused ones have no derivatives that these need: a forward pass of {len(logits)} examples takes "
        f"{1000 * math_seconds:.1f} ms by it and {1000 * fused_seconds:.1f} ms by those; all other passes keep them"
    )
