"""From the name of a data set to train, meta and test with noisy labels."""

import numpy as np
from datasets import Dataset, DatasetDict

from famus_hf.data.meta_set import check_no_overlap, class_balanced_holdout, default_num_meta
from famus_hf.data.noise import check_noise, corrupt_labels
from famus_hf.data.sources import check_source_name, labels_known_clean, load_source

SUBSET_SEED = 0  # of max_train_samples and max_eval_samples


def load_noisy_dataset(
    name: str,
    *,
    config_name: str | None = None,
    noise: float = 0.0,
    noise_type: str = "symmetric",
    num_meta: int | None = None,
    seed: int = 0,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    clean_label_column_name: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> DatasetDict:
    """Loads a data set, holds a clean meta set out of its training split and corrupts the labels of the rest.

    Args:
        name: `digits`, `cifar10`, `cifar100`, `fashion_mnist`, any Hub id, or a folder of MNIST-format idx files.
        config_name: Configuration of a Hub data set.
        noise: Rate of label noise in [0, 1).
        noise_type: `symmetric` or `pair` (see `famus_hf.data.noise`).
        num_meta: Size of the meta set; default min(1000, 10 % of train); 0 makes none.
        seed: Of the meta set and of the noise; the test split never depends on it.
        image_column_name: Default: the only image column.
        label_column_name: Default: the only ClassLabel column.
        clean_label_column_name: Column with the true labels, where the data's own labels are the noisy ones.
        max_train_samples: Use only so many examples of the training split, drawn before anything else.
        max_eval_samples: Likewise of the test split.

    Returns:
        Splits `train`, `meta` (unless num_meta is 0) and `test`, with columns `image`, `label` (in train possibly
        wrong), `clean_label` and `index` (row in the source split).

    Raises:
        ValueError: One sentence that says what is wrong and what to do.
    """
    check_source_name(name)
    check_noise(noise, noise_type)
    if clean_label_column_name is not None and noise > 0:
        raise ValueError(
            f"noise={noise} and clean_label_column_name contradict each other: the data bring their own noise"
        )
    if num_meta is not None and num_meta < 0:
        raise ValueError(f"num_meta={num_meta} must not be negative: 0 makes no meta set")
    if noise == 0 and num_meta != 0 and clean_label_column_name is None and not labels_known_clean(name):
        raise ValueError(
            f"the labels of {name!r} are not known to be clean, so no clean meta set can be held out of them: "
            "name a column of true labels with clean_label_column_name, add noise to test on, or set num_meta to 0 "
            "for plain training (meta_learner none)"
        )
    splits = load_source(name, config_name, image_column_name, label_column_name, clean_label_column_name)
    train = _subset(_with_record_columns(splits["train"]), max_train_samples, "max_train_samples")
    test = _subset(_with_record_columns(splits["test"]), max_eval_samples, "max_eval_samples")
    if clean_label_column_name is not None:
        test = _with_labels(test, test["clean_label"][:])
    num_labels = train.features["label"].num_classes
    clean_labels = np.asarray(train["clean_label"][:])
    if num_meta is None:
        num_meta = default_num_meta(len(train), num_labels)
        if num_meta == 0:
            raise ValueError(
                f"{len(train)} training examples of {num_labels} classes are too few for a meta set of 10 %: "
                "set num_meta"
            )
    meta_rows, train_rows = np.arange(0), np.arange(len(train))
    if num_meta > 0:
        meta_rows, train_rows = class_balanced_holdout(clean_labels, num_meta, num_labels, seed)
    if noise > 0 or num_meta > 0:
        labels = np.asarray(train["label"][:])
        labels[meta_rows] = clean_labels[meta_rows]
        if noise > 0:
            labels[train_rows], _ = corrupt_labels(clean_labels[train_rows], noise, noise_type, num_labels, seed)
        train = _with_labels(train, labels.tolist())
    parts = {"train": train.select(train_rows), "test": test}
    if num_meta > 0:
        parts["meta"] = train.select(meta_rows)
        check_no_overlap(parts["train"]["index"][:], parts["meta"]["index"][:])
    return DatasetDict({split: parts[split] for split in ("train", "meta", "test") if split in parts})


def _with_record_columns(dataset: Dataset) -> Dataset:
    """Adds `index` and, where the data brought none, `clean_label`."""
    dataset = dataset.add_column("index", range(len(dataset)))
    if "clean_label" not in dataset.features:
        dataset = dataset.add_column("clean_label", dataset["label"][:], feature=dataset.features["label"])
    return dataset


def _with_labels(dataset: Dataset, labels: list[int]) -> Dataset:
    feature = dataset.features["label"]
    return dataset.remove_columns("label").add_column("label", labels, feature=feature)


def _subset(dataset: Dataset, size: int | None, argument: str) -> Dataset:
    if size is None:
        return dataset
    if size < 1:
        raise ValueError(f"{argument}={size} leaves no examples: choose at least 1")
    rows = np.random.default_rng(SUBSET_SEED).permutation(len(dataset))[:size]
    return dataset.select(np.sort(rows))
