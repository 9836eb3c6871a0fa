"""An exponential moving average of a network's weights, and a pass with it in their place (torch only)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from famus_hf.core.losses import at_least_float32
from famus_hf.core.parallel.processes import Processes

Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """W ← d W + (1 − d) w after each step of the optimizer, for parameters and running statistics alike.

    d = min(D, (1 + t)/(10 + t)) in step t, from 0, and the first step's weights are taken as they are: the start has no
    part in the average, and a short run's average is of its last steps. Whole numbers, as batch norm's count of
    batches, are copied. Weights of 16 bits are averaged in float32, as small changes would be rounded away.

    Args:
        network: Whose weights w are averaged. It stays as it is.
        decay: D, in (0, 1).
        processes: That train it together: running statistics, which differ between them, are those of the first.

    Attributes:
        steps: Whose weights are in the average.
        is_in_use: Whether the network has the average in the place of its weights; see `in_place`.
    """

    def __init__(self, network: nn.Module, decay: float, processes: Processes | None = None):
        self.network, self.decay, self.processes = network, decay, processes or Processes()
        self.is_in_use = False
        self._averaged = self._copy()

    @property
    def steps(self) -> int:
        return int(self._averaged.n_averaged)

    def update(self) -> None:
        """Take in the weights as a step of the optimizer has left them. All processes call it."""
        self._averaged.update_parameters(self._present())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the network, in the body, the average in the place of its weights."""
        if self.is_in_use:
            yield
            return
        before = {name: tensor.detach().clone() for name, tensor in weights_of(self.network).items()}
        self.is_in_use = True
        try:
            self.take_place()
            yield
        finally:
            put_into(self.network, before)
            self.is_in_use = False

    def take_place(self) -> None:
        """Give the network the average for good."""
        put_into(self.network, self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return the average, by the names of `weights_of`."""
        return dict(zip(weights_of(self.network), self._averaged.module.parameters(), strict=True))

    def restore(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a saved average.

        Args:
            steps: As saved.
            tensors: Some of `tensors`; the others are as the network has them.
        """
        self._averaged = self._copy()
        self._averaged.n_averaged.fill_(steps)
        own = self.tensors()
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def _copy(self) -> AveragedModel:
        return AveragedModel(self._present(), multi_avg_fn=self._average, use_buffers=True)

    def _present(self) -> "_Tensors":
        """Return the weights as they are now."""
        tensors = {name: at_least_float32(tensor.detach()) for name, tensor in weights_of(self.network).items()}
        if self.processes.count > 1:
            tensors |= self._statistics_of_first(tensors)
        return _Tensors(list(tensors.values()))

    def _statistics_of_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the first process's running statistics, by one message."""
        parameters = {name for name, _ in self.network.named_parameters(remove_duplicate=False)}
        own = {name: t for name, t in tensors.items() if name not in parameters and t.is_floating_point()}
        if not own:
            return {}
        flat = self.processes.first(torch.cat([tensor.flatten() for tensor in own.values()]))
        parts = flat.split([tensor.numel() for tensor in own.values()])
        return {name: part.view_as(tensor).to(tensor) for (name, tensor), part in zip(own.items(), parts, strict=True)}

    @torch.no_grad()
    def _average(self, averaged: Tensors, present: Tensors, steps: Tensor | int) -> None:
        """Average tensors of one kind of number, as AveragedModel asks for it."""
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            get_ema_multi_avg_fn(decay)(averaged, present, steps)
        else:
            torch._foreach_copy_(averaged, present)


class _Tensors(nn.Module):
    """Tensors as AveragedModel takes them; a ParameterList would cost more time than averaging does."""

    def __init__(self, tensors: list[Tensor]):
        super().__init__()
        self.tensors = tensors

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        return iter(self.tensors)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Return what a saved network holds, parameters and lasting buffers, each of them once."""
    state = network.state_dict(keep_vars=True)
    once = {id(tensor): name for name, tensor in reversed(state.items()) if isinstance(tensor, Tensor)}
    return {name: state[name] for name in reversed(once.values())}


@torch.no_grad()
def put_into(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the network these weights, by the names of `weights_of`; others stay as they are."""
    own = weights_of(network)
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
