"""Single steps of a Trainer, as scripts/benchmark.py and scripts/reproduce.py measure them."""

import cProfile
import pstats
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

import famus_hf
from famus_hf.core.timer import Timer
from famus_hf.reporting.diagnostics.callback import Diagnostics


def prepare(trainer: Trainer) -> dict[str, Any]:
    """Do what Trainer.train does before its loop. Return one batch."""
    if isinstance(trainer, famus_hf.FaMUSTrainer):
        trainer.begin_beliefs()
    trainer.create_optimizer()
    trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.create_scheduler(10**6)
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.max_steps = 10**6
    for diagnostics in diagnostics_of(trainer):
        diagnostics.on_train_begin(trainer.args, trainer.state, trainer.control)
    return next(iter(trainer.get_train_dataloader()))


def one_step(trainer: Trainer, batch: dict[str, Any]) -> None:
    """Take a training step, and have the diagnostics see it."""
    for diagnostics in diagnostics_of(trainer):
        with diagnostics.loading():
            pass
        diagnostics.on_step_begin(trainer.args, trainer.state, trainer.control)
    network, optimizer = parts_of(trainer)
    trainer.training_step(trainer.model_wrapped, dict(batch))
    optimizer.step()
    network.zero_grad()
    trainer.state.global_step += 1
    for diagnostics in diagnostics_of(trainer):
        diagnostics.on_step_end(trainer.args, trainer.state, trainer.control)


def parts_of(trainer: Trainer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the network and the optimizer of a trainer that is prepared."""
    assert trainer.model is not None and trainer.optimizer is not None
    return trainer.model, trainer.optimizer


def diagnostics_of(trainer: Trainer) -> list[Diagnostics]:
    """Return the trainer's diagnostics; none, unless a log_* flag is on."""
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Diagnostics)]


def seconds_of(trainer: Trainer, batch: dict[str, Any], steps: int = 1) -> float:
    """Return the seconds of a step, the mean of so many, behind one that is not timed."""
    one_step(trainer, batch)
    clock = Timer(trainer.args.device)
    started = clock.now()
    for _ in range(steps):
        one_step(trainer, batch)
    return (clock.now() - started) / steps


def share_of_own_python(trainer: Trainer, batch: dict[str, Any]) -> float:
    """Return the share of a step's time that is spent in the interpreter's frames of famus_hf."""
    profile = cProfile.Profile()
    profile.runcall(one_step, trainer, batch)
    rows: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    package = str(Path(famus_hf.__file__).parent)
    ours = sum(row[2] for (file, _, _), row in rows.items() if file.startswith(package))
    return ours / sum(row[2] for row in rows.values())


def peak_bytes(trainer: Trainer, batch: dict[str, Any]) -> int:
    """Return the bytes of weights and optimizer state, and the most that a step holds at once beside them."""
    static = static_bytes(trainer)
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        one_step(trainer, batch)
        return static + torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        one_step(trainer, batch)
    held = peak = 0
    for event in sorted(memory_events(profile), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return static + peak


def static_bytes(trainer: Trainer) -> int:
    """Return the bytes of the network and of its optimizer's state."""
    network, optimizer = parts_of(trainer)
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*network.parameters(), *network.buffers(), *states]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def memory_events(profile: Any) -> list[Any]:
    """Return what allocated and freed memory."""
    return [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
