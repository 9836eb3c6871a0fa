"""Seconds and peak memory of a training step, side by side with a plain Trainer step in the same run.

    python scripts/benchmark.py [--depth 28 --width 4 --batch 16 --image_size 32 --rounds 7]
    python scripts/benchmark.py --input_pipeline [--batch 100 --image_size 32]

Every method trains the same WideResNet on the same random images, through a Trainer's own training_step, optimizer and
zero_grad. The methods take turns, so that a slow spell of the machine hits all of them; the ratio is that of the
medians. Peak memory is weights and optimizer state plus the most that one step holds at once beside them, in allocated
tensor bytes: torch.profiler on the CPU, max_memory_allocated on CUDA.

Methods: plain (transformers' Trainer); published (MW-Net's double backward through the virtual step, all layers); exact
(ours, all layers, the same gradient); famus (ours, learned sampler, its four gates held open on the top four layers).

--input_pipeline measures images per second from the data set to batches on the device, with and without augmentation,
with images in memory and decoded as they come, and beside them what a plain step takes in.
"""

import argparse
import platform
import statistics
import tempfile
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from peers import PublishedTrainer
from run_famus import now
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, LearnedSampler
from famus_hf.data import model_inputs
from famus_hf.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification

CLASSES = 10
LEARNING_RATE = 0.01


class RandomImages(torch.utils.data.Dataset):
    def __init__(self, size: int, image_size: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(size, 3, image_size, image_size, generator=generator)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self.images[row], "labels": int(self.labels[row])}


def build_trainers(options: argparse.Namespace, folder: str) -> dict[str, Trainer]:
    """One trainer a method, each with its own copy of the same initial network."""
    train = RandomImages(options.batch, options.image_size, seed=0)
    meta = RandomImages(options.batch, options.image_size, seed=1)
    common = {
        "per_device_train_batch_size": options.batch, "learning_rate": LEARNING_RATE, "optim": "sgd",
        "optim_args": "momentum=0.9", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "report_to": "none",
        "use_cpu": not torch.cuda.is_available(), "bf16": options.bf16,
    }  # fmt: skip

    def network() -> nn.Module:
        torch.manual_seed(0)
        config = WideResNetConfig(depth=options.depth, widen_factor=options.width, num_labels=CLASSES)
        return WideResNetForImageClassification(config)

    def ours(sampler: Any, **settings: Any) -> FaMUSTrainer:
        args = FaMUSTrainingArguments(folder, meta_batch_size=options.batch, **common, **settings)
        return FaMUSTrainer(network(), args, train_dataset=train, meta_dataset=meta, layer_sampler=sampler)

    plain = TrainingArguments(folder, **common)
    return {
        "plain": Trainer(network(), plain, train_dataset=train),
        "published": PublishedTrainer(network(), plain, train_dataset=train, meta_dataset=meta),
        "exact": ours(None, layer_sampler="all"),
        "famus": ours(LearnedSampler(initial_bias=20.0), candidate_layers="4"),
    }


def prepare(trainer: Trainer) -> dict[str, Any]:
    """What Trainer.train does before its loop. Returns one batch."""
    trainer.create_optimizer()
    _, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.create_scheduler(10**6)
    trainer.current_gradient_accumulation_steps = 1
    return next(iter(trainer.get_train_dataloader()))


def one_step(trainer: Trainer, batch: dict[str, Any]) -> None:
    trainer.training_step(trainer.model, dict(batch))
    trainer.optimizer.step()
    trainer.model.zero_grad()


def seconds_of(trainer: Trainer, batch: dict[str, Any]) -> float:
    started = now()
    one_step(trainer, batch)
    return now() - started


def peak_bytes(trainer: Trainer, batch: dict[str, Any]) -> int:
    """Weights and optimizer state, and the most that a step holds at once beyond what was allocated before it."""
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
    """Bytes of the network and of its optimizer's state."""
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tensors = [*trainer.model.parameters(), *trainer.model.buffers(), *states]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def memory_events(profile: torch.profiler.profile) -> list[Any]:
    return [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]


