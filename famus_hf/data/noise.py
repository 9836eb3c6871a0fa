"""Wrong labels: how they are drawn, how often they really differ, and the file that keeps them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NoiseModel = Callable[[np.random.Generator, np.ndarray, float, int], np.ndarray]


def _symmetric(generator: np.random.Generator, labels: np.ndarray, noise: float, num_labels: int) -> np.ndarray:
    """With probability `noise` redrawn uniformly from all classes, the true one among them (FaMUS, MW-Net)."""
    redrawn = generator.integers(num_labels, size=len(labels))
    return np.where(generator.random(len(labels)) < noise, redrawn, labels)


def _pair(generator: np.random.Generator, labels: np.ndarray, noise: float, num_labels: int) -> np.ndarray:
    """With probability `noise` the next class, i → i + 1 mod C (Co-teaching)."""
    return np.where(generator.random(len(labels)) < noise, (labels + 1) % num_labels, labels)


NOISE_TYPES: dict[str, NoiseModel] = {"symmetric": _symmetric, "pair": _pair}


def check_noise(noise: float, noise_type: str) -> None:
    """Raises ValueError on a rate outside [0, 1) or an unknown noise type."""
    if not 0 <= noise < 1:
        raise ValueError(f"noise={noise} is not a rate: choose a number from 0 to below 1, for example 0.4")
    if noise_type not in NOISE_TYPES:
        raise ValueError(f"noise_type={noise_type!r} is unknown: choose one of {', '.join(NOISE_TYPES)}")


def corrupt_labels(
    labels: Sequence[int] | np.ndarray, noise: float, noise_type: str, num_labels: int, seed: int
) -> tuple[np.ndarray, float]:
    """Draws wrong labels.

    Args:
        labels: Shape (N,), class indices in [0, num_labels).
        noise: Rate in [0, 1); what it means is defined by the noise type.
        noise_type: A key of `NOISE_TYPES`.
        num_labels: C.
        seed: Of the generator; the same arguments give the same labels.

    Returns:
        The noisy labels, shape (N,), and the realised rate: the share that differs from the given label. For
        `symmetric` it is expected to be noise·(C − 1)/C.

    Raises:
        ValueError: A rate, type or label outside what is allowed.
    """
    check_noise(noise, noise_type)
    clean = np.asarray(labels)
    if len(clean) and not (clean.min() >= 0 and clean.max() < num_labels):
        raise ValueError(f"labels span {clean.min()}..{clean.max()}, which is not inside 0..{num_labels - 1}")
    noisy = NOISE_TYPES[noise_type](np.random.default_rng(seed), clean, noise, num_labels)
    return noisy, realised_noise_rate(noisy, clean)


def realised_noise_rate(labels: np.ndarray, clean_labels: np.ndarray) -> float:
    """Share of labels that differ from the clean ones."""
    return float(np.mean(labels != clean_labels)) if len(labels) else 0.0


def write_noise_file(
    path: Path, index: Sequence[int], labels: Sequence[int], clean_labels: Sequence[int], metadata: dict[str, Any]
) -> None:
    """Writes `noise.parquet`: columns `index`, `label`, `clean_label`; settings as JSON under the key `famus_hf`.

    Args:
        path: The file; replaced whole or not at all.
        index: Row of each example in the source split.
        labels: The possibly wrong labels.
        clean_labels: The labels before corruption.
        metadata: Seed, realised rate and whatever else describes the draw.
    """
    table = pa.table({"index": list(index), "label": list(labels), "clean_label": list(clean_labels)})
    unfinished = path.with_name(path.name + ".tmp")
    pq.write_table(table.replace_schema_metadata({"famus_hf": json.dumps(metadata)}), unfinished)
    unfinished.replace(path)


def read_noise_file(path: Path) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The columns and the metadata that `write_noise_file` wrote."""
    table = pq.read_table(path)
    return table.to_pydict(), json.loads(table.schema.metadata[b"famus_hf"])
