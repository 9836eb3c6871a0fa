"""Random crops and flips of a whole batch, on the device where it lies (torch and numpy only).

Symbols: n images of c channels and H×W pixels become n images of h×w. Every image draws for itself, from a generator on
the CPU: one seed gives the same crops on every device, and nothing is read back from a GPU.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from famus_hf.errors import SettingsError
from famus_hf.training_args_checks import AUGMENTATIONS, PADDING_MODES

# First of the numbers that a run's generators are made from, beside its seed, so that no two uses share a stream.
TRAIN_STREAM, META_STREAM, VIEW_STREAM, MIX_STREAM, REDRAWN_STREAM, SAMPLE_STREAM, PARTNER_STREAM = range(7)
TRIALS = 10  # boxes that "resized-crop" draws for an image before it falls back on a central one


@dataclass(frozen=True)
class Augmentation:
    """A random crop of each image, then a random flip.

    Args:
        name: "pad-crop" pads the image and crops its size back (CIFAR: 32 + 2·4); "random-crop" crops out of a larger
            image (Clothing1M: 224 out of 256); "resized-crop" resamples a box of random place, area and shape (Szegedy
            et al., CVPR 2015, arXiv:1409.4842; WebVision: 299 from 320); "none" changes nothing.
        size: h = w of the output; None keeps the input's. "random-crop" and "resized-crop" need it.
        padding: Pixels on each side, for "pad-crop".
        padding_mode: "zero" pads with `fill`, "reflect" with the image mirrored at its border pixels (MW-Net).
        flip: Mirror left and right with probability 1/2.
        scale: Smallest and largest share of the image's area in a box of "resized-crop"; uniform.
        ratio: Smallest and largest width/height of such a box; log-uniform.
        fill: What a black pixel is in the images, one number or c of them: −mean/std where they are normalised.

    Raises:
        SettingsError: An argument is impossible.
    """

    name: str
    size: int | None = None
    padding: int = 4
    padding_mode: str = "zero"
    flip: bool = True
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    fill: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if self.name not in AUGMENTATIONS:
            raise SettingsError(f"augmentation {self.name!r} is unknown: choose one of {', '.join(AUGMENTATIONS)}")
        if self.padding_mode not in PADDING_MODES:
            raise SettingsError(
                f"padding_mode={self.padding_mode!r} is unknown: choose one of {', '.join(PADDING_MODES)}"
            )
        if self.size is None and self.name in ("random-crop", "resized-crop"):
            raise SettingsError(f"{self.name} has size=None: give the height and width of its output in pixels")
        if self.size is not None and self.size < 1:
            raise SettingsError(f"size={self.size} must be at least 1: give the output's height and width in pixels")
        if self.padding < 0:
            raise SettingsError(f"padding={self.padding} must not be negative: give the pixels to add on each side")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise SettingsError(f"scale={self.scale} must be two shares of the area: give 0 < smallest ≤ largest ≤ 1")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise SettingsError(f"ratio={self.ratio} must be two widths/heights: give 0 < smallest ≤ largest < ∞")

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop and flip a batch, which is left as it was.

        Args:
            images: Floating point, shape (n, c, H, W).
            generator: On the CPU, whatever the device of the images.

        Returns:
            Shape (n, c, h, w), with the dtype and on the device of the images.

        Raises:
            SettingsError: The images don't have four dimensions, or are too small for the crop or the padding, or
                `fill` doesn't fit their channels.
        """
        if images.dim() != 4:
            raise SettingsError(f"images of shape {tuple(images.shape)}: give a batch (n, channels, height, width)")
        if self.name == "none":
            return images
        height, width = (self.size, self.size) if self.size is not None else images.shape[2:]
        if self.name == "resized-crop":
            boxes = random_boxes(images.shape, self.scale, self.ratio, generator)
            crops = resample(images, boxes, height, width)
        else:
            padded = self._pad(images) if self.name == "pad-crop" else images
            crops = random_windows(padded, height, width, generator)
        return _flip_half_of(crops, generator) if self.flip else crops

    def _pad(self, images: Tensor) -> Tensor:
        n, c, height, width = images.shape
        p = self.padding
        if self.padding_mode == "reflect":
            if p >= min(height, width):
                raise SettingsError(
                    f"padding={p} reflects images of {height}×{width} pixels beyond their far side: it must be smaller "
                    "than both, so lower it or choose padding_mode='zero'"
                )
            return F.pad(images, (p, p, p, p), mode="reflect")
        fill = (self.fill,) * c if isinstance(self.fill, (int, float)) else self.fill
        if len(fill) != c:
            raise SettingsError(
                f"fill has {len(fill)} values for images of {c} channels: give one number or {c} of them"
            )
        padded = images.new_empty(n, c, height + 2 * p, width + 2 * p)
        for channel, value in enumerate(fill):
            padded[:, channel] = value
        padded[:, :, p : p + height, p : p + width] = images
        return padded