def encoded_images(size: int, image_size: int) -> Dataset:
    """Random images as PNG files in Arrow, as a converted data set holds them."""
    pixels = np.random.default_rng(0).integers(256, size=(size, image_size, image_size, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(num_classes=CLASSES)})
    return Dataset.from_dict({"image": list(pixels), "label": [row % CLASSES for row in range(size)]}, features)


def images_per_second(options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Rates of each way to feed the network, the ways taking turns; and of a plain training step beside them."""
    dataset = encoded_images(10 * options.batch, options.image_size)
    limits = {"in memory": model_inputs.MEMORY_LIMIT, "decoded as they come": 0}
    ways = {}
    for place, limit in limits.items():
        for augmentation in ("none", "pad-crop"):
            args = FaMUSTrainingArguments(
                folder, meta_learner="none", augmentation=augmentation, per_device_train_batch_size=options.batch,
                report_to="none", use_cpu=not torch.cuda.is_available(), dataloader_num_workers=options.workers,
            )  # fmt: skip
            model_inputs.MEMORY_LIMIT = limit
            model_inputs._in_use.clear()
            torch.manual_seed(0)
            config = WideResNetConfig(depth=options.depth, widen_factor=options.width, num_labels=CLASSES)
            model = WideResNetForImageClassification(config)
            ways[f"{place}, augmentation {augmentation}"] = FaMUSTrainer(model, args, train_dataset=dataset)
    rates: dict[str, list[float]] = {name: [] for name in [*ways, "a plain step"]}
    step = next(iter(ways.values()))
    batch = prepare(step)
    for _ in range(options.rounds):
        for name, trainer in ways.items():
            started = now()
            for place, inputs in enumerate(trainer.get_train_dataloader()):
                trainer._augmented(trainer._prepare_inputs(inputs), 0, place)
            rates[name].append(len(dataset) / (now() - started))
        rates["a plain step"].append(options.batch / seconds_of(step, batch))
    return rates


def print_input_pipeline(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rates = images_per_second(options, folder)
    print(f"{'images per second':<40}{'median':>10}{'min':>10}{'max':>10}")
    for name, values in rates.items():
        print(f"{name:<40}{statistics.median(values):>10.0f}{min(values):>10.0f}{max(values):>10.0f}")


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
    parser.add_argument("--methods", nargs="+", default=["plain", "published", "exact", "famus"], help="which to run")
    parser.add_argument("--input_pipeline", action="store_true", help="measure how fast batches come instead")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, with --input_pipeline")
    options = parser.parse_args()

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"WideResNet-{options.depth}-{options.width}, batch {options.batch}, {device}, torch {torch.__version__}, "
          f"Python {platform.python_version()}")  # fmt: skip
    if options.input_pipeline:
        print_input_pipeline(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        trainers = build_trainers(options, folder)
        trainers = {name: trainers[name] for name in dict.fromkeys(["plain", *options.methods])}
        batches = {name: prepare(trainer) for name, trainer in trainers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for step in range(options.warmup + options.rounds):
            for name, trainer in trainers.items():
                taken = seconds_of(trainer, batches[name])
                if step >= options.warmup:
                    seconds[name].append(taken)
        memory = {name: peak_bytes(trainer, batches[name]) for name, trainer in trainers.items()}
    plain = statistics.median(seconds["plain"])
    print(f"{'method':<12}{'s/step':>9}{'min':>9}{'max':>9}{'ratio':>8}{'peak MB':>10}{'ratio':>8}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:<12}{median:>9.4f}{min(values):>9.4f}{max(values):>9.4f}{median / plain:>8.2f}"
            f"{memory[name] / 1e6:>10.1f}{memory[name] / memory['plain']:>8.2f}"
        )


if __name__ == "__main__":
    main()
