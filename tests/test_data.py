"""Noise, meta hold-out, noise.parquet, sources, and what is refused."""

import gzip

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from scipy.stats import chisquare

from famus_hf import build_backbone, corrupt_labels, load_noisy_dataset
from famus_hf.data.meta_set import MetaBatchSampler, check_no_overlap, class_balanced_holdout, default_num_meta
from famus_hf.data.model_inputs import ModelInputs, default_image_processor
from famus_hf.data.noise import read_noise_file, write_noise_file
from famus_hf.data.sources import FASHION_MNIST_CLASSES, _standard_columns, load_source, with_shared_classes

LABELS = np.repeat(np.arange(10), 2000)


def transitions(noisy):
    return np.stack([np.bincount(noisy[label == LABELS], minlength=10) for label in range(10)])


def test_symmetric_redraws_from_all_classes():
    """Each row of the transition matrix: 1 − r + r/C on the diagonal, r/C elsewhere (chi-square, level 0.001)."""
    noisy, realised = corrupt_labels(LABELS, 0.4, "symmetric", 10, seed=0)
    expected = np.full((10, 10), 2000 * 0.04) + np.eye(10) * 2000 * 0.6
    for row, expectation in zip(transitions(noisy), expected, strict=True):
        assert chisquare(row, expectation).pvalue > 0.001
    assert realised == pytest.approx(0.36, abs=0.01) and realised == np.mean(noisy != LABELS)


def test_pair_moves_to_the_next_class_alone():
    noisy, realised = corrupt_labels(LABELS, 0.4, "pair", 10, seed=0)
    moved = noisy != LABELS
    assert np.array_equal(noisy[moved], (LABELS[moved] + 1) % 10)
    assert chisquare([moved.sum(), (~moved).sum()], [0.4 * len(LABELS), 0.6 * len(LABELS)]).pvalue > 0.001
    assert realised == moved.mean()


@pytest.mark.parametrize("noise_type", ["symmetric", "pair"])
def test_noise_follows_the_seed_and_rate_zero_changes_nothing(noise_type):
    first, _ = corrupt_labels(LABELS, 0.3, noise_type, 10, seed=1)
    assert np.array_equal(first, corrupt_labels(LABELS, 0.3, noise_type, 10, seed=1)[0])
    assert not np.array_equal(first, corrupt_labels(LABELS, 0.3, noise_type, 10, seed=2)[0])
    untouched, realised = corrupt_labels(LABELS, 0.0, noise_type, 10, seed=1)
    assert np.array_equal(untouched, LABELS) and realised == 0


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((LABELS, 1.0, "symmetric", 10, 0), "from 0 to below 1"),
        ((LABELS, -0.1, "symmetric", 10, 0), "from 0 to below 1"),
        ((LABELS, float("nan"), "symmetric", 10, 0), "from 0 to below 1"),
        ((LABELS, 0.4, "sym", 10, 0), "choose one of symmetric, pair"),
        ((LABELS, 0.4, "pair", 9, 0), r"not inside 0\.\.8"),
    ],
)
def test_impossible_noise_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        corrupt_labels(*arguments)


def test_noise_file_comes_back(tmp_path):
    path = tmp_path / "noise.parquet"
    write_noise_file(path, [4, 7], [1, 0], [1, 2], {"seed": 3, "realised_noise_rate": 0.5})
    columns, metadata = read_noise_file(path)
    assert columns == {"index": [4, 7], "label": [1, 0], "clean_label": [1, 2]}
    assert metadata == {"seed": 3, "realised_noise_rate": 0.5}
    assert [file.name for file in tmp_path.iterdir()] == ["noise.parquet"]


def test_meta_set_is_balanced_disjoint_and_seeded():
    labels = np.random.default_rng(0).integers(5, size=400)
    meta, rest = class_balanced_holdout(labels, 52, 5, seed=0)
    assert np.bincount(labels[meta]).tolist() == [11, 11, 10, 10, 10]
    assert sorted([*meta, *rest]) == list(range(400))
    assert np.array_equal(meta, class_balanced_holdout(labels, 52, 5, seed=0)[0])
    assert not np.array_equal(meta, class_balanced_holdout(labels, 52, 5, seed=1)[0])


