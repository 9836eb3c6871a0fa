"""What the trainer does to images: sizes and normalisation that were asked for, random crops that resume exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTImageProcessorPil

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_famus, load_noisy_dataset
from famus_hf.data.inputs import model_inputs
from famus_hf.data.inputs.augmentation import META_STREAM, TRAIN_STREAM, Augmentation, make_generator
from famus_hf.data.inputs.image_inputs import ImageInputs
from famus_hf.data.inputs.image_processors import default_image_processor
from tests.helpers.callbacks import SaveAt
from tests.helpers.datasets import IMAGE_CLASSES, pictures, splits_of
from tests.helpers.hostile import refused
from tests.helpers.trainers import make_image_trainer


class Seen(torch.nn.Module):
    """Keeps what the network is given in training."""

    def __init__(self):
        super().__init__()
        self.network, self.images = build_backbone("tiny", IMAGE_CLASSES), []

    def forward(self, pixel_values, labels=None):
        if self.training:
            self.images.append(pixel_values.clone())
        return self.network(pixel_values, labels=labels)


def test_training_and_meta_images_are_cropped_as_seed_and_step_say(tmp_path):
    model = Seen()
    trainer = make_image_trainer(tmp_path, model, augmentation_padding_mode="reflect", gradient_accumulation_steps=2)
    processor = trainer.processing_class
    crop = Augmentation("pad-crop", padding_mode="reflect")
    untouched = {}
    original = trainer.augmented

    def spy(inputs, *numbers):
        untouched[numbers] = inputs["pixel_values"].clone()
        return original(inputs, *numbers)

    trainer.augmented = spy
    trainer.train()
    assert [numbers for numbers in untouched if numbers[0] == TRAIN_STREAM] == [
        (TRAIN_STREAM, step, place) for step in range(6) for place in (0, 1)
    ]
    assert [numbers for numbers in untouched if numbers[0] == META_STREAM] == [(META_STREAM, k) for k in range(12)]
    expected = [crop(images, make_generator(5, *numbers, 0)) for numbers, images in untouched.items()]
    seen = [images for images in model.images if len(images) == 8]
    for images in expected:
        assert any(torch.equal(images, other) for other in seen)
    assert not any(torch.equal(images, other) for images, other in zip(untouched.values(), expected, strict=True))
    assert len(processor.image_mean) == 3


def test_padding_is_black_in_raw_pixels(tmp_path):
    trainer = make_image_trainer(tmp_path)
    processor = trainer.processing_class
    black = processor([np.zeros((12, 16, 3), np.uint8)], return_tensors="pt")["pixel_values"][0, :, 0, 0]
    assert torch.allclose(torch.tensor(trainer.augmentation.fill), black.double().float(), atol=1e-5)


@pytest.mark.parametrize("meta_learner", ["mw-net", "none"])
def test_resuming_with_augmentation_is_exact(tmp_path, meta_learner):
    settings = {"meta_learner": meta_learner, "gradient_accumulation_steps": 2}
    whole = make_image_trainer(tmp_path, callbacks=[SaveAt(4)], **settings)
    whole.train()
    second = make_image_trainer(tmp_path, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for (name, one), other in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_evaluation_is_not_augmented(tmp_path):
    plain, cropped = make_image_trainer(tmp_path, augmentation="none"), make_image_trainer(tmp_path)
    assert plain.evaluate()["eval_loss"] == cropped.evaluate()["eval_loss"]


@pytest.mark.parametrize("augmentation", ["random-crop", "resized-crop"])
def test_crops_come_out_of_larger_images_and_evaluation_sees_the_centre(tmp_path, augmentation):
    model = Seen()
    trainer = make_image_trainer(
        tmp_path, model, augmentation=augmentation, resize_size=10, image_size=8, meta_budget=None
    )
    assert (
        trainer.train_dataset[0]["pixel_values"].shape == trainer.meta_dataset[0]["pixel_values"].shape == (3, 10, 10)
    )
    assert trainer.eval_dataset[0]["pixel_values"].shape == (3, 8, 8)
    trainer.train()
    assert {images.shape[2:] for images in model.images} == {(8, 8)}
    batch = trainer._evaluation_batch({"pixel_values": trainer.train_dataset[0]["pixel_values"][None]})
    centre = batch["pixel_values"][0]
    evaluated = trainer.processing_class([pictures(48, 0)[0]["image"]], return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(centre, evaluated, atol=1e-6)


def test_the_processor_that_was_asked_for_travels_with_the_network(tmp_path):
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    trainer = make_image_trainer(tmp_path, augmentation="resized-crop", resize_size=10, image_size=8, **settings)
    trainer.save_model()
    _, _, _, processor = load_famus(tmp_path)
    image = pictures(1, 0)[0]["image"]
    pixels = processor([image], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 8, 8)
    assert torch.equal(pixels, trainer.processing_class([image], return_tensors="pt")["pixel_values"])
    assert list(processor.image_mean) == settings["image_mean"] and list(processor.image_std) == settings["image_std"]


@pytest.mark.parametrize("given", [None, ViTImageProcessorPil(size={"height": 20, "width": 20})])
def test_settings_reach_a_processor_that_was_given_as_well(tmp_path, given):
    def shapes(**changes):
        trainer = make_image_trainer(tmp_path, processing_class=given, **changes)
        return trainer, [
            tuple(own[0]["pixel_values"].shape[1:]) for own in (trainer.train_dataset, trainer.eval_dataset)
        ]

    trainer, found = shapes(image_mean=[0, 0, 0], image_size=6)
    assert list(trainer.processing_class.image_mean) == [0, 0, 0] and found == [(6, 6), (6, 6)]
    _, found = shapes(augmentation="random-crop", resize_size=10, image_size=8)
    assert found == [(10, 10), (8, 8)]
    trainer, found = shapes(image_std=[0.9, 0.9, 0.9])
    assert list(trainer.processing_class.image_std) == [0.9] * 3
    assert found == [(12, 16)] * 2 if given is None else [(20, 20)] * 2


def test_images_that_are_in_both_sets_are_refused_whatever_their_index_says(tmp_path):
    data = load_noisy_dataset("digits", num_meta=0, max_train_samples=200)["train"]
    meta = data.select(range(20)).remove_columns("index").add_column("index", range(5000, 5020))
    with pytest.raises(
        ValueError, match=r"20 training images are also in the meta set, pixel for pixel \(index \d+, \d+, \d+, …\)"
    ):
        FaMUSTrainer(
            build_backbone("tiny", data.features["label"].names),
            FaMUSTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=20),
            train_dataset=data,
            meta_dataset=meta,
        )


@pytest.mark.parametrize("empty", ["train_dataset", "meta_dataset"])
def test_raw_images_without_a_single_row_are_refused_by_name(tmp_path, empty):
    sets = {"train_dataset": pictures(16, 0), "meta_dataset": pictures(6, 1)}
    sets[empty] = sets[empty].select([])
    with pytest.raises(ValueError, match=f"{empty} is empty: give at least a few examples of every class"):
        FaMUSTrainer(
            build_backbone("tiny", IMAGE_CLASSES),
            FaMUSTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8),
            **sets,
        )


def test_balanced_epochs_reach_the_network(tmp_path):
    model = Seen()
    trainer = make_image_trainer(tmp_path, model, meta_learner="none", balanced_batches_per_epoch=4, num_train_epochs=3,
                           max_steps=-1, augmentation="none")  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 12 and trainer.state.epoch == 3
    epochs = [torch.cat(model.images[start : start + 4]) for start in (0, 4, 8)]
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    rows = {trainer.train_dataset[row]["pixel_values"].numpy().tobytes(): row for row in range(48)}
    for images in epochs:
        labels = [rows[image.numpy().tobytes()] % 3 for image in images]
        assert sorted(np.bincount(labels)) == [10, 11, 11]


def test_balanced_epochs_resume_exactly(tmp_path):
    settings = {"balanced_batches_per_epoch": 3, "max_steps": 8}
    whole = make_image_trainer(tmp_path, callbacks=[SaveAt(5)], **settings)
    whole.train()
    second = make_image_trainer(tmp_path, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for (name, one), other in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_balanced_epochs_need_to_know_the_labels(tmp_path):
    class Unknown(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, row):
            return {"pixel_values": torch.zeros(3, 8, 8), "labels": row % 3}

    with pytest.raises(ValueError, match="balanced_batches_per_epoch needs the labels of all training examples"):
        FaMUSTrainer(
            build_backbone("tiny", IMAGE_CLASSES),
            FaMUSTrainingArguments(
                str(tmp_path), use_cpu=True, meta_learner="none", per_device_train_batch_size=8,
                balanced_batches_per_epoch=2,
            ),
            train_dataset=Unknown(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("height", "width", "sizes"), [(300, 250, (224, 224)), (224, 225, (224, 224)), (64, 224, (64, 224))]
)
def test_larger_images_than_the_backbone_s_own_are_shrunk(height, width, sizes):
    """ResNet-50 names 224."""
    model = build_backbone("resnet-50", IMAGE_CLASSES, depths=[1, 1, 1, 1])
    processor = default_image_processor(model, pictures(3, 0, height, width))
    assert processor(pictures(1, 0, height, width)["image"][:], return_tensors="pt")["pixel_values"].shape[2:] == sizes


def test_a_resnet_of_transformers_trains_on_small_images_and_loads_again(tmp_path):
    model = build_backbone("resnet-50", IMAGE_CLASSES, depths=[1, 1, 1, 1])
    trainer = make_image_trainer(tmp_path, model, layer_sampler="learned", max_steps=2)
    trainer.train()
    trainer.save_model()
    loaded, _, layer_sampler, processor = load_famus(tmp_path)
    assert (processor.size["height"], processor.size["width"]) == (12, 16)
    assert loaded.config.id2label == dict(enumerate(IMAGE_CLASSES)) and layer_sampler.layers[-1].name == "classifier.1"
    pixels = processor(pictures(2, 3)["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, trainer.model.eval()(pixels).logits)


def test_images_that_are_too_small_for_the_network_are_refused_before_training(tmp_path):
    model = Seen()
    model.network.wide_stem = torch.nn.Conv2d(3, 3, 13)
    model.network.register_forward_pre_hook(lambda network, arguments: (network.wide_stem(*arguments),))
    sentence = r"pixel_values \(3, 12, 16\) \(RuntimeError: .* set image_size; if texts are too long, max_seq_length$"
    with pytest.raises(ValueError, match=sentence):
        make_image_trainer(tmp_path, model, augmentation="none")


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
    with pytest.raises(ValueError, match=rf"2 of 300 images of the data set can't be read \(index {names}\)"):
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


def test_images_of_sets_too_large_for_memory_are_checked_before_training(monkeypatch):
    data = load_noisy_dataset("digits", num_meta=0, max_train_samples=30)["train"]
    processor = default_image_processor(build_backbone("tiny", list("0123456789")), data)
    broken = data.cast_column("image", Image(decode=False)).map(
        lambda example, row: {"image": {"bytes": b"GIF?" if row == 7 else example["image"]["bytes"], "path": None}},
        with_indices=True,
        features=Features({**data.features, "image": {"bytes": Value("binary"), "path": Value("string")}}),
    )
    monkeypatch.setattr("famus_hf.data.inputs.model_inputs.MEMORY_LIMIT", 0)
    with pytest.raises(ValueError, match=rf"1 of 30 images of the data set can't be read \(index {data[7]['index']}\)"):
        ImageInputs(broken.cast_column("image", Image()), processor)


def drawings(folder, count=4):
    """Of each class as many files, of which the first half has the drawing in alpha alone."""
    paths = []
    for row in range(3 * count):
        grey = pictures(1, row)[0]["image"].convert("L")
        black = PILImage.new("L", grey.size)
        paths.append(str(folder / IMAGE_CLASSES[row % 3] / f"{row}.png"))
        (folder / IMAGE_CLASSES[row % 3]).mkdir(exist_ok=True)
        (PILImage.merge("LA", (black, grey)) if row < 3 * count / 2 else grey).save(paths[-1])
    features = pictures(1, 0).features
    return Dataset.from_dict({"image": paths, "label": [row % 3 for row in range(3 * count)]}, features)


@pytest.mark.parametrize("limit", [model_inputs.MEMORY_LIMIT, 0], ids=["in memory", "on the fly"])
@pytest.mark.parametrize("source", ["files", "bytes", "mode"])
def test_transparent_images_lie_on_white_and_are_counted(tmp_path, monkeypatch, caught, source, limit):
    monkeypatch.setattr(model_inputs, "MEMORY_LIMIT", limit)
    data = drawings(tmp_path)
    if source == "bytes":
        files = [Path(file["path"]) for file in data.cast_column("image", Image(decode=False))["image"]]
        table = {"image": [file.read_bytes() for file in files], "label": data["label"][:]}
        Dataset.from_dict(table).to_parquet(str(tmp_path / "a.parquet"))
        data = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
        data = data.cast_column("image", Image())
    if source == "mode":
        data = data.cast_column("image", Image(mode="RGB"))
    inputs = ImageInputs(data, ViTImageProcessorPil(do_resize=False, do_normalize=False), "the meta set")
    for row in range(12):
        drawn = np.asarray(pictures(1, row)[0]["image"].convert("L"), dtype=float)
        expected = (255 - drawn if row < 6 else drawn) / 255
        assert np.allclose(inputs[row]["pixel_values"], expected, atol=1e-6)
    names = "row 0, 1, 2, 3, 4, …" if source == "bytes" else "ant/0.png, bee/1.png, cow/2.png, ant/3.png, bee/4.png, …"
    assert f"6 of 12 images of the meta set have transparent parts, which lie on white ({names})" in caught.text


@pytest.mark.parametrize("limit", [model_inputs.MEMORY_LIMIT, 0], ids=["in memory", "on the fly"])
def test_images_of_one_colour_are_counted_and_refused_where_all_are_the_same(monkeypatch, caught, limit):
    monkeypatch.setattr(model_inputs, "MEMORY_LIMIT", limit)
    processor = ViTImageProcessorPil(do_resize=False)
    data = splits_of([0, 1, 2], [])["train"]
    ImageInputs(data, processor)
    words = "3 of 3 images of the data set are of one colour, in which there is nothing to see (row 0, 1, 2)"
    assert words in caught.text
    words = r"all 3 images of the test set are of the same one colour \(row 0, 1, 2\): check how they were stored"
    refused(words, ImageInputs, data.select([0, 0, 0]), processor, "the test set")


@pytest.mark.parametrize("split", ["train", "meta", "evaluation", "later", "predict"])
def test_broken_images_are_named_with_their_set(tmp_path, split):
    whole = drawings(tmp_path)
    Path(whole.cast_column("image", Image(decode=False))[7]["image"]["path"]).write_bytes(b"")
    broken, whole = whole, whole.select([row for row in range(12) if row != 7])

    def run():
        trainer = FaMUSTrainer(
            build_backbone("tiny", IMAGE_CLASSES),
            FaMUSTrainingArguments(str(tmp_path / "run"), use_cpu=True, per_device_train_batch_size=2),
            train_dataset=broken if split == "train" else whole.select(range(6)),
            meta_dataset=broken if split == "meta" else whole.select(range(6, 11)),
            eval_dataset={"new": broken} if split == "evaluation" else None,
        )
        trainer.evaluate(broken) if split == "later" else trainer.predict(broken)

    name = {"train": "training", "evaluation": "evaluation set 'new'", "later": "evaluation", "predict": "test"}
    name = name.get(split, split)
    refused(f"1 of 12 images of the {name}( set)? can't be read \\(bee/7.png\\): remove or repair them", run)


def test_a_file_that_is_lost_while_training_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(model_inputs, "MEMORY_LIMIT", 0)
    inputs = ImageInputs(drawings(tmp_path), ViTImageProcessorPil(do_resize=False), "the training set")
    (tmp_path / "bee" / "7.png").unlink()
    refused(r"1 of 12 images of the training set can't be read \(bee/7.png\)", lambda: inputs.__getitems__([3, 7]))
