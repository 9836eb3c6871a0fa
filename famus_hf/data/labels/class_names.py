"""Names of classes: the same name is the same class, whatever number it has in which data set or network."""

import re
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from famus_hf.errors import DataError, first_few

SHOWN = 10  # names of a list in a message
UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls classes that nobody named


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether these say no more of the classes than their numbers do."""
    return list(names) == [str(number) for number in range(len(names))]


def names_of_network(network: Any) -> list[str] | None:
    """Return a network's names of its classes, by their numbers; None where nobody named them."""
    known = getattr(getattr(network, "config", None), "id2label", None)
    if not known or sorted(known) != list(range(len(known))):
        return None
    names = [str(known[label]) for label in range(len(known))]
    return None if any(map(UNNAMED.fullmatch, names)) or len(set(names)) < len(names) else names


def names_of_data(dataset: Any) -> list[str] | None:
    """Return a data set's names of its classes, by their numbers; None where it has none, or can't tell them."""
    names = getattr(dataset, "class_names", None)
    if names is None:
        features = getattr(dataset, "features", None) or {}
        feature = features.get("label", features.get("labels")) if hasattr(features, "get") else None
        names = feature.names if isinstance(feature, ClassLabel) else None
    return None if names is None else list(names)


def occurring_names(dataset: Dataset, column: str = "label") -> list[str]:
    """Return the names of the classes that a raw data set has examples of, by their numbers."""
    names = dataset.features[column].names
    return [names[label] for label in sorted(set(dataset[column][:]) - {None}) if 0 <= label < len(names)]


def numbered_by(dataset: Dataset, names: Sequence[str], whose: str, source: str) -> Dataset:
    """Return a raw data set with its classes numbered by these names; by numbers where it has nothing else.

    Args:
        dataset: Columns `label`, a ClassLabel, and perhaps `clean_label`.
        names: Of the classes, by their numbers.
        whose: What the data set is called, for messages.
        source: What has these names, for messages.

    Raises:
        DataError: It has examples of other classes; names both lists.
    """
    own = dataset.features["label"].names
    if own == list(names):
        return dataset
    columns = [name for name in ("label", "clean_label") if isinstance(dataset.features.get(name), ClassLabel)]
    occurring = list(dict.fromkeys(name for column in columns for name in occurring_names(dataset, column)))
    if are_numbers(own) and not set(occurring) <= set(names):
        return dataset
    check_known(occurring, names, whose, source)
    number_of = {name: number for number, name in enumerate(names)}
    for column in columns:
        new = {
            number: number_of[name] for number, name in enumerate(dataset.features[column].names) if name in occurring
        }
        labels = dataset[column][:]
        dataset = dataset.remove_columns(column).add_column(column, [new.get(label, label) for label in labels])
        if all(label in new for label in labels):  # else there are some that are no class, for others to refuse
            dataset = dataset.cast_column(column, ClassLabel(names=list(names)))
    return dataset


def check_known(own: Sequence[str], names: Sequence[str], whose: str, source: str) -> None:
    """Raise DataError where some of the names that occur are none of those known."""
    strange = [name for name in own if name not in set(names)]
    if strange:
        raise DataError(
            f"{len(strange)} of {len(own)} classes of {whose} are none of {source} ({first_few(strange, SHOWN)}), "
            f"which has {first_few(names, SHOWN)}: give both the same names, or leave these examples out"
        )


def check_same(dataset: Any, names: Sequence[str], whose: str, source: str) -> None:
    """Raise DataError where a data set that is the network's inputs already numbers its classes in another way."""
    own = names_of_data(dataset)
    if own is None or own == list(names)[: len(own)] or (are_numbers(own) and not set(own) <= set(names)):
        return
    raise DataError(
        f"the classes of {whose} are {first_few(own, SHOWN)} and those of {source} are {first_few(names, SHOWN)}, in "
        "this order: number the labels of both alike, or give the data set as it is stored, with its class names"
    )
