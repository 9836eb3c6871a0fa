"""Tensors that FSDP2 has spread over the processes (DTensor), beside ordinary ones (torch only)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Return whether parameters are spread over processes, even if FSDP has brought them together for the moment."""
    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, which may be nothing; all of an ordinary one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor in every process. All call it together; an ordinary one is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Spread a tensor that every process has whole over the processes, as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    # With a source rank, the values would be sent from there, though all have them.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def class_of(model: nn.Module) -> type[nn.Module]:
    """Return the network's class as it was written; `fully_shard` puts one of its own, and FSDPModule, before it."""
    return type(model).__mro__[2] if isinstance(model, FSDPModule) else type(model)


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Give the network, in the body, the class of `class_of`, which `save_pretrained` names beside the weights."""
    sharded_class = type(model)
    model.__class__ = class_of(model)
    try:
        yield
    finally:
        model.__class__ = sharded_class


def load_whole(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a sharded network the first process's state; of the other ones an empty dict is enough."""
    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def reshard(model: nn.Module) -> None:
    """Drop what FSDP2 has gathered, so that parameters are the shards again, which the optimizer knows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def abandon_passes(model: nn.Module) -> None:
    """Have FSDP2 forget a pass that goes no further; an ordinary network needs no such thing."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()