def test_default_size_of_the_meta_set():
    assert [default_num_meta(size, 10) for size in (50_000, 1437, 90)] == [1000, 140, 0]


@pytest.mark.parametrize(
    "num_meta, sentence", [(3, "choose at least 5"), (100, "class 4 has 10 in all: choose a smaller num_meta")]
)
def test_impossible_meta_sets_are_refused(num_meta, sentence):
    labels = np.repeat(np.arange(5), [100, 100, 100, 100, 10])
    with pytest.raises(ValueError, match=sentence):
        class_balanced_holdout(labels, num_meta, 5, seed=0)


def test_overlap_is_refused_with_the_offenders():
    check_no_overlap([1, 2], [3, 4])
    with pytest.raises(ValueError, match=r"2 meta examples are also in the training set \(index 3, 4\)"):
        check_no_overlap([1, 3, 4], [3, 4, 5])


def test_meta_batch_of_a_step_depends_on_seed_and_step_alone():
    sampler = MetaBatchSampler(11, 4, seed=3)
    stream = iter(sampler)
    first = [next(stream) for _ in range(6)]
    later = iter(MetaBatchSampler(11, 4, seed=3, start=4))
    assert [next(later), next(later)] == first[4:]
    assert len(set(first[0] + first[1])) == 8, "no example twice within a round"
    assert first != [MetaBatchSampler(11, 4, seed=4).batch(step) for step in range(6)]
    assert sorted(MetaBatchSampler(3, 8, seed=0).batch(5)) == [0, 1, 2], "a small meta set is used whole"


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


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path):
    folder = tmp_path / "my-fashion"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, size, ending in (("train", 60, ".gz"), ("t10k", 20, "")):
        images = generator.integers(256, size=(size, 5, 4))
        write_idx(folder / f"{split}-images-idx3-ubyte{ending}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{ending}", np.arange(size) % 10)
    return folder


def test_idx_folders_load(idx_folder):
    data = load_noisy_dataset(str(idx_folder), noise=0.4, num_meta=10)
    assert (len(data["train"]), len(data["meta"]), len(data["test"])) == (50, 10, 20)
    assert data["train"].features["label"].names == FASHION_MNIST_CLASSES
    assert data["train"][0]["image"].size == (4, 5)


def test_incomplete_idx_folders_are_refused(idx_folder):
    path = idx_folder / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(ValueError, match="cut short"):
        load_source(str(idx_folder))
    path.write_bytes(content[:6])  # shorter than its own header
    with pytest.raises(ValueError, match="cut short"):
        load_source(str(idx_folder))
    path.write_bytes(content)
    packed = idx_folder / "train-images-idx3-ubyte.gz"
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"train-images.*cut short"):
        load_source(str(idx_folder))
    packed.write_bytes(whole)
    write_idx(path, np.zeros(3))
    with pytest.raises(ValueError, match=r"20 images.*3 labels"):
        load_source(str(idx_folder))
    path.unlink()
    with pytest.raises(ValueError, match="has no t10k-labels-idx1-ubyte"):
        load_source(str(idx_folder))


def rows(**columns):
    images = [PILImage.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)]
    features = Features({"img": Image(), **{name: feature for name, (feature, _) in columns.items()}})
    return Dataset.from_dict({"img": images, **{name: values for name, (_, values) in columns.items()}}, features)


def test_columns_are_found_or_named():
    fine, coarse = (ClassLabel(names=list("abc")), [0, 1, 2]), (ClassLabel(names=list("xy")), [0, 1, 0])
    found = _standard_columns(rows(fine=fine), None, None, None)
    assert found.column_names == ["image", "label"] and found["label"][:] == [0, 1, 2]
    with pytest.raises(ValueError, match="2 columns of the data set could be the label column"):
        _standard_columns(rows(fine=fine, coarse=coarse), None, None, None)
    assert _standard_columns(rows(fine=fine, coarse=coarse), None, "coarse", None)["label"][:] == [0, 1, 0]
    with pytest.raises(ValueError, match="label column 'labels' is not in the data set, which has img, fine"):
        _standard_columns(rows(fine=fine), None, "labels", None)
    with pytest.raises(ValueError, match="not an image"):
        _standard_columns(rows(fine=fine), "fine", "img", None)


