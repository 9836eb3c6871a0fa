"""The network that is taken where nobody names one: by images and hardware, with what suits it, said in a line."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from famus_hf import FaMUSTrainingArguments
from famus_hf.cli import run_setup
from famus_hf.cli.arguments import parse_arguments
from famus_hf.cli.default_network import Images, default_network, images_of, take_settings
from famus_hf.cli.run_setup import build_model, faster, settings_for
from famus_hf.models import BACKBONES, build_backbone, num_parameters


def images(side, count=3000, is_grey=False, name="my_photos"):
    return Images(name, side, side, count, is_grey)


@pytest.mark.parametrize(
    "seen, has_gpu, has_imagenet, backbone, settings",
    [
        (images(8), False, False, "tiny", {}),
        (images(8), True, False, "tiny", {}),
        (images(28, is_grey=True), False, True, "small", {}),
        (images(64), False, True, "small", {"image_size": 32}),
        (images(32, 50_000), True, False, "wide-resnet-28-10", {}),
        (images(32, 1_000, name="cifar10"), True, False, "wide-resnet-28-10", {}),
        (images(32, 50_000, name="cifar10"), False, False, "small", {}),
        (images(32, None), True, False, "wide-resnet-28-10", {}),  # a stream
        (images(32), True, False, "medium", {}),
        (images(28, 60_000, is_grey=True), True, False, "medium", {}),
        (images(500), False, False, "small", {"image_size": 64}),
        (images(500), True, False, "preact-resnet-18", {"image_size": 64}),
        (images(500), True, True, "efficientnet-lite0", {"image_size": 224}),
        (images(500), False, True, "efficientnet-lite0", {"image_size": 64, "num_train_epochs": 10.0}),
    ],
    ids=str,
)
def test_the_network_follows_images_and_hardware(seen, has_gpu, has_imagenet, backbone, settings):
    network = default_network(seen, has_gpu, has_imagenet)
    assert network.backbone == backbone and backbone in BACKBONES
    assert settings.items() <= network.settings.items()
    assert bool(network.advice) == (seen.side > 64 and not has_imagenet)
    assert f"{seen.width} × {seen.height}" in network.reason


def photos(sizes, is_grey):
    rng = np.random.default_rng(0)
    pixels = [
        rng.integers(0, 255, (height, width) if is_grey else (height, width, 3), "uint8") for width, height in sizes
    ]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    content = {"image": [Image.fromarray(each) for each in pixels], "label": [row % 2 for row in range(len(pixels))]}
    return Dataset.from_dict(content, features=features)


def test_the_image_in_the_middle_counts_and_not_the_first():
    train = photos([(900, 20), (30, 20), (30, 20), (30, 20), (20, 25)], is_grey=True)
    seen = images_of("my_photos", train)
    assert (seen.width, seen.height, seen.count, seen.is_grey) == (30, 20, 5, True)
    streamed = images_of(None, photos([(40, 30)] * 3, is_grey=False).to_iterable_dataset())
    assert (streamed.width, streamed.height, streamed.count, streamed.is_grey) == (40, 30, None, False)


def test_what_the_user_says_goes_before_what_suits_the_network():
    network = default_network(images(500), has_gpu=False, has_imagenet=True)
    for given, expected in (
        (set(), (64, 10.0, 0.02)),
        ({"num_train_epochs", "learning_rate"}, (64, 40.0, 0.05)),
        ({"image_size"}, (None, 10.0, 0.02)),
        ({"resize_size"}, (None, 10.0, 0.02)),
    ):
        args = FaMUSTrainingArguments("unused", use_cpu=True)
        taken = take_settings(network, args, given)
        assert (args.image_size, args.num_train_epochs, args.learning_rate) == expected
        assert ("--image_size 64" in taken) == (expected[0] == 64)


def test_flags_of_files_count_as_given(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("num_train_epochs: 3\n")
    assert {"num_train_epochs", "noise"} == parse_arguments(["--config", str(file), "--noise", "0.2"])[0].given


def test_the_choice_is_printed_once_with_its_reason_and_is_what_is_built(capsys):
    data = {"train": photos([(48, 48)] * 4, is_grey=False)}
    argv = ["--dataset_name", "my_photos", "--use_cpu"]
    settings = settings_for(data, argv, parse_arguments(argv))
    model_args, _, args = settings
    said = capsys.readouterr().out.strip().splitlines()
    taken = "--image_size 32 --num_train_epochs 20"
    assert said == [f"network: {model_args.network_choice}, with {taken}; --backbone names another"]
    assert model_args.network_choice == "small (0.08 M parameters), as images are 48 × 48 and there is no GPU"
    network, processor = build_model(model_args, data, args)
    assert processor is None and network.config.stem_stride == 2 and args.image_size == 32
    model_args, _, args = settings_for(
        data, [*argv, "--backbone", "tiny"], parse_arguments([*argv, "--backbone", "tiny"])
    )
    assert model_args.backbone == "tiny" and not model_args.network_choice and args.image_size is None
    assert capsys.readouterr().out == ""


def test_from_scratch_on_photos_the_line_says_what_is_better(capsys, monkeypatch):
    monkeypatch.setattr(run_setup, "has_imagenet_weights", lambda: False)
    argv = ["--dataset_name", "my_photos", "--use_cpu"]
    settings_for({"train": photos([(200, 150)] * 3, is_grey=False)}, argv, parse_arguments(argv))
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert "200 × 150" in line and 'pip install "famus_hf[imagenet]"' in line and "--model_name_or_path" in line


@pytest.mark.parametrize("name", ["tiny", "medium", "preact-resnet-18"])
def test_sizes_are_told_without_drawing_weights(name):
    network = build_backbone(name, [str(label) for label in range(10)])
    assert num_parameters(name) == sum(parameter.numel() for parameter in network.parameters())


def test_advice_names_only_what_would_change_something():
    argv = ["--dataset_name", "digits", "--meta_learner", "mw-net", "--backbone", "medium", "--use_cpu"]
    model_args, _, args = parse_arguments(argv)
    words = "--preset fast, --backbone small, fewer epochs than --num_train_epochs 40"
    assert faster(model_args, args, has_meta_step=True) == words
    model_args, _, args = parse_arguments([*argv[:-3], "--backbone", "small", "--preset", "fast", "--max_steps", "9"])
    assert faster(model_args, args, has_meta_step=True) == ""
