"""Reviewed examples as trusted ones (`meta_from`)."""

from pathlib import Path

import numpy as np
import pytest

from famus_hf import load_noisy_dataset
from famus_hf.data.labels.decisions import write_decisions
from famus_hf.data.labels.noise_file import write_noise_file
from famus_hf.data.load import load_splits
from famus_hf.errors import DataError
from tests.helpers.reviews import decisions_of, truth_of, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviewed")
    data = write_photos(folder / "photos")
    splits = load_splits(name=str(data))
    path = folder / "decisions.csv"
    write_decisions(path, decisions_of(splits, 20))
    return data, splits, path


def names(dataset):
    return dataset.features["label"].int2str(dataset["label"][:])


def files(dataset):
    return [Path(image.filename).name for image in dataset["image"][:]]


def test_reviewed_examples_are_the_meta_set_with_their_reviewed_labels_and_not_in_train(photos):
    data, _, path = photos
    plain, loaded = load_noisy_dataset(str(data)), load_noisy_dataset(str(data), meta_from=str(path))
    assert "meta" not in plain and len(loaded["meta"]) == 20
    assert names(loaded["meta"]) == [truth_of(file) for file in files(loaded["meta"])]
    assert set(files(loaded["train"])) == set(files(plain["train"])) - set(files(loaded["meta"]))
    assert loaded["test"]["label"][:] == plain["test"]["label"][:], "nobody has reviewed these"


def test_reviewed_examples_of_the_test_split_stay_there_with_their_reviewed_labels(photos, tmp_path):
    data, splits, _ = photos
    both = decisions_of(splits, 5)
    both.by_key |= decisions_of(splits, 3, split="test").by_key
    write_decisions(tmp_path / "both.csv", both)
    plain, loaded = load_noisy_dataset(str(data)), load_noisy_dataset(str(data), meta_from=str(tmp_path / "both.csv"))
    assert len(loaded["meta"]) == 5 and files(loaded["test"]) == files(plain["test"])
    changed = [
        file for file, a, b in zip(files(plain["test"]), names(plain["test"]), names(loaded["test"]), strict=True)
        if a != b
    ]  # fmt: skip
    wrong = [own for own in both if own.split == "test" and own.label != own.reviewed_label]
    assert sorted(changed) == sorted(own.example.split("/")[-1] for own in wrong) and wrong


def test_of_drawn_noise_the_labels_of_the_noise_file_are_compared(photos, tmp_path):
    data, splits, path = photos
    train = splits["train"]
    labels, classes = np.array(train["label"][:]), {"class_names": train.features["label"].names}
    same, other = tmp_path / "same.parquet", tmp_path / "other.parquet"
    for file, values in ((same, labels), (other, (labels + 1) % 3)):
        write_noise_file(file, range(len(labels)), values.tolist(), None, classes)
    assert len(load_noisy_dataset(str(data), meta_from=str(path), noise_file=str(same))["meta"]) == 20
    with pytest.raises(DataError, match="20 of 20 reviewed labels are not those of the training examples"):
        load_noisy_dataset(str(data), meta_from=str(path), noise_file=str(other))


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"num_meta": 10}, "num_meta=10 and meta_from contradict each other"),
        ({"num_meta": 0}, "trusted examples and num_meta=0 contradict"),
        ({"meta_set": "pseudo-clean"}, "trusted examples and meta_set 'pseudo-clean' contradict"),
        ({"meta_dir": "x"}, "meta_dir and meta_from contradict each other"),
        ({"streaming": True}, "a trusted set needs all examples at once"),
    ],
)
def test_contradictions_are_refused(photos, settings, sentence):
    with pytest.raises(DataError, match=sentence):
        load_noisy_dataset(str(photos[0]), meta_from=str(photos[2]), **settings)


def test_decisions_on_other_data_or_on_no_training_example_are_refused(photos, tmp_path):
    data, splits, path = photos
    with pytest.raises(DataError, match="not on these data"):
        load_noisy_dataset("digits", meta_from=str(path))
    write_decisions(tmp_path / "test.csv", decisions_of(splits, 3, split="test"))
    with pytest.raises(DataError, match="the decisions are on no training example"):
        load_noisy_dataset(str(data), meta_from=str(tmp_path / "test.csv"))
