"""Images as they are stored: which can't be read, and their pixels as features."""

import os
from typing import Any

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL.Image import DecompressionBombError
from PIL.Image import Image as PILImage
from tqdm.auto import tqdm

from famus_hf.errors import DataError, first_few

# PIL's ways to say that an image is broken; AttributeError: there is none
UNREADABLE = (OSError, SyntaxError, ValueError, AttributeError, DecompressionBombError)
FEATURE_SIZE = 32  # pixels of each side that instance-dependent noise sees at most
SHOW_FROM = 20_000  # examples, with which a progress bar appears


def decoded(dataset: Dataset, row: int) -> PILImage | None:
    """Return the image in RGB, or None if it is broken."""
    try:
        return dataset[row]["image"].convert("RGB")
    except UNREADABLE:
        return None


def refuse_unreadable(rows: list[int], num_rows: int, index: list[int] | None = None, things: str = "images") -> None:
    """Raise DataError that counts and names the broken images (or what `things` says), if there are any."""
    if rows:
        names = first_few((row if index is None else index[row] for row in rows), 5)
        raise DataError(f"{len(rows)} of {num_rows} {things} can't be read (index {names}): remove or repair them")


def unreadable_rows(dataset: Dataset) -> list[int]:
    """Return the rows whose image can't be decoded; several processes look through large sets, and each time anew."""
    if len(dataset) == 0:
        return []
    images = dataset.select_columns("image").cast_column("image", ImageFeature(decode=False))
    processes = None if len(images) < SHOW_FROM else min(os.cpu_count() or 1, 8)
    # Not from the cache: it is keyed by the paths, and does not notice that a file has changed.
    checked = images.map(
        _is_readable, num_proc=processes, remove_columns="image", desc="Checking images", load_from_cache_file=False
    )
    return [row for row, readable in enumerate(checked["readable"][:]) if not readable]


def _is_readable(example: dict[str, Any]) -> dict[str, bool]:
    try:
        ImageFeature().decode_example(example["image"]).convert("RGB")
    except UNREADABLE:
        return {"readable": False}
    return {"readable": True}


def pixel_features(dataset: Dataset) -> np.ndarray:
    """Return images as rows of pixels, shape (N, 3·H·W), uint8; larger ones than 32×32 are made smaller."""
    first = next((image for row in range(len(dataset)) if (image := decoded(dataset, row)) is not None), None)
    if first is None:
        raise DataError(f"none of {len(dataset)} images can be read: check the image column")
    size = (min(first.width, FEATURE_SIZE), min(first.height, FEATURE_SIZE))
    features = np.empty((len(dataset), 3 * size[0] * size[1]), np.uint8)
    broken = []
    for row in tqdm(range(len(dataset)), desc="Reading images", disable=len(dataset) < SHOW_FROM):
        image = decoded(dataset, row)
        if image is None:
            broken.append(row)
        else:
            features[row] = np.asarray(image if image.size == size else image.resize(size)).reshape(-1)
    refuse_unreadable(broken, len(dataset), dataset["index"][:] if "index" in dataset.column_names else None)
    return features
