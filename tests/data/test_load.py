"""load_noisy_dataset: digits, subsets, splits that do not fit together, and what is refused."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from famus_hf import load_noisy_dataset
from famus_hf.data.labels.class_maps import CIFAR10_CLASSES
from famus_hf.data.sources.load_source import load_source
from tests.helpers.datasets import splits_of


def test_digits_keep_their_test_split_and_their_records():
    first, second = (load_noisy_dataset("digits", noise=0.4, seed=seed) for seed in (0, 1))
    assert first["test"]["index"][:] == second["test"]["index"][:]
    assert first["test"]["label"][:] == second["test"]["label"][:] == first["test"]["clean_label"][:]
    assert first["meta"]["index"][:] != second["meta"]["index"][:]
    assert first["meta"]["label"][:] == first["meta"]["clean_label"][:]
    assert (len(first["train"]), len(first["meta"]), len(first["test"])) == (1297, 140, 360)
    assert isinstance(first["train"].features["label"], ClassLabel)
    source = load_source("digits")["train"]
    for row in (0, 500, 1296):
        example = first["train"][row]
        assert source[example["index"]]["label"] == example["clean_label"]
        assert source[example["index"]]["image"] == example["image"]
    wrong = np.mean(np.array(first["train"]["label"][:]) != np.array(first["train"]["clean_label"][:]))
    assert 0.3 < wrong < 0.42


def test_subsets_are_drawn_before_the_meta_set():
    data = load_noisy_dataset("digits", noise=0.2, num_meta=20, max_train_samples=200, max_eval_samples=30)
    assert (len(data["train"]), len(data["meta"]), len(data["test"])) == (180, 20, 30)
    with pytest.raises(ValueError, match="max_train_samples=0"):
        load_noisy_dataset("digits", max_train_samples=0)
    with pytest.raises(ValueError, match="too few for a meta set of 10 %"):
        load_noisy_dataset("digits", max_train_samples=50)


def test_clean_labels_of_the_data_make_a_clean_meta_and_test_set(monkeypatch):
    generator = np.random.default_rng(0)
    clean = np.arange(120) % 3
    noisy = np.where(generator.random(120) < 0.5, generator.integers(3, size=120), clean)
    images = [PILImage.new("RGB", (4, 4)) for _ in clean]
    names = ClassLabel(names=list("abc"))
    whole = Dataset.from_dict(
        {"image": images, "label": noisy, "true": clean}, Features({"image": Image(), "label": names, "true": names})
    )
    monkeypatch.setattr(
        "famus_hf.data.sources.load_source.load_from_hub",
        lambda *arguments: {"train": whole.select(range(90)), "test": whole.select(range(90, 120))},
    )
    data = load_noisy_dataset("user/set", label_column_name="label", clean_label_column_name="true", num_meta=9)
    for split in ("meta", "test"):
        assert data[split]["label"][:] == [clean[row + 90 * (split == "test")] for row in data[split]["index"][:]]
    assert data["train"]["label"][:] == [noisy[row] for row in data["train"]["index"][:]]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"name": "digit"}, "choose one of digits, cifar10"),
        ({}, "either a data set's name or a train_dir"),
        ({"name": "digits", "noise": 0.4, "clean_label_column_name": "clean"}, "contradict each other"),
        ({"name": "user/own-noisy-set", "num_meta": 10}, "not known to be clean"),
        ({"name": "user/own-noisy-set", "meta_set": "clean"}, "not known to be clean"),
        ({"name": "digits", "meta_set": "dirty"}, "choose one of clean, pseudo-clean"),
        ({"name": "digits", "meta_set": "pseudo-clean", "num_meta": 10}, "contradict each other: its size is found"),
        ({"name": "digits", "meta_set": "clean", "num_meta": 0}, "contradict each other"),
        ({"name": "digits", "train_dir": "/"}, "either a data set's name or a train_dir"),
        ({"name": "digits", "data_dir": "/"}, "'digits' takes none"),
        ({"name": "digits", "validation_dir": "/"}, "validation_dir needs a train_dir"),
        ({"train_dir": "/no/such/folder"}, "'/no/such/folder' does not exist"),
        ({"name": "/no/such/folder"}, "is unknown: choose one of digits, cifar10"),
        ({"name": "clothing1m"}, "--data_dir"),
        ({"name": "clothing1m", "noise": 0.2}, "the data bring their own noise"),
        ({"name": "digits", "noise": 0.2, "noise_type": "asymmetric"}, "which class is mistaken for which"),
        ({"name": "digits", "imbalance_factor": 0.5}, "at least 1"),
    ],
)
def test_contradictions_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_noisy_dataset(**arguments)


def test_without_known_clean_labels_there_is_no_meta_set_and_no_clean_label():
    data = load_noisy_dataset("digits", meta_set="pseudo-clean")
    assert set(data) == {"train", "test"} and len(data["train"]) == 1437
    assert data["train"]["clean_label"][:] == data["train"]["label"][:], "clean labels are kept where they are known"


@pytest.mark.parametrize(
    "train, test, sentence",
    [
        ([0, 1], [0, 1, 2], r"1 of 3 classes of the test split have no example in the train split \('c'\)"),
        ([0, 1], [], "the split 'test' of the data has no rows"),
        ([], [0, 1], "the split 'train' of the data has no rows"),
    ],
)
def test_splits_that_do_not_fit_together_are_refused(monkeypatch, train, test, sentence):
    monkeypatch.setattr("famus_hf.data.sources.load_source.load_from_hub", lambda *arguments: splits_of(train, test))
    with pytest.raises(ValueError, match=sentence):
        load_noisy_dataset("user/set")


def test_classes_that_nobody_has_or_nobody_tests_are_named(monkeypatch, caught):
    train, test = [0, 1, 3, 0, 1, 3], [0, 1]
    monkeypatch.setattr("famus_hf.data.sources.load_source.load_from_hub", lambda *arguments: splits_of(train, test))
    data = load_noisy_dataset("user/set")
    assert data["train"].features["label"].names == ["a", "b", "d"]
    assert data["train"]["label"][:] == [0, 1, 2, 0, 1, 2] and data["test"]["label"][:] == test
    for sentence in (
        "1 of 4 classes have no example and are left out (c)",
        "1 of 3 classes have no example in the test split ('d'): what is learned of them is not tested",
    ):
        assert sentence in caught.messages


def test_test_splits_with_secret_labels_give_way_to_validation(monkeypatch):
    splits = splits_of([0, 1, 0, 1], [0, 1])
    label = splits["test"].features["label"]
    splits["validation"] = splits["test"]
    splits["test"] = splits["test"].remove_columns("label").add_column("label", [-1, -1], feature=label)
    monkeypatch.setattr("famus_hf.data.sources.load_source.load_from_hub", lambda *arguments: splits)
    data = load_noisy_dataset("user/set")
    assert set(data) == {"train", "test"} and data["test"]["label"][:] == [0, 1]


def test_human_labels_come_with_the_clean_ones_of_the_hub(tmp_path, monkeypatch):
    """CIFAR-10N through load_noisy_dataset: human labels to train on, clean ones for the meta set."""
    clean = np.arange(60) % 10
    human = np.where(np.arange(60) < 24, (clean + 1) % 10, clean)
    pixels = np.random.default_rng(0).integers(256, size=(60, 4, 4, 3), dtype=np.uint8)
    features = Features({"img": Image(), "label": ClassLabel(names=CIFAR10_CLASSES)})
    whole = Dataset.from_dict({"img": list(pixels), "label": clean}, features)
    monkeypatch.setattr(
        "famus_hf.data.sources.load_source.load_from_hub", lambda *arguments: {"train": whole, "test": whole}
    )
    torch.save({"clean_label": clean, "worse_label": human, "aggre_label": clean}, tmp_path / "CIFAR-10_human.pt")
    data = load_noisy_dataset("cifar10n", data_dir=str(tmp_path), num_meta=20)
    assert (len(data["train"]), len(data["meta"])) == (40, 20)
    for split, labels in (("train", human), ("meta", clean)):
        assert data[split]["label"][:] == labels[data[split]["index"][:]].tolist()
        assert data[split]["clean_label"][:] == clean[data[split]["index"][:]].tolist()
    aggregate = load_noisy_dataset("cifar10n", config_name="aggre_label", data_dir=str(tmp_path), num_meta=20)
    assert aggregate["train"]["label"][:] == aggregate["train"]["clean_label"][:]
