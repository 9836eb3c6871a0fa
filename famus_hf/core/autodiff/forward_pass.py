"""Forward passes that leave no trace: substituted tensors, thrown-away buffers, restored generators (torch only)."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

RandomState = list[Any]  # of torch, numpy, Python and, where there is one, the GPU
RECORD_COLUMNS = ("index", "clean_label", "row")  # travel with a batch for the logs; never enter the model


def split_inputs(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor, dict[str, Any]]:
    """Split a Trainer's batch into keyword arguments of the model, labels (n,) and record columns."""
    model_inputs = {name: value for name, value in inputs.items() if name not in ("labels", *RECORD_COLUMNS)}
    return model_inputs, inputs["labels"], {name: inputs[name] for name in RECORD_COLUMNS if name in inputs}


def get_random_state(device: torch.device) -> RandomState:
    """Return the state of the generators that a pass on this device draws from.

    Not all draw from torch's: Wav2Vec2 and its like mask their inputs (SpecAugment) by numpy's.
    """
    states = [torch.get_rng_state(), np.random.get_state(), random.getstate()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(device: torch.device, states: RandomState) -> None:
    """Put back what `get_random_state` returned."""
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[3], device)


@contextmanager
def preserve_rng_state(device: torch.device, start: RandomState | None = None) -> Iterator[None]:
    """Put the generators back, after the body, to where they stood before it, whatever it draws.

    Args:
        device: Where the body computes.
        start: A state to begin the body with (default: the present one).
    """
    before = get_random_state(device)
    if start is not None:
        set_random_state(device, start)
    try:
        yield
    finally:
        set_random_state(device, before)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Have the network in train or eval mode in the body, and then each of its modules in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


@contextmanager
def uncompiled() -> Iterator[None]:
    """Have whatever torch.compile was asked for run as it was written: networks, blocks and functions alike.

    What it compiles draws dropout masks of its own, its backward has no derivative, and tangents of forward mode come
    out of it as if they had been zero, without an error.
    """
    if "torch._dynamo" not in sys.modules:  # which takes seconds to import, and nothing is compiled without it
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def differentiable_attention() -> Any:
    """Select the only attention kernel that has forward mode and double backward (no effect on other operations)."""
    return sdpa_kernel(SDPBackend.MATH)


def model_logits(model: nn.Module, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return logits of shape (n, C), optionally with some parameters and buffers replaced by `tensors`.

    Raises:
        TypeError: The output has no `logits` of shape (n, C).
    """
    return logits_of(model(**inputs) if tensors is None else functional_call(model, dict(tensors), (), dict(inputs)))


def logits_of(outputs: Any) -> Tensor:
    """Return the logits of a network's outputs, shape (n, C).

    Raises:
        TypeError: They have no `logits` of shape (n, C).
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        seen = f"logits of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(outputs).__name__
        raise TypeError(f"the model returned {seen}; FaMUS needs an output with .logits of shape (batch, classes)")
    return logits


def named_outputs(outputs: Any) -> dict[str, Any]:
    """Return a network's outputs by their names, those that are None left out."""
    named = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {"logits": logits_of(outputs)})
    return {name: value for name, value in named.items() if value is not None}


class _Substituted(nn.Module):
    """A module around another, for `functional_call` to replace tensors in while `compute` runs."""

    def __init__(self, model: nn.Module, compute: Callable[[nn.Module], Any]):
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self) -> Any:
        return self.compute(self.model)


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor], compute: Callable[[nn.Module], Any]) -> Any:
    """Return `compute(model)`, during which some parameters and buffers are replaced by `tensors`.

    A backward pass belongs inside of it: there checkpointed layers run again, with whatever weights they then have.
    """
    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    return functional_call(_Substituted(model, compute), named, ())


def cloned_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the buffers, for a pass whose running statistics are thrown away."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def logits_without_trace(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return logits (n, C) of a pass that leaves buffers and random state as they were."""
    device = next(model.parameters()).device
    with preserve_rng_state(device), uncompiled():
        return model_logits(model, inputs, cloned_buffers(model))


def without_scale(gradients: dict[str, Tensor], loss_scale: float) -> dict[str, Tensor]:
    """Return the gradients of a loss that went through backward times `loss_scale`, as fp16 needs, without it."""
    return gradients if loss_scale == 1 else {name: gradient / loss_scale for name, gradient in gradients.items()}
