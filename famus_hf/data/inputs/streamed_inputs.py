"""A stream of raw images as what a network takes, shuffled by a buffer."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Image, IterableDataset
from PIL.Image import Image as PILImage
from transformers import BaseImageProcessor
from transformers.utils import logging

from famus_hf.data.media.examples import file_name
from famus_hf.data.media.images import UNREADABLE, check_image_formats, rgb_and_remarks
from famus_hf.errors import DataError

logger = logging.get_logger(__name__)

SHUFFLE_BUFFER = 10_000  # examples in memory that the next one is drawn from


def _shuffled(stream: IterableDataset, seed: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield each example once, drawn from a buffer that the stream refills."""
    generator = np.random.default_rng(seed)
    buffer: list[dict[str, Any]] = []
    for example in stream:
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(example)
            continue
        place = generator.integers(SHUFFLE_BUFFER)
        yield buffer[place]
        buffer[place] = example
    yield from (buffer[place] for place in generator.permutation(len(buffer)))


class StreamedInputs(torch.utils.data.IterableDataset):
    """A stream with a raw `image` column as `pixel_values` and `labels`, with `index` and `clean_label` kept along.

    Args:
        stream: Columns `image`, `label`, `index`, `clean_label`.
        image_processor: From transformers.
        shuffle_seed: With the epoch it decides the order, drawn from a buffer of 10 000 examples; None keeps it.
        name: Of the stream in sentences.

    Attributes:
        realised_noise_rate: Share of wrong labels among the examples that came by, or None.
    """

    def __init__(
        self,
        stream: IterableDataset,
        image_processor: BaseImageProcessor | Callable,
        shuffle_seed: int | None = None,
        name: str = "the data set",
    ):
        self.stream, self.image_processor = stream, image_processor
        self.shuffle_seed, self.epoch, self.name = shuffle_seed, 0, name
        self._said: set[str] = set()
        self._seen = self._wrong = 0

    @property
    def realised_noise_rate(self) -> float | None:
        return self._wrong / self._seen if self._seen else None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if torch.utils.data.get_worker_info() is not None:
            raise DataError("a stream is read by one process, which counts its rows: set dataloader_num_workers to 0")
        order = self.stream if self.shuffle_seed is None else _shuffled(self.stream, (self.shuffle_seed, self.epoch))
        for example in order:
            inputs = {"labels": example["label"], "index": example["index"]}
            image = self._read(example)
            inputs["pixel_values"] = self.image_processor([image], return_tensors="pt")["pixel_values"][0]
            if example["clean_label"] is not None:
                inputs["clean_label"] = example["clean_label"]
                self._seen += 1
                self._wrong += example["clean_label"] != example["label"]
            yield inputs

    def _read(self, example: dict[str, Any]) -> PILImage:
        """Return the image of an example in RGB. Of each remark on it that is the first of its kind, warn."""
        path = (example["image"] or {}).get("path")
        which = file_name(path) if path else f"row {example['index']}"
        try:
            rgb, remarks = rgb_and_remarks(Image().decode_example(example["image"]))
        except UNREADABLE as error:
            check_image_formats([path or ""])
            raise DataError(f"an image of {self.name} can't be read ({which}): remove or repair it") from error
        for remark in set(remarks) - self._said:
            logger.warning(f"some images of {self.name} {remark} ({which} is the first of them)")
        self._said |= set(remarks)
        return rgb
