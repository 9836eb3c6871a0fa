"""Benchmarks from their official layouts: their splits, and labels by people beside those of the Hub."""

import os
import pickle

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from famus_hf.data.sources.benchmarks import ANIMAL_CLASSES, BUILDERS, CLOTHING_CLASSES, build
from tests.helpers.benchmark_layouts import (
    LAYOUTS,
    built,
    draw,
    lay_animal10n,
    lay_clothing1m,
    lay_cnwl,
    lay_food101n,
    lay_webvision,
    no_hub,
    seen,
    write,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of `datasets` for each test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.mark.parametrize(
    "name, splits, classes",
    [
        ("cnwl", {"train": [(1, 99), (2, 0)], "test": [(3, 5), (4, 3)]}, [str(label) for label in range(100)]),
        (
            "mini-webvision",
            {"train": [(1, 49), (2, 0)], "test": [(3, 7)]},
            [f"name {label}, other name" for label in range(50)],
        ),
        (
            "clothing1m",
            {"train": [(2, 0), (1, 13)], "meta": [(10, 1)], "validation": [(11, 2)], "test": [(12, 3)]},
            CLOTHING_CLASSES,
        ),
        (
            "food101n",
            {"train": [(1, 1), (2, 0)], "meta": [(3, 0)], "test": [(4, 0), (5, 1)]},
            ["waffles", "apple_pie"],
        ),
        ("animal10n", {"train": [(2, 0), (1, 9)], "test": [(3, 4)]}, ANIMAL_CLASSES),
    ],
)
def test_each_layout_gives_its_splits_in_order(name, splits, classes, folder):
    LAYOUTS[name][0](folder)
    data = built(name, folder)
    assert {split: seen(data[split]) for split in data} == splits
    features = Features({"image": Image(), "label": ClassLabel(names=classes)})
    assert all(data[split].features == features for split in data)


def test_ilsvrc12_is_mapped_by_the_order_of_synsets(folder):
    lay_webvision(folder)
    synsets = folder / "info/synsets.txt"
    lines = synsets.read_text().splitlines()
    write(synsets, *reversed(lines[:50]), *lines[50:])
    for label in range(50):
        draw(folder / f"imagenet/val/n{label:08}/ILSVRC2012_val_{label}.JPEG", label)
    draw(folder / "imagenet/val/n00000049/ILSVRC2012_val_100.JPEG", 100)
    draw(folder / "imagenet/val/n00000050/ILSVRC2012_val_50.JPEG", 50)
    test = built("mini-webvision", folder)["test_ilsvrc12"]
    assert seen(test) == [(100, 0)] + [(49 - label, label) for label in range(50)], "sorted within the class"
    assert test.features["label"].int2str(49) == "name 0, other name"


def test_every_noise_level_with_a_split_file_is_read(folder):
    lay_cnwl(folder)
    write(folder / "split/red_noise_nl_0.05", "a.jpg 1")
    draw(folder / "training_s32/red_noise_nl_0.05/1/a.jpg", 9)
    assert seen(build("cnwl", folder, "0.05", no_hub)["train"]) == [(9, 1)]
    for wrong in (None, "0.5", "../clean_validation"):
        with pytest.raises(ValueError, match=r"red_noise_nl_0\.05, red_noise_nl_0\.4, red_noise_nl_0\.6"):
            build("cnwl", folder, wrong, no_hub)


def test_headers_of_food_lists_may_be_absent(folder):
    lay_food101n(folder)
    expected = {split: seen(rows) for split, rows in built("food101n", folder).items()}
    for name in ("classes.txt", "imagelist.tsv", "verified_val.tsv"):
        path = folder / "Food-101N_release/meta" / name
        write(path, *path.read_text().splitlines()[1:])
    assert {split: seen(rows) for split, rows in built("food101n", folder).items()} == expected


def test_what_is_in_a_clean_list_leaves_train_with_a_warning(folder, caplog):
    lay_clothing1m(folder)
    data = built("clothing1m", folder)
    assert "clothing1m: 1 of 3 training images are in a clean split too and leave train" in caplog.messages
    paths = data.cast_column("image", Image(decode=False))
    assert [example["image"]["path"] for example in paths["train"]] == ["images/noisy/2.jpg", "images/noisy/1.jpg"]
    assert not {example["image"]["path"] for example in paths["train"]} & {
        example["image"]["path"] for split in ("meta", "validation", "test") for example in paths[split]
    }


@pytest.mark.parametrize(
    "name, warnings",
    [
        ("cnwl", ["train has 2 examples, officially 50010", "test has 2 examples, officially 5000"]),
        ("mini-webvision", ["train has 2 examples, officially 65944", "test has 1 examples, officially 2500"]),
        (
            "clothing1m",
            [
                f"{split} has {seen_} examples, officially {size}"
                for split, seen_, size in (
                    ("train", 3, 1_000_000),
                    ("meta", 1, 47_570),
                    ("validation", 1, 14_313),
                    ("test", 1, 10_526),
                )
            ],
        ),
        ("food101n", ["train has 3 examples, officially 310009", "test has 2 examples, officially 25250"]),
        ("animal10n", ["train has 2 examples, officially 50000", "test has 1 examples, officially 5000"]),
    ],
)
def test_subsets_are_read_with_a_warning(name, warnings, folder, caplog):
    LAYOUTS[name][0](folder)
    built(name, folder)
    found = [message for message in caplog.messages if "officially" in message]
    assert found == [f"{name}: {warning}" for warning in warnings]


@pytest.mark.parametrize(
    "name, missing",
    [
        ("cnwl", "split"),
        ("animal10n", "training"),
        ("animal10n", "testing"),
        ("mini-webvision", "imagenet/val/n00000000"),
    ],
)
def test_a_missing_folder_is_named_with_its_source(name, missing, folder):
    LAYOUTS[name][0](folder)
    draw(folder / "imagenet/val/n00000001/x.JPEG", 0)
    if (folder / missing).is_dir():
        (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=f"folder '{missing}' is missing in folder.*{name} comes from https://"):
        built(name, folder)


def test_a_split_without_images_is_refused(folder):
    lay_animal10n(folder)
    (folder / "testing/4_1.jpg").unlink()
    with pytest.raises(ValueError, match="every image of split 'test' is missing"):
        built("animal10n", folder)


@pytest.mark.parametrize("wrong", ["10_1.jpg", "cat_1.jpg", "1.jpg", "_1.jpg"])
def test_animals_are_labelled_by_their_file_names(wrong, folder):
    lay_animal10n(folder)
    draw(folder / "training" / wrong, 0)
    with pytest.raises(ValueError, match=f"1 of 3 files in 'training' are not called label_id.jpg .*: '{wrong}';"):
        built("animal10n", folder)


def test_too_few_synsets_are_refused(folder):
    lay_webvision(folder)
    write(folder / "info/synsets.txt", "n00000000 tench, Tinca tinca")
    with pytest.raises(ValueError, match=r"'info/synsets.txt' has 1 of 50 classes"):
        built("mini-webvision", folder)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_folder_must_be_named_and_there(name, folder):
    with pytest.raises(ValueError, match=f"{name} is read from a local folder: name it with --data_dir"):
        build(name, None, None, no_hub)
    with pytest.raises(ValueError, match=f"--data_dir .* is not a folder: unpack {name} there, from https://"):
        build(name, folder, None, no_hub)


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"cnwl"}))
def test_sets_without_configurations_refuse_one(name, folder):
    LAYOUTS[name][0](folder)
    with pytest.raises(ValueError, match=f"{name} has no configurations: leave out '0.4'"):
        build(name, folder, "0.4", no_hub)