def make_generator(*numbers: int) -> torch.Generator:
    """Make a generator on the CPU from a list of numbers, say (seed, stream, step, micro-step, rank).

    Lists that differ anywhere, or only in length, give independent streams (torch seeds this generator with
    32 bits: two of them coincide by chance once in 2**32).

    Raises:
        SettingsError: A number is negative or needs more than 64 bits.
    """
    if not all(0 <= number < 2**64 for number in numbers):
        raise SettingsError(f"numbers={numbers} seed a generator: each must be an integer from 0 to 2**64 − 1")
    # of fixed width and with the length in front, since SeedSequence takes (1,), (1, 0) and (0, 1), (2**32,) for equal
    entropy = np.array([len(numbers), *numbers], dtype=np.uint64).view(np.uint32)
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def random_windows(images: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Cut a window of height × width pixels out of each image, at a uniformly random place; (n, c, height, width)."""
    n, _, full_height, full_width = images.shape
    if height > full_height or width > full_width:
        raise SettingsError(
            f"a crop of {height}×{width} pixels doesn't fit in images of {full_height}×{full_width} (padding "
            "included): lower size or resize the images to more than it"
        )
    tops = torch.randint(full_height - height + 1, (n,), generator=generator)
    lefts = torch.randint(full_width - width + 1, (n,), generator=generator)
    numbers, tops, lefts = _moved(torch.stack((torch.arange(n), tops, lefts)), images.device)
    windows = images.unfold(2, height, 1).unfold(3, width, 1)  # a view of all: (n, c, tops, lefts, height, width)
    return windows[numbers, :, tops, lefts]


def random_boxes(
    shape: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Draw top, left, height and width of a box in each image of shape (n, c, H, W); shape (n, 4), on the CPU.

    The first of `TRIALS` draws that fits into the image counts; where none does, the box is the largest central one
    whose width/height lies in `ratio`.
    """
    n, _, full_height, full_width = shape
    areas = full_height * full_width * _uniform((n, TRIALS), *scale, generator)
    ratios = _uniform((n, TRIALS), math.log(ratio[0]), math.log(ratio[1]), generator).exp()
    heights, widths = (areas / ratios).sqrt().round().long(), (areas * ratios).sqrt().round().long()
    fits = (heights > 0) & (heights <= full_height) & (widths > 0) & (widths <= full_width)
    first = fits.int().argmax(1, keepdim=True)
    drawn, any_fits = torch.cat((heights.gather(1, first), widths.gather(1, first)), 1), fits.any(1, keepdim=True)
    central_height = min(full_height, max(1, round(full_width / ratio[0])))
    central_width = min(full_width, max(1, round(full_height * ratio[1])))
    sides = torch.where(any_fits, drawn, torch.tensor((central_height, central_width)))
    room = torch.tensor((full_height, full_width)) - sides
    corners = torch.where(any_fits, (_uniform((n, 2), 0.0, 1.0, generator) * (room + 1)).long(), room // 2)
    return torch.cat((corners, sides), 1)


def resample(images: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Resize the box of each image bilinearly, with antialiasing; shape (n, c, height, width).

    Args:
        images: Shape (n, c, H, W).
        boxes: Top, left, height, width; shape (n, 4), on the CPU.
        height: Of the output.
        width: Of the output.
    """
    # One launch per image but no wait, as the boxes are known on the CPU. `grid_sample` would take all boxes at once,
    # but aliases where it shrinks; products with resampling matrices don't, but take twice the time on a CPU.
    precision = torch.promote_types(images.dtype, torch.float32)  # on a CPU there is no antialiasing in bfloat16
    crops = images.new_empty(*images.shape[:2], height, width)
    for image, crop, (top, left, rows, columns) in zip(images, crops, boxes.tolist(), strict=True):
        box = image[None, :, top : top + rows, left : left + columns].to(precision)
        crop.copy_(F.interpolate(box, size=(height, width), mode="bilinear", antialias=True)[0])
    return crops


def _flip_half_of(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror left and right, in place, each image with probability 1/2."""
    flipped = _moved(torch.randint(2, (len(crops),), generator=generator).nonzero().flatten(), crops.device)
    crops[flipped] = crops[flipped].flip(-1)
    return crops


def _moved(draws: Tensor, device: torch.device) -> Tensor:
    return draws.to(device, non_blocking=True)  # safe from pageable memory, which CUDA copies aside at once


def _uniform(shape: tuple[int, int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)
