"""EfficientNet-Lite0 as a transformers model: EfficientNet-B0 (Tan and Le, ICML 2019, arXiv:1905.11946, table 1)
without squeeze-and-excite, with ReLU6 for swish, as TensorFlow's `efficientnet/lite` has it.

This file imports only torch and transformers: it travels to the Hub beside the weights.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

# Of each stage: expansion of the channels within a block, kernel, stride of the first block, channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, HEAD = 32, 1280  # channels


class EfficientNetLiteConfig(PretrainedConfig):
    """
    Args:
        num_channels: Channels of the input image.
        dropout: Probability of zeroing a feature before the classifier. Paper: blocks are skipped at random, too.
        cosine_classifier: Logits are cosines between features and class vectors, as LDAM wants them, and not a linear
            function of the features.
        image_size: Side of the images that the network is made for; it takes any.
        image_mean: Mean of each colour channel, of values in [0, 1], that its weights were learned with; None: they
            start at random.
        image_std: Standard deviation, likewise.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        num_channels: int = 3,
        dropout: float = 0.2,
        cosine_classifier: bool = False,
        image_size: int = 224,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ):
        if num_channels < 1:
            raise ValueError(f"num_channels={num_channels} must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1)")
        self.num_channels = num_channels
        self.dropout = dropout
        self.cosine_classifier = cosine_classifier
        self.image_size = image_size
        self.image_mean = image_mean
        self.image_std = image_std
        super().__init__(**kwargs)


class SameConv2d(nn.Conv2d):
    """Convolution without bias whose output has a side of ⌈side/stride⌉: TensorFlow's padding 'same'.

    Where the padding is odd, one more row or column of zeros stands at the bottom or at the right.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1):
        padding = (kernel_size - 1) // 2 if stride == 1 else 0  # which `forward` then adds
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in hidden.shape[2:])
            hidden = F.pad(hidden, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(hidden)


def _norm(channels: int) -> nn.BatchNorm2d:
    """Released code: momentum 0.01, at which a third of the statistics is still ImageNet's after 120 steps."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)


class EfficientNetLiteBlock(nn.Module):
    """Inverted residual block: 1×1 expansion, depthwise convolution, 1×1 projection, each with norm.

    The input is added where it has the shape of the output. Without an expansion, its convolution and norm are missing.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel_size: int, stride: int):
        super().__init__()
        inner = in_channels * expansion
        self.expand = SameConv2d(in_channels, inner, 1) if expansion > 1 else None
        self.expand_bn = _norm(inner) if expansion > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel_size, stride, groups=inner)
        self.depthwise_bn = _norm(inner)
        self.project = SameConv2d(inner, out_channels, 1)
        self.project_bn = _norm(out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = hidden
        if self.expand is not None and self.expand_bn is not None:
            inner = F.relu6(self.expand_bn(self.expand(inner)))
        inner = F.relu6(self.depthwise_bn(self.depthwise(inner)))
        inner = self.project_bn(self.project(inner))
        return inner + hidden if self.has_shortcut else inner


class CosineClassifier(nn.Linear):
    """Cosines between features and one vector a class, in [−1, 1]."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


class EfficientNetLiteForImageClassification(PreTrainedModel):
    """EfficientNet-Lite0 with a linear classifier on globally averaged features."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    _no_split_modules = ["EfficientNetLiteBlock"]  # noqa: RUF012  # what FSDP brings together at once

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.stem = SameConv2d(config.num_channels, STEM, 3, stride=2)
        self.stem_bn = _norm(STEM)
        blocks = []
        in_channels = STEM
        for expansion, kernel_size, stride, out_channels, count in STAGES:
            for block in range(count):
                first_stride = stride if block == 0 else 1
                blocks.append(EfficientNetLiteBlock(in_channels, out_channels, expansion, kernel_size, first_stride))
                in_channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv2d(in_channels, HEAD, 1)
        self.head_bn = _norm(HEAD)
        classifier = CosineClassifier if config.cosine_classifier else nn.Linear
        self.classifier = classifier(HEAD, len(config.id2label or {}))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            fan = "fan_out" if module.groups == 1 else "fan_in"  # a depthwise kernel reaches one channel
            init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
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
        hidden = F.relu6(self.stem_bn(self.stem(pixel_values)))
        for block in self.blocks:
            hidden = block(hidden)
        hidden = F.relu6(self.head_bn(self.head(hidden))).mean(dim=(2, 3))  # (n, HEAD)
        if self.config.dropout > 0:
            hidden = F.dropout(hidden, self.config.dropout, self.training)
        logits = self.classifier(hidden)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


EfficientNetLiteConfig.register_for_auto_class()
EfficientNetLiteForImageClassification.register_for_auto_class("AutoModelForImageClassification")
