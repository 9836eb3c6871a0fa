"""Benchmarks from their official layouts: one tiny tree of each, and what is refused."""

import os
import pickle

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from famus_hf.data.sources.benchmarks import ANIMAL_CLASSES, BUILDERS, CLOTHING_CLASSES, SOURCES, build


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of `datasets` for each test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def draw(path, grey):
    """A 4×4 image that is told from others by its grey; PNG, as that keeps it exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("L", (4, 4), grey).save(path, format="PNG")


def seen(split):
    """Grey and label of each row."""
    return [(example["image"].getpixel((0, 0)), example["label"]) for example in split]


def no_hub(name):
    raise AssertionError("only CIFAR-N needs the Hub")


def lay_cnwl(folder):
    write(folder / "split/red_noise_nl_0.4", "b.jpg 99", "a.jpg 0")
    write(folder / "split/red_noise_nl_0.6", "a.jpg 1")
    write(folder / "split/clean_validation", "v.jpg 5", "w.jpg 3")
    draw(folder / "training_s32/red_noise_nl_0.4/99/b.jpg", 1)
    draw(folder / "training_s32/red_noise_nl_0.4/0/a.jpg", 2)
    draw(folder / "validation_s32/5/v.jpg", 3)
    draw(folder / "validation_s32/w.jpg", 4)


def lay_webvision(folder):
    write(folder / "info/synsets.txt", *(f"n{label:08} name {label}, other name" for label in range(60)))
    google = (f"google/{own}" for own in ("q0002/b.jpg 49", "q0001/a.jpg 0", "q0003/of_another_class.jpg 50"))
    write(folder / "info/train_filelist_google.txt", *google)
    write(folder / "info/val_filelist.txt", "val1.jpg 50", "val2.jpg 7")
    draw(folder / "google/q0002/b.jpg", 1)
    draw(folder / "google/q0001/a.jpg", 2)
    draw(folder / "val_images_256/val2.jpg", 3)


def lay_clothing1m(folder):
    noisy, clean = (f"images/{kind}/{{}}.jpg".format for kind in ("noisy", "clean"))
    write(folder / "noisy_train_key_list.txt", noisy(2), noisy(1), clean(0))
    write(folder / "noisy_label_kv.txt", f"{noisy(1)} 13", f"{noisy(2)} 0", f"{clean(0)} 4")
    write(folder / "clean_label_kv.txt", *(f"{clean(row)} {row + 1}" for row in range(3)))
    for row, split in enumerate(("train", "val", "test")):
        write(folder / f"clean_{split}_key_list.txt", clean(row))
        draw(folder / clean(row), 10 + row)
    for row in (1, 2):
        draw(folder / noisy(row), row)


def lay_food101n(folder):
    meta = folder / "Food-101N_release/meta"
    write(meta / "classes.txt", "class_name", "waffles", "apple_pie")
    write(meta / "imagelist.tsv", "class_name/key", "apple_pie/c.jpg", "waffles/a.jpg", "waffles/b.jpg")
    write(meta / "verified_val.tsv", "class_name/key\tverification_label", "waffles/a.jpg\t0", "waffles/b.jpg\t1")
    write(folder / "food-101/meta/test.txt", "waffles/1011328", "apple_pie/7")
    for grey, name in enumerate(("apple_pie/c.jpg", "waffles/a.jpg", "waffles/b.jpg"), start=1):
        draw(folder / "Food-101N_release/images" / name, grey)
    draw(folder / "food-101/images/waffles/1011328.jpg", 4)
    draw(folder / "food-101/images/apple_pie/7.jpg", 5)


def lay_animal10n(folder):
    draw(folder / "training/9_17.jpg", 1)
    draw(folder / "training/0_2.jpg", 2)
    draw(folder / "testing/4_1.jpg", 3)


LAYOUTS = {
    "cnwl": (lay_cnwl, "0.4"),
    "mini-webvision": (lay_webvision, None),
    "clothing1m": (lay_clothing1m, None),
    "food101n": (lay_food101n, None),
    "animal10n": (lay_animal10n, None),
}


def built(name, folder):
    return build(name, folder, LAYOUTS[name][1], no_hub)


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
        ("cnwl", "split/clean_validation"),
        ("mini-webvision", "info/synsets.txt"),
        ("mini-webvision", "info/train_filelist_google.txt"),
        ("mini-webvision", "info/val_filelist.txt"),
        ("clothing1m", "noisy_train_key_list.txt"),
        ("clothing1m", "clean_train_key_list.txt"),
        ("clothing1m", "clean_val_key_list.txt"),
        ("clothing1m", "clean_test_key_list.txt"),
        ("clothing1m", "noisy_label_kv.txt"),
        ("clothing1m", "clean_label_kv.txt"),
        ("food101n", "Food-101N_release/meta/classes.txt"),
        ("food101n", "Food-101N_release/meta/imagelist.tsv"),
        ("food101n", "Food-101N_release/meta/verified_val.tsv"),
        ("food101n", "food-101/meta/test.txt"),
    ],
)
def test_a_missing_file_is_named_with_folder_and_source(name, missing, folder):
    LAYOUTS[name][0](folder)
    (folder / missing).unlink()
    with pytest.raises(ValueError) as error:
        built(name, folder)
    place = f"file {missing!r} is missing in folder {str(folder)!r}"
    assert str(error.value) == f"{place}: {name} comes from {SOURCES[name]}"


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


@pytest.mark.parametrize(
    "name, image, split, size",
    [
        ("cnwl", "training_s32/red_noise_nl_0.4/0/a.jpg", "train", 2),
        ("cnwl", "validation_s32/5/v.jpg", "test", 2),
        ("mini-webvision", "google/q0001/a.jpg", "train", 2),
        ("mini-webvision", "val_images_256/val2.jpg", "test", 1),
        ("clothing1m", "images/noisy/1.jpg", "train", 2),
        ("clothing1m", "images/clean/1.jpg", "validation", 1),
        ("food101n", "Food-101N_release/images/waffles/b.jpg", "meta", 1),
        ("food101n", "food-101/images/apple_pie/7.jpg", "test", 2),
    ],
)
def test_a_listed_image_must_be_on_disk(name, image, split, size, folder):
    LAYOUTS[name][0](folder)
    (folder / image).unlink()
    (folder / image).mkdir()  # nor is a folder an image
    with pytest.raises(ValueError, match=f"1 of {size} listed images of split '{split}' are not on disk: '{image}';"):
        built(name, folder)


def test_many_offenders_are_counted_and_three_are_named(folder):
    lay_cnwl(folder)
    write(folder / "split/red_noise_nl_0.4", "b.jpg 99", *(f"{row}.jpg 1" for row in range(4)), "a\0.jpg 1")
    first = ", ".join(f"'training_s32/red_noise_nl_0.4/1/{row}.jpg'" for row in range(3))
    with pytest.raises(ValueError, match=f"5 of 6 listed images of split 'train' are not on disk: {first}, …; "):
        built("cnwl", folder)


def test_a_split_without_images_is_refused(folder):
    lay_animal10n(folder)
    (folder / "testing/4_1.jpg").unlink()
    with pytest.raises(ValueError, match="every image of split 'test' is missing"):
        built("animal10n", folder)


@pytest.mark.parametrize(
    "name, file, line, sentence",
    [
        ("cnwl", "split/red_noise_nl_0.4", "a.jpg", r"1 of 3 lines in 'split/red_noise_nl_0.4' are not .*: 'a.jpg';"),
        ("cnwl", "split/red_noise_nl_0.4", "x.jpg 100", "a label from 0 to 99: 'x.jpg 100';"),
        ("cnwl", "split/clean_validation", "x.jpg -1", "a label from 0 to 99: 'x.jpg -1';"),
        ("mini-webvision", "info/train_filelist_google.txt", "a b 1", "1 of 4 lines .* from 0 to 59: 'a b 1';"),
        ("mini-webvision", "info/val_filelist.txt", "x.jpg 60", "1 of 3 lines .* from 0 to 59: 'x.jpg 60';"),
        ("mini-webvision", "info/synsets.txt", "n1", "1 lines of 'info/synsets.txt' are not a wnid and a class name"),
        ("mini-webvision", "info/synsets.txt", "../n1 x", "1 paths in 'info/synsets.txt' lead out .*: '../n1';"),
        ("clothing1m", "noisy_label_kv.txt", "x.jpg one", "1 of 4 lines .* from 0 to 13: 'x.jpg one';"),
        ("clothing1m", "clean_label_kv.txt", "x.jpg 14", "1 of 4 lines .* from 0 to 13: 'x.jpg 14';"),
        (
            "clothing1m",
            "clean_val_key_list.txt",
            "x.jpg",
            "1 paths in 'clean_val_key_list.txt' have no label: 'x.jpg';",
        ),
        ("clothing1m", "noisy_train_key_list.txt", "x.jpg", "1 paths in 'noisy_train_key_list.txt' have no label"),
        ("food101n", "Food-101N_release/meta/verified_val.tsv", "waffles/a.jpg 2", "1 of 3 lines .* from 0 to 1"),
        (
            "food101n",
            "Food-101N_release/meta/imagelist.tsv",
            "pizza/a.jpg",
            "1 of 4 .* of the 2 classes.*: 'pizza/a.jpg'",
        ),
        ("food101n", "food-101/meta/test.txt", "waffles/1/2", "1 of 3 lines in 'food-101/meta/test.txt' are not"),
        ("food101n", "Food-101N_release/meta/classes.txt", "waffles", "1 class names occur twice: 'waffles';"),
    ],
)
def test_malformed_lines_are_counted_and_named(name, file, line, sentence, folder):
    LAYOUTS[name][0](folder)
    with (folder / file).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ValueError, match=sentence):
        built(name, folder)


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


LISTS = [
    ("cnwl", "split/red_noise_nl_0.4", "{} 1"),
    ("cnwl", "split/clean_validation", "{} 1"),
    ("mini-webvision", "info/train_filelist_google.txt", "{} 1"),
    ("mini-webvision", "info/val_filelist.txt", "{} 1"),
    ("clothing1m", "noisy_train_key_list.txt", "{}"),
    ("clothing1m", "clean_test_key_list.txt", "{}"),
    ("clothing1m", "noisy_label_kv.txt", "{} 1"),
    ("food101n", "Food-101N_release/meta/imagelist.tsv", "{}"),
    ("food101n", "Food-101N_release/meta/verified_val.tsv", "{}\t1"),
    ("food101n", "food-101/meta/test.txt", "{}"),
]


@pytest.mark.parametrize("name, file, line", LISTS)
def test_paths_that_lead_out_of_the_folder_are_refused(name, file, line, folder):
    LAYOUTS[name][0](folder)
    before = (folder / file).read_text()
    for path in ("/etc/passwd", "../secret.jpg", "waffles/../../secret.jpg", "waffles/.."):
        (folder / file).write_text(before + line.format(path) + "\n")
        with pytest.raises(ValueError, match=f"1 paths in '{file}' lead out of the folder: '{path}';"):
            built(name, folder)


@pytest.mark.parametrize("name, file, line", LISTS)
def test_a_name_that_is_listed_twice_is_refused(name, file, line, folder):
    LAYOUTS[name][0](folder)
    with (folder / file).open("a") as stream:
        stream.write((line + "\n").format("waffles/x.jpg") * 2)
    with pytest.raises(ValueError, match=f"1 names occur twice in '{file}': 'waffles/x.jpg';"):
        built(name, folder)


def when_written(data):
    """The Arrow files behind each split and when they were written."""
    return {
        split: {file["filename"]: os.stat(file["filename"]).st_mtime_ns for file in files}
        for split, files in data.cache_files.items()
    }


def test_images_are_converted_once_until_one_changes(folder):
    lay_animal10n(folder)
    first = built("animal10n", folder)
    written = when_written(first)
    assert [len(files) for files in written.values()] == [1, 1], "mapped from disk"
    assert when_written(built("animal10n", folder)) == written
    size = (folder / "training/0_2.jpg").stat().st_size
    draw(folder / "training/0_2.jpg", 77)
    assert (folder / "training/0_2.jpg").stat().st_size == size, "told by its time alone"
    changed = built("animal10n", folder)
    assert seen(changed["train"]) == [(77, 0), (1, 9)]
    assert changed["test"].cache_files == first["test"].cache_files, "the other split is kept"
    (folder / "training/0_2.jpg").rename(folder / "training/3_2.jpg")
    assert seen(built("animal10n", folder)["train"]) == [(77, 3), (1, 9)], "a new label is noticed"


def test_broken_images_are_left_to_be_found_later(folder):
    lay_animal10n(folder)
    (folder / "testing/4_1.jpg").write_bytes(b"cut short")
    test = built("animal10n", folder)["test"].cast_column("image", Image(decode=False))
    assert test[0]["image"] == {"bytes": b"cut short", "path": "testing/4_1.jpg"}


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
