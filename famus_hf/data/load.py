"""From the name of a data set to train, meta and test with noisy labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, IterableDatasetDict

from famus_hf.data.labels.decisions import Decisions
from famus_hf.data.labels.meta_set import check_no_overlap, class_balanced_holdout
from famus_hf.data.labels.noise import check_noise
from famus_hf.data.labels.noise_file import NoiseFile, read_noise_file
from famus_hf.data.labels.split import LabelSplit, corrupt, divide, divide_as, rows_without_copies
from famus_hf.data.reviewed import decisions_on, reviewed_labels, trust_reviewed
from famus_hf.data.sources.benchmarks import BUILDERS
from famus_hf.data.sources.columns import Columns
from famus_hf.data.sources.load_source import (
    check_source,
    check_splits,
    clean_labels_known,
    load_source,
    load_trusted,
    without_absent_classes,
)
from famus_hf.data.sources.streaming import load_stream
from famus_hf.errors import DataError
from famus_hf.training_args_checks import META_SETS

SUBSET_SEED = 0  # of max_train_samples and max_eval_samples
COLUMNS_OF_USERS = ("image", "text", "text_pair", "audio", "label", "clean_label")
STREAMED_META = 1000  # clean meta examples of a stream, whose size is not known


def load_noisy_dataset(
    name: str | None = None,
    *,
    config_name: str | None = None,
    data_dir: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    noise: float = 0.0,
    noise_type: str = "symmetric",
    noise_exact_count: bool = False,
    noise_file: str | None = None,
    class_map: Sequence[int] | None = None,
    imbalance_factor: float | None = None,
    num_meta: int | None = None,
    meta_set: str | None = None,
    meta_dir: str | None = None,
    meta_dataset_name: str | None = None,
    meta_from: str | None = None,
    seed: int = 0,
    image_column_name: str | None = None,
    text_column_name: str | None = None,
    text_pair_column_name: str | None = None,
    audio_column_name: str | None = None,
    label_column_name: str | None = None,
    clean_label_column_name: str | None = None,
    sample_weight_column: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    streaming: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """Load a data set, hold a clean meta set out of its training split and corrupt the labels of the rest.

    Args:
        name: `digits`, `cifar10`, `cifar100`, `fashion_mnist`; a benchmark that lies in `data_dir` (`cifar10n`,
            `cifar100n`, `cnwl`, `mini-webvision`, `clothing1m`, `food101n`, `animal10n`); any Hub id; or a local
            folder: images or recordings sorted into folders of classes, parquet, csv, jsonl, arrow, or MNIST-format
            idx files.
        config_name: Configuration of a Hub data set, or variant of a benchmark.
        data_dir: Where a benchmark lies.
        train_dir: A folder with the training examples alone, instead of a name.
        validation_dir: Another with those to test on; without it a fifth of train is set apart.
        noise: Rate of label noise in [0, 1).
        noise_type: See `corrupt_labels`.
        noise_exact_count: Strike exactly round(noise · N) examples and not each with this probability.
        noise_file: `noise.parquet` of another run, whose very labels (and training and meta rows) are used.
        class_map: For `asymmetric` noise, beside cifar10 and cifar100: which class each class is mistaken for.
        imbalance_factor: Make the training set long-tailed: largest class over smallest (see `long_tail`).
        num_meta: Size of the meta set; default min(1000, 10 % of train), with an imbalance factor 10 of each class;
            0 makes none. Of trusted examples of their own (`meta_dir`) all are taken where it is not given.
        meta_set: `clean`, or `pseudo-clean` for none, as the trainer finds its own; default `clean` where clean labels
            are known, else `pseudo-clean`.
        meta_dir: A folder of trusted examples, which are the meta set: classes are matched by name, and copies in the
            training set are left out of that.
        meta_dataset_name: Likewise another data set, whose training split is taken: a Hub id, short name or folder.
        meta_from: A file of decisions that `famus-hf review` left: the reviewed examples are the meta set, with the
            labels that the reviewer gave them, and no longer in train. Those of the test split stay there, with these
            labels.
        seed: Of the meta set, the long tail and the noise; the test split never depends on it.
        image_column_name: Default: the only image column.
        text_column_name: Default, where there is neither image nor audio: the only column of strings, or the first of
            a pair that is known by its names (GLUE's `sentence1` and `sentence2`, `question` and `sentence`, …).
        text_pair_column_name: The second text of each example, if there is one and it is not found so.
        audio_column_name: Default: the only audio column.
        label_column_name: Default: the only ClassLabel column, or the one called `label`.
        clean_label_column_name: Column with the true labels, where the data's own labels are the noisy ones.
        sample_weight_column: A column of numbers that is kept in train, under its name.
        max_train_samples: Use only so many examples of the training split, drawn before anything else.
        max_eval_samples: Likewise of the test split.
        streaming: Read examples as they are needed (`famus_hf.data.sources.streaming`), for sets larger than the disk.

    Returns:
        Splits `train`, `meta` (where there is a clean one), `test`, and what else the source has to test on
        (`validation`), with columns `image`, `text` (and `text_pair`) or `audio` (as it is stored), `label` (in train
        possibly wrong), `clean_label` where known, and `index` (row in the source split; of a meta set that is a split
        of its own, beyond the rows of train).

    Raises:
        DataError: One sentence that says what is wrong and what to do.
    """
    check_source(name, data_dir, train_dir, validation_dir)
    check_noise(noise, noise_type, noise_exact_count)
    _check_contradictions(name, noise, noise_file, clean_label_column_name, imbalance_factor, max_train_samples)
    has_trusted = _has_trusted(meta_dir, meta_dataset_name, meta_from, num_meta, meta_set)
    known_clean = noise > 0 or clean_label_column_name is not None or clean_labels_known(name)
    given_noise = None if noise_file is None else read_noise_file(Path(noise_file))
    known_by_file = given_noise is not None and given_noise.clean_labels is not None
    if has_trusted:
        meta_set = "clean"
    meta_set = _chosen_meta_set(meta_set, num_meta, known_clean or known_by_file or has_trusted, name)
    columns = Columns(
        image_column_name,
        text_column_name,
        text_pair_column_name,
        audio_column_name,
        label_column_name,
        clean_label_column_name,
        kept=sample_weight_column,
    )
    if streaming:
        _check_streaming(noise_exact_count, noise_file, imbalance_factor, meta_dir or meta_dataset_name or meta_from)
        return load_stream(
            name,
            config_name,
            columns,
            noise=noise,
            noise_type=noise_type,
            class_map=class_map,
            num_meta=(STREAMED_META if num_meta is None else num_meta) if meta_set == "clean" else 0,
            seed=seed,
            max_train_samples=max_train_samples,
            max_eval_samples=max_eval_samples,
        )
    source = load_source(
        name,
        config_name,
        columns,
        data_dir=data_dir,
        train_dir=train_dir,
        validation_dir=validation_dir,
    )
    decisions = None if meta_from is None else decisions_on(source, Path(meta_from))
    if has_trusted and decisions is None:
        source = load_trusted(meta_dir, meta_dataset_name, columns, source)
    source = without_absent_classes(source)
    check_splits(source)
    train = _with_index(source["train"])
    rows = _subset_rows(len(train), max_train_samples, "max_train_samples")
    has_own_meta = meta_set == "clean" and "meta" in source and decisions is None
    num_held_out = 0 if meta_set != "clean" or has_own_meta or decisions is not None else num_meta
    division = _divided(train, rows, known_clean, given_noise, num_held_out, imbalance_factor, seed)
    if noise > 0:
        corrupt(division, train, noise, noise_type, noise_exact_count, class_map, seed)
    if decisions is not None:
        trust_reviewed(division, decisions, train)
    train = _with_labels(train, division)
    own_meta = source["meta"] if has_own_meta else None
    splits = _train_and_meta(train, division, own_meta, num_meta, seed, whole=has_trusted)
    return DatasetDict({**splits, **_evaluation_splits(source, known_clean, decisions, max_eval_samples)})


def _train_and_meta(
    train: Dataset, division: LabelSplit, own_meta: Dataset | None, num_meta: int | None, seed: int, *, whole: bool
) -> dict[str, Dataset]:
    """Return what is trained on, and the clean meta set where there is one.

    Args:
        train: The training split, with the labels that it has from here on.
        division: Its rows.
        own_meta: A meta set that is no part of it, whose copies in it are left out.
        num_meta: Size of that.
        seed: Of the draw where it has more examples.
        whole: Whether all of them are taken where `num_meta` is None.
    """
    chosen = train.select(division.train)
    if own_meta is not None:
        meta = _own_meta_set(own_meta, num_meta, len(train), seed, whole=whole)
        return {"train": chosen.select(rows_without_copies(chosen, meta)), "meta": meta}
    if not len(division.meta):
        return {"train": chosen}
    meta = train.select(division.meta)
    check_no_overlap(chosen["index"][:], meta["index"][:])
    return {"train": chosen, "meta": meta}


def _evaluation_splits(
    source: DatasetDict, known_clean: bool, decisions: Decisions | None, most: int | None
) -> dict[str, Dataset]:
    """Return the splits to test on, so many examples at most, with the labels of a reviewer where somebody looked."""
    splits = {}
    for split in [split for split in source if split not in ("train", "meta")]:
        dataset = _evaluation_split(_with_index(source[split]), known_clean)
        if decisions is not None and "clean_label" not in dataset.features:
            dataset = _with_column(dataset, "label", reviewed_labels(dataset, decisions.of_split(split)).tolist())
        splits[split] = dataset.select(_subset_rows(len(dataset), most, "max_eval_samples"))
    return splits


def load_splits(with_test: bool = True, **source: str | None) -> DatasetDict:
    """Load every split as its labels came.

    Args:
        with_test: Set one to test on apart where there is none, as `load_noisy_dataset` does.
        source: What says in `load_noisy_dataset` where the data lie and what their columns are called.

    Returns:
        Columns `image`, `text` (and `text_pair`) or `audio`, and `label`, in the rows that `index` counts.

    Raises:
        DataError: One sentence that says what is wrong and what to do.
    """
    name, config_name, columns = source.get("name"), source.get("config_name"), columns_of(source)
    folders = {argument: source.get(argument) for argument in ("data_dir", "train_dir", "validation_dir")}
    check_source(name, **folders)
    return load_source(name, config_name, columns, **folders, with_test=with_test)  # type: ignore[arg-type]


def columns_of(source: Mapping[str, str | None]) -> Columns:
    """Return the columns that are named among the arguments of `load_splits`."""
    return Columns(**{role: source.get(f"{role}_column_name") for role in COLUMNS_OF_USERS})


def load_examples(split: str, **source: str | None) -> Dataset:
    """Load every example of a split, as its labels came; nothing is set apart, drawn, or asked of the classes.

    Args:
        split: `train`, or another one that the data have.
        source: What says in `load_noisy_dataset` where the data lie and what their columns are called.

    Returns:
        Columns `image`, `text` (and `text_pair`) or `audio`, `label`, `clean_label` where known, and `index`.

    Raises:
        DataError: One sentence that says what is wrong and what to do.
    """
    splits = load_splits(with_test=False, **source)
    if split not in splits:
        raise DataError(f"split {split!r} is not there: choose one of {', '.join(splits)}")
    dataset = _without_superclass(_with_index(splits[split]))
    known_clean = clean_labels_known(source.get("name")) and "clean_label" not in dataset.features
    return _with_column(dataset, "clean_label", dataset["label"][:]) if known_clean else dataset


def _check_contradictions(
    name: str | None,
    noise: float,
    noise_file: str | None,
    clean_label_column_name: str | None,
    imbalance_factor: float | None,
    max_train_samples: int | None,
) -> None:
    if clean_label_column_name is not None and noise > 0:
        raise DataError(
            f"noise={noise} and clean_label_column_name contradict each other: the data bring their own noise"
        )
    if noise > 0 and name in BUILDERS:
        raise DataError(f"noise={noise} and {name} contradict each other: the data bring their own noise")
    if noise_file is None:
        return
    others = {"noise": noise, "imbalance_factor": imbalance_factor, "max_train_samples": max_train_samples}
    for option, value in others.items():
        if value:
            raise DataError(f"{option}={value} and noise_file contradict each other: the file names rows and labels")


def _check_streaming(
    exact_count: bool, noise_file: str | None, imbalance_factor: float | None, trusted: str | None
) -> None:
    settings = {
        "noise_exact_count": exact_count,
        "noise_file": noise_file,
        "imbalance_factor": imbalance_factor,
        "a trusted set": trusted,
    }
    for option, value in settings.items():
        if value:
            raise DataError(f"{option} needs all examples at once, which a stream does not have: leave one of both out")


def _has_trusted(
    meta_dir: str | None,
    meta_dataset_name: str | None,
    meta_from: str | None,
    num_meta: int | None,
    meta_set: str | None,
) -> bool:
    """Return whether there are trusted examples of their own. Raise DataError where that contradicts other settings."""
    places = {"meta_dir": meta_dir, "meta_dataset_name": meta_dataset_name, "meta_from": meta_from}
    given = [name for name, place in places.items() if place is not None]
    if not given:
        return False
    if len(given) > 1:
        raise DataError(f"{' and '.join(given)} contradict each other: give one of them")
    if meta_from is not None and num_meta:
        raise DataError(f"num_meta={num_meta} and meta_from contradict each other: all reviewed examples are trusted")
    if num_meta == 0 or meta_set == "pseudo-clean":
        other = "num_meta=0" if num_meta == 0 else "meta_set 'pseudo-clean'"
        raise DataError(f"trusted examples and {other} contradict each other: leave one of them out")
    if meta_dir is not None and not Path(meta_dir).is_dir():
        raise DataError(f"folder {meta_dir!r} does not exist")
    return True


def _chosen_meta_set(meta_set: str | None, num_meta: int | None, known_clean: bool, name: str | None) -> str:
    """Return `clean` or `pseudo-clean`. Raise DataError where a clean one was asked for and none can be had."""
    if meta_set not in (None, *META_SETS):
        raise DataError(f"meta_set={meta_set!r} is unknown: choose one of {', '.join(META_SETS)}")
    if num_meta is not None and num_meta < 0:
        raise DataError(f"num_meta={num_meta} must not be negative: 0 makes no meta set")
    if meta_set == "pseudo-clean" and num_meta:
        raise DataError(f"num_meta={num_meta} and meta_set 'pseudo-clean' contradict each other: its size is found")
    if meta_set == "clean" and num_meta == 0:
        raise DataError("num_meta=0 and meta_set 'clean' contradict each other: leave one of them out")
    asked_for_clean = meta_set == "clean" or bool(num_meta)
    if asked_for_clean and not known_clean and name not in BUILDERS:
        raise DataError(
            f"the labels of {name!r} are not known to be clean, so no clean meta set can be held out of them: name a "
            "column of true labels with clean_label_column_name, add noise to test on, or use meta_set pseudo-clean"
        )
    return "clean" if asked_for_clean or (known_clean and meta_set is None and num_meta != 0) else "pseudo-clean"


def _divided(
    train: Dataset,
    rows: np.ndarray,
    known_clean: bool,
    given_noise: NoiseFile | None,
    num_held_out: int | None,
    imbalance_factor: float | None,
    seed: int,
) -> LabelSplit:
    """Divide the training split as another run did, else these rows of it anew, without copies of meta examples."""
    labels = np.asarray(train["label"][:])
    clean = np.asarray(train["clean_label"][:]) if "clean_label" in train.features else labels if known_clean else None
    names = train.features["label"].names
    num_labels = len(names)
    if given_noise is not None:
        return divide_as(given_noise, labels, clean, train.features["label"].names, num_held_out, seed)
    clean_of_rows = None if clean is None else clean[rows]
    division = divide(labels[rows], clean_of_rows, num_labels, num_held_out, imbalance_factor, seed, names)
    division = division.within(rows, labels, clean)
    kept = rows_without_copies(train.select(division.train), train.select(division.meta))
    division.train = division.train[kept]
    return division


def _own_meta_set(dataset: Dataset, num_meta: int | None, first_index: int, seed: int, whole: bool) -> Dataset:
    """Return a class-balanced part of a source's own clean split, or all of it where `whole` and no size is named."""
    dataset = dataset.add_column("index", range(first_index, first_index + len(dataset)))
    dataset = _evaluation_split(dataset, known_clean=True)
    if num_meta is None and whole:
        return dataset
    labels = np.asarray(dataset["label"][:])
    num_labels = dataset.features["label"].num_classes
    if num_meta is None:
        counts = np.bincount(labels, minlength=num_labels)
        # − 1: a draw that leaves something of each class.
        num_meta = min(1000, (counts[counts > 0].min() - 1) * np.count_nonzero(counts))
    rows, _ = class_balanced_holdout(labels, num_meta, num_labels, seed, kept=0)
    return dataset.select(rows)


def _evaluation_split(dataset: Dataset, known_clean: bool) -> Dataset:
    """Make a split to test on: clean labels, where there are any, take the place of the others."""
    dataset = _without_superclass(dataset)
    if "clean_label" in dataset.features:
        return _with_column(dataset, "label", dataset["clean_label"][:])
    return _with_column(dataset, "clean_label", dataset["label"][:]) if known_clean else dataset


def _without_superclass(dataset: Dataset) -> Dataset:
    return dataset.remove_columns("superclass") if "superclass" in dataset.features else dataset


def _with_index(dataset: Dataset) -> Dataset:
    return dataset.add_column("index", range(len(dataset)))


def _with_labels(dataset: Dataset, division: LabelSplit) -> Dataset:
    """Set the labels as they are now, and the clean ones where they are known."""
    dataset = _without_superclass(dataset)
    if division.clean is not None:
        dataset = _with_column(dataset, "clean_label", division.clean.tolist())
    return _with_column(dataset, "label", division.labels.tolist())


def _with_column(dataset: Dataset, name: str, labels: list[int]) -> Dataset:
    """Add this column of classes, unless it is there with these very values already."""
    feature = dataset.features["label"]
    if name in dataset.features:
        if dataset[name][:] == labels:
            return dataset
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, labels, feature=feature)


def _subset_rows(num_rows: int, size: int | None, argument: str) -> np.ndarray:
    """Return all rows, or a fixed draw of so many, ascending."""
    if size is None:
        return np.arange(num_rows)
    if size < 1:
        raise DataError(f"{argument}={size} leaves no examples: choose at least 1")
    return np.sort(np.random.default_rng(SUBSET_SEED).permutation(num_rows)[:size])
