"""Image processors and the random crops that belong to them, from a run's settings."""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Image, IterableDataset
from PIL.Image import Image as PILImage
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    CLIPImageProcessorPil,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from famus_hf.data.augmentation import Augmentation
from famus_hf.data.images import decoded

if TYPE_CHECKING:
    from famus_hf.training_args import FaMUSTrainingArguments

STATISTICS_SAMPLES = 1000


def default_image_processor(
    model: Any, dataset: Dataset | IterableDataset, args: "FaMUSTrainingArguments | None" = None
) -> BaseImageProcessor:
    """The processor that came with a pretrained model, else one made from the data; settings given in `args` win.

    The latter normalises each colour channel to zero mean and unit variance over (at most 1000) training images, and
    keeps the size of the first of them.
    """
    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    if isinstance(model, PreTrainedModel) and source:
        return adapted_processor(AutoImageProcessor.from_pretrained(source), args)
    images = sample_images(dataset)
    if not images:
        raise ValueError("none of the first images of the training set can be read: check the image column")
    width, height = images[0].size
    if args is not None and args.image_size is not None:
        width = height = args.image_size
    values = np.concatenate([np.asarray(image, dtype=np.float64).reshape(-1, 3) for image in images]) / 255
    processor = ViTImageProcessorPil(
        size={"height": height, "width": width},
        do_resize=True,
        do_convert_rgb=True,
        image_mean=values.mean(0).round(4).tolist(),
        image_std=values.std(0).clip(1e-3).round(4).tolist(),
    )
    return adapted_processor(processor, args)


def sample_images(dataset: Dataset | IterableDataset) -> list[PILImage]:
    """At most 1000 images that can be read: a fixed draw, or the first ones of a stream."""
    if isinstance(dataset, IterableDataset):
        first = list(dataset.take(STATISTICS_SAMPLES))
        dataset = Dataset.from_list(first, features=dataset.features).cast_column("image", Image())
    rows = np.random.default_rng(0).permutation(len(dataset))[:STATISTICS_SAMPLES]
    return [image for row in np.sort(rows) if (image := decoded(dataset, int(row))) is not None]


def adapted_processor(processor: BaseImageProcessor, args: "FaMUSTrainingArguments | None") -> BaseImageProcessor:
    """The processor with the mean, standard deviation and sizes that the settings name."""
    if args is None or not (args.image_mean or args.image_std or args.resize_size):
        return processor
    settings: Any = processor  # whose attributes BaseImageProcessor does not declare
    mean, std = args.image_mean or settings.image_mean, args.image_std or settings.image_std
    if args.resize_size is None:
        settings = copy.deepcopy(settings)
        settings.image_mean, settings.image_std = list(mean), list(std)
        return settings
    crop = args.image_size or args.resize_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": args.resize_size},
        crop_size={"height": crop, "width": crop},
        image_mean=list(mean),
        image_std=list(std),
    )


def training_processor(processor: Any, args: "FaMUSTrainingArguments") -> Any:
    """The processor of training images: they stay as large as random crops need them."""
    if args.resize_size is None or args.augmentation not in ("random-crop", "resized-crop"):
        return processor
    larger = copy.deepcopy(processor)
    larger.crop_size = {"height": args.resize_size, "width": args.resize_size}
    return larger


def make_augmentation(args: "FaMUSTrainingArguments", processor: Any) -> Augmentation:
    """The random crops and flips that the settings name, padding with what black becomes in the processor."""
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    fill = 0.0 if mean is None or std is None else tuple(-m / s for m, s in zip(mean, std, strict=True))
    size = args.image_size if args.augmentation in ("random-crop", "resized-crop") else None
    return Augmentation(args.augmentation, size=size, padding_mode=args.augmentation_padding_mode, fill=fill)