def test_classes_are_the_same_in_all_splits_and_in_clean_labels():
    train = rows(label=(Value("int64"), [10, 2, 0]), clean_label=(Value("int64"), [2, 2, 1]))
    test = rows(label=(Value("int64"), [2, 10, 2]))
    splits = with_shared_classes({"train": train, "test": test})
    assert splits["train"].features["label"].names == ["0", "1", "2", "10"]
    assert splits["train"].features == {**splits["train"].features, "clean_label": splits["test"].features["label"]}
    assert (splits["train"]["label"][:], splits["train"]["clean_label"][:]) == ([3, 2, 0], [2, 2, 1])
    assert splits["test"]["label"][:] == [2, 3, 2]
    named = rows(
        label=(ClassLabel(names=["cat", "dog"]), [0, 1, 1]), clean_label=(ClassLabel(names=["dog", "cat"]), [1, 0, 1])
    )
    numbered = rows(label=(ClassLabel(names=["cat", "dog"]), [0, 1, 1]), clean_label=(Value("int64"), [1, 0, 1]))
    splits = with_shared_classes({"train": numbered})
    assert splits["train"].features["clean_label"].names == ["cat", "dog"], "bare numbers count in the labels' names"
    assert splits["train"]["clean_label"][:] == [1, 0, 1]
    splits = with_shared_classes({"train": named})
    assert splits["train"]["label"][:] == [0, 1, 1] and splits["train"]["clean_label"][:] == [0, 1, 0]


@pytest.mark.parametrize(
    "feature, values, sentence",
    [
        (Value("float32"), [0.5, 1.0, 2.0], "not classes"),
        (ClassLabel(names=list("ab")), [0, -1, 1], "hold -1"),
        (Value("int64"), [0, -100, 1], "hold -100"),
        (Value("string"), ["a", None, "b"], "1 of 3 rows have no label"),
    ],
)
def test_labels_that_are_not_classes_are_refused(feature, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        with_shared_classes({"train": rows(label=(feature, values))})


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
        "famus_hf.data.sources._load_from_hub",
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
        ({"name": "digits", "noise": 0.4, "clean_label_column_name": "clean"}, "contradict each other"),
        ({"name": "user/own-noisy-set"}, "not known to be clean"),
    ],
)
def test_contradictions_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_noisy_dataset(**arguments)


def test_unreadable_images_are_counted_and_named():
    data = load_noisy_dataset("digits", num_meta=0, max_train_samples=300)["train"]
    broken = data.cast_column("image", Image(decode=False)).map(
        lambda example, row: {
            "image": {"bytes": b"GIF?" if row in (5, 270) else example["image"]["bytes"], "path": None}
        },
        with_indices=True,
        features=Features({**data.features, "image": {"bytes": Value("binary"), "path": Value("string")}}),
    )
    broken = broken.cast_column("image", Image())
    processor = default_image_processor(build_backbone("tiny", list("0123456789")), data)
    names = f"{data[5]['index']}, {data[270]['index']}"
    with pytest.raises(ValueError, match=rf"2 of 300 images can't be read \(index {names}\)"):
        ModelInputs(broken, processor)


def test_model_inputs_equal_the_processor_in_memory_and_on_the_fly(monkeypatch):
    data = load_noisy_dataset("digits", num_meta=0, max_train_samples=20)["train"]
    processor = default_image_processor(build_backbone("tiny", list("0123456789")), data)
    kept = ModelInputs(data, processor)
    monkeypatch.setattr("famus_hf.data.model_inputs.MEMORY_LIMIT", 0)
    fresh = ModelInputs(data, processor)
    assert kept.pixel_values is not None and fresh.pixel_values is None
    for row in range(20):
        expected = processor(data[row]["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0]
        assert (kept[row]["pixel_values"] == expected).all() and (fresh[row]["pixel_values"] == expected).all()
        assert kept[row]["labels"] == data[row]["label"] and kept[row]["index"] == data[row]["index"]
