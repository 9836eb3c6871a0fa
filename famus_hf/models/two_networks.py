"""Two networks side by side whose logits are averaged, as a transformers model.

This file travels to the Hub beside the weights. It imports torch, transformers and, relatively, the files of our
backbones, so that transformers saves and downloads these with it, of the same revision and with the same token. Hence
no class is looked up by a name that a configuration gives, which would run code of a folder that nobody trusts.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from .efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification
from .preact_resnet import PreActResNetConfig, PreActResNetForImageClassification
from .wide_resnet import WideResNetConfig, WideResNetForImageClassification

# Our backbones, which transformers does not know by itself.
NETWORKS: dict[type[PretrainedConfig], type[PreTrainedModel]] = {
    WideResNetConfig: WideResNetForImageClassification,
    PreActResNetConfig: PreActResNetForImageClassification,
    CifarResNetConfig: CifarResNetForImageClassification,
    EfficientNetLiteConfig: EfficientNetLiteForImageClassification,
}
# What a network's configuration says of the folder that it came from, and the ensemble's own says itself.
NOT_OF_A_NETWORK = ("transformers_version", "architectures", "auto_map", "dtype")


class TwoNetworksConfig(PretrainedConfig):
    """
    Args:
        network_a: The configuration of the first network as config.json has it, `model_type` among it. That of one of
            our backbones, or of a classifier of images that transformers knows.
        network_b: That of the second one, which may be of another kind. Both have the same class names.
    """

    model_type = "two_networks"

    def __init__(self, network_a: dict[str, Any] | None = None, network_b: dict[str, Any] | None = None, **kwargs: Any):
        self.network_a = network_a
        self.network_b = network_b
        super().__init__(**kwargs)


class TwoNetworksForImageClassification(PreTrainedModel):
    """`model_a` and `model_b`; logits are the mean of theirs.

    Raises:
        ValueError: A configuration is missing, of a kind that is not known here, or holds two networks itself; or the
            class names differ.
    """

    config_class = TwoNetworksConfig
    base_model_prefix = "two_networks"
    main_input_name = "pixel_values"

    def __init__(self, config: TwoNetworksConfig):
        super().__init__(config)
        configs = [_network_config(name, getattr(config, name)) for name in ("network_a", "network_b")]
        _check_class_names(*configs)
        if len(config.id2label or {}) != configs[0].num_labels:
            raise ValueError(
                f"the configuration names {len(config.id2label or {})} classes and its networks have "
                f"{configs[0].num_labels}: give the networks' id2label"
            )
        self.model_a, self.model_b = map(_new_network, configs)
        self.supports_gradient_checkpointing = all(
            network.supports_gradient_checkpointing for network in (self.model_a, self.model_b)
        )
        self.post_init()

    @classmethod
    def of(cls, model_a: PreTrainedModel, model_b: PreTrainedModel) -> Self:
        """An ensemble of two classifiers, which it holds and does not copy.

        Args:
            model_a: One of our backbones, or a classifier of images of transformers.
            model_b: Another one with the same class names.

        Raises:
            ValueError: They are no such classifiers, are one and the same, or their class names differ.
        """
        models = {"model_a": model_a, "model_b": model_b}
        for name, model in models.items():
            if not isinstance(model, PreTrainedModel):
                raise ValueError(f"{name} is a {type(model).__name__}: give a classifier of images of transformers")
        if model_a is model_b:
            raise ValueError("model_a and model_b are the same network: give two that were initialised each by itself")
        _check_class_names(model_a.config, model_b.config)
        names = {name: copy.copy(getattr(model_a.config, name)) for name in ("id2label", "label2id")}
        config = TwoNetworksConfig(_settings_of(model_a), _settings_of(model_b), **names)
        with torch.device("meta"):
            ensemble = cls(config)
        for name, model in models.items():
            if type(getattr(ensemble, name)) is not type(model):
                raise ValueError(
                    f"{name} is a {type(model).__name__} of {type(model).__module__}, and its configuration would "
                    f"come back as a {type(getattr(ensemble, name)).__name__} of "
                    f"{type(getattr(ensemble, name)).__module__}: give one of those"
                )
            setattr(ensemble, name, model)
        return ensemble

    def _init_weights(self, module: nn.Module) -> None:
        """Each network's own is called for its modules; there are no others."""

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """There are none; accelerate asks for them under FSDP2."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> ImageClassifierOutputWithNoAttention | tuple[torch.Tensor, ...]:
        """pixel_values: (n, num_channels, height, width); labels: (n,) class indices; logits: (n, num_labels).

        What else is given goes to both networks.
        """
        logits_a = self.model_a(pixel_values=pixel_values, **others).logits
        logits_b = self.model_b(pixel_values=pixel_values, **others).logits
        logits = (logits_a + logits_b) / 2
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def _settings_of(model: PreTrainedModel) -> dict[str, Any]:
    """A network's configuration as JSON would give it back."""
    settings = json.loads(model.config.to_json_string(use_diff=True))
    return {key: value for key, value in settings.items() if key not in NOT_OF_A_NETWORK}


def _check_class_names(config_a: PretrainedConfig, config_b: PretrainedConfig) -> None:
    if config_a.id2label != config_b.id2label:
        few_a, few_b = (list((config.id2label or {}).values())[:3] for config in (config_a, config_b))
        raise ValueError(
            f"the two networks have {config_a.num_labels} and {config_b.num_labels} classes with different names "
            f"({few_a} …, {few_b} …): give both the same id2label"
        )


def _network_config(name: str, settings: Any) -> PretrainedConfig:
    """The configuration of a network from what the ensemble's has under this name."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"{name} is a {type(settings).__name__} and no object: two configurations are needed")
    kind = settings.get("model_type")
    if kind == TwoNetworksConfig.model_type:
        raise ValueError(f"{name} holds two networks itself: give a single network")
    own = {config.model_type: config for config in NETWORKS}
    if not isinstance(kind, str) or not (kind in own or kind in CONFIG_MAPPING):
        raise ValueError(
            f"{name} has the model_type {str(kind)[:80]!r}, which transformers does not know: import the package that "
            "registers it first"
        )
    config: PretrainedConfig = (own.get(kind) or CONFIG_MAPPING[kind]).from_dict(copy.deepcopy(dict(settings)))
    if type(config) not in NETWORKS and type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(f"{name} has the model_type {kind!r}, of which there is no classifier of images")
    return config


def _new_network(config: PretrainedConfig) -> PreTrainedModel:
    """Freshly initialised, in the kind of numbers that the ensemble is made in."""
    if type(config) in NETWORKS:
        return NETWORKS[type(config)](config)
    return AutoModelForImageClassification.from_config(config, trust_remote_code=False, dtype=torch.get_default_dtype())


TwoNetworksConfig.register_for_auto_class()
TwoNetworksForImageClassification.register_for_auto_class("AutoModelForImageClassification")
