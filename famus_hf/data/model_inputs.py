"""Raw images and labels as the tensors that a model takes."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from famus_hf.data.images import SHOW_FROM, UNREADABLE, refuse_unreadable, unreadable_rows
from famus_hf.data.noise import realised_noise_rate
from famus_hf.data.streaming import StreamedInputs

MEMORY_LIMIT = 2 * 1024**3  # bytes of processed images that are kept in memory; larger sets are processed as they come


class ModelInputs(torch.utils.data.Dataset):
    """A data set with a raw `image` column as `pixel_values` and `labels`, with `index` and `clean_label` kept along.

    Images go through the image processor once and stay in memory where they fit in `MEMORY_LIMIT`.

    Args:
        dataset: Columns `image`, `label` and any of `index`, `clean_label`.
        image_processor: From transformers, or any callable with its signature.

    Raises:
        ValueError: Some images can't be read; says how many and which.
    """

    def __init__(self, dataset: Dataset, image_processor: BaseImageProcessor):
        self.image_processor = image_processor
        self.images = dataset.select_columns("image")
        columns = {"labels": "label", "index": "index", "clean_label": "clean_label"}
        self.records = {new: dataset[old][:] for new, old in columns.items() if old in dataset.column_names}
        self.pixel_values: Tensor | None = None
        first = next((row for row in range(len(dataset)) if self._readable(row)), None)
        if first is None and len(dataset):
            raise ValueError(f"none of {len(dataset)} images can be read: check the image column")
        if first is not None and len(dataset) * self._process([first]).nbytes <= MEMORY_LIMIT:
            self._process_all()
        else:
            refuse_unreadable(unreadable_rows(dataset), len(self), self.records.get("index"))

    @property
    def realised_noise_rate(self) -> float | None:
        """Share of labels that differ from the clean ones; None where these are not known."""
        if "clean_label" not in self.records:
            return None
        return realised_noise_rate(np.asarray(self.records["labels"]), np.asarray(self.records["clean_label"]))

    def _process(self, rows: Sequence[int]) -> Tensor:
        images = [image.convert("RGB") for image in self.images[list(rows)]["image"]]
        return self.image_processor(images, return_tensors="pt")["pixel_values"]

    def _process_all(self, chunk: int = 256) -> None:
        pixel_values: Tensor | None = None
        unreadable: list[int] = []
        for start in tqdm(
            range(0, len(self), chunk), desc="Processing images", unit_scale=chunk, disable=len(self) < SHOW_FROM
        ):
            rows = range(start, min(start + chunk, len(self)))
            try:
                processed = self._process(rows)
                if pixel_values is None:  # once for all, as two copies of it would not fit
                    pixel_values = processed.new_empty(len(self), *processed.shape[1:])
                pixel_values[rows.start : rows.stop] = processed
            except UNREADABLE:
                unreadable += [row for row in rows if not self._readable(row)]
                if not unreadable:
                    raise
        refuse_unreadable(unreadable, len(self), self.records.get("index"))
        self.pixel_values = pixel_values

    def _readable(self, row: int) -> bool:
        try:
            self._process([row])
        except UNREADABLE:
            return False
        return True

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """The examples of a batch, which a DataLoader asks for at once: processed together they cost less."""
        images = self._process(rows) if self.pixel_values is None else [self.pixel_values[row] for row in rows]
        return [
            {"pixel_values": image, **{name: values[row] for name, values in self.records.items()}}
            for row, image in zip(rows, images, strict=True)
        ]


_in_use: WeakValueDictionary[tuple[str, str], ModelInputs] = WeakValueDictionary()


def as_model_inputs(dataset: Any, image_processor: Any, shuffle_seed: int | None = None) -> Any:
    """`ModelInputs` of a data set with raw images; anything else is returned as it is.

    The same data set under the same settings is processed once, for as long as somebody holds the result.
    `shuffle_seed` is for streams, which no sampler shuffles.
    """
    if isinstance(dataset, dict):
        return {name: as_model_inputs(split, image_processor) for name, split in dataset.items()}
    if not has_raw_images(dataset) or image_processor is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return StreamedInputs(dataset, image_processor, shuffle_seed)
    if not isinstance(image_processor, BaseImageProcessor):
        return ModelInputs(dataset, image_processor)  # a callable of unknown settings
    key = (dataset._fingerprint, image_processor.to_json_string())
    inputs = _in_use.get(key)
    if inputs is None:
        inputs = _in_use[key] = ModelInputs(dataset, image_processor)
    return inputs


def known_labels(dataset: Any) -> list[int]:
    """The labels of a data set that can tell them without being read through, else none."""
    if isinstance(dataset, ModelInputs):
        return dataset.records["labels"]
    if isinstance(dataset, Dataset) and "labels" in dataset.column_names:
        return [label for label in dataset["labels"][:] if isinstance(label, int)]
    return []


def has_raw_images(dataset: Any) -> bool:
    """Whether this is a `datasets.Dataset` with an `image` column that nothing has been done to yet."""
    if isinstance(dataset, IterableDataset):
        return "image" in (dataset.features or {})
    return isinstance(dataset, Dataset) and "image" in dataset.column_names and dataset.format["type"] is None
