"""Folders of images and of tables, and what lies in them that is no data."""

import shutil

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image as PILImage

from famus_hf import load_noisy_dataset


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(6, 5, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path)


@pytest.fixture
def image_folder(tmp_path):
    """40 training and 20 test images of cats and dogs."""
    folder = tmp_path / "pets"
    for seed in range(60):
        split, name = ("test", "train")[seed < 40], ("cat", "dog")[seed % 2]
        picture(folder / split / name / f"{seed}.png", seed)
    return folder


def test_image_folders_load_with_their_class_names(image_folder):
    data = load_noisy_dataset(str(image_folder))
    assert set(data) == {"train", "test"}, "labels of an own folder are not known to be clean: no clean meta set"
    assert (len(data["train"]), len(data["test"])) == (40, 20)
    assert data["train"].features["label"].names == ["cat", "dog"] and "clean_label" not in data["train"].features
    data = load_noisy_dataset(str(image_folder), noise=0.3, num_meta=4)
    assert np.bincount(data["meta"]["clean_label"][:]).tolist() == [2, 2]
    whole = load_noisy_dataset(train_dir=str(image_folder / "train"), validation_dir=str(image_folder / "test"))
    assert (len(whole["train"]), len(whole["test"])) == (40, 20)
    divided = load_noisy_dataset(train_dir=str(image_folder / "train"))
    assert (len(divided["train"]), len(divided["test"])) == (32, 8)
    assert np.bincount(divided["test"]["label"][:]).tolist() == [4, 4], "a test split made here is stratified"


def test_folders_of_splits_are_known_by_their_usual_names(image_folder, tmp_path):
    for names, place in ((("Train", "Test"), "my [pets]"), (("training", "evaluation"), "other/deep")):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for old, new in zip(("train", "test"), names, strict=True):
            shutil.copytree(image_folder / old, folder / new)
    for folder in (tmp_path / "my [pets]", tmp_path / "other"):
        data = load_noisy_dataset(str(folder))
        assert (len(data["train"]), len(data["test"])) == (40, 20)
    assert len(load_noisy_dataset(train_dir=str(tmp_path / "my [pets]" / "Train"))["train"]) == 32
    shutil.copytree(image_folder / "train", tmp_path / "my [pets]" / "extra")
    with pytest.raises(ValueError, match=r"1 folders in .* lie beside those of the splits \(extra\)"):
        load_noisy_dataset(str(tmp_path / "my [pets]"))
    with pytest.raises(ValueError, match="are of one class: sort them into a folder for each class"):
        load_noisy_dataset(train_dir=str(image_folder / "train" / "cat"))
    with pytest.raises(ValueError, match="is a file: give its folder"):
        load_noisy_dataset(str(image_folder / "train" / "cat" / "0.png"))


def test_a_long_tail_of_labels_that_may_be_wrong_goes_by_these_labels(image_folder):
    data = load_noisy_dataset(str(image_folder), imbalance_factor=4)
    assert np.bincount(data["train"]["label"][:]).tolist() == [20, 5]


def test_files_that_are_no_images_are_counted_and_named(image_folder):
    for name in ("notes.txt", "train/cat/list.pdf", "README.md", ".hidden.txt"):
        (image_folder / name).write_text("no image")
    with pytest.raises(ValueError, match=r"2 of 63 files in .* are no images \(notes.txt, train/cat/list.pdf\)"):
        load_noisy_dataset(str(image_folder))


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "arrow"])
def test_tables_load_as_text(tmp_path, kind):
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split, size in (("train", 30), ("test", 12), ("validation", 6)):
        labels = [("good", "bad")[row % 2] for row in range(size)]
        table = Dataset.from_dict({"sentence": [f"{split} {row}" for row in range(size)], "label": labels})
        if kind == "arrow":
            table.save_to_disk(str(folder / split))
        else:
            getattr(table, {"jsonl": "to_json"}.get(kind, f"to_{kind}"))(str(folder / f"my-{split}.{kind}"))
    if kind == "arrow":
        (folder / "dataset_dict.json").write_text('{"splits": ["train", "test", "validation"]}')
    data = load_noisy_dataset(str(folder), noise=0.4, noise_type="pair", num_meta=4)
    assert [len(data[split]) for split in ("train", "meta", "test", "validation")] == [26, 4, 12, 6]
    assert data["train"].features["label"].names == ["bad", "good"]
    assert data["test"][0]["text"] == "test 0" and data["test"]["label"][:4] == [1, 0, 1, 0]


def test_image_paths_in_a_table_are_read_below_its_folder_alone(image_folder):
    names = [f"{split}/{name}/{seed}.png" for seed in range(60)
             for split, name in [(("test", "train")[seed < 40], ("cat", "dog")[seed % 2])]]  # fmt: skip
    table = {"file": names[:40], "animal": ["cat", "dog"] * 20}
    Dataset.from_dict(table).to_csv(str(image_folder / "train.csv"))
    Dataset.from_dict({"file": names[40:], "animal": ["cat", "dog"] * 10}).to_csv(str(image_folder / "test.csv"))
    columns = {"image_column_name": "file", "label_column_name": "animal"}
    data = load_noisy_dataset(str(image_folder), **columns)
    assert (len(data["train"]), len(data["test"])) == (40, 20) and data["train"][3]["image"].size == (5, 6)
    for wrong, sentence in (
        ("../secret.png", "lead out of the folder"),
        ("train/cat/999.png", "are not in the folder"),
    ):
        Dataset.from_dict({**table, "file": [wrong, *names[1:40]]}).to_csv(str(image_folder / "train.csv"))
        with pytest.raises(ValueError, match=f"1 of 40 image paths {sentence}"):
            load_noisy_dataset(str(image_folder), **columns)


def test_folders_without_data_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="holds no data: it needs images or recordings in a folder for each"):
        load_noisy_dataset(str(tmp_path))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(ValueError, match="could not be read as parquet"):
        load_noisy_dataset(str(tmp_path))
