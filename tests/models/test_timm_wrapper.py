"""Networks of timm: refused in one sentence where timm can't be imported, trained and loaded where it can."""

import sys

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from famus_hf import FaMUSTrainer, MWNet, build_backbone, load_famus, meta_gradient
from famus_hf.cli import run as run_famus
from famus_hf.cli import run_setup as set_up_run
from famus_hf.cli.arguments import ModelArguments
from famus_hf.core.layers import find_layers
from famus_hf.models.timm_wrapper import check_timm
from tests.helpers import brute_force
from tests.helpers.datasets import pictures
from tests.helpers.hostile import refused
from tests.helpers.saved_runs import TEN_CLASSES, assert_same_parameters, needs_timm, write_timm_folder
from tests.helpers.trainers import make_image_trainer

WHAT_TO_DO = "install timm, and torchvision of the same build as torch, or choose another network"


@pytest.fixture
def without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)


def test_a_backbone_of_timm_is_refused_where_timm_is_missing(without_timm):
    refused(f"'inception-resnet-v2' is a network of timm: {WHAT_TO_DO}; .*ModuleNotFoundError",
            build_backbone, "inception-resnet-v2", TEN_CLASSES)  # fmt: skip


def test_the_refusal_says_why_torchvision_does_not_import(tmp_path, monkeypatch):
    """Beside a CPU build of torch it dies with a RuntimeError."""
    for name in ("timm", "torchvision"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "timm.py").write_text("import torchvision")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    refused("fails here .RuntimeError: operator torchvision::nms does not exist", check_timm, "it")
    sys.modules.pop("timm", None)


def test_a_folder_with_a_network_of_timm_is_refused_where_timm_is_missing(tmp_path, without_timm):
    write_timm_folder(tmp_path)
    refused(f"it is a network of timm: {WHAT_TO_DO}; .*ModuleNotFoundError", load_famus, tmp_path)


@pytest.mark.parametrize("source", ["backbone", "id", "folder"])
def test_the_command_line_refuses_timm_before_training(tmp_path, without_timm, capsys, monkeypatch, source):
    write_timm_folder(tmp_path / "saved")
    flags = {
        "backbone": ["--backbone", "inception-resnet-v2"],
        "id": ["--model_name_or_path", "timm/inception_resnet_v2.tf_in1k"],
        "folder": ["--model_name_or_path", str(tmp_path / "saved")],
    }
    monkeypatch.setattr(FaMUSTrainer, "train", lambda *arguments, **keywords: pytest.fail("it trains"))
    with pytest.raises(SystemExit):
        run_famus.main(
            ["--max_train_samples", "200", "--use_cpu", "--output_dir", str(tmp_path / "run"), *flags[source]]
        )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("run_famus.py: error: ") and WHAT_TO_DO in error and "Traceback" not in error


# ---- Where timm runs ----


@needs_timm
def test_inception_resnet_v2_has_the_size_of_the_literature_and_starts_as_in_timm():
    import timm

    network = build_backbone("inception-resnet-v2", [str(label) for label in range(1000)])
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(55.8, abs=0.05)
    own = timm.create_model("inception_resnet_v2", num_classes=1000).state_dict()
    for name, tensor in network.timm_model.state_dict().items():
        if tensor.numel() > 500:  # enough for its spread to be known
            assert tensor.std().item() == pytest.approx(own[name].std().item(), rel=0.2), name


@needs_timm
def test_the_meta_gradient_of_inception_resnet_v2_is_that_of_brute_force():
    torch.manual_seed(0)
    model, meta_learner = build_backbone("inception-resnet-v2", TEN_CLASSES).double().train(), MWNet().double()
    batches = [
        {"pixel_values": torch.randn(3, 3, 80, 80, dtype=torch.float64), "labels": torch.arange(3)} for _ in "ab"
    ]
    names = [layer.name for layer in find_layers(model, {"pixel_values": batches[0]["pixel_values"]})]
    layers = [names[-60], names[-2], names[-1]]
    exact = brute_force.mw_net_gradient(model, meta_learner, *batches, 0.01, layers)
    for derivative in ("auto", "forward", "reverse"):
        found = meta_gradient(model, meta_learner, *batches, learning_rate=0.01, layers=layers, derivative=derivative)
        for name, gradient in exact.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-14)


@needs_timm
def test_inception_resnet_v2_trains_and_loads_again(tmp_path):
    trainer = make_image_trainer(
        tmp_path, build_backbone("inception-resnet-v2", ["ant", "bee", "cow"]), layer_sampler="learned", max_steps=2,
        image_size=80, augmentation="none", per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    model, meta_learner, layer_sampler, processor = load_famus(tmp_path)
    images = [example["image"] for example in pictures(2, 3)]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 3, 80, 80)
    with torch.no_grad():
        logits = trainer.model.eval()(pixels).logits
        for loaded in (model, AutoModelForImageClassification.from_pretrained(tmp_path)):
            assert_same_parameters(loaded, trainer.model)
            torch.testing.assert_close(loaded(pixels).logits, logits)
    assert isinstance(meta_learner, MWNet) and layer_sampler.layers == trainer.layer_sampler.layers
    best = [prediction[0]["label"] for prediction in pipeline("image-classification", str(tmp_path))(images)]
    assert best == [["ant", "bee", "cow"][label] for label in logits.argmax(1)]


@needs_timm
def test_a_pretrained_network_of_timm_keeps_the_images_that_it_was_trained_on(tmp_path):
    """Its processor is timm's, made from `pretrained_cfg`; the run saves one without timm that gives the same."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    cfg = {"input_size": [3, 32, 32], "crop_pct": 0.875, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3],
           "std": [0.2, 0.3, 0.4]}  # fmt: skip
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=1000, pretrained_cfg=cfg)
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path / "timm")
    model, own = set_up_run.load_pretrained(ModelArguments(), str(tmp_path / "timm"), ["ant", "bee", "cow"])
    assert model.config.id2label == {0: "ant", 1: "bee", 2: "cow"} and model.timm_model.num_classes == 3
    trainer = make_image_trainer(tmp_path / "run", model, max_steps=1)
    trainer.save_model()
    processor = load_famus(tmp_path / "run")[3]
    image = Image.fromarray((torch.rand(60, 40, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy())
    found, expected = (some(image, return_tensors="pt")["pixel_values"] for some in (processor, own))
    assert type(own).__name__ == "TimmWrapperImageProcessor" and type(processor) is not type(own)
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 255 / 0.2)
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "run")) is type(processor)
