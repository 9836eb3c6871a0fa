"""Data sets that are read as they are needed: nothing is known of an example before it comes by.

Noise is drawn for each example from the seed and its row, so that it does not depend on the order. The meta set is made
of the first examples of each class and held in memory.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, IterableDatasetDict, Value

from famus_hf.data.labels.class_maps import class_map_by_names
from famus_hf.data.labels.meta_set import balanced_shares
from famus_hf.data.labels.noise import corrupt_labels
from famus_hf.data.sources.benchmarks import BUILDERS
from famus_hf.data.sources.columns import Columns, select_and_rename, standard_names
from famus_hf.data.sources.folders import load_folder
from famus_hf.data.sources.idx import is_idx_folder
from famus_hf.data.sources.load_source import HUB_DATASETS, TEST_NAMES, check_has_train, load_from_hub, merged_columns
from famus_hf.errors import DataError, first_few

STREAMED_NOISE = ("symmetric", "symmetric-exclusive", "pair", "asymmetric")  # those that one example can draw alone
META_SEARCH = 100  # times the size of the meta set: so many examples are searched for it


def load_stream(
    name: str | None,
    config_name: str | None,
    columns: Columns,
    *,
    noise: float,
    noise_type: str,
    class_map: Sequence[int] | None,
    num_meta: int,
    seed: int,
    max_train_samples: int | None,
    max_eval_samples: int | None,
) -> IterableDatasetDict:
    """Load splits `train` and `test` as streams and, where `num_meta` is not 0, `meta` in memory.

    Streams come in the order of the source, since rows are counted as they come (the library's own shuffling counts
    anew in each file); `StreamedInputs` shuffles. Their images are as they are stored, {"bytes", "path"};
    `datasets.Image().decode_example` decodes one. The arguments are those of `load_noisy_dataset`.

    Raises:
        DataError: A data set that can't be streamed, labels that are not a ClassLabel, no test split, noise that needs
            all examples, or too few examples of a class for the meta set.
    """
    if noise > 0 and noise_type not in STREAMED_NOISE:
        raise DataError(
            f"noise_type {noise_type!r} needs all examples at once, which a stream does not have: choose one of "
            f"{', '.join(STREAMED_NOISE)}, or leave --streaming out"
        )
    streams, columns = _open(name, config_name, columns)
    test = next((split for split in TEST_NAMES if split in streams), None)
    if test is None:
        raise DataError(f"data set {name!r} has no test split, and none can be set apart from a stream: give one")
    names = _class_names(streams["train"], columns)
    train = _standardised(streams["train"], columns, max_train_samples)
    if class_map is None:
        class_map = class_map_by_names(names)
    splits: dict[str, Any] = {}
    held_out: set[int] = set()
    if num_meta > 0:
        splits["meta"] = _first_of_each_class(train, names, num_meta)
        held_out = set(splits["meta"]["index"][:])
    corrupt = partial(_corrupted, noise=noise, noise_type=noise_type, num_labels=len(names), seed=seed,
                      class_map=class_map, known_clean=num_meta > 0 or noise > 0)  # fmt: skip
    features = _features(names)
    train = train.filter(partial(_is_not_in, rows=held_out)).map(corrupt, features=features)
    test_stream = _standardised(streams[test], columns, max_eval_samples).map(_unchanged, features=features)
    splits["train"], splits["test"] = train, test_stream
    return IterableDatasetDict({split: splits[split] for split in ("train", "meta", "test") if split in splits})


def _open(name: str | None, config_name: str | None, columns: Columns) -> tuple[Any, Columns]:
    """Open the streams of a Hub data set or a local folder."""
    folder = Path(name) if name is not None and Path(name).is_dir() else None
    if name is None or name in ("digits", *BUILDERS) or (folder is not None and is_idx_folder(folder)):
        raise DataError(
            f"{name or 'a train_dir'!r} can't be streamed, only Hub ids and local folders can: leave --streaming out"
        )
    if folder is not None:
        splits, known = load_folder(folder, streaming=True), columns
    else:
        hub_id, known = HUB_DATASETS.get(name, (name, columns))
        splits = load_from_hub(hub_id, config_name, streaming=True)
    check_has_train(splits, name)
    return splits, merged_columns(columns, known)


def _class_names(stream: IterableDataset, columns: Columns) -> list[str]:
    if stream.features is None:
        raise DataError("a stream of these files does not tell its columns: leave --streaming out")
    names = {new: old for old, new in standard_names(stream.features, columns).items()}
    label = stream.features[names["label"]]
    if not isinstance(label, ClassLabel) or "image" not in names:
        raise DataError(
            f"a stream needs images (texts and recordings are not streamed) and labels that are a ClassLabel, as its "
            f"classes can't be counted before they come; column {names['label']!r} holds {label}: leave --streaming out"
        )
    return label.names


def _standardised(stream: IterableDataset, columns: Columns, size: int | None) -> IterableDataset:
    """Give the stream the columns `image`, `label`, `clean_label` (where there is one) and `index`, and no others."""
    names = standard_names(stream.features, columns, is_train=False)
    features = Features({new: stream.features[old] for old, new in names.items()} | {"index": Value("int64")})
    image = next(old for old, new in names.items() if new == "image")
    stream = stream.cast_column(image, Image(decode=False))  # decoded at the end alone, where a broken one is named
    stream = stream if size is None else stream.take(size)
    stream = select_and_rename(stream, names)
    return stream.map(_with_index, with_indices=True, features=Features({**features, "image": Image(decode=False)}))


def _with_index(example: dict[str, Any], row: int) -> dict[str, Any]:
    return {**example, "index": row}


def _features(names: list[str]) -> Features:
    label = ClassLabel(names=names)
    return Features({"image": Image(decode=False), "label": label, "clean_label": label, "index": Value("int64")})


def _record(example: dict[str, Any], label: int, clean: int | None) -> dict[str, Any]:
    return {"image": example["image"], "label": label, "clean_label": clean, "index": example["index"]}


def _first_of_each_class(stream: IterableDataset, names: list[str], num_meta: int) -> Dataset:
    """Take a class-balanced meta set from the first examples. Raise DataError where they hold too few of a class."""
    missing_counts = balanced_shares(num_meta, len(names))
    records: list[dict[str, Any]] = []
    for example in stream.take(META_SEARCH * num_meta):
        clean = example.get("clean_label", example["label"])
        if missing_counts[clean] > 0:
            missing_counts[clean] -= 1
            records.append(_record(example, clean, clean))
        if not any(missing_counts):
            return Dataset.from_list(records, features=_features(names)).cast_column("image", Image())
    missing = [names[label] for label, count in enumerate(missing_counts) if count]
    raise DataError(
        f"{len(missing)} classes ({first_few(missing)}) have too few of the first "
        f"{META_SEARCH * num_meta} examples for a meta set of {num_meta}: lower num_meta or leave --streaming out"
    )


def _is_not_in(example: dict[str, Any], rows: set[int]) -> bool:
    return example["index"] not in rows


def _corrupted(
    example: dict[str, Any],
    noise: float,
    noise_type: str,
    num_labels: int,
    seed: int,
    class_map: Sequence[int] | None,
    known_clean: bool,
) -> dict[str, Any]:
    """Return the example with the label that its row draws."""
    clean = example.get("clean_label", example["label"] if known_clean else None)
    label = example["label"]
    if noise > 0 and clean is not None:
        row = np.random.SeedSequence((seed, example["index"])).generate_state(1)[0]
        label = int(corrupt_labels([clean], noise, noise_type, num_labels, int(row), class_map=class_map)[0][0])
    return _record(example, label, clean)


def _unchanged(example: dict[str, Any]) -> dict[str, Any]:
    clean = example.get("clean_label", example["label"])
    return _record(example, clean, clean)
