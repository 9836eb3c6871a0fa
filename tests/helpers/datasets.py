"""Small raw data sets of images and of texts, as `load_noisy_dataset` gives them or as files."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from tests.helpers.models import WORDS, text_data

IMAGE_CLASSES = ["ant", "bee", "cow"]


def pictures(size, seed, height=12, width=16):
    pixels = np.random.default_rng(seed).integers(256, size=(size, height, width, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=IMAGE_CLASSES)})
    return Dataset.from_dict({"image": list(pixels), "label": [row % 3 for row in range(size)]}, features)


TEXT_CLASSES = sorted(WORDS)


def texts(size, seed=0, first_index=0, **columns):
    """A raw data set as `load_noisy_dataset` gives it."""
    data = {**text_data(size, seed), "index": range(first_index, first_index + size), **columns}
    data["label"] = [TEXT_CLASSES.index(name) for name in data["label"]]
    label = ClassLabel(names=TEXT_CLASSES)
    kinds = {name: {"index": Value("int64"), "label": label}.get(name, Value("string")) for name in data}
    return Dataset.from_dict(data, features=Features(kinds))


def write_texts(folder, pairs=False):
    """train.csv and test.csv."""
    folder.mkdir(exist_ok=True)
    for split, size, seed in (("train", 150, 0), ("test", 45, 1)):
        data = text_data(size, seed, pairs)
        names = {"text": "sentence1", "text_pair": "sentence2"} if pairs else {}
        Dataset.from_dict({names.get(n, n): values for n, values in data.items()}).to_csv(str(folder / f"{split}.csv"))
    return folder


def splits_of(train, test):
    feature = ClassLabel(names=list("abcd"))
    pictures = [PILImage.new("RGB", (4, 4), (row, 0, 0)) for row in range(len(train) + len(test))]
    features = Features({"image": Image(), "label": feature})
    return {
        "train": Dataset.from_dict({"image": pictures[: len(train)], "label": train}, features),
        "test": Dataset.from_dict({"image": pictures[len(train) :], "label": test}, features),
    }
