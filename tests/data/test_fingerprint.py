"""Fingerprints: the same of the same data made anew, and nothing is moved by taking one."""

import random

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value

from famus_hf.data.fingerprint import differences, fingerprint_of
from famus_hf.data.inputs.image_inputs import ImageInputs
from famus_hf.data.inputs.image_processors import default_image_processor
from famus_hf.data.inputs.streamed_inputs import StreamedInputs
from tests.helpers.datasets import pictures


def image_inputs(dataset):
    return ImageInputs(dataset, default_image_processor(None, dataset))


def test_images_count_by_their_pixels_however_they_are_packed(tmp_path):
    dataset = pictures(6, 0)
    images = dataset["image"][:]
    for row, image in enumerate(images):
        image.save(tmp_path / f"{row}.bmp")
    files = Dataset.from_dict(
        {"image": [str(tmp_path / f"{row}.bmp") for row in range(6)], "label": dataset["label"][:]}, dataset.features
    )
    one, other = (fingerprint_of(image_inputs(data)) for data in (dataset, files))
    assert one == other and one["class_names"] == ["ant", "bee", "cow"] and one["labels"] == [0, 1, 2, 0, 1, 2]
    changed = fingerprint_of(image_inputs(pictures(6, 1)))
    assert differences(one, changed, "training") == ["the contents of the training examples"]


def test_examples_that_draw_have_one_fingerprint():
    class Drawing(torch.utils.data.Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, row):
            return {"pixel_values": torch.rand(2) + random.random() + np.random.rand(), "labels": torch.tensor(row % 3)}

    one, other = (fingerprint_of(Drawing()) for _ in range(2))
    assert one == other and one["sampled_records"] is not None and one["examples"] == 100


def test_a_stream_is_told_by_its_first_labels():
    def inputs(labels):
        features = Features(
            {"label": ClassLabel(names=["a", "b"]), "clean_label": Value("int64"), "index": Value("int64")}
        )
        table = {"label": labels, "clean_label": [0] * len(labels), "index": range(len(labels))}
        stream = Dataset.from_dict(table, features).to_iterable_dataset()
        return StreamedInputs(stream, None)

    one, same, other = (fingerprint_of(inputs(labels)) for labels in ([0, 1, 0], [0, 1, 0], [0, 1, 1]))
    assert one == same and one["class_names"] == ["a", "b"] and one["examples"] is None
    assert differences(one, other, "training") == ["the labels or index of the training examples"]
