"""Noise, meta hold-out, noise.parquet, sources, and what is refused."""

import gzip
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from famus_hf import build_backbone, load_noisy_dataset
from famus_hf.data.inputs.class_balanced import ClassBalancedSampler
from famus_hf.data.inputs.image_inputs import ImageInputs
from famus_hf.data.inputs.image_processors import default_image_processor
from famus_hf.data.inputs.meta_batches import MetaBatchSampler
from famus_hf.data.labels.class_maps import CIFAR10_CLASSES
from famus_hf.data.labels.duplicates import same_content
from famus_hf.data.labels.meta_set import check_no_overlap, class_balanced_holdout, default_num_meta
from famus_hf.data.sources.columns import Columns, with_shared_classes, with_standard_columns
from famus_hf.data.sources.idx import FASHION_MNIST_CLASSES
from famus_hf.data.sources.load_source import load_source


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
    "num_meta, sentence",
    [
        (3, "choose at least 5"),
        (100, r"1 of 5 classes do not have to spare \(class 4 has 10 in all\): choose a smaller num_meta"),
    ],
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
    found = with_standard_columns(rows(fine=fine), Columns())
    assert set(found.column_names) == {"image", "label"} and found["label"][:] == [0, 1, 2]
    with pytest.raises(ValueError, match="2 columns of the data set could be the label column"):
        with_standard_columns(rows(fine=fine, coarse=coarse), Columns())
    named = Columns(label="coarse", superclass="fine")
    assert with_standard_columns(rows(fine=fine, coarse=coarse), named)["label"][:] == [0, 1, 0]
    with pytest.raises(ValueError, match="label column 'labels' is not in the data set, which has img, fine"):
        with_standard_columns(rows(fine=fine), Columns(label="labels"))
    with pytest.raises(ValueError, match="not an image"):
        with_standard_columns(rows(fine=fine), Columns(image="fine", label="img"))
    with pytest.raises(ValueError, match="can't be both the image and the label column"):
        with_standard_columns(rows(fine=fine), Columns(image="fine", label="fine"))
    texts = rows(text=(Value("string"), list("uvw")), label=(Value("int64"), [0, 1, 0])).remove_columns("img")
    assert with_standard_columns(texts, Columns()).column_names == ["text", "label"]
    both = texts.add_column("title", list("xyz"))
    with pytest.raises(ValueError, match=r"2 columns of the data set could be the text column \(text, title\)"):
        with_standard_columns(both, Columns())
    assert with_standard_columns(both, Columns(text="title"))["text"][:] == list("xyz")


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
        ImageInputs(broken, processor)


def test_model_inputs_equal_the_processor_in_memory_and_on_the_fly(monkeypatch):
    data = load_noisy_dataset("digits", num_meta=0, max_train_samples=20)["train"]
    processor = default_image_processor(build_backbone("tiny", list("0123456789")), data)
    kept = ImageInputs(data, processor)
    monkeypatch.setattr("famus_hf.data.inputs.model_inputs.MEMORY_LIMIT", 0)
    fresh = ImageInputs(data, processor)
    assert kept.pixel_values is not None and fresh.pixel_values is None
    for row in range(20):
        expected = processor(data[row]["image"].convert("RGB"), return_tensors="pt")["pixel_values"][0]
        assert (kept[row]["pixel_values"] == expected).all() and (fresh[row]["pixel_values"] == expected).all()
        assert kept[row]["labels"] == data[row]["label"] and kept[row]["index"] == data[row]["index"]


def test_without_known_clean_labels_there_is_no_meta_set_and_no_clean_label():
    data = load_noisy_dataset("digits", meta_set="pseudo-clean")
    assert set(data) == {"train", "test"} and len(data["train"]) == 1437
    assert data["train"]["clean_label"][:] == data["train"]["label"][:], "clean labels are kept where they are known"


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


def splits_of(train, test):
    feature = ClassLabel(names=list("abcd"))
    pictures = [PILImage.new("RGB", (4, 4), (row, 0, 0)) for row in range(len(train) + len(test))]
    features = Features({"image": Image(), "label": feature})
    return {
        "train": Dataset.from_dict({"image": pictures[: len(train)], "label": train}, features),
        "test": Dataset.from_dict({"image": pictures[len(train) :], "label": test}, features),
    }


