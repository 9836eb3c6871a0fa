"""Raw images as the tensors that a model takes."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from datasets import Dataset
from PIL.Image import Image as PILImage
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BaseImageProcessor
from transformers.utils import logging

from famus_hf.data.inputs import model_inputs
from famus_hf.data.media.images import (
    BROKEN,
    ONE_COLOUR,
    SHOW_FROM,
    UNREADABLE,
    are_of_the_same_colour,
    as_stored,
    check_formats_of,
    refuse_unreadable,
    remarks_on,
    rgb_and_remarks,
)
from famus_hf.data.media.modalities import IMAGE
from famus_hf.errors import DataError

logger = logging.get_logger(__name__)


class ImageInputs(model_inputs.ModelInputs):
    """A data set with a raw `image` column as `pixel_values`.

    Images go through the image processor once and stay in memory where they fit in `MEMORY_LIMIT`. How many have
    transparent parts, are scaled by their own range or are of one colour is said once.

    Args:
        dataset: Columns `image`, `label` and any of `index`, `clean_label`.
        image_processor: From transformers, or any callable with its signature.
        name: Of the data set in sentences.

    Raises:
        DataError: Some images can't be read, or all are of the same one colour; says how many and which.
    """

    modality = IMAGE
    words = "pixel for pixel"

    def __init__(self, dataset: Dataset, image_processor: BaseImageProcessor, name: str = "the data set"):
        super().__init__(dataset, image_processor, name)
        self.raw = as_stored(self.raw)
        self.pixel_values: Tensor | None = None
        first = next((row for row in range(len(dataset)) if self._readable(row)), None)
        if first is None and len(dataset):
            check_formats_of(self.raw)
            raise DataError(
                f"none of {len(self)} images of {self.name} can be read ({self.named(range(len(self)))}): check the "
                "image column"
            )
        if first is not None and len(dataset) * self._process([first]).nbytes <= model_inputs.MEMORY_LIMIT:
            self._process_all()
        else:
            self._report(remarks_on(self.raw))

    def contents(self) -> Iterable[Hashable] | None:
        return None if self.pixel_values is None else (image.numpy().tobytes() for image in self.pixel_values)

    def _process(self, rows: Sequence[int], found: dict[str, list[int]] | None = None) -> Tensor:
        """Return `pixel_values` of these rows. Remarks on their images go to `found`, remark → rows."""
        images: list[PILImage] = []
        found = {} if found is None else found
        for row, image in zip(rows, self.raw[list(rows)]["image"], strict=True):
            rgb, remarks = rgb_and_remarks(image)
            images.append(rgb)
            for remark in remarks:
                found.setdefault(remark, []).append(row)
        return self.processor(images, return_tensors="pt")["pixel_values"]

    def _process_all(self, chunk: int = 256) -> None:
        pixel_values: Tensor | None = None
        unreadable: list[int] = []
        found: dict[str, list[int]] = {}
        for start in tqdm(
            range(0, len(self), chunk), desc="Processing images", unit_scale=chunk, disable=len(self) < SHOW_FROM
        ):
            rows = range(start, min(start + chunk, len(self)))
            try:
                processed = self._process(rows, found)
                if pixel_values is None:  # once for all, as two copies of it would not fit
                    pixel_values = processed.new_empty(len(self), *processed.shape[1:])
                pixel_values[rows.start : rows.stop] = processed
            except UNREADABLE:
                unreadable += [row for row in rows if not self._readable(row)]
                if not unreadable:
                    raise
        self._report({**found, BROKEN: unreadable})
        self.pixel_values = pixel_values

    def _report(self, found: dict[str, list[int]]) -> None:
        """Refuse broken images, and a set with nothing to see; warn of what else was found, remark → rows."""
        self._refuse(found.pop(BROKEN, []))
        if len(found.get(ONE_COLOUR, [])) == len(self) > 1 and are_of_the_same_colour(self.raw):
            raise DataError(
                f"all {len(self)} images of {self.name} are of the same one colour ({self.named(range(len(self)))}): "
                "check how they were stored"
            )
        for remark, rows in found.items():
            logger.warning(f"{len(rows)} of {len(self)} images of {self.name} {remark} ({self.named(rows)})")

    def _refuse(self, rows: list[int]) -> None:
        refuse_unreadable(self.raw, rows, self.name, self.records.get("index"))

    def _readable(self, row: int) -> bool:
        try:
            self._process([row])
        except UNREADABLE:
            return False
        return True

    def _inputs(self, rows: list[int]) -> list[dict[str, Any]]:
        if self.pixel_values is not None:
            return [{"pixel_values": self.pixel_values[row]} for row in rows]
        try:
            return [{"pixel_values": image} for image in self._process(rows)]
        except UNREADABLE:
            self._refuse([row for row in rows if not self._readable(row)])  # a file that has changed since
            raise