HUB_LABELS = [3, 0, 9, 1]
HUMAN = {
    "clean_label": np.array(HUB_LABELS),
    "worse_label": np.array([3, 1, 9, 2]),
    "aggre_label": np.array([3, 0, 9, 2], dtype=np.int32),
    "random_label1": np.array([[4], [0], [9], [1]]),
    "random_label2": np.array([5, 0, 9, 1], dtype=np.uint8),
    "random_label3": np.array([6, 0, 9, 1]),
}


def hub(name):
    """What the Hub has, with 10 classes for CIFAR-100 too."""
    names = ClassLabel(names=[f"{name} {label}" for label in range(10)])
    features = Features({"image": Image(), "label": names, "coarse_label": ClassLabel(names=["x", "y"])})
    columns = {"image": [PILImage.new("L", (4, 4), grey) for grey in range(4)], "coarse_label": [0, 1, 0, 1]}
    whole = Dataset.from_dict(columns | {"label": HUB_LABELS}, features)
    return DatasetDict({"train": whole, "test": whole.select([2, 1])})


def save_human(folder, content, name="CIFAR-10_human.pt", **settings):
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / name, **settings)


def test_human_labels_stand_beside_the_clean_ones(folder):
    save_human(folder, HUMAN)
    data = build("cifar10n", folder, None, hub)
    assert seen(data["train"]) == [(0, 3), (1, 1), (2, 9), (3, 2)], "worse_label by default"
    assert data["train"]["clean_label"][:] == HUB_LABELS and data["train"]["coarse_label"][:] == [0, 1, 0, 1]
    assert data["test"]["label"][:] == [9, 0] and "clean_label" not in data["test"].features
    feature = data["test"].features["label"]
    assert feature.names[3] == "cifar10 3"
    assert data["train"].features["label"] == data["train"].features["clean_label"] == feature
    for label_set in ("aggre_label", "random_label1", "random_label2", "random_label3"):
        assert build("cifar10n", folder, label_set, hub)["train"]["label"][:] == HUMAN[label_set].ravel().tolist()


