"""Noise models against their definitions, the noise file, long tails."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from scipy.stats import chisquare, kstest

from famus_hf import corrupt_labels, load_noisy_dataset
from famus_hf.data.labels.class_maps import CIFAR10_CLASSES, known_class_map
from famus_hf.data.labels.long_tail import long_tail_counts, long_tail_rows
from famus_hf.data.labels.noise import NOISE_TYPES
from famus_hf.data.labels.noise_file import read_noise_file, write_noise_file

LABELS = np.repeat(np.arange(10), 2000)
CLASS_MAP = np.array([0, 1, 0, 5, 7, 3, 6, 7, 8, 1])
FEATURES = np.random.default_rng(0).integers(256, size=(len(LABELS), 12)).astype(np.uint8)
LEVEL = 0.001  # of every chi-square test here


def corrupt(noise, noise_type, seed=0, **settings):
    if noise_type == "asymmetric":
        settings["class_map"] = CLASS_MAP
    if noise_type == "instance":
        settings["features"] = FEATURES
    return corrupt_labels(LABELS, noise, noise_type, 10, seed, **settings)


def transitions(noisy):
    return np.stack([np.bincount(noisy[label == LABELS], minlength=10) for label in range(10)])


def expected_transitions(noise_type, noise):
    """Transition matrices written down from the definitions."""
    eye, every = np.eye(10), np.ones((10, 10))
    return {
        "symmetric": (1 - noise) * eye + noise / 10 * every,
        "symmetric-exclusive": (1 - noise) * eye + noise / 9 * (every - eye),
        "pair": (1 - noise) * eye + noise * np.roll(eye, 1, axis=1),
        "asymmetric": (1 - noise) * eye + noise * eye[CLASS_MAP],
    }[noise_type]


@pytest.mark.parametrize("noise_type", ["symmetric", "symmetric-exclusive", "pair", "asymmetric"])
@pytest.mark.parametrize("noise", [0.2, 0.45])
def test_transition_matrices_are_those_of_the_definitions(noise_type, noise):
    noisy, realised = corrupt(noise, noise_type)
    expected = expected_transitions(noise_type, noise)
    for found, row in zip(transitions(noisy), expected, strict=True):
        possible = row > 0
        assert found[~possible].sum() == 0
        if possible.sum() > 1:
            assert chisquare(found[possible], 2000 * row[possible]).pvalue > LEVEL
    assert realised == np.mean(noisy != LABELS)
    assert realised == pytest.approx(1 - np.trace(expected) / 10, abs=0.011)


@pytest.mark.parametrize("noise_type, targets", [("flip", 1), ("flip2", 2)])
def test_flips_go_to_fixed_other_classes_of_each_class_in_equal_parts(noise_type, targets):
    noisy, _ = corrupt(0.4, noise_type)
    for label, found in enumerate(transitions(noisy)):
        others = np.delete(np.arange(10), label)
        hit = others[found[others] > 0]
        assert len(hit) == targets
        assert chisquare([found[label], *found[hit]], [1200, *[800 / targets] * targets]).pvalue > LEVEL
    first_targets = [transitions(corrupt(0.4, noise_type, seed)[0])[0, 1:].argmax() for seed in range(40)]
    assert len(set(first_targets)) > 4, "the other classes are drawn from the seed"


def test_instance_noise_follows_xia_2020():
    """Wrong classes as a slow rewriting of the algorithm has them; rates around r, as the truncated normal's mean."""
    noisy, realised = corrupt(0.4, "instance")
    assert realised == pytest.approx(0.4, abs=0.01)
    twins = np.zeros((len(LABELS), 12))  # the same features for all: one distribution for each class
    same, _ = corrupt_labels(LABELS, 0.4, "instance", 10, 0, features=twins)
    for label, found in enumerate(transitions(same)):
        assert chisquare(np.delete(found, label)).pvalue > LEVEL, "without features all other classes are alike"
    changed, _ = corrupt_labels(LABELS, 0.4, "instance", 10, 0, features=255 - FEATURES)
    assert np.array_equal(noisy != LABELS, changed != LABELS), "features decide the class, not whether it is wrong"
    assert np.mean(noisy[noisy != LABELS] != changed[noisy != LABELS]) > 0.3


def test_rates_of_instance_noise_are_truncated_normal():
    """Over 2000 seeds, how often one example is struck at r = 0.1: the mean of the normal truncated at 0 is 0.1288."""
    struck = [
        corrupt_labels([0, 1], 0.1, "instance", 3, seed, features=np.zeros((2, 1)))[0] != [0, 1] for seed in range(2000)
    ]
    hits = int(np.sum(struck))
    assert chisquare([hits, 4000 - hits], [4000 * 0.1288, 4000 * 0.8712]).pvalue > LEVEL


