"""The paper's backbones: sizes as in the literature, the same output after save and load, with and without famus_hf."""

import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ViTImageProcessorPil

from famus_hf import BilateralBranchForImageClassification, MWNet, build_backbone, load_famus, meta_gradient
from famus_hf.models.cifar_resnet import CifarResNetConfig
from famus_hf.models.efficientnet_lite import EfficientNetLiteConfig
from famus_hf.models.preact_resnet import PreActResNetConfig
from tests.helpers import clean_process
from tests.helpers.saved_runs import SMALL_BACKBONES, TEN_CLASSES, assert_same_parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("wide-resnet-28-10", 36.5), ("wide-resnet-40-2", 2.2), ("preact-resnet-18", 11.2), ("cifar-resnet-32", 0.46)],
)
def test_backbones_have_the_size_of_the_literature(name, millions):
    parameters = sum(parameter.numel() for parameter in build_backbone(name, TEN_CLASSES).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)


def test_resnet_50_has_the_size_of_the_literature():
    network = build_backbone("resnet-50", [f"class {label}" for label in range(1000)])
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(25.6, abs=0.05)
    assert type(network).__name__ == "ResNetForImageClassification" and network.config.id2label[999] == "class 999"


def test_a_classifier_of_cosines_is_refused_where_the_network_has_none():
    with pytest.raises(ValueError, match="'resnet-50' has no classifier of cosines"):
        build_backbone("resnet-50", TEN_CLASSES, cosine_classifier=True)
    assert (
        build_backbone("resnet-50", TEN_CLASSES, depths=[1, 1, 1, 1], cosine_classifier=False).config.num_labels == 10
    )


@pytest.mark.parametrize("cosine_classifier", [False, True])
@pytest.mark.parametrize("name", SMALL_BACKBONES)
def test_a_backbone_gives_the_same_output_after_save_and_load(tmp_path, name, cosine_classifier):
    torch.manual_seed(0)
    model = SMALL_BACKBONES[name](cosine_classifier=cosine_classifier, num_labels=7)
    images = torch.randn(8, 3, 32, 32)
    model.train()(images)  # running statistics away from their start
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(images).logits
        assert logits.shape == (8, 7)
        for other in (loaded, load_famus(tmp_path)[0]):
            assert_same_parameters(other, model)
            torch.testing.assert_close(other(images).logits, logits)  # products depend on where weights lie in memory
    assert not cosine_classifier or logits.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("name", SMALL_BACKBONES)
def test_a_backbone_starts_with_activations_of_order_one(name):
    torch.manual_seed(0)
    logits = SMALL_BACKBONES[name](num_labels=10).train()(torch.randn(64, 3, 32, 32)).logits
    assert 0.05 < logits.std() < 20


def test_backbones_load_where_famus_hf_is_not_installed(tmp_path):
    """Each file travels with the weights and needs nothing else of ours."""
    for name in ("preact-resnet", "cifar-resnet", "efficientnet-lite"):
        SMALL_BACKBONES[name](num_labels=3).save_pretrained(tmp_path / name)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
        Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    branches = BilateralBranchForImageClassification.of(SMALL_BACKBONES["cifar-resnet"](num_labels=3))
    branches.save_pretrained(tmp_path / "branches")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "branches")
    code = """
import sys
sys.modules["famus_hf"] = None  # as if it were not installed
from PIL import Image
from transformers import pipeline
for name in ("preact-resnet", "cifar-resnet", "efficientnet-lite", "branches"):
    print(len(pipeline("image-classification", name, trust_remote_code=True, device="cpu")(Image.open("image.png"))))
"""
    done = clean_process.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.stdout.split() == ["3", "3", "3", "3"], done.stderr[-2000:]


@pytest.mark.parametrize("name", SMALL_BACKBONES)
def test_forward_and_reverse_mode_agree_on_a_backbone(name):
    torch.manual_seed(0)
    model, meta_learner = SMALL_BACKBONES[name](num_labels=4).double().train(), MWNet().double()
    batches = [
        {"pixel_values": torch.randn(6, 3, 16, 16, dtype=torch.float64), "labels": torch.arange(6) % 4} for _ in "ab"
    ]
    found = [
        meta_gradient(model, meta_learner, *batches, learning_rate=0.1, derivative=derivative)
        for derivative in ("forward", "reverse")
    ]
    for parameter in found[0]:
        torch.testing.assert_close(found[0][parameter], found[1][parameter], rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    ("config", "settings", "sentence"),
    [
        (CifarResNetConfig, {"depth": 30}, "depth=30 is not 6·b"),
        (CifarResNetConfig, {"num_channels": 0}, "must be at least 1"),
        (PreActResNetConfig, {"depth": 50}, "choose one of 18, 34"),
        (PreActResNetConfig, {"norm_at": "start"}, "choose 'stem' or 'end'"),
        (PreActResNetConfig, {"width": 0}, "must be at least 1"),
        (EfficientNetLiteConfig, {"num_channels": 0}, "num_channels=0 must be at least 1"),
        (EfficientNetLiteConfig, {"dropout": 1.0}, "must lie in"),
    ],
)
def test_settings_that_make_no_network_are_refused(config, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        config(**settings)
