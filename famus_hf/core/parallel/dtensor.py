"""Tensors that FSDP2 has spread over the processes (DTensor), beside ordinary ones (torch only)."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# torch.distributed.fsdp and .tensor take 1.7 s to import: a run without FSDP, or a page of help, does without them.
FSDP_MODULE, DTENSOR = ("torch.distributed.fsdp", "FSDPModule"), ("torch.distributed.tensor", "DTensor")


def _is(thing: object, kind: tuple[str, str]) -> Any:
    """Return whether a thing is of a class; nothing is of one whose module nobody has imported."""
    module, name = kind
    return isinstance(thing, getattr(sys.modules.get(module), name, ()))


def is_sharded(model: nn.Module) -> bool:
    """Return whether parameters are spread over processes, even if FSDP has brought them together for the moment."""
    return any(_is(module, FSDP_MODULE) for module in model.modules()) or any(
        _is(parameter, DTENSOR) for parameter in model.parameters()
    )


def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, which may be nothing; all of an ordinary one."""
    part: Any = tensor
    return part.to_local() if _is(tensor, DTENSOR) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor in every process. All call it together; an ordinary one is returned as it is."""
    part: Any = tensor
    return part.full_tensor() if _is(tensor, DTENSOR) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Spread a tensor that every process has whole over the processes, as `like` is."""
    if not _is(like, DTENSOR):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed: Any = like
    # With a source rank, the values would be sent from there, though all have them.
    return distribute_tensor(tensor, placed.device_mesh, placed.placements, src_data_rank=None)


def class_of(model: nn.Module) -> type[nn.Module]:
    """Return the network's class as it was written; `fully_shard` puts one of its own, and FSDPModule, before it."""
    return type(model).__mro__[2] if _is(model, FSDP_MODULE) else type(model)


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
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, dict(state), options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def reshard(model: nn.Module) -> None:
    """Drop what FSDP2 has gathered, so that parameters are the shards again, which the optimizer knows."""
    for module in model.modules():
        if _is(module, FSDP_MODULE):
            sharded: Any = module
            sharded.reshard()


def abandon_passes(model: nn.Module) -> None:
    """Have FSDP2 forget a pass that goes no further; an ordinary network needs no such thing."""
    if _is(model, FSDP_MODULE):
        sharded: Any = model
        sharded.reset_iter_state()
