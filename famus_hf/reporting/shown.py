"""Examples as a browser shows them: images as PNG, recordings as WAV."""

import io
from collections.abc import Callable

import numpy as np
from datasets import Dataset
from scipy.io import wavfile

from famus_hf.data.inputs.audio_inputs import UNREADABLE, content_of, decode
from famus_hf.data.media.images import decoded

MAX_SAMPLES = 500_000  # of two bytes each
TYPES = {"image": "image/png", "audio": "audio/wav"}


def picture(dataset: Dataset, row: int, side: int) -> bytes | None:
    """Return an image as PNG with at most so many pixels a side; None where it can't be read."""
    image = decoded(dataset, row)
    if image is None:
        return None
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def clip(dataset: Dataset, row: int, seconds: int) -> bytes | None:
    """Return so many seconds of a recording as WAV of one channel; None where it can't be read."""
    try:
        samples, rate = decode(content_of(dataset[row]["audio"]))
    except UNREADABLE:
        return None
    samples = samples[: min(seconds * rate, MAX_SAMPLES)].clip(-1, 1)
    file = io.BytesIO()
    wavfile.write(file, rate, (samples * 32767).astype(np.int16))
    return file.getvalue()


SHOW: dict[str, Callable[[Dataset, int, int], bytes | None]] = {"image": picture, "audio": clip}  # by column
