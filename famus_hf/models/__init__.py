"""Backbones by the names of the command line, built from scratch with a given number of classes."""

from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from famus_hf.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from famus_hf.models.preact_resnet import PreActResNetConfig, PreActResNetForImageClassification
from famus_hf.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification

NETWORKS: dict[type[PretrainedConfig], type[PreTrainedModel]] = {
    WideResNetConfig: WideResNetForImageClassification,
    PreActResNetConfig: PreActResNetForImageClassification,
    CifarResNetConfig: CifarResNetForImageClassification,
}
for _config, _network in NETWORKS.items():
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _network)

# For few cores. `tiny` and `small` have 0.08 M parameters, three pre-activation blocks of widths 16, 32, 64: `tiny` for
# images of about 8×8, `small`, which halves height and width at once, of about 28×28. `medium`: six blocks of twice the
# widths, 0.69 M parameters, for images of about 28×28.
BACKBONES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "tiny": (WideResNetConfig, {"depth": 10, "widen_factor": 1}),
    "small": (WideResNetConfig, {"depth": 10, "widen_factor": 1, "stem_stride": 2}),
    "medium": (WideResNetConfig, {"depth": 16, "widen_factor": 2, "stem_stride": 2}),
    "wide-resnet-28-10": (WideResNetConfig, {"depth": 28, "widen_factor": 10}),
    "wide-resnet-40-2": (WideResNetConfig, {"depth": 40, "widen_factor": 2}),
    "preact-resnet-18": (PreActResNetConfig, {"depth": 18}),
    "cifar-resnet-32": (CifarResNetConfig, {"depth": 32}),
}


def build_backbone(name: str, class_names: list[str], **settings: Any) -> PreTrainedModel:
    """A freshly initialised backbone whose `id2label` holds the class names. Raises ValueError on an unknown name.

    Args:
        name: A key of `BACKBONES`.
        class_names: C of them.
        settings: Of its configuration, for example `cosine_classifier=True`.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    kind, own_settings = BACKBONES[name]
    config = kind(
        **{**own_settings, **settings},
        id2label=dict(enumerate(class_names)),
        label2id={label: index for index, label in enumerate(class_names)},
    )
    return NETWORKS[kind](config)
