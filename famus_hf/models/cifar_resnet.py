"""Residual network for 32×32 images (He et al., CVPR 2016, arXiv:1512.03385, section 4.2) as a transformers model.

This file imports only torch and transformers: it travels to the Hub beside the weights.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class CifarResNetConfig(PretrainedConfig):
    """
    Args:
        depth: Number of layers with weights, 6·b + 2 for b blocks a stage (32 for ResNet-32).
        num_channels: Channels of the input image.
        cosine_classifier: Logits are cosines between features and class vectors, as LDAM wants them, and not a linear
            function of the features.
    """

    model_type = "cifar_resnet"

    def __init__(self, depth: int = 32, num_channels: int = 3, cosine_classifier: bool = False, **kwargs: Any):
        if depth < 8 or (depth - 2) % 6 != 0:
            raise ValueError(f"depth={depth} is not 6·b + 2 with b ≥ 1: choose 8, 14, 20, 26, 32, 44, 56, …")
        if num_channels < 1:
            raise ValueError(f"num_channels={num_channels} must be at least 1")
        self.depth = depth
        self.num_channels = num_channels
        self.cosine_classifier = cosine_classifier
        super().__init__(**kwargs)


class CifarResNetBlock(nn.Module):
    """Two 3×3 convolutions, each with norm; the shortcut has no weights: every other pixel, new channels are zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = hidden[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            residual = F.pad(residual, (0, 0, 0, 0, before, self.new_channels - before))
        hidden = F.relu(self.bn1(self.conv1(hidden)))
        return F.relu(self.bn2(self.conv2(hidden)) + residual)


class CosineClassifier(nn.Linear):
    """Cosines between features and one vector a class, in [−1, 1]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


class CifarResNetForImageClassification(PreTrainedModel):
    """ResNet-depth with 16, 32 and 64 channels and a linear classifier on globally averaged features."""

    config_class = CifarResNetConfig
    base_model_prefix = "cifar_resnet"
    main_input_name = "pixel_values"
    _no_split_modules = ["CifarResNetBlock"]  # noqa: RUF012  # what FSDP brings together at once

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        self.stem = nn.Conv2d(config.num_channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks = []
        in_channels = 16
        for stage, out_channels in enumerate((16, 32, 64)):
            for block in range((config.depth - 2) // 6):
                blocks.append(CifarResNetBlock(in_channels, out_channels, 2 if stage > 0 and block == 0 else 1))
                in_channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        classifier = CosineClassifier if config.cosine_classifier else nn.Linear
        self.classifier = classifier(in_channels, len(config.id2label or {}))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for buffer in (module.running_mean, module.num_batches_tracked):
                init.zeros_(buffer)  # type: ignore[arg-type]
            init.ones_(module.running_var)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                init.zeros_(module.bias)

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """There are none; accelerate asks for them under FSDP2."""

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutputWithNoAttention | tuple[torch.Tensor, ...]:
        """pixel_values: (n, num_channels, height, width); labels: (n,) class indices; logits: (n, num_labels)."""
        hidden = F.relu(self.bn(self.stem(pixel_values)))
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.classifier(hidden.mean(dim=(2, 3)))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


CifarResNetConfig.register_for_auto_class()
CifarResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
