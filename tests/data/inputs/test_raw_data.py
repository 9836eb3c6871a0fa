"""Data sets as users hand them to a trainer: found columns, classes by name, or one sentence."""

import datetime

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image
from PIL import Image as PILImage

from famus_hf import FaMUSTrainer, build_backbone
from famus_hf.data.inputs.image_inputs import ImageInputs
from famus_hf.data.inputs.image_processors import default_image_processor
from famus_hf.errors import DataError
from tests.helpers.trainers import make_args

GENERATOR = np.random.default_rng(0)
ANIMALS = ["ant", "bee", "cow"]


def pictures(labels, names=None, image="image", label="label"):
    """A raw data set with such labels, and such columns."""
    images = [PILImage.fromarray(GENERATOR.integers(256, size=(8, 8, 3), dtype=np.uint8)) for _ in labels]
    dataset = Dataset.from_dict({image: images, label: labels}).cast_column(image, Image())
    return dataset if names is None else dataset.cast_column(label, ClassLabel(names=names))


def make(folder, train, meta, classes=ANIMALS, evaluated=None, **settings):
    args = make_args(folder, **settings)
    return FaMUSTrainer(
        build_backbone("tiny", classes), args, train_dataset=train, meta_dataset=meta, eval_dataset=evaluated
    )


NUMBERS, META = [0, 1, 2] * 4, [2, 1, 0] * 3
FOUND = {  # training set, meta set, classes of the network → labels of both, by the network's numbers
    "numbers": (pictures(NUMBERS), pictures(META), ANIMALS, NUMBERS, META),
    "strings": (pictures(ANIMALS * 4), pictures(ANIMALS[::-1] * 3), ANIMALS, NUMBERS, META),
    "booleans": (pictures([True, False] * 6), pictures([False, True] * 4), ["False", "True"], [1, 0] * 6, [0, 1] * 4),
    "other columns": (
        pictures(NUMBERS, image="img", label="labels"), pictures(META, image="img", label="labels"), ANIMALS, NUMBERS,
        META),
    "torch format": (pictures(NUMBERS).with_format("torch"), pictures(META).with_format("torch"), ANIMALS, NUMBERS,
                     META),
    "a meta set that lacks a class": (
        pictures(NUMBERS, ANIMALS), pictures([0, 1] * 4, ["cow", "bee"]), ANIMALS, NUMBERS, [2, 1] * 4),
    "a network of another order": (
        pictures(NUMBERS, ANIMALS), pictures(META, ANIMALS), ["cow", "ant", "bee"], [1, 2, 0] * 4, [0, 2, 1] * 3),
    "a network without names": (
        pictures(NUMBERS, ANIMALS), pictures([0, 1] * 4, ["cow", "bee"]), ["0", "1", "2"], NUMBERS, [2, 1] * 4),
    "data without names": (pictures(NUMBERS, ["0", "1", "2"]), pictures(META), ANIMALS, NUMBERS, META),
    "numbers as names in another order": (
        pictures([0, 1, 2] * 4, ["0", "1", "10"]), pictures([0, 1, 2] * 3, ["0", "10", "1"]), ["0", "1", "10"], NUMBERS,
        [0, 2, 1] * 3),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_columns_are_found_and_classes_matched_by_name(tmp_path, case):
    train, meta, classes, labels, meta_labels = FOUND[case]
    trainer = make(tmp_path, train, meta, classes)
    assert trainer.train_dataset.records["labels"] == labels
    assert trainer.meta_dataset.records["labels"] == meta_labels
    named = getattr(train.features.get("label"), "names", None)
    if case == "a network without names":
        assert list(trainer.model.config.id2label.values()) == named, "it is given those of its training set"


def test_evaluation_and_report_go_by_names_too(tmp_path):
    trainer = make(tmp_path, pictures(NUMBERS, ANIMALS), pictures(META, ANIMALS))
    judged = trainer.predict(pictures([0, 1, 1, 0], ["cow", "bee"]))
    assert judged.label_ids.tolist() == [2, 1, 1, 2]
    report = trainer.label_report(pictures([0, 1, 1, 0], ["cow", "bee"]))
    assert sorted(report.features["label"].int2str(report["label"][:])) == ["bee", "bee", "cow", "cow"]
    with pytest.raises(DataError, match=r"1 of 2 classes of the evaluation set are none of the network \(dog\), which"):
        trainer.evaluate(pictures([0, 1], ["cow", "dog"]))


REFUSED = {
    "no label": (pictures(["ant", "bee", None] * 4), "4 of 12 examples of the training set have no label \\(row 2, 5,"),
    "no number": (pictures([0, 1, None] * 4), "4 of 12 examples of the training set have no label"),
    "no label column": (pictures([0.5] * 12, label="score"), "a column label are needed: rename them with rename"),
    "floats": (pictures([0.5, 1.0, 2.0] * 4), "are not one class index per example"),
    "several": (pictures([[0, 1], [1], [0]] * 4), "are lists \\(\\[0, 1\\]\\), and each example needs one class"),
    "dates": (pictures([datetime.datetime(2020, 1, 1)] * 12), "are timestamp.*, which are no classes"),
    "other classes": (
        pictures(["x", "bee", "cow"] * 4), "1 of 3 classes of the training set are none of the network \\(x\\), which "
        "has ant, bee, cow: give both the same names"),
    "tuples": ([(torch.zeros(3, 8, 8), 0)] * 12, "an example of the training set is a tuple, and a mapping"),
    "splits": (DatasetDict({"train": pictures(NUMBERS)}), "train_dataset is a DatasetDict with train: give one"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("meta_learner", ["mw-net", "none"])
def test_what_can_not_be_taken_is_refused_in_one_sentence(tmp_path, case, meta_learner):
    train, sentence = REFUSED[case]
    with pytest.raises(DataError, match=sentence) as error:
        make(tmp_path, train, pictures(META), meta_learner=meta_learner)
    assert "\n" not in str(error.value)


def test_inputs_that_number_their_classes_in_another_way_are_refused(tmp_path):
    raw = pictures(META, ["cow", "bee", "ant"])
    meta = ImageInputs(raw, default_image_processor(None, raw))
    with pytest.raises(
        DataError, match=r"the classes of the meta set are cow, bee, ant and those of the network are ant"
    ):
        make(tmp_path, pictures(NUMBERS, ANIMALS), meta)
