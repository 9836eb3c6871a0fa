"""Seconds and peak memory of a training step, side by side with a plain Trainer step in the same run.

    python scripts/benchmark.py [--depth 28 --width 4 --batch 16 --image_size 32 --rounds 7]
    python scripts/benchmark.py --peers
    python scripts/benchmark.py --norm group --methods exact famus scaled
    python scripts/benchmark.py --sweep depth 16 22 28 34 40
    python scripts/benchmark.py --diagnostics
    python scripts/benchmark.py --input_pipeline [--batch 100 --image_size 32]

Every method trains the same WideResNet on the same random images, through a Trainer's own training_step, optimizer and
zero_grad. The methods take turns, each right behind a plain step, so that a slow spell of the machine hits both; before
each timed step runs an untimed one of the same method, so that none finds the memory and caches of another. The ratio
is the median over the pairs. Peak memory is weights and optimizer state plus the most that one step holds at once
beside them, in allocated tensor bytes: torch.profiler on the CPU, max_memory_allocated on CUDA. "Own Python" is the
share of a step that the interpreter spends in famus_hf itself, by cProfile.

Methods (--methods):
  exact        MW-Net's own gradient: all layers on
  famus        the paper's semantics: learned sampler, its gates held open on the top four layers (--layers)
  scaled       the same, where no batch norm couples examples (--norm group): scale_example_gradients
  candidates   the virtual step moves only those four layers: virtual_scope "candidates"
  reuse        the virtual gradient is the actual one: reuse_virtual_gradient; exact-reuse: with all layers on
  interval     reuse, and a meta step in every tenth step (timed over ten)
  fast         preset "fast"
  posterior    the recommended learner with the same layers, transitions counted; posterior-interval: a meta step in
               every tenth (timed over ten)
  forward      forward correction, which has no meta step
  lowest       only the lowest of --layers candidate layers is on
A quarter at the end of a name means a meta batch of a quarter of the training batch.

--peers adds the methods of scripts/experiments/peers.py and the cosine of their meta gradient to the exact one.
--sweep repeats a small table for several values of depth, width, batch, image_size, meta_batch or layers.
--diagnostics measures what each log_* flag costs where it looks at every tenth step: ten steps with it to ten without,
of the method famus.
--input_pipeline measures images per second from the data set to batches on the device, with and without augmentation,
with images in memory and decoded as they come, and beside them what a plain step takes in.
"""

import argparse
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from experiments.input_pipeline import print_input_pipeline
from experiments.peers import PeerTrainer, peer_trainers
from experiments.steps import peak_bytes, prepare, seconds_of, share_of_own_python
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from famus_hf import (
    FaMUSTrainer,
    FaMUSTrainingArguments,
    ForwardCorrection,
    LayerSampler,
    LearnedSampler,
    PosteriorTargets,
)
from famus_hf.cli.freed_memory import keep_freed_memory
from famus_hf.cli.program import fail
from famus_hf.core.meta_learners.label_noise import LabelNoise
from famus_hf.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification
from famus_hf.reporting.diagnostics.callback import WEIGHED
from famus_hf.training_args_checks import DIAGNOSTICS

CLASSES = 10
LEARNING_RATE = 0.01
EVERY = 10  # steps, in which a diagnostic looks once
SWEPT = ("depth", "width", "batch", "image_size", "meta_batch", "layers")


class RandomImages(torch.utils.data.Dataset):
    """So many times the same images, as an epoch of one step would have trusted examples looked at after each."""

    def __init__(self, size: int, image_size: int, seed: int, times: int = 1):
        self.times = times
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(size, 3, image_size, image_size, generator=generator)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)

    def __len__(self) -> int:
        return self.times * len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        row %= len(self.labels)
        return {"pixel_values": self.images[row], "labels": int(self.labels[row])}