@pytest.mark.parametrize(
    "train, test, sentence",
    [
        ([0, 1, 2, 3], [0, 1], r"2 of 4 classes of the train split have no example in the test split \('c', 'd'\)"),
        ([0, 1], [0, 1, 2], r"1 of 3 classes of the test split have no example in the train split \('c'\)"),
        ([0, 1], [], "the split 'test' of the data has no rows"),
        ([], [0, 1], "the split 'train' of the data has no rows"),
    ],
)
def test_splits_that_do_not_fit_together_are_refused(monkeypatch, train, test, sentence):
    monkeypatch.setattr("famus_hf.data.sources.load_source.load_from_hub", lambda *arguments: splits_of(train, test))
    with pytest.raises(ValueError, match=sentence):
        load_noisy_dataset("user/set")


def test_test_splits_with_secret_labels_give_way_to_validation(monkeypatch):
    splits = splits_of([0, 1, 0, 1], [0, 1])
    label = splits["test"].features["label"]
    splits["validation"] = splits["test"]
    splits["test"] = splits["test"].remove_columns("label").add_column("label", [-1, -1], feature=label)
    monkeypatch.setattr("famus_hf.data.sources.load_source.load_from_hub", lambda *arguments: splits)
    data = load_noisy_dataset("user/set")
    assert set(data) == {"train", "test"} and data["test"]["label"][:] == [0, 1]


def test_training_images_that_are_copies_of_meta_images_are_left_out(monkeypatch):
    """An image twice in the source, once drawn for the meta set; a placeholder that is everywhere stays."""
    pixels = [np.full((4, 4, 3), value, np.uint8) for value in (*range(40), 0, *[200] * 8)]
    labels = [row % 2 for row in range(len(pixels))]
    features = Features({"image": Image(), "label": ClassLabel(names=list("ab"))})
    whole = Dataset.from_dict({"image": list(pixels), "label": labels}, features)
    monkeypatch.setattr(
        "famus_hf.data.sources.load_source.load_from_hub", lambda *arguments: {"train": whole, "test": whole}
    )
    sizes = {}
    for seed in range(30):
        data = load_noisy_dataset("user/set", noise=0.1, num_meta=6, seed=seed)
        kept = {bytes(np.asarray(image)) for image in data["train"]["image"]}
        meta = {bytes(np.asarray(image)) for image in data["meta"]["image"]} - {bytes(pixels[-1])}
        assert not kept & meta
        sizes[len(data["train"])] = seed
    assert set(sizes) == {42, 43}, "with some seeds the copy is in the meta set, and its twin is left out"


def test_without_a_meta_set_no_image_is_compared(monkeypatch):
    splits = splits_of([0, 1], [])
    monkeypatch.setattr("famus_hf.data.labels.duplicates._file_content", None)  # whoever looks at an image fails
    assert same_content(splits["train"], splits["test"]) == []


def test_images_of_sets_too_large_for_memory_are_checked_before_training(monkeypatch):
    data = load_noisy_dataset("digits", num_meta=0, max_train_samples=30)["train"]
    processor = default_image_processor(build_backbone("tiny", list("0123456789")), data)
    broken = data.cast_column("image", Image(decode=False)).map(
        lambda example, row: {"image": {"bytes": b"GIF?" if row == 7 else example["image"]["bytes"], "path": None}},
        with_indices=True,
        features=Features({**data.features, "image": {"bytes": Value("binary"), "path": Value("string")}}),
    )
    monkeypatch.setattr("famus_hf.data.inputs.model_inputs.MEMORY_LIMIT", 0)
    with pytest.raises(ValueError, match=rf"1 of 30 images can't be read \(index {data[7]['index']}\)"):
        ImageInputs(broken.cast_column("image", Image()), processor)


def test_balanced_epochs_take_every_class_alike():
    labels = np.repeat([0, 1, 2], [1000, 60, 5])
    sampler = ClassBalancedSampler(labels, 300, seed=0)
    first = list(sampler)
    assert len(first) == len(sampler) == 300 and np.bincount(labels[first]).tolist() == [100, 100, 100]
    assert len(set(first[:100])) > 60 and max(np.bincount(first)[labels == 0]) == 1
    assert set(np.bincount(first)[1000:1060]) == {1, 2}, "a class that is too small is gone through again"
    assert first == list(ClassBalancedSampler(labels, 300, seed=0)), "an epoch is a function of seed and number"
    sampler.set_epoch(1)
    assert list(sampler) != first
    counts = np.bincount(labels[list(ClassBalancedSampler(labels, 10, seed=0))])
    assert sorted(counts) == [3, 3, 4]


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
