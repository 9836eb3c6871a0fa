"""A network with two last blocks and two classifiers on one trunk (BBN), as a transformers model.

Zhou, Cui, Wei, Chen, "BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed Visual Recognition", CVPR
2020, arXiv:1912.02413.

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
from transformers import PretrainedConfig, PreTrainedModel, ResNetConfig, ResNetForImageClassification
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from .efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification
from .preact_resnet import PreActResNetConfig, PreActResNetForImageClassification
from .wide_resnet import WideResNetConfig, WideResNetForImageClassification

# Networks whose last block is known, and what follows it.
SPLIT: dict[type[PretrainedConfig], type[PreTrainedModel]] = {
    WideResNetConfig: WideResNetForImageClassification,
    PreActResNetConfig: PreActResNetForImageClassification,
    CifarResNetConfig: CifarResNetForImageClassification,
    EfficientNetLiteConfig: EfficientNetLiteForImageClassification,
    ResNetConfig: ResNetForImageClassification,
}
# What a network's configuration says of the folder that it came from, and the whole's own says itself.
OF_IMAGES = ("id2label", "label2id", "image_size", "image_mean", "image_std")  # which are its own, too
NOT_OF_A_NETWORK = ("transformers_version", "architectures", "auto_map", "dtype")


class BilateralBranchConfig(PretrainedConfig):
    """
    Args:
        network: The configuration of the network that is split, as config.json has it, `model_type` among it.
    """

    model_type = "bilateral_branch"

    def __init__(self, network: dict[str, Any] | None = None, **kwargs: Any):
        self.network = network
        super().__init__(**kwargs)


class Branches(nn.Module):
    """A module in both branches: the first half of the rows goes through one copy of it, the second through the other.

    Attributes:
        conventional: Learns from examples as they come.
        rebalancing: Learns from those of rare classes; starts as a copy.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.conventional = module
        self.rebalancing = copy.deepcopy(module)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: (2n, …)."""
        first, second = rows.chunk(2)
        return torch.cat((self.conventional(first), self.rebalancing(second)))


class Fork(Branches):
    """The lowest module of both branches.

    Attributes:
        has_partners: Whether rows of two batches come out of the trunk. Else both branches take the same rows.
    """

    has_partners = False

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: (2n, …), or without partners (n, …); result: (2n, …)."""
        return super().forward(rows if self.has_partners else torch.cat((rows, rows)))


class BilateralBranchForImageClassification(PreTrainedModel):
    """A network whose last block, and what follows it, is there twice.

    Logits are 2 (α z_c + (1 − α) z_r): of the conventional branch on images, and of the re-balancing branch on their
    partners, in training images of rarer classes. Without partners both branches see the same images.

    Paper: a pass through the trunk for each batch, here one for both together; and one classifier, without bias, on
    the features of both branches side by side, which is the same as one for each.

    Raises:
        ValueError: The configuration is of another network than those of `SPLIT`.
    """

    config_class = BilateralBranchConfig
    base_model_prefix = "bilateral_branch"
    main_input_name = "pixel_values"

    def __init__(self, config: BilateralBranchConfig):
        super().__init__(config)
        own = _network_config(config.network)
        if len(config.id2label or {}) != own.num_labels:
            raise ValueError(
                f"the configuration names {len(config.id2label or {})} classes and its network has {own.num_labels}: "
                "give the network's id2label"
            )
        self.network = _split(SPLIT[type(own)](own))
        self.supports_gradient_checkpointing = self.network.supports_gradient_checkpointing
        self.post_init()

    @classmethod
    def of(cls, network: PreTrainedModel) -> Self:
        """Return a copy of a network, split.

        Args:
            network: One of our backbones, or a ResNet of transformers.

        Raises:
            ValueError: It is another one.
        """
        if type(network) not in SPLIT.values():
            raise ValueError(
                f"a {type(network).__name__} has no last block that is known, to be split into two branches: give one "
                f"of {', '.join(known.__name__ for known in SPLIT.values())}"
            )
        own = {name: copy.copy(getattr(network.config, name)) for name in OF_IMAGES if hasattr(network.config, name)}
        config = BilateralBranchConfig(_settings_of(network), **own)
        with torch.device("meta"):
            whole = cls(config)
        whole.network = _split(copy.deepcopy(network))
        whole.config._name_or_path = network.config._name_or_path  # for its processor; it is not saved
        return whole

    def _init_weights(self, module: nn.Module) -> None:
        """The network's own is called for its modules; there are no others."""

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """There are none; accelerate asks for them under FSDP2."""

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        partner_pixel_values: torch.Tensor | None = None,
        conventional_share: float = 0.5,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple[torch.Tensor, ...]:
        """pixel_values, partner_pixel_values: (n, num_channels, height, width); labels: (n,) class indices of the
        former; conventional_share: α, in [0, 1]; logits: (n, num_labels)."""
        self._fork.has_partners = partner_pixel_values is not None
        if partner_pixel_values is not None:
            pixel_values = torch.cat((pixel_values, partner_pixel_values))
        conventional, rebalancing = self.network(pixel_values=pixel_values).logits.chunk(2)
        logits = 2 * (conventional_share * conventional + (1 - conventional_share) * rebalancing)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    @property
    def _fork(self) -> Fork:
        return next(module for module in self.network.modules() if isinstance(module, Fork))


def _settings_of(network: PreTrainedModel) -> dict[str, Any]:
    """A network's configuration as JSON would give it back."""
    settings = json.loads(network.config.to_json_string(use_diff=True))
    return {key: value for key, value in settings.items() if key not in NOT_OF_A_NETWORK}


def _network_config(settings: Any) -> PretrainedConfig:
    """The configuration of the network from what the whole's has under this name."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"network is a {type(settings).__name__} and no object: a configuration is needed")
    kinds = {config.model_type: config for config in SPLIT}
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(
            f"network has the model_type {str(kind)[:80]!r}, whose last block is not known: give one of "
            f"{', '.join(kinds)}"
        )
    return kinds[kind].from_dict(copy.deepcopy(dict(settings)))


def _split(network: PreTrainedModel) -> PreTrainedModel:
    """Put both branches in place of the last block and of what has weights behind it."""
    for place, name in enumerate(_last_modules(network)):
        kind = Fork if place == 0 else Branches
        network.set_submodule(name, kind(network.get_submodule(name)))
    return network


def _last_modules(network: Any) -> list[str]:
    """The last block, and behind it what has weights, in the order of a pass."""
    if network.config.model_type == ResNetConfig.model_type:
        stages = network.resnet.encoder.stages
        return [f"resnet.encoder.stages.{len(stages) - 1}.layers.{len(stages[-1].layers) - 1}", "classifier"]
    behind = {
        "wide_resnet": ["bn"],
        "preact_resnet": ["bn"] if getattr(network.config, "norm_at", "") == "end" else [],
        "cifar_resnet": [],
        "efficientnet_lite": ["head", "head_bn"],
    }
    return [f"blocks.{len(network.blocks) - 1}", *behind[network.config.model_type], "classifier"]


BilateralBranchConfig.register_for_auto_class()
BilateralBranchForImageClassification.register_for_auto_class("AutoModelForImageClassification")
