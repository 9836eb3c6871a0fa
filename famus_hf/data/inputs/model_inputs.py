"""A raw data set as what a model takes; each modality has a class (`image_inputs`, `text_inputs`, `audio_inputs`)."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from famus_hf.data.labels.noise import realised_noise_rate
from famus_hf.data.media.examples import named
from famus_hf.data.media.modalities import Modality

MEMORY_LIMIT = 2 * 1024**3  # bytes of processed examples kept in memory; larger sets are processed as they come


class ModelInputs(torch.utils.data.Dataset):
    """A raw data set as model inputs and `labels`, with `index` and `clean_label` kept along.

    Args:
        dataset: The columns of a modality, `label` and any of `index`, `clean_label`.
        processor: What makes inputs of them, from transformers.
        name: Of the data set in sentences, as in "the training set".

    Attributes:
        raw: The examples alone, as they came.
        records: Name → values, shape (N,).
        class_names: Of the labels, by their numbers; None where they are numbers alone.
        words: How an error calls examples that are the same in the network's eyes.
        class_names: Of the labels, where they have any.
    """

    modality: Modality
    words: str

    def __init__(self, dataset: Dataset, processor: Any, name: str = "the data set"):
        self.processor, self.name = processor, name
        column = self.modality.column
        self.raw = dataset.select_columns([name for name in (column, f"{column}_pair") if name in dataset.column_names])
        self.class_names: list[str] | None = getattr(dataset.features.get("label"), "names", None)
        columns = {"labels": "label", "index": "index", "clean_label": "clean_label"}
        self.class_names = getattr(dataset.features.get("label"), "names", None)
        self.records = {new: dataset[old][:] for new, old in columns.items() if old in dataset.column_names}

    @property
    def realised_noise_rate(self) -> float | None:
        """Share of labels that differ from the clean ones; None where these are not known."""
        if "clean_label" not in self.records:
            return None
        return realised_noise_rate(np.asarray(self.records["labels"]), np.asarray(self.records["clean_label"]))

    def contents(self) -> Iterable[Hashable] | None:
        """Return the content of each example, by which the same ones are told; None where it is not at hand."""
        raise NotImplementedError

    def named(self, rows: Sequence[int]) -> str:
        """Return what the first few of these examples are called in sentences: their files, or their numbers."""
        return named(self.raw, self.modality.column, rows, self.records.get("index"))

    def _inputs(self, rows: list[int]) -> list[dict[str, Any]]:
        """Return the network's inputs of these examples."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Return the examples of a batch, which a DataLoader asks for at once: processed together they cost less."""
        return [
            {**inputs, **{name: values[row] for name, values in self.records.items()}}
            for row, inputs in zip(rows, self._inputs(rows), strict=True)
        ]


class Ragged:
    """Arrays of different lengths, one after the other in a single one.

    Args:
        arrays: Each of shape (length, …), the same but for the length.
    """

    def __init__(self, arrays: list[np.ndarray]):
        self.values = np.concatenate(arrays)
        self.ends = np.cumsum([0, *(len(array) for array in arrays)])

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.ends[row] : self.ends[row + 1]]


def known_labels(dataset: Any) -> list[int]:
    """Return the labels of a data set that can tell them without being read through, else none."""
    if isinstance(dataset, ModelInputs):
        return dataset.records["labels"]
    if isinstance(dataset, Dataset) and "labels" in dataset.column_names:
        stored = dataset if dataset.format["type"] == "custom" else dataset.with_format(None)  # numbers, not tensors
        return [label for label in stored["labels"][:] if isinstance(label, int)]
    return []
