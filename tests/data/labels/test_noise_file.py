"""noise.parquet: another run gets the same labels by it, and what no run writes is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given

from famus_hf import load_noisy_dataset
from famus_hf.data.labels.noise_file import NoiseFile, by_names_of, check_noise_file, read_noise_file, write_noise_file
from tests.helpers.hostile import damaged, fuzz, is_a_sentence, peak_growth, refused


def test_noise_file_comes_back(tmp_path):
    path = tmp_path / "noise.parquet"
    write_noise_file(path, [4, 7], [1, 0], [1, 2], {"seed": 3, "realised_noise_rate": 0.5})
    found = read_noise_file(path)
    assert (found.index.tolist(), found.labels.tolist(), found.clean_labels.tolist()) == ([4, 7], [1, 0], [1, 2])
    assert found.metadata == {"seed": 3, "realised_noise_rate": 0.5}
    assert [file.name for file in tmp_path.iterdir()] == ["noise.parquet"]


def test_another_run_gets_the_very_same_labels_rows_and_meta_set(tmp_path):
    first = load_noisy_dataset("digits", noise=0.4, noise_type="flip", imbalance_factor=10, num_meta=30, seed=3)
    train, meta = first["train"], first["meta"]
    path = tmp_path / "noise.parquet"
    metadata = {"meta_index": meta["index"][:]}
    write_noise_file(path, train["index"][:], train["label"][:], train["clean_label"][:], metadata)
    again = load_noisy_dataset("digits", noise_file=str(path), seed=99)
    for split in ("train", "meta"):
        for column in ("index", "label", "clean_label"):
            assert again[split][column][:] == first[split][column][:]
    smaller = load_noisy_dataset("digits", noise_file=str(path), num_meta=20)
    assert len(smaller["meta"]) == 20 and not set(smaller["meta"]["index"][:]) & set(train["index"][:])
    assert "meta" not in load_noisy_dataset("digits", noise_file=str(path), num_meta=0)


@pytest.mark.parametrize(
    "columns, sentence",
    [
        ({"index": [1, 1, 2, 2, 5], "label": [0] * 5}, r"2 rows more than once \(index 1, 2\)"),
        (
            {"index": [1, 5000, -1], "label": [0] * 3},
            r"2 rows of the noise file are not in the training.*5000, -1",
        ),
        ({"index": [1, 2], "label": [0, 10]}, r"1 values of label in the noise file are no class of the data.*\(10\)"),
        ({"index": [0, 1], "label": [0, 0], "clean_label": [9, 9]}, "clean labels of the noise file are not those"),
        ({"index": [1, 2]}, "no column 'label'"),
        ({"index": [0.5, 2.5], "label": [0, 1]}, "no column 'index' of whole numbers"),
        ({"index": [1, None], "label": [0, 1]}, "no column 'index' of whole numbers"),
    ],
)
def test_noise_files_of_other_data_are_refused(tmp_path, columns, sentence):
    path = tmp_path / "noise.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=sentence):
        load_noisy_dataset("digits", noise_file=str(path))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        {"meta_index": ["a"]},
        {"meta_index": [3, 3]},
        {"meta_index": [1]},
        "x",
        {"class_names": "ab"},
        {"class_names": [1]},
        {"class_names": ["a", "a"]},
    ],
)
def test_noise_files_with_settings_that_no_run_writes_are_refused(tmp_path, settings):
    path = tmp_path / "noise.parquet"
    write_noise_file(path, [0, 1], [0, 1], None, settings)
    with pytest.raises(ValueError, match="has settings that no run writes"):
        read_noise_file(path)


@pytest.mark.parametrize("row", [-1, 99_999])
def test_meta_rows_of_other_data_are_refused(tmp_path, row):
    path = tmp_path / "noise.parquet"
    write_noise_file(path, [0, 1], [0, 1], None, {"meta_index": [row]})
    with pytest.raises(ValueError, match=rf"1 rows of the noise file are not in the training.*index {row}"):
        load_noisy_dataset("digits", noise_file=str(path))


def test_a_noise_file_of_a_folder_that_has_changed_is_refused(tmp_path):
    """Labels of an own folder counted as clean when noise was drawn: they must still be what they were."""
    labels = np.arange(40) % 2
    for split in ("train", "test"):
        Dataset.from_dict({"text": [f"{split} {row}" for row in range(40)], "label": labels}).to_csv(
            str(tmp_path / f"{split}.csv")
        )
    data = load_noisy_dataset(str(tmp_path), noise=0.4, num_meta=4)["train"]
    path = tmp_path / "noise.parquet"
    write_noise_file(path, data["index"][:], data["label"][:], data["clean_label"][:], {"noise": 0.4})
    again = load_noisy_dataset(str(tmp_path), noise_file=str(path))["train"]
    assert again["label"][:] == data["label"][:]
    path.replace(tmp_path.with_suffix(".parquet"))
    Dataset.from_dict({"text": [f"other {row}" for row in range(40)], "label": labels[::-1]}).to_csv(
        str(tmp_path / "train.csv")
    )
    with pytest.raises(ValueError, match="36 of 36 clean labels of the noise file are not those of the data"):
        load_noisy_dataset(str(tmp_path), noise_file=str(tmp_path.with_suffix(".parquet")))


NAMED = {
    "the same": (["a", "b"], [0, 1, 1]),
    "another order": (["b", "a"], [1, 0, 0]),
    "one more": (["A", "a", "b"], [1, 2, 2]),
}


@pytest.mark.parametrize("kind", NAMED)
def test_classes_are_found_by_their_names(kind):
    names, expected = NAMED[kind]
    found = by_names_of(
        NoiseFile(np.arange(3), np.array([0, 1, 1]), np.array([1, 1, 1]), {"class_names": ["a", "b"]}), names
    )
    assert found.labels.tolist() == expected and found.clean_labels.tolist() == [expected[1]] * 3
    without = NoiseFile(np.arange(3), np.array([0, 1, 1]), None, {})
    assert by_names_of(without, names) is without, "a file of an earlier version"


@pytest.mark.parametrize(
    "file_names, sentence",
    [
        (["a", "c"], r"1 classes of the noise file are none of the data \('c'\): it has 2 \('a', 'c'\) and the data 2"),
        (["b"], "labels of the noise file are none of the 1 classes that it names"),
    ],
)
def test_classes_that_the_data_have_not_are_refused(file_names, sentence):
    refused(
        sentence, by_names_of, NoiseFile(np.arange(2), np.array([0, 1]), None, {"class_names": file_names}), ["a", "b"]
    )


def test_a_run_whose_classes_have_another_order_gets_the_labels_of_the_file(tmp_path):
    """Class folders of own data are in the order of their names: a new one comes first."""
    path = tmp_path / "noise.parquet"
    digits = load_noisy_dataset("digits", noise=0.4)["train"]
    names = [str(label) for label in range(10)]
    backwards = [9 - label for label in digits["label"]]
    write_noise_file(path, digits["index"][:], backwards, None, {"class_names": names[::-1]})
    assert load_noisy_dataset("digits", noise_file=str(path))["train"]["label"][:] == digits["label"][:]


def test_a_noise_file_without_clean_labels_gives_no_clean_meta_set(tmp_path):
    Dataset.from_dict({"text": list("abcdef"), "label": [0, 1] * 3}).to_csv(str(tmp_path / "train.csv"))
    Dataset.from_dict({"text": list("xy"), "label": [0, 1]}).to_csv(str(tmp_path / "test.csv"))
    path = tmp_path.with_suffix(".parquet")
    write_noise_file(path, [0, 1], [0, 1], None, {})
    with pytest.raises(ValueError, match="not known to be clean"):
        load_noisy_dataset(str(tmp_path), noise_file=str(path), num_meta=2)
    assert set(load_noisy_dataset(str(tmp_path), noise_file=str(path))) == {"train", "test"}


def test_noise_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "noise.parquet"
    for content in (None, b"PAR1 but no more"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="can't be read as parquet"):
            load_noisy_dataset("digits", noise_file=str(path))
    with pytest.raises(ValueError, match=r"noise=0\.2 and noise_file contradict each other"):
        load_noisy_dataset("digits", noise_file=str(path), noise=0.2)


def write_table(path, columns, settings=b"{}"):
    pq.write_table(pa.table(columns).replace_schema_metadata({"famus_hf": settings}), path)


NOISE = {
    "settings nested deeply": ({"index": [1], "label": [0]}, b"[" * 10**5, "has settings that no run writes"),
    "a row beyond 64 bits": ({"index": [1], "label": [0]}, b'{"meta_index": [%d]}' % 10**30, "has settings that"),
    "a text of rows": ({"index": [1], "label": [0]}, b'{"meta_index": ""}', "has settings that"),
    "a rate that is NaN": ({"index": [1], "label": [0]}, b'{"noise": NaN}', "has settings that"),
    "an index beyond 63 bits": ({"index": pa.array([2**64 - 1], pa.uint64()), "label": [0]}, b"{}", "can't be read"),
    "clean labels that are text": (
        {"index": [1], "label": [0], "clean_label": ["a"]},
        b"{}",
        "no column 'clean_label'",
    ),
    "lists for labels": ({"index": [1], "label": [[0]]}, b"{}", "no column 'label' of whole numbers"),
}


@pytest.mark.parametrize("kind", NOISE)
def test_a_noise_file_that_no_run_writes_is_refused(tmp_path, kind):
    columns, settings, words = NOISE[kind]
    write_table(tmp_path / "noise.parquet", columns, settings)
    refused(words, read_noise_file, tmp_path / "noise.parquet")


def test_unsigned_rows_outside_of_the_data_are_refused(tmp_path):
    path = tmp_path / "noise.parquet"
    write_table(path, {"index": pa.array([1], pa.uint8()), "label": [0]}, json.dumps({"meta_index": [-5]}).encode())
    refused("not in the training split", check_noise_file, read_noise_file(path), 10, 2, None)


def test_a_noise_file_takes_no_more_memory_than_its_size_warrants(tmp_path):
    """Equal values take next to nothing on disk, and so does a column that nobody reads."""
    path, rows = tmp_path / "noise.parquet", 5 * 10**6
    write_table(path, {"index": np.zeros(rows, int), "label": np.zeros(rows, int)})
    assert path.stat().st_size < 10**5
    assert peak_growth(lambda: refused("claims 5000000 rows in", read_noise_file, path)) < 32
    write_table(path, {"index": [1, 2], "label": [0, 0], "text": ["a" * 5 * 10**7] * 2})
    assert peak_growth(lambda: read_noise_file(path)) < 32


def test_no_damage_to_a_noise_file_does_more_than_being_refused(tmp_path):
    path = tmp_path / "noise.parquet"
    write_noise_file(path, range(20), [0, 1] * 10, [0] * 20, {"seed": 0, "noise": 0.5, "meta_index": [30]})

    @fuzz(300)
    @given(damaged(path.read_bytes()))
    def check(content):
        path.write_bytes(content)
        try:
            found = read_noise_file(path)
        except ValueError as error:
            assert is_a_sentence(str(error)), str(error)
        else:
            assert len(found.index) == len(found.labels)

    assert peak_growth(check) < 200
