"""Folders of models as runs leave them: of small backbones, of two networks, of timm; and what loads of them."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    ASTFeatureExtractor,
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
)

from famus_hf import (
    MLC,
    LearnedSampler,
    MWNet,
    TwoNetworksForImageClassification,
)
from famus_hf.core.layers import Layer
from famus_hf.hub.meta_net_files import save_meta_net
from famus_hf.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from famus_hf.models.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification
from famus_hf.models.preact_resnet import PreActResNetConfig, PreActResNetForImageClassification
from famus_hf.models.timm_wrapper import check_timm
from famus_hf.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification
from famus_hf.storage.model_folder import save_networks_apart
from famus_hf.storage.run_folder import NETWORKS_APART
from tests.helpers.models import build_audio_model, build_text_model, build_tokenizer

TEN_CLASSES = [f"class {label}" for label in range(10)]


SMALL_BACKBONES = {
    "wide-resnet": lambda **settings: WideResNetForImageClassification(
        WideResNetConfig(depth=10, widen_factor=1, **settings)
    ),
    "preact-resnet": lambda **settings: PreActResNetForImageClassification(PreActResNetConfig(width=4, **settings)),
    "preact-resnet, norm at its end": lambda **settings: PreActResNetForImageClassification(
        PreActResNetConfig(width=4, norm_at="end", **settings)
    ),
    "cifar-resnet": lambda **settings: CifarResNetForImageClassification(CifarResNetConfig(depth=8, **settings)),
    "efficientnet-lite": lambda **settings: EfficientNetLiteForImageClassification(EfficientNetLiteConfig(**settings)),
}


def assert_same_parameters(module, other):
    assert type(module) is type(other)
    assert module.state_dict().keys() == other.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def built_sampler():
    sampler = LearnedSampler(hidden_size=7)
    sampler.build([Layer("a", ("a.weight", "a.bias"), 5, 0.5, 1)])
    return sampler


THREE_CLASSES = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}


def vit(**settings):
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
            patch_size=4, **{**THREE_CLASSES, **settings},
        )
    )  # fmt: skip


def resnet(**settings):
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", **THREE_CLASSES, **settings
    )
    return ResNetForImageClassification(config)


def bert():
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **THREE_CLASSES)
    return BertForSequenceClassification(config)


def preact(**settings):
    return SMALL_BACKBONES["preact-resnet"](**{**THREE_CLASSES, **settings})


def images(count=8):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


PAIRS = {
    "two of one kind of ours": (preact, preact),
    "two kinds of ours": (
        lambda: SMALL_BACKBONES["cifar-resnet"](**THREE_CLASSES),
        lambda: SMALL_BACKBONES["wide-resnet"](**THREE_CLASSES),
    ),
    "ours and one of transformers": (preact, vit),
    "two of transformers": (vit, resnet),
}


def trained_ensemble(kind="two of one kind of ours"):
    """Running statistics are away from their start."""
    torch.manual_seed(0)
    ensemble = TwoNetworksForImageClassification.of(*(make() for make in PAIRS[kind]))
    ensemble.train()(images())
    return ensemble.eval()


def save_run(folder, ensemble):
    """What a run of two networks leaves."""
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    ensemble.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_networks_apart(folder, ensemble, processor)
    save_meta_net(folder / "model_a", MWNet(hidden_size=11), built_sampler())
    save_meta_net(folder / "model_b", MLC(3), None)


OF_A_FOLDER = ("config.json", "model.safetensors", "preprocessor_config.json", "preact_resnet.py")


PUSHED = {
    *OF_A_FOLDER, "two_networks.py", "cifar_resnet.py", "efficientnet_lite.py", "wide_resnet.py",
    *(f"{network}/{name}" for network in NETWORKS_APART for name in (*OF_A_FOLDER, "meta_net/config.json")),
    "model_a/meta_net/model.safetensors", "model_a/meta_net/layer_sampler.safetensors",
    "model_b/meta_net/model.safetensors",
}  # fmt: skip


def why_timm_does_not_run():
    try:
        check_timm("it")
    except ValueError as error:
        return str(error)
    return ""


needs_timm = pytest.mark.skipif(bool(why_timm_does_not_run()), reason=why_timm_does_not_run())


def write_timm_folder(folder, **changes):
    """What a run with a network of timm leaves, as far as is read before timm is needed."""
    config = {
        "model_type": "timm_wrapper", "architecture": "resnet18", "num_classes": 2, "label_names": ["a", "b"],
        "architectures": ["TimmWrapperForImageClassification"],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    save_file({"timm_model.fc.bias": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


def write_text_model(folder, num_labels=2, **settings):
    """What `--model_name_or_path` names: its head is for other classes."""
    build_text_model(num_labels=num_labels, pad_token_id=1, initializer_range=0.2, **settings).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


RATE = 2000  # Hz of the networks


def write_audio_model(folder, kind="wav2vec2"):
    build_audio_model(kind, num_labels=3).save_pretrained(folder)
    make = {"ast": lambda: ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=16, max_length=32),
            "wav2vec2": lambda: Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)}  # fmt: skip
    make[kind]().save_pretrained(folder)
    return folder
