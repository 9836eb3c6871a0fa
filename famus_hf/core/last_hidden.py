"""What a network's last layer is given: the features of its last hidden layer (torch only)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from famus_hf.core.losses import at_least_float32


@contextmanager
def last_hidden(network: nn.Module) -> Iterator[Callable[[], Tensor]]:
    """Yield a function that returns, after a forward pass in the body, the features that led to its logits, (n, D).

    They are the input of the layer with a matrix or a kernel that was called last, averaged over places or tokens.
    """
    found: list[Tensor] = []

    def keep(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]
        if given:
            found[:] = [_averaged(given[0], has_matrix=_largest_order(layer) == 2)]

    hooks = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in network.modules()
        if _largest_order(module) > 1
    ]
    try:
        yield lambda: at_least_float32(found[0].detach())
    finally:
        for hook in hooks:
            hook.remove()


def _largest_order(module: nn.Module) -> int:
    """Return that of the tensors that a module owns: 2 of a matrix, 4 of a kernel for images, 0 where it owns none."""
    return max((parameter.dim() for parameter in module.parameters(recurse=False)), default=0)


def _averaged(features: Tensor, has_matrix: bool) -> Tensor:
    """Return means over all dimensions but examples and channels, which come last before a matrix; shape (n, D)."""
    if features.dim() < 3:
        return features
    return features.flatten(1, -2).mean(1) if has_matrix else features.flatten(2).mean(2)
