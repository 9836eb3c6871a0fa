"""Raw images as the tensors that a model takes."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from famus_hf.data.inputs import model_inputs
from famus_hf.data.media.images import SHOW_FROM, UNREADABLE, refuse_unreadable, unreadable_rows
from famus_hf.data.media.modalities import IMAGE
from famus_hf.errors import DataError


class ImageInputs(model_inputs.ModelInputs):
    """A data set with a raw `image` column as `pixel_values`.

    Images go through the image processor once and stay in memory where they fit in `MEMORY_LIMIT`.

    Args:
        dataset: Columns `image`, `label` and any of `index`, `clean_label`.
        image_processor: From transformers, or any callable with its signature.

    Raises:
        DataError: Some images can't be read; says how many and which.
    """

    modality = IMAGE
    words = "pixel for pixel"

    def __init__(self, dataset: Dataset, image_processor: BaseImageProcessor):
        super().__init__(dataset, image_processor)
        self.pixel_values: Tensor | None = None
        first = next((row for row in range(len(dataset)) if self._readable(row)), None)
        if first is None and len(dataset):
            raise DataError(f"none of {len(dataset)} images can be read: check the image column")
        if first is not None and len(dataset) * self._process([first]).nbytes <= model_inputs.MEMORY_LIMIT:
            self._process_all()
        else:
            refuse_unreadable(unreadable_rows(dataset), len(self), self.records.get("index"))

    def contents(self) -> Iterable[Hashable] | None:
        return None if self.pixel_values is None else (image.numpy().tobytes() for image in self.pixel_values)

    def _process(self, rows: Sequence[int]) -> Tensor:
        images = [image.convert("RGB") for image in self.raw[list(rows)]["image"]]
        return self.processor(images, return_tensors="pt")["pixel_values"]

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

    def _inputs(self, rows: list[int]) -> list[dict[str, Any]]:
        images = self._process(rows) if self.pixel_values is None else [self.pixel_values[row] for row in rows]
        return [{"pixel_values": image} for image in images]
