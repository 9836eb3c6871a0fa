"""Backbones by the names of the command line, built with a given number of classes."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from famus_hf.errors import SettingsError
from famus_hf.models.bilateral_branch import BilateralBranchConfig, BilateralBranchForImageClassification
from famus_hf.models.imagenet_weights import IMAGES, load_imagenet_weights, weights_file
from famus_hf.models.timm_wrapper import TIMM_WRAPPER, check_timm
from famus_hf.models.two_networks import NETWORKS, TwoNetworksConfig, TwoNetworksForImageClassification

OWN: dict[type[PretrainedConfig], type[PreTrainedModel]] = {
    **NETWORKS,
    TwoNetworksConfig: TwoNetworksForImageClassification,
    BilateralBranchConfig: BilateralBranchForImageClassification,
}
OWN_CODE = tuple(f"{network.__module__.rpartition('.')[2]}.py" for network in OWN.values())  # goes to the Hub
for _config, _network in OWN.items():
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _network)
WITH_IMAGENET = "efficientnet-lite0"

# Name → type and settings. For few cores: `tiny` and `small` have 0.08 M parameters, three pre-activation blocks of
# widths 16, 32, 64; `tiny` is for images of about 8×8, `small`, which halves height and width at once, of about 28×28;
# `small-wide`, likewise, has twice the widths and 0.30 M parameters, `medium` six such blocks and 0.69 M.
# `image_size` is what larger images are made, where nobody says otherwise. Only `efficientnet-lite0` is pretrained.
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("wide_resnet", {"depth": 10, "widen_factor": 1}),
    "small": ("wide_resnet", {"depth": 10, "widen_factor": 1, "stem_stride": 2}),
    "small-wide": ("wide_resnet", {"depth": 10, "widen_factor": 2, "stem_stride": 2}),
    "medium": ("wide_resnet", {"depth": 16, "widen_factor": 2, "stem_stride": 2}),
    "wide-resnet-28-10": ("wide_resnet", {"depth": 28, "widen_factor": 10}),
    "wide-resnet-40-2": ("wide_resnet", {"depth": 40, "widen_factor": 2}),
    "preact-resnet-18": ("preact_resnet", {"depth": 18}),
    "cifar-resnet-32": ("cifar_resnet", {"depth": 32}),
    "resnet-50": ("resnet", {"image_size": 224}),  # transformers' own, whose defaults these are
    "inception-resnet-v2": (TIMM_WRAPPER, {"architecture": "inception_resnet_v2", "image_size": 299}),
    WITH_IMAGENET: ("efficientnet_lite", IMAGES),
}


def build_backbone(name: str, class_names: list[str], **settings: Any) -> PreTrainedModel:
    """A backbone whose `id2label` holds the class names, freshly initialised or, with a new classifier, from ImageNet.

    Args:
        name: A key of `BACKBONES`.
        class_names: C of them.
        settings: Of its configuration, for example `cosine_classifier=True`, which only our own networks have.

    Raises:
        ValueError: The name is unknown, timm or the package of the weights is needed and can't be imported, or there is
            no such classifier.
    """
    if name not in BACKBONES:
        raise SettingsError(f"backbone {name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    kind, own_settings = BACKBONES[name]
    if kind == TIMM_WRAPPER:
        check_timm(f"backbone {name!r}")
    file = weights_file(name) if name == WITH_IMAGENET else None
    is_own = kind in {config.model_type for config in NETWORKS}
    if not is_own and settings.pop("cosine_classifier", False):
        raise SettingsError(
            f"backbone {name!r} has no classifier of cosines, which ldam is made for: choose another one"
        )
    config = AutoConfig.for_model(
        kind,
        **{**own_settings, **settings},
        id2label=dict(enumerate(class_names)),
        label2id={label: index for index, label in enumerate(class_names)},
    )
    network = AutoModelForImageClassification.from_config(config)
    if kind == TIMM_WRAPPER:
        _start_as_in_timm(network)
    if file is not None:
        load_imagenet_weights(network, file)
    return network


def num_parameters(name: str, num_classes: int = 10) -> int:
    """Return how many parameters a backbone has, one of timm excepted. No weights are drawn or read."""
    kind, settings = BACKBONES[name]
    with torch.device("meta"):
        network = AutoModelForImageClassification.from_config(
            AutoConfig.for_model(kind, **settings, num_labels=num_classes)
        )
    return sum(parameter.numel() for parameter in network.parameters())


def _start_as_in_timm(network: PreTrainedModel) -> None:
    """transformers draws kernels from N(0, 0.02), since it expects weights to be loaded. In Inception-ResNet-v2 the
    first gradient of the lowest one is then 150 times its norm; from torch's start, which timm keeps, it is 4 times."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
