"""Lists of images and labels as benchmarks have them: what is malformed or missing is counted and named."""

import os

import pytest
from datasets import Image

from famus_hf.data.sources.benchmarks import SOURCES
from tests.helpers.benchmark_layouts import LAYOUTS, built, draw, lay_animal10n, lay_cnwl, seen, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of `datasets` for each test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


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
