"""Images per second from a data set to batches on the device: the table of scripts/benchmark.py --input_pipeline."""

import argparse
import statistics
import tempfile

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from experiments.steps import prepare, seconds_of

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments
from famus_hf.core.timer import Timer
from famus_hf.data.inputs import convert as conversion
from famus_hf.data.inputs import model_inputs
from famus_hf.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification

CLASSES = 10


def encoded_images(size: int, image_size: int) -> Dataset:
    """Return random images as PNG files in Arrow, as a converted data set holds them."""
    pixels = np.random.default_rng(0).integers(256, size=(size, image_size, image_size, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(num_classes=CLASSES)})
    return Dataset.from_dict({"image": list(pixels), "label": [row % CLASSES for row in range(size)]}, features)


def images_per_second(options: argparse.Namespace, folder: str) -> dict[str, list[float]]:
    """Return the rates of each way to feed the network, the ways taking turns, and of a plain training step."""
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
            conversion._in_use.clear()
            torch.manual_seed(0)
            config = WideResNetConfig(depth=options.depth, widen_factor=options.width, num_labels=CLASSES)
            model = WideResNetForImageClassification(config)
            ways[f"{place}, augmentation {augmentation}"] = FaMUSTrainer(model, args, train_dataset=dataset)
    rates: dict[str, list[float]] = {name: [] for name in [*ways, "a plain step"]}
    step = next(iter(ways.values()))
    batch = prepare(step)
    for _ in range(options.rounds):
        for name, trainer in ways.items():
            clock = Timer(trainer.args.device)
            started = clock.now()
            for number, inputs in enumerate(trainer.get_train_dataloader()):
                trainer.augmented(trainer._prepare_inputs(inputs), 0, number)
            rates[name].append(len(dataset) / (clock.now() - started))
        rates["a plain step"].append(options.batch / seconds_of(step, batch))
    return rates


def print_input_pipeline(options: argparse.Namespace) -> None:
    """Print the rates of each way: median, lowest, highest."""
    with tempfile.TemporaryDirectory() as folder:
        rates = images_per_second(options, folder)
    print(f"{'images per second':<40}{'median':>10}{'min':>10}{'max':>10}")
    for name, values in rates.items():
        print(f"{name:<40}{statistics.median(values):>10.0f}{min(values):>10.0f}{max(values):>10.0f}")
