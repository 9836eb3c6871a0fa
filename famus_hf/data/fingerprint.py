"""What is cheaply known of a data set, by which a resumed run is told from one on other data, and in what they differ.

A fingerprint is plain values, so that it fits into JSON: the number of examples, names of classes, labels, and digests
of what is too much to keep. What is not known is None, and is not compared.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from PIL.Image import Image
from transformers.trainer_utils import has_length

from famus_hf.data.inputs.audio_inputs import content_of
from famus_hf.data.inputs.model_inputs import ModelInputs
from famus_hf.data.inputs.streamed_inputs import StreamedInputs
from famus_hf.data.labels.class_names import names_of_data
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.media.examples import texts_or_files
from famus_hf.errors import first_few
from famus_hf.storage.saved_state import Check, is_list, is_whole, is_word, optional

SAMPLED = 64  # examples whose contents count
MAX_LABELS = 100_000  # of larger sets a digest is kept, and it is not told how many labels differ
RECORDS = ("labels", "index", "clean_label")

Fingerprint = dict[str, Any]

is_numbers = is_list(is_whole(-(2**63)))
is_digest = optional(is_word)
# What each key of a fingerprint holds.
FIELDS: dict[str, Check] = {
    "examples": optional(is_whole()),
    "class_names": optional(is_list(is_word)),
    "index": is_digest,
    "labels": lambda value: is_digest(value) or is_numbers(value),
    "clean_labels": is_digest,
    "sampled_records": is_digest,
    "sampled_contents": is_digest,
}


def fingerprint_of(dataset: Any) -> Fingerprint | None:
    """Return the fingerprint of a data set; None where there is none, or it is a part of another one.

    Of a map-style data set that tells its labels only example by example, a few are read.
    """
    if dataset is None or isinstance(dataset, PseudoCleanSet):
        return None
    records = _records(dataset)
    labels: Any = records.get("labels")
    return {
        "examples": len(dataset) if has_length(dataset) else None,
        "class_names": names_of_data(dataset.stream if isinstance(dataset, StreamedInputs) else dataset),
        "index": _digest_of(records.get("index")),
        "labels": labels if labels and len(labels) <= MAX_LABELS and is_numbers(labels) else _digest_of(labels),
        "clean_labels": _digest_of(records.get("clean_label")),
        "sampled_records": None if records else _digest_of(_sampled_records(dataset)),
        "sampled_contents": _sampled_contents(dataset) if isinstance(dataset, ModelInputs) else None,
    }


def _records(dataset: Any) -> dict[str, list[int]]:
    """Return the records of all examples, as far as they need not be read for it."""
    if isinstance(dataset, ModelInputs):
        return dataset.records
    if not isinstance(dataset, Dataset):
        return {}
    plain = dataset.with_format(None)
    columns = {name: plain[name][:] for name in RECORDS if name in plain.column_names}
    return {name: values for name, values in columns.items() if is_numbers(values)}


def _sampled_records(dataset: Any) -> list[list[int | None]] | None:
    """Return the records of a few examples; None of a stream that can be read only once."""
    if isinstance(dataset, StreamedInputs):
        examples: Iterable[Any] = dataset.stream.take(SAMPLED)
    elif has_length(dataset) and hasattr(dataset, "__getitem__"):
        examples = (dataset[row] for row in _sampled_rows(len(dataset)))
    else:
        return None
    return [[_number(example, name) for name in ("labels", "label", *RECORDS[1:])] for example in examples]


def _number(example: Any, name: str) -> int | None:
    """Return a record of one example, if it is one whole number."""
    value: Any = example.get(name) if isinstance(example, Mapping) else None
    value = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    return value if type(value) is int else None


def _sampled_contents(dataset: ModelInputs) -> str:
    """Return a digest of a few examples as they came."""
    digest = hashlib.sha256()
    for values in dataset.raw[_sampled_rows(len(dataset))].values():
        for value in values:
            digest.update(hashlib.sha256(_content(value)).digest())
    return digest.hexdigest()


def _content(value: Any) -> bytes:
    """Return an example in bytes. Of an image these are its pixels: how they are packed depends on the library."""
    if isinstance(value, Image):
        return f"{value.mode} {value.size}".encode() + value.tobytes()
    return content_of(value) if isinstance(value, dict) else str(value).encode()


def _sampled_rows(size: int) -> list[int]:
    return np.linspace(0, size - 1, min(size, SAMPLED)).round().astype(int).tolist()


def _digest_of(values: Any) -> str | None:
    return None if values is None else hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def fingerprint_of_splits(splits: DatasetDict) -> str:
    """Return 16 hexadecimal digits by which a data set as it lies at its source is told from another, in any folder.

    Labels by their names, files by theirs, and texts count; images and recordings are not read.

    Args:
        splits: Of `load_splits`, with columns `image`, `text` or `audio`, and `label`.
    """
    known = {split: [_names_of_labels(dataset), texts_or_files(dataset)] for split, dataset in splits.items()}
    return str(_digest_of(known))[:16]


def _names_of_labels(dataset: Dataset) -> list[str]:
    names = dataset.features["label"].names
    return [names[label] for label in dataset["label"][:]]


def differences(saved: Fingerprint | None, present: Fingerprint | None, name: str) -> list[str]:
    """Return what differs between two fingerprints, in words.

    Args:
        saved: Of the data that were trained on.
        present: Of those that are to be.
        name: "training" or "meta".
    """
    if saved is None or present is None:
        kinds = ["none of its own" if one is None else f"{one['examples']} examples" for one in (saved, present)]
        return [] if saved is present else [f"the {name} set ({kinds[1]} instead of {kinds[0]})"]
    differing = [key for key in FIELDS if None not in (saved[key], present[key]) and saved[key] != present[key]]
    found = []
    if "class_names" in differing:
        names, others = (first_few(repr(word[:40]) for word in one["class_names"]) for one in (present, saved))
        found.append(f"the class names ({names} instead of {others})")
    if "examples" in differing:
        return [*found, f"the number of {name} examples ({present['examples']} instead of {saved['examples']})"]
    if "index" in differing:
        return [*found, f"which {name} examples there are (their index)"]
    if "labels" in differing:
        found.append(f"the labels of {_how_many(saved['labels'], present['labels'])} {name} examples")
    words = {
        "clean_labels": "the clean labels",
        "sampled_records": "the labels or index",
        "sampled_contents": "the contents",
    }
    return [*found, *(f"{words[key]} of the {name} examples" for key in differing if key in words)]


def _how_many(saved: Any, present: Any) -> str:
    if not isinstance(saved, list) or not isinstance(present, list) or len(saved) != len(present):
        return "the"
    return f"{sum(one != other for one, other in zip(saved, present, strict=True))} of {len(present)}"