def test_cifar100_has_one_label_set(folder):
    save_human(folder, {"clean_label": HUMAN["clean_label"], "noisy_label": HUMAN["worse_label"]}, "CIFAR-100_human.pt")
    data = build("cifar100n", folder, None, hub)
    assert data["train"]["label"][:] == [3, 1, 9, 2] and data["train"].features["label"].names[0] == "cifar100 0"
    with pytest.raises(ValueError, match="cifar100n has no label set 'worse_label': choose one of noisy_label"):
        build("cifar100n", folder, "worse_label", hub)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_files_of_numpy_1_and_2_are_read(module, folder):
    save_human(folder, HUMAN, _use_new_zipfile_serialization=False)
    path = folder / "CIFAR-10_human.pt"
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"c" + module + b"\n"))
    assert module in path.read_bytes()
    assert build("cifar10n", folder, None, hub)["train"]["label"][:] == [3, 1, 9, 2]


class Payload:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("pack", [lambda evil: evil, lambda evil: HUMAN | {"worse_label": np.array([evil])}])
@pytest.mark.parametrize("how", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
@pytest.mark.parametrize("function, argument", [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (open, "{}")])
def test_a_file_that_wants_to_run_something_is_refused(function, argument, how, pack, folder):
    folder.mkdir()
    trap, allowed = folder / "trap", torch.serialization.get_safe_globals()
    how(pack(Payload(function, argument.format(str(trap)))), folder / "CIFAR-10_human.pt")
    with pytest.raises(ValueError, match="is no torch file of integer arrays alone and was not loaded"):
        build("cifar10n", folder, None, no_hub)
    assert not trap.exists()
    assert set(torch.serialization.get_safe_globals()) == set(allowed), "nothing stays allowed"


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04"])
def test_a_file_that_is_no_torch_file_is_refused(content, folder):
    folder.mkdir()
    (folder / "CIFAR-10_human.pt").write_bytes(content)
    with pytest.raises(ValueError, match="is no torch file of integer arrays alone"):
        build("cifar10n", folder, None, no_hub)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"clean_label": np.array([3, 9, 0, 1])},
            "2 of 4 clean labels in 'CIFAR-10_human.pt' differ from the Hub's cifar10",
        ),
        ({"clean_label": np.array([3, 0, 9])}, r"'clean_label' .* must be 4 integers, .* but is shape \(3,\) of int64"),
        ({"worse_label": np.array([3, 0, 9, 1, 1])}, r"'worse_label' .* must be 4 integers, .* but is shape \(5,\)"),
        ({"worse_label": np.array([3, 0, 9, 1.0])}, "is no torch file of integer arrays alone"),
        ({"worse_label": [3, 0, 9, 1]}, "'worse_label' .* must be 4 integers, .* but is list"),
        ({"worse_label": np.array([3, 0, 10, -1])}, r"2 labels of 'worse_label' .* are not in 0\.\.9: '10', '-1';"),
    ],
)
def test_label_files_of_other_rows_or_kinds_are_refused(change, sentence, folder):
    save_human(folder, HUMAN | change)
    with pytest.raises(ValueError, match=sentence):
        build("cifar10n", folder, None, hub)


def test_label_sets_that_are_not_there_are_named(folder):
    with pytest.raises(ValueError, match="--data_dir"):
        build("cifar10n", folder, None, hub)
    save_human(folder, {"clean_label": HUMAN["clean_label"]})
    with pytest.raises(ValueError, match=r"'worse_label' in .* must be 4 integers, .* but is NoneType"):
        build("cifar10n", folder, None, hub)
    with pytest.raises(ValueError, match="no label set 'worst': choose one of worse_label, aggre_label, random_label1"):
        build("cifar10n", folder, "worst", hub)
    save_human(folder, [1, 2])
    with pytest.raises(ValueError, match="must be 4 integers"):
        build("cifar10n", folder, None, hub)
    (folder / "CIFAR-10_human.pt").unlink()
    with pytest.raises(
        ValueError, match=r"file 'CIFAR-10_human.pt' is missing in folder .* https://github.com/UCSC-REAL"
    ):
        build("cifar10n", folder, None, no_hub)
