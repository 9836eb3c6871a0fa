"""A stream of raw images as what a network takes, shuffled by a buffer."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Image, IterableDataset
from transformers import BaseImageProcessor

from famus_hf.data.media.images import UNREADABLE
from famus_hf.errors import DataError

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

    Attributes:
        realised_noise_rate: Share of wrong labels among the examples that came by, or None.
    """

    def __init__(
        self,
        stream: IterableDataset,
        image_processor: BaseImageProcessor | Callable,
        shuffle_seed: int | None = None,
    ):
        self.stream, self.image_processor = stream, image_processor
        self.shuffle_seed, self.epoch = shuffle_seed, 0
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
            try:
                image = Image().decode_example(example["image"]).convert("RGB")
            except UNREADABLE as error:
                raise DataError(f"the image of row {example['index']} can't be read: remove or repair it") from error
            inputs["pixel_values"] = self.image_processor([image], return_tensors="pt")["pixel_values"][0]
            if example["clean_label"] is not None:
                inputs["clean_label"] = example["clean_label"]
                self._seen += 1
                self._wrong += example["clean_label"] != example["label"]
            yield inputs
