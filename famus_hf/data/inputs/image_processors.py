"""Image processors and the random crops that belong to them, from a run's settings."""

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Image, IterableDataset
from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    CLIPImageProcessorPil,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from famus_hf.data.inputs.augmentation import Augmentation
from famus_hf.data.media.images import as_stored, check_formats_of, decoded
from famus_hf.errors import DataError

if TYPE_CHECKING:
    from famus_hf.training_args import FaMUSTrainingArguments

STATISTICS_SAMPLES = 1000


def default_image_processor(model: Any, dataset: Dataset | IterableDataset) -> BaseImageProcessor:
    """Return the processor that came with a pretrained model, else make one from the data.

    The latter normalises each colour channel by `image_mean` and `image_std` of the network's configuration, else to
    zero mean and unit variance over (at most 1000) training images. It keeps the size of the first of them; a larger
    one than the configuration's `image_size` is made a square of that side.
    """
    config = getattr(model, "config", None)
    source = getattr(config, "_name_or_path", "")
    if isinstance(model, PreTrainedModel) and source:
        return AutoImageProcessor.from_pretrained(source)
    images = sample_images(dataset)
    if not images:
        if isinstance(dataset, Dataset):
            check_formats_of(dataset)
        raise DataError("none of the first images of the training set can be read: check the image column")
    width, height = images[0].size
    side = getattr(config, "image_size", None)
    if isinstance(side, int) and max(width, height) > side:
        width = height = side
    mean, std = getattr(config, "image_mean", None), getattr(config, "image_std", None)
    if mean is None or std is None:
        mean, std = _mean_and_std_of(images)
    return _resize_processor(height, width, mean, std)


def _mean_and_std_of(images: list[PILImage]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each colour channel, of values in [0, 1]."""
    values = np.concatenate([np.asarray(image, dtype=np.float64).reshape(-1, 3) for image in images]) / 255
    # Clipped, as the processor divides by it: a channel with one value alone has deviation 0.
    return values.mean(0).round(4).tolist(), values.std(0).clip(1e-3).round(4).tolist()


def sample_images(dataset: Dataset | IterableDataset) -> list[PILImage]:
    """Return at most 1000 images that can be read: a fixed draw, or the first ones of a stream."""
    if isinstance(dataset, IterableDataset):
        first = list(dataset.take(STATISTICS_SAMPLES))
        dataset = Dataset.from_list(first, features=dataset.features).cast_column("image", Image())
    rows = np.random.default_rng(0).permutation(len(dataset))[:STATISTICS_SAMPLES]
    dataset = as_stored(dataset)
    return [image for row in np.sort(rows) if (image := decoded(dataset, int(row))) is not None]


def adapted_processor(processor: Any, args: "FaMUSTrainingArguments", model: Any = None) -> Any:
    """Return the processor with the mean, standard deviation and sizes of the settings; a callable stays as it is.

    timm's is replaced by one that gives the same images, since it is not saved with a run and can't be adapted; the
    `pretrained_cfg` that it is made from leaves the model's configuration, where transformers would prefer it.
    """
    if not isinstance(processor, BaseImageProcessor):
        return processor
    if hasattr(processor, "data_config"):
        processor = _as_in_timm(processor.data_config)
        if (config := getattr(model, "config", None)) is not None:
            vars(config).pop("pretrained_cfg", None)
    if not (args.image_mean or args.image_std or args.resize_size or args.image_size):
        return processor
    settings: Any = processor  # whose attributes BaseImageProcessor does not declare
    mean, std = list(args.image_mean or settings.image_mean), list(args.image_std or settings.image_std)
    if args.resize_size is not None:
        return _crop_processor(args.resize_size, args.image_size or args.resize_size, mean, std)
    if args.image_size is not None:
        return _resize_processor(args.image_size, args.image_size, mean, std)
    settings = copy.deepcopy(settings)
    settings.image_mean, settings.image_std = mean, std
    return settings


def _resize_processor(height: int, width: int, mean: list[float], std: list[float]) -> BaseImageProcessor:
    """Make a processor that takes the whole image, at `height` × `width` pixels."""
    size = {"height": height, "width": width}
    # The PIL classes: transformers 5 takes torchvision by default, which is no requirement here.
    return ViTImageProcessorPil(size=size, do_resize=True, do_convert_rgb=True, image_mean=mean, image_std=std)


def _crop_processor(resize: int, crop: int, mean: list[float], std: list[float]) -> BaseImageProcessor:
    """Make a processor that resizes the shorter side to `resize`, then takes the centre of `crop` × `crop` pixels."""
    size, crop_size = {"shortest_edge": resize}, {"height": crop, "width": crop}
    return CLIPImageProcessorPil(size=size, crop_size=crop_size, image_mean=mean, image_std=std)


def _as_in_timm(data_config: Mapping[str, Any]) -> BaseImageProcessor:
    """Make a processor as timm evaluates: it takes the centre, whose side is `crop_pct` of the resized image's."""
    crop = min(data_config["input_size"][1:])
    resize = math.floor(crop / data_config["crop_pct"])
    processor: Any = _crop_processor(resize, crop, list(data_config["mean"]), list(data_config["std"]))
    processor.resample = Resampling[data_config["interpolation"].upper()]
    return processor


def training_processor(processor: Any, args: "FaMUSTrainingArguments") -> Any:
    """Return the processor of training images: they stay as large as random crops need them."""
    if args.resize_size is None or args.augmentation not in ("random-crop", "resized-crop"):
        return processor
    return _crop_processor(args.resize_size, args.resize_size, processor.image_mean, processor.image_std)


def make_augmentation(args: "FaMUSTrainingArguments", processor: Any) -> Augmentation:
    """Make the random crops and flips that the settings name, padding with what black becomes in the processor."""
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    fill = 0.0 if mean is None or std is None else tuple(-m / s for m, s in zip(mean, std, strict=True))
    size = args.image_size if args.augmentation in ("random-crop", "resized-crop") else None
    return Augmentation(args.augmentation, size=size, padding_mode=args.augmentation_padding_mode, fill=fill)