def build_trainers(options: argparse.Namespace, folder: str) -> dict[str, Trainer]:
    """Return one trainer a method, each with its own copy of the same initial network."""
    examples = max(options.batch, WEIGHED) if options.diagnostics else options.batch
    train = RandomImages(examples, options.image_size, seed=0, times=1 if options.diagnostics else 1000)
    meta = RandomImages(max(options.batch, options.meta_batch or 0), options.image_size, seed=1)
    common = {
        "per_device_train_batch_size": options.batch, "learning_rate": LEARNING_RATE, "optim": "sgd",
        "optim_args": "momentum=0.9", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "report_to": "none",
        "use_cpu": not torch.cuda.is_available(), "bf16": options.bf16, "torch_compile": options.compile,
    }  # fmt: skip

    def network() -> nn.Module:
        torch.manual_seed(0)
        config = WideResNetConfig(depth=options.depth, widen_factor=options.width, num_labels=CLASSES)
        model: nn.Module = WideResNetForImageClassification(config)
        model = with_group_norm(model) if options.norm == "group" else model
        return with_channels_last(model) if options.channels_last else model

    def ours(sampler: Any = None, part: int = 1, **settings: Any) -> FaMUSTrainer:
        if "preset" not in settings:
            settings["meta_batch_size"] = max(1, (options.meta_batch or options.batch) // part)
        args = FaMUSTrainingArguments(folder, **common, **{"meta_learner": "mw-net", **settings})
        return FaMUSTrainer(network(), args, train_dataset=train, meta_dataset=meta, layer_sampler=sampler)

    def counted(learner: LabelNoise, **settings: Any) -> FaMUSTrainer:
        learner.set_transitions(torch.eye(CLASSES) * 0.6 + 0.04)
        args = FaMUSTrainingArguments(folder, **common, train_on_trusted=False, plain_warmup_epochs=0, **settings)
        return FaMUSTrainer(network(), args, train_dataset=train, meta_dataset=meta, meta_learner=learner)

    def top(part: int = 1, **settings: Any) -> FaMUSTrainer:
        return ours(LearnedSampler(initial_bias=20.0), part, candidate_layers=str(options.layers), **settings)

    plain = TrainingArguments(folder, **common)
    builders: dict[str, Callable[[], Trainer]] = {
        "plain": lambda: Trainer(network(), plain, train_dataset=train),
        "exact": lambda: ours(layer_sampler="all"),
        "famus": top,
        "scaled": lambda: top(scale_example_gradients=True),
        "candidates": lambda: top(virtual_scope="candidates"),
        "candidates-quarter": lambda: top(4, virtual_scope="candidates"),
        "reuse": lambda: top(reuse_virtual_gradient=True),
        "reuse-quarter": lambda: top(4, reuse_virtual_gradient=True),
        "interval": lambda: top(reuse_virtual_gradient=True, meta_interval=10),
        "exact-reuse": lambda: ours(layer_sampler="all", reuse_virtual_gradient=True),
        "fast": lambda: ours(preset="fast"),
        "posterior": lambda: counted(PosteriorTargets(CLASSES)),
        "posterior-interval": lambda: counted(PosteriorTargets(CLASSES), meta_interval=10),
        "forward": lambda: counted(ForwardCorrection(CLASSES), meta_learner="forward"),
        "lowest": lambda: ours(LowestLayer(), candidate_layers=str(options.layers)),
    }
    builders |= {name: partial(top, **{name: EVERY}) for name in DIAGNOSTICS}
    peers = peer_trainers() if options.peers else {}
    for name, peer in peers.items():
        builders[name] = partial(peer, network(), plain, train_dataset=train, meta_dataset=meta)
    names = ["plain", *options.methods, *peers]
    unknown = sorted(set(names) - set(builders))
    if unknown:
        fail(f"--methods {unknown[0]!r} is unknown: choose from {', '.join(builders)}")
    return {name: builders[name]() for name in dict.fromkeys(names)}


class LowestLayer(LayerSampler):
    """Only the lowest candidate layer is on."""

    def forward(self, pooled: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        return torch.eye(len(self.layers))[0]


def with_channels_last(model: nn.Module) -> nn.Module:
    """Return the model with its weights in channels-last format."""
    move: Any = model.to  # whose overloads for mypy lack this argument
    return move(memory_format=torch.channels_last)


def with_group_norm(model: nn.Module) -> nn.Module:
    """Replace batch norm by group norm in groups of 16 channels."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(child.num_features // 16, child.num_features))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=28, help="depth of the WideResNet")
    parser.add_argument("--width", type=int, default=4, help="widen factor of the WideResNet")
    parser.add_argument("--batch", type=int, default=16, help="training examples, and meta examples, of a step")
    parser.add_argument("--image_size", type=int, default=32, help="height and width of the random images")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each method")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each method before the clock runs")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile, for plain training too")
    parser.add_argument("--channels_last", action="store_true", help="weights in channels-last format, likewise")
    parser.add_argument("--meta_batch", type=int, help="meta examples of a step (--batch)")
    parser.add_argument("--layers", type=int, default=4, help="candidate layers, from the top; on unless a method says")
    parser.add_argument("--norm", choices=("batch", "group"), default="batch", help="normalisation of the WideResNet")
    parser.add_argument("--methods", nargs="*", default=["exact", "famus"], help="beside plain, see above")
    parser.add_argument("--peers", action="store_true", help="other people's implementations too")
    parser.add_argument("--sweep", nargs="+", metavar=("SETTING", "VALUE"), help="a setting and its values")
    parser.add_argument("--diagnostics", action="store_true", help="measure what the log_* flags cost instead")
    parser.add_argument("--input_pipeline", action="store_true", help="measure how fast batches come instead")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, with --input_pipeline")
    options = parser.parse_args()
    keep_freed_memory()

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"WideResNet-{options.depth}-{options.width}, {options.norm} norm, batch {options.batch}, {device}, "
          f"torch {torch.__version__}, Python {platform.python_version()}")  # fmt: skip
    if options.input_pipeline:
        print_input_pipeline(options)
    elif options.diagnostics:
        print_diagnostics(options)
    elif options.sweep:
        print_sweep(options)
    else:
        print_methods(options)


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return method → `seconds` and `ratios` (lists), `bytes`, `own` (share of own Python) and, of peers, `cosine`.

    Each ratio is to a plain step right before, so that both see the machine in the same state.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainers = build_trainers(options, folder)
        batches = {name: prepare(trainer) for name, trainer in trainers.items()}
        measured: dict[str, dict[str, Any]] = {name: {"seconds": [], "ratios": []} for name in trainers}
        for step in range(options.warmup + options.rounds):
            for name, trainer in trainers.items():
                steps = getattr(trainer.args, "meta_interval", 1)
                plain = seconds_of(trainers["plain"], batches["plain"], steps)
                taken = seconds_of(trainer, batches[name], steps)
                if step >= options.warmup:
                    measured[name]["seconds"].append(taken)
                    measured[name]["ratios"].append(taken / plain)
        for name, trainer in trainers.items():
            trainer.state.global_step = 0  # a meta step, where they come at intervals
            measured[name]["bytes"] = peak_bytes(trainer, batches[name])
            trainer.state.global_step = 0
            measured[name]["own"] = share_of_own_python(trainer, batches[name])
            if isinstance(trainer, PeerTrainer):
                measured[name]["cosine"] = trainer.cosine_to_exact(batches[name])
    return measured


def print_methods(options: argparse.Namespace) -> None:
    measured = measure(options)
    plain = measured["plain"]
    width = max(map(len, measured)) + 2
    print(f"{'method':<{width}}{'s/step':>9}{'ratio':>8}{'quartiles':>13}{'peak MB':>10}{'ratio':>8}"
          f"{'own Python':>12}{'cosine':>9}")  # fmt: skip
    for name, row in measured.items():
        cosine = f"{row['cosine']:9.4f}" if "cosine" in row else f"{'–':>9}"
        low, median, high = np.quantile(row["ratios"], (0.25, 0.5, 0.75))
        print(
            f"{name:<{width}}{statistics.median(row['seconds']):>9.4f}{median:>8.2f}"
            f"{f'{low:.2f}–{high:.2f}':>13}{row['bytes'] / 1e6:>10.1f}"
            f"{row['bytes'] / plain['bytes']:>8.2f}{row['own']:>12.1%}"
            f"{cosine}"
        )


def print_diagnostics(options: argparse.Namespace) -> None:
    """Print the ratio of ten steps of famus with a diagnostic to ten without, the diagnostics taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = build_trainers(argparse.Namespace(**{**vars(options), "methods": ["famus", *DIAGNOSTICS]}), folder)
        batches = {name: prepare(trainer) for name, trainer in trainers.items()}
        ratios: dict[str, list[float]] = {name: [] for name in DIAGNOSTICS}
        for round_ in range(options.warmup + options.rounds):
            for name in DIAGNOSTICS:
                without = seconds_of(trainers["famus"], batches["famus"], EVERY)
                taken = seconds_of(trainers[name], batches[name], EVERY)
                if round_ >= options.warmup:
                    ratios[name].append(taken / without)
    print(f"{f'every {EVERY} steps':<22}{'ratio':>8}{'quartiles':>13}")
    for name, own in ratios.items():
        low, median, high = np.quantile(own, (0.25, 0.5, 0.75))
        print(f"{name:<22}{median:>8.3f}{f'{low:.2f}–{high:.2f}':>13}")


def print_sweep(options: argparse.Namespace) -> None:
    setting, *values = options.sweep
    if setting not in SWEPT or not values:
        fail(f"--sweep {setting!r} needs one of {', '.join(SWEPT)}, and then values")
    names = ["plain, s/step", *options.methods]
    print(f"{setting:<12}" + "".join(f"{name:>20}" for name in names) + "   ratio (memory)")
    for value in values:
        measured = measure(argparse.Namespace(**{**vars(options), setting: int(value)}))
        plain = measured.pop("plain")
        seconds = statistics.median(plain["seconds"])
        cells = [
            f"{statistics.median(row['ratios']):.2f} ({row['bytes'] / plain['bytes']:.2f})" for row in measured.values()
        ]
        print(f"{value:<12}{seconds:>20.4f}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
