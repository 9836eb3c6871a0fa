"""Images as they are stored, what they look like in RGB, and what is to be said of them."""

import os
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image
from PIL.Image import DecompressionBombError
from PIL.Image import Image as PILImage
from tqdm.auto import tqdm

from famus_hf.data.media.examples import file_name, file_names, refuse_broken
from famus_hf.data.media.modalities import IMAGE
from famus_hf.errors import DataError, first_few

try:
    from pillow_heif import register_heif_opener
except ImportError:
    pass
else:
    register_heif_opener()  # at import, so that the processes that read images know of it too

# PIL's ways to say that an image is broken (RuntimeError: of AVIF); AttributeError: there is none
UNREADABLE = (OSError, SyntaxError, ValueError, AttributeError, RuntimeError, EOFError, struct.error,
              DecompressionBombError)  # fmt: skip
FEATURE_SIZE = 32  # pixels of each side that instance-dependent noise sees at most
SHOW_FROM = 20_000  # examples, with which a progress bar appears
LARGEST = {"I": (255, 65535), "F": (1, 255)}  # mode of one channel → what white usually is in it
REMEDIES = {".avif": "pip install -U pillow"} | dict.fromkeys((".heic", ".heif"), "pip install pillow-heif")
IMAGE_ENDINGS = frozenset(ImageFolder.EXTENSIONS) | REMEDIES.keys()

# Remarks on images: what a sentence that counts them goes on with.
BROKEN = "can't be read"
TRANSPARENT = "have transparent parts, which lie on white"
SCALED = "hold numbers of no usual range, so that each is scaled from its own smallest to its largest"
ONE_COLOUR = "are of one colour, in which there is nothing to see"


# ---- RGB ----


def as_rgb(image: PILImage) -> PILImage:
    """Return an image of any mode in RGB: transparent parts lie on white, more than 8 bits are rounded to 8."""
    return rgb_and_remarks(image)[0]


def rgb_and_remarks(image: PILImage) -> tuple[PILImage, list[str]]:
    """Return the image in RGB, and which of `TRANSPARENT`, `SCALED` and `ONE_COLOUR` are to be said of it.

    Raises:
        Any of UNREADABLE: PIL does not convert its mode, or it holds what is no number.
    """
    remarks = []
    if image.mode in LARGEST or image.mode.startswith("I;16"):
        image, is_scaled = _in_eight_bits(image)
        remarks += [SCALED] if is_scaled else []
    if image.has_transparency_data:
        image, is_transparent = _on_white(image)
        remarks += [TRANSPARENT] if is_transparent else []
    rgb = image.convert("RGB")
    if rgb.getcolors(1):
        remarks.append(ONE_COLOUR)
    return rgb, remarks


def _in_eight_bits(image: PILImage) -> tuple[PILImage, bool]:
    """Return an image of one channel in 8 bits, and whether it was scaled from its own smallest to its largest value.

    Of a channel of 16 bits, the value that its file calls transparent stays so.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise DataError("the image holds what is no number")
    white = next((white for white in LARGEST.get(image.mode, (65535,)) if low >= 0 and high <= white), None)
    start, span = (low, max(high - low, 1e-30)) if white is None else (0, white)
    grey = Image.fromarray(np.rint((values - np.float64(start)) * (255 / span)).astype(np.uint8))
    if isinstance(image.info.get("transparency"), int):
        alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(alpha)))
    return grey, white is None


def _on_white(image: PILImage) -> tuple[PILImage, bool]:
    """Return the image without transparency, and whether a part of it was transparent."""
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return rgba, False
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba), True


# ---- Data sets ----


def as_stored(dataset: Dataset) -> Dataset:
    """Return the data set with its images as they are stored, where it would have them converted to RGB by PIL."""
    feature = dataset.features.get("image")
    return dataset.cast_column("image", ImageFeature()) if getattr(feature, "mode", None) == "RGB" else dataset


def decoded(dataset: Dataset, row: int) -> PILImage | None:
    """Return the image in RGB, or None if it is broken."""
    try:
        return as_rgb(dataset[row]["image"])
    except UNREADABLE:
        return None


def refuse_unreadable(dataset: Dataset, rows: Sequence[int], name: str, index: Sequence[int] | None = None) -> None:
    """Raise DataError that counts and names the images that can't be read, if there are any.

    The arguments are those of `famus_hf.data.media.examples.refuse_broken`.
    """
    check_formats_of(dataset.select(rows))
    refuse_broken(dataset, IMAGE, rows, name, index)


def check_formats_of(dataset: Dataset) -> None:
    """Raise DataError on images that are AVIF or HEIC files, by their names, where these can't be read."""
    check_image_formats(filter(None, file_names(dataset, "image") or ()))


