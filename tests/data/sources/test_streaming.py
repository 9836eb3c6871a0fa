"""Data sets that are read as they come: the same labels whatever the order, exact resuming, what a stream can't do."""

import functools
import io
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from scipy.stats import chisquare
from transformers import ViTImageProcessorPil

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_noisy_dataset
from famus_hf.cli import run as run_famus
from famus_hf.data.inputs.image_processors import default_image_processor
from famus_hf.data.inputs.streamed_inputs import StreamedInputs
from tests.helpers.callbacks import SaveAt

NAMES = ["ant", "bee", "cow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """600 training and 60 test images in parquet files, class by class in turn."""
    place = tmp_path_factory.mktemp("stream")
    features = Features({"picture": Image(), "animal": ClassLabel(names=NAMES)})
    generator = np.random.default_rng(0)
    for split, size in (("train", 600), ("test", 60)):
        labels = np.arange(size) % 3
        pixels = generator.integers(100, size=(size, 6, 6, 3)) + 70 * labels[:, None, None, None]
        table = {"picture": list(pixels.astype(np.uint8)), "animal": labels}
        Dataset.from_dict(table, features).to_parquet(str(place / f"{split}.parquet"))
    return str(place)


def load(folder, **changes):
    return load_noisy_dataset(folder, **{"noise": 0.4, "num_meta": 30, "streaming": True, "seed": 1, **changes})


def test_meta_set_is_balanced_clean_and_not_in_train(folder):
    data = load(folder)
    assert set(data) == {"train", "meta", "test"}
    assert np.bincount(data["meta"]["label"][:]).tolist() == [10, 10, 10]
    train = list(data["train"])
    assert sorted([*data["meta"]["index"][:], *[row["index"] for row in train]]) == list(range(600))
    assert all(row["clean_label"] == row["index"] % 3 for row in train)
    assert [row["label"] for row in data["test"]] == [row % 3 for row in range(60)]


def test_noise_is_that_of_the_definition_and_hangs_on_seed_and_row_alone(folder):
    def labels(**changes):
        return {row["index"]: row["label"] for row in load(folder, **changes)["train"]}

    first = labels()
    moved = [(label - row) % 3 for row, label in first.items()]
    expected = np.array([1 - 0.4 * 2 / 3, 0.4 / 3, 0.4 / 3]) * len(first)
    assert chisquare(np.bincount(moved), expected).pvalue > 0.001
    other_rows = labels(num_meta=60)
    assert all(first[row] == label for row, label in other_rows.items())
    assert labels(seed=2) != first
    pairs = labels(noise_type="pair")
    assert {(label - row) % 3 for row, label in pairs.items()} == {0, 1}


def test_the_order_is_shuffled_anew_in_each_epoch(folder, monkeypatch):
    for size in (10_000, 50):
        monkeypatch.setattr("famus_hf.data.inputs.streamed_inputs.SHUFFLE_BUFFER", size)
        stream = StreamedInputs(load(folder)["train"], default_image_processor(None, load(folder)["meta"]), 7)
        orders = []
        for epoch in (0, 1, 0):
            stream.set_epoch(epoch)
            orders.append([row["index"] for row in stream])
        assert orders[0] != sorted(orders[0]) and orders[0] != orders[1] and orders[0] == orders[2]
        assert sorted(orders[0]) == sorted(row["index"] for row in load(folder)["train"]), "each example once"


def test_sets_of_several_files_are_counted_through(folder, tmp_path):
    whole = Dataset.from_parquet(folder + "/train.parquet")
    for part in range(4):
        whole.select(range(150 * part, 150 * part + 150)).to_parquet(str(tmp_path / f"train-{part}.parquet"))
    Dataset.from_parquet(folder + "/test.parquet").to_parquet(str(tmp_path / "test.parquet"))
    one, several = (load(place, num_meta=90) for place in (folder, str(tmp_path)))
    assert one["meta"]["index"][:] == several["meta"]["index"][:]
    processor = default_image_processor(None, one["meta"])
    for epoch in (0, 1):
        streams = [StreamedInputs(data["train"], processor, 3) for data in (one, several)]
        for stream in streams:
            stream.set_epoch(epoch)
        for first, second in zip(*streams, strict=True):
            assert torch.equal(first.pop("pixel_values"), second.pop("pixel_values")) and first == second
    assert streams[1].realised_noise_rate > 0.2


def test_streams_are_read_by_one_process(folder):
    stream = StreamedInputs(load(folder)["train"], default_image_processor(None, load(folder)["meta"]))
    with pytest.raises(ValueError, match="set dataloader_num_workers to 0"):
        next(iter(torch.utils.data.DataLoader(stream, batch_size=2, num_workers=1)))


def make_trainer(folder, output, callbacks=(), **changes):
    data = load(folder)
    settings = {
        "per_device_train_batch_size": 20, "max_steps": 40, "save_strategy": "no", "seed": 3,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 10, "augmentation": "pad-crop",
    }  # fmt: skip
    torch.manual_seed(0)
    return FaMUSTrainer(
        build_backbone("tiny", NAMES),
        FaMUSTrainingArguments(str(output), **{**settings, **changes}),
        train_dataset=data["train"],
        meta_dataset=data["meta"],
        eval_dataset=data["test"],
        callbacks=list(callbacks),
    )


RUNS = {1: (40, (13, 28, 39)), 2: (20, (16,))}  # accumulation → steps, and after which a checkpoint is written


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Accumulation → a trainer whose run nothing happened to."""

    def train(accumulation):
        steps, saved = RUNS[accumulation]
        settings = {"gradient_accumulation_steps": accumulation, "max_steps": steps}
        trainer = make_trainer(folder, tmp_path_factory.mktemp("whole"), [SaveAt(*saved)], **settings)
        trainer.train()
        return trainer

    return functools.cache(train)


@pytest.mark.parametrize("accumulation, step", [(1, 13), (1, 28), (1, 39), (2, 16)])
def test_a_stream_trains_and_resumes_exactly(folder, tmp_path, trained, accumulation, step):
    """Within an epoch of 28 batches, at its end, in the second one and, with accumulation, in the second one too."""
    whole = trained(accumulation)
    losses = [entry["meta_loss"] for entry in whole.state.log_history if "meta_loss" in entry]
    assert losses[-1] < losses[0] and 0.2 < whole.train_dataset.realised_noise_rate < 0.35
    settings = {"gradient_accumulation_steps": accumulation, "max_steps": RUNS[accumulation][0]}
    parts = make_trainer(folder, tmp_path, **settings)
    parts.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
    for (name, one), other in zip(whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert whole.evaluate()["eval_loss"] == parts.evaluate()["eval_loss"]


def test_what_needs_all_examples_is_refused(folder, tmp_path):
    for changes, sentence in (
        ({"noise_type": "flip"}, "noise_type 'flip' needs all examples at once"),
        ({"noise_type": "instance"}, "noise_type 'instance' needs all examples at once"),
        ({"imbalance_factor": 10}, "imbalance_factor needs all examples at once"),
        ({"noise_exact_count": True}, "noise_exact_count needs all examples at once"),
        ({"num_meta": 900}, r"3 classes \(ant, bee, cow\) have too few of the first 90000 examples"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load(folder, **changes)
    for name in ("digits", "clothing1m"):
        with pytest.raises(ValueError, match="can't be streamed, only Hub ids and local folders can"):
            load(name, noise=0, num_meta=0, data_dir="/" if name == "clothing1m" else None)
    data = load(folder, num_meta=None, meta_set="pseudo-clean")
    assert set(data) == {"train", "test"}
    for changes, sentence in (
        ({}, "found by the losses of all its examples, so that a stream will not do"),
        ({"meta_dataset": load(folder)["meta"]}, "plain_warmup_epochs needs to know how long an epoch is"),
    ):
        with pytest.raises(ValueError, match=sentence):
            FaMUSTrainer(
                build_backbone("tiny", NAMES),
                FaMUSTrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, plain_warmup_epochs=1),
                train_dataset=data["train"],
                **changes,
            )


def test_broken_images_are_named_when_they_come(folder, tmp_path):
    whole = Dataset.from_parquet(str(folder) + "/train.parquet").cast_column("picture", Image(decode=False))
    broken = whole.map(
        lambda row, place: {"picture": {"bytes": b"GIF?", "path": None} if place == 50 else row["picture"]},
        with_indices=True,
    ).cast_column("picture", Image())
    broken.to_parquet(str(tmp_path / "train.parquet"))
    whole.select(range(30)).cast_column("picture", Image()).to_parquet(str(tmp_path / "test.parquet"))
    trainer = make_trainer(str(tmp_path), tmp_path / "out")
    with pytest.raises(ValueError, match=r"an image of the training set can't be read \(row 50\)"):
        trainer.train()


def test_images_of_a_stream_lie_on_white_which_is_said_once(folder, caught):
    grey = PILImage.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6))
    drawn = PILImage.merge("LA", (PILImage.new("L", (6, 6)), grey))
    whole = load(folder, num_meta=0, noise=0)["train"].take(3)
    file = io.BytesIO()
    drawn.save(file, "PNG")
    rows = [{**row, "image": {"bytes": file.getvalue(), "path": "/data/ant/a.png"}} for row in whole]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    inputs = StreamedInputs(stream, ViTImageProcessorPil(do_resize=False, do_normalize=False), None, "the test set")
    for _ in range(2):
        for row in inputs:
            assert np.allclose(row["pixel_values"], 1 - np.asarray(grey) / 255, atol=1e-6)
    words = "some images of the test set have transparent parts, which lie on white (ant/a.png is the first of them)"
    assert len({id(record) for record in caught.records if record.message == words}) == 1


def test_the_command_line_trains_on_a_stream(folder, tmp_path, capsys):
    flags = [
        "--dataset_name", folder, "--streaming", "--noise", "0.4", "--num_meta", "30", "--backbone", "tiny",
        "--use_cpu", "--per_device_train_batch_size", "20", "--disable_tqdm", "true", "--output_dir", str(tmp_path),
    ]  # fmt: skip
    run_famus.main([*flags, "--max_steps", "30", "--save_strategy", "no"])
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["global_step"] == 30 and 0.2 < results["realised_noise_rate"] < 0.35
    assert "| a stream |" in (tmp_path / "README.md").read_text()
    with pytest.raises(SystemExit):
        run_famus.main(flags)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("run_famus.py: error: ") and "max_steps" in error
