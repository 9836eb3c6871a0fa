"""Pre-activation residual network (He et al., ECCV 2016, arXiv:1603.05027) for 32×32 images, as a transformers model.

This file imports only torch and transformers: it travels to the Hub beside the weights.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # layers with weights → blocks of each stage


class PreActResNetConfig(PretrainedConfig):
    """
    Args:
        depth: 18 or 34.
        width: Channels of the first stage; each further one has twice as many (64 for PreAct ResNet-18).
        num_channels: Channels of the input image.
        norm_at: Where the norm stands that belongs to no block: `"stem"`, behind the first convolution and none at the
            end, as in the public code for noisy labels (DivideMix), or `"end"`, before the classifier, as in the paper
            of the network.
        cosine_classifier: Logits are cosines between features and class vectors, as LDAM wants them, and not a linear
            function of the features.
    """

    model_type = "preact_resnet"

    def __init__(
        self,
        depth: int = 18,
        width: int = 64,
        num_channels: int = 3,
        norm_at: str = "stem",
        cosine_classifier: bool = False,
        **kwargs: Any,
    ):
        if depth not in DEPTHS:
            raise ValueError(f"depth={depth} is unknown: choose one of {', '.join(map(str, DEPTHS))}")
        if min(width, num_channels) < 1:
            raise ValueError(f"width={width} and num_channels={num_channels} must be at least 1")
        if norm_at not in ("stem", "end"):
            raise ValueError(f"norm_at={norm_at!r} is unknown: choose 'stem' or 'end'")
        self.depth = depth
        self.width = width
        self.num_channels = num_channels
        self.norm_at = norm_at
        self.cosine_classifier = cosine_classifier
        super().__init__(**kwargs)


class PreActResNetBlock(nn.Module):
    """Norm, ReLU, 3×3 convolution, twice, plus a shortcut (1×1 convolution if shapes differ)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.bn1(hidden))
        residual = hidden if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + residual


class CosineClassifier(nn.Linear):
    """Cosines between features and one vector a class, in [−1, 1]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


class PreActResNetForImageClassification(PreTrainedModel):
    """PreAct ResNet-depth with a linear classifier on globally averaged features."""

    config_class = PreActResNetConfig
    base_model_prefix = "preact_resnet"
    main_input_name = "pixel_values"
    _no_split_modules = ["PreActResNetBlock"]  # noqa: RUF012  # what FSDP brings together at once

    def __init__(self, config: PreActResNetConfig):
        super().__init__(config)
        self.stem = nn.Conv2d(config.num_channels, config.width, 3, padding=1, bias=False)
        blocks = []
        in_channels = config.width
        for stage, count in enumerate(DEPTHS[config.depth]):
            out_channels = config.width * 2**stage
            for block in range(count):
                blocks.append(PreActResNetBlock(in_channels, out_channels, 2 if stage > 0 and block == 0 else 1))
                in_channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.bn = nn.BatchNorm2d(config.width if config.norm_at == "stem" else in_channels)
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
        if self.config.norm_at == "stem":
            hidden = F.relu(self.bn(hidden))
        for block in self.blocks:
            hidden = block(hidden)
        if self.config.norm_at == "end":
            hidden = F.relu(self.bn(hidden))
        logits = self.classifier(hidden.mean(dim=(2, 3)))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


PreActResNetConfig.register_for_auto_class()
PreActResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