@pytest.mark.parametrize("noise_type", ["symmetric", "symmetric-exclusive", "pair", "asymmetric", "flip", "flip2"])
def test_an_exact_count_strikes_exactly_so_many(noise_type):
    counts = {int(np.sum(corrupt(0.25, noise_type, seed, exact_count=True)[0] != LABELS)) for seed in range(4)}
    if noise_type in ("symmetric", "asymmetric"):  # some are struck and keep their class
        assert max(counts) < 5000
    else:
        assert counts == {5000}


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
def test_noise_follows_the_seed_and_rate_zero_changes_nothing(noise_type):
    first, _ = corrupt(0.3, noise_type, seed=1)
    assert np.array_equal(first, corrupt(0.3, noise_type, seed=1)[0])
    assert not np.array_equal(first, corrupt(0.3, noise_type, seed=2)[0])
    untouched, realised = corrupt(0.0, noise_type, seed=1)
    assert np.array_equal(untouched, LABELS) and realised == 0


def test_where_labels_are_wrong_does_not_hang_on_the_class():
    noisy, _ = corrupt(0.4, "pair")
    places = np.flatnonzero(noisy != LABELS) / len(LABELS)
    assert kstest(places, "uniform").pvalue > LEVEL


@pytest.mark.parametrize(
    "arguments, settings, sentence",
    [
        ((LABELS, 1.0, "symmetric", 10, 0), {}, "from 0 to below 1"),
        ((LABELS, -0.1, "symmetric", 10, 0), {}, "from 0 to below 1"),
        ((LABELS, float("nan"), "symmetric", 10, 0), {}, "from 0 to below 1"),
        ((LABELS, 0.4, "sym", 10, 0), {}, "choose one of symmetric, symmetric-exclusive, asymmetric, pair, flip"),
        ((LABELS, 0.4, "pair", 9, 0), {}, r"not inside 0\.\.8"),
        ((LABELS, 0.4, "asymmetric", 10, 0), {}, "which class is mistaken for which"),
        ((LABELS, 0.4, "asymmetric", 10, 0), {"class_map": [1, 2]}, "one class index for each of the 10 classes"),
        ((LABELS, 0.4, "instance", 10, 0), {}, "give features"),
        ((LABELS, 0.4, "instance", 10, 0), {"exact_count": True}, "does not go with noise_type 'instance'"),
        (([0, 1], 0.4, "flip2", 2, 0), {}, "at least 3 classes"),
        (([0, 0], 0.4, "symmetric", 1, 0), {}, "at least two classes"),
    ],
)
def test_impossible_noise_is_refused(arguments, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        corrupt_labels(*arguments, **settings)


def test_cifar_classes_are_mistaken_as_in_the_literature():
    rows = Dataset.from_dict({"label": [0]}, Features({"label": ClassLabel(names=CIFAR10_CLASSES)}))
    moved = {source: int(target) for source, target in enumerate(known_class_map(rows)) if source != target}
    assert moved == {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
    fine, coarse = [0, 1, 2, 3, 4, 5, 0], [1, 0, 1, 0, 1, 2, 1]
    features = Features({"label": ClassLabel(names=list("abcdef")), "superclass": Value("int64")})
    rows = Dataset.from_dict({"label": fine, "superclass": coarse}, features)
    assert known_class_map(rows).tolist() == [2, 3, 4, 1, 0, 5], "the next of the superclass, round and round"
    with pytest.raises(ValueError, match=r"1 classes are in more than one superclass \(a\)"):
        known_class_map(Dataset.from_dict({"label": fine, "superclass": [1, 0, 1, 0, 1, 2, 0]}, features))


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


@pytest.mark.parametrize("settings", [[], {"meta_index": ["a"]}, {"meta_index": [3, 3]}, {"meta_index": [1]}, "x"])
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


def test_long_tails_have_the_sizes_of_the_literature():
    assert long_tail_counts(50_000, 10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(long_tail_counts(50_000, 100, 100)) == 10_847  # CIFAR-100-LT of Cao et al. 2019
    assert long_tail_counts(1000, 10, 1) == [100] * 10
    for factor, sentence in ((0.5, "at least 1"), (1000, "choose at most 100"), (float("nan"), "at least 1")):
        with pytest.raises(ValueError, match=sentence):
            long_tail_counts(1000, 10, factor)


def test_long_tails_are_drawn_within_classes():
    rows = long_tail_rows(LABELS, 10, 50, seed=0)
    assert np.bincount(LABELS[rows]).tolist() == long_tail_counts(len(LABELS), 10, 50)
    assert np.array_equal(rows, np.unique(rows))
    assert not np.array_equal(rows, long_tail_rows(LABELS, 10, 50, seed=1))


def test_long_tailed_data_keep_the_first_ten_of_each_class_as_meta_set():
    data = load_noisy_dataset("digits", imbalance_factor=20, seed=1)
    whole = load_noisy_dataset("digits", num_meta=0)["train"]
    labels = np.array(whole["label"][:])
    expected = sorted(row for label in range(10) for row in np.flatnonzero(labels == label)[:10])
    assert data["meta"]["index"][:] == expected
    available = np.bincount(labels) - 10
    assert (
        np.bincount(data["train"]["label"][:]).tolist()
        == np.minimum(long_tail_counts(1437 - 100, 10, 20), available).tolist()
    )
    assert len(data["test"]) == 360, "the test split is unchanged"
