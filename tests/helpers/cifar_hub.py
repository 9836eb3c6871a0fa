"""Tiny sets shaped like CIFAR-10 and CIFAR-100 on the Hub: same names, columns and classes, a few images of each."""

import io

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image

from famus_hf.data.labels.class_maps import CIFAR10_CLASSES

NUM_SUPERCLASSES = 20


def superclass(fine):
    """As in CIFAR-100 five classes each, and not neighbours in number."""
    return fine * 7 % NUM_SUPERCLASSES


def cifar_split(fine_classes, per_class, seed):
    size = fine_classes * per_class
    labels = np.arange(size) % fine_classes
    pixels = np.random.default_rng(seed).integers(256, size=(size, 32, 32, 3), dtype=np.uint8)
    if fine_classes == 10:
        columns, features = {"label": labels}, {"label": ClassLabel(names=CIFAR10_CLASSES)}
    else:
        columns = {"fine_label": labels, "coarse_label": superclass(labels)}
        features = {
            "fine_label": ClassLabel(names=[f"fine {label}" for label in range(fine_classes)]),
            "coarse_label": ClassLabel(names=[f"coarse {label}" for label in range(NUM_SUPERCLASSES)]),
        }
    dataset = Dataset.from_dict({"img": list(pixels), **columns}, Features({"img": Image(), **features}))
    file = io.BytesIO()
    dataset.to_parquet(file)
    return file.getvalue()


def cifar_files():
    """Files of a loopback Hub."""
    return {
        name: {f"data/{split}-00000.parquet": cifar_split(classes, count, seed)
               for seed, (split, count) in enumerate((("train", train), ("test", test)))}
        for name, classes, train, test in (("uoft-cs/cifar10", 10, 14, 2), ("uoft-cs/cifar100", 100, 5, 1))
    }  # fmt: skip
