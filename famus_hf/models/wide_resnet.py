"""Wide residual network (Zagoruyko and Komodakis, BMVC 2016, arXiv:1605.07146) as a transformers model.

This file imports only torch and transformers: it travels to the Hub beside the weights.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class WideResNetConfig(PretrainedConfig):
    """
    Args:
        depth: Number of convolution layers on the longest path, 6·b + 4 for b blocks a stage (28 for WRN-28-10).
        widen_factor: Multiplies the channels 16, 32, 64 of the three stages (10 for WRN-28-10).
        num_channels: Channels of the input image.
        cosine_classifier: Logits are cosines between features and class vectors, as LDAM wants them, and not a linear
            function of the features.
        stem_stride: Stride of the first convolution; 2 quarters the cost of everything (paper: 1).
        dropout: Probability of zeroing an activation between the two convolutions of a block.
    """

    model_type = "wide_resnet"

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        num_channels: int = 3,
        dropout: float = 0.0,
        stem_stride: int = 1,
        cosine_classifier: bool = False,
        **kwargs: Any,
    ):
        if depth < 10 or (depth - 4) % 6 != 0:
            raise ValueError(f"depth={depth} is not 6·b + 4 with b ≥ 1: choose 10, 16, 22, 28, 34, 40, …")
        if min(widen_factor, num_channels, stem_stride) < 1:
            raise ValueError(
                f"widen_factor={widen_factor}, num_channels={num_channels} and stem_stride={stem_stride} must be at "
                "least 1"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1)")
        self.depth = depth
        self.widen_factor = widen_factor
        self.num_channels = num_channels
        self.dropout = dropout
        self.stem_stride = stem_stride
        self.cosine_classifier = cosine_classifier
        super().__init__(**kwargs)


class WideResNetBlock(nn.Module):
    """Pre-activation block: norm, ReLU, 3×3 convolution, twice, plus a shortcut (1×1 convolution if shapes differ)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.dropout = dropout

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.bn1(hidden))
        residual = hidden if self.shortcut is None else self.shortcut(activated)
        hidden = F.relu(self.bn2(self.conv1(activated)))
        if self.dropout > 0:
            hidden = F.dropout(hidden, self.dropout, self.training)
        return self.conv2(hidden) + residual


class CosineClassifier(nn.Linear):
    """Cosines between features and one vector a class, in [−1, 1]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


class WideResNetForImageClassification(PreTrainedModel):
    """WRN-depth-widen_factor with a linear classifier on globally averaged features."""

    config_class = WideResNetConfig
    base_model_prefix = "wide_resnet"
    main_input_name = "pixel_values"
    _no_split_modules = ["WideResNetBlock"]  # noqa: RUF012  # what FSDP brings together at once

    def __init__(self, config: WideResNetConfig):
        super().__init__(config)
        blocks_per_stage = (config.depth - 4) // 6
        self.stem = nn.Conv2d(config.num_channels, 16, 3, config.stem_stride, padding=1, bias=False)
        blocks = []
        in_channels = 16
        for stage, channels in enumerate((16, 32, 64)):
            out_channels = channels * config.widen_factor
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(WideResNetBlock(in_channels, out_channels, stride, config.dropout))
                in_channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.bn = nn.BatchNorm2d(in_channels)
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
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = F.relu(self.bn(hidden)).mean(dim=(2, 3))  # (n, channels)
        logits = self.classifier(hidden)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


WideResNetConfig.register_for_auto_class()
WideResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