def check_image_formats(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Raise DataError on AVIF and HEIC files where what reads them is not installed; says what to install."""
    endings = [(os.fspath(path), os.path.splitext(path)[1].lower()) for path in paths]
    if not any(ending in REMEDIES for _, ending in endings):
        return
    known = Image.registered_extensions()
    unknown = [(path, ending) for path, ending in endings if ending in REMEDIES and ending not in known]
    if unknown:
        names = first_few((file_name(path) for path, _ in unknown), 5)
        needed = " and ".join(sorted({REMEDIES[ending] for _, ending in unknown}))
        raise DataError(
            f"{len(unknown)} images are of a format that can't be read here ({names}): {needed}, or convert them"
        )


def remarks_on(dataset: Dataset) -> dict[str, list[int]]:
    """Return remark → rows of the images that it is on; several processes look through large sets, each time anew."""
    found: dict[str, list[int]] = {}
    if len(dataset) == 0:
        return found
    feature = as_stored(dataset).features["image"]
    images = dataset.select_columns("image").cast_column("image", ImageFeature(decode=False))
    processes = None if len(images) < SHOW_FROM else min(os.cpu_count() or 1, 8)
    # Not from the cache: it is keyed by the paths, and does not notice that a file has changed.
    checked = images.map(
        _remarks_on, fn_kwargs={"feature": feature}, num_proc=processes, remove_columns="image",
        features=Features({"remarks": List(Value("string"))}), desc="Checking images", load_from_cache_file=False,
    )  # fmt: skip
    for row, remarks in enumerate(checked["remarks"][:]):
        for remark in remarks:
            found.setdefault(remark, []).append(row)
    return found


def _remarks_on(example: dict[str, Any], feature: ImageFeature) -> dict[str, list[str]]:
    try:
        return {"remarks": rgb_and_remarks(feature.decode_example(example["image"]))[1]}
    except UNREADABLE:
        return {"remarks": [BROKEN]}


def are_of_the_same_colour(dataset: Dataset) -> bool:
    """Return whether the first pixels of all images are the same, which the images are where each is of one colour."""
    colours = (image.getpixel((0, 0)) for row in range(len(dataset)) if (image := decoded(dataset, row)) is not None)
    first = next(colours, None)
    return all(colour == first for colour in colours)


def pixel_features(dataset: Dataset, name: str = "the training set") -> np.ndarray:
    """Return images as rows of pixels, shape (N, 3·H·W), uint8; larger ones than 32×32 are made smaller.

    Raises:
        DataError: Some images can't be read; says how many and which of the data set of this name.
    """
    dataset = as_stored(dataset)
    first = next((image for row in range(len(dataset)) if (image := decoded(dataset, row)) is not None), None)
    if first is None:
        check_formats_of(dataset)
        raise DataError(f"none of {len(dataset)} images of {name} can be read: check the image column")
    size = (min(first.width, FEATURE_SIZE), min(first.height, FEATURE_SIZE))
    features = np.empty((len(dataset), 3 * size[0] * size[1]), np.uint8)
    broken = []
    for row in tqdm(range(len(dataset)), desc="Reading images", disable=len(dataset) < SHOW_FROM):
        image = decoded(dataset, row)
        if image is None:
            broken.append(row)
        else:
            features[row] = np.asarray(image if image.size == size else image.resize(size)).reshape(-1)
    refuse_unreadable(dataset, broken, name, dataset["index"][:] if "index" in dataset.column_names else None)
    return features
