"""Names of classes: the same name is the same class, whatever number it has in which data set or network."""

import re
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from famus_hf.errors import DataError, first_few

SHOWN = 10  # names of a list in a message
NO_NAME = re.compile(r"(?:LABEL_)?(\d+)")  # what transformers, and data sets without names, call a class by its number


def are_names(names: Sequence[str]) -> bool:
    """Return whether these say more of the classes than their numbers do."""
    numbers = [NO_NAME.fullmatch(name) for name in names]
    return not all(match and match[1] == str(place) for place, match in enumerate(numbers))


def names_of_network(network: Any) -> list[str] | None:
    """Return a network's names of its classes, by their numbers; None where it has none."""
    known = getattr(getattr(network, "config", None), "id2label", None)
    if not known or sorted(known) != list(range(len(known))):
        return None
    names = [str(known[label]) for label in range(len(known))]
    return names if are_names(names) and len(set(names)) == len(names) else None


def names_of_data(dataset: Any) -> list[str] | None:
    """Return a data set's names of its classes, by their numbers; None where it has none, or can't tell them."""
    names = getattr(dataset, "class_names", None)
    if names is None:
        features = getattr(dataset, "features", None) or {}
        feature = features.get("label", features.get("labels")) if hasattr(features, "get") else None
        names = feature.names if isinstance(feature, ClassLabel) else None
    return list(names) if names is not None and are_names(names) else None


def numbered_by(dataset: Dataset, names: Sequence[str], whose: str, source: str) -> Dataset:
    """Return a raw data set with its classes numbered by these names.

    Args:
        dataset: Columns `label`, a ClassLabel, and perhaps `clean_label`.
        names: Of the classes, by their numbers.
        whose: What the data set is called, for messages.
        source: What has these names, for messages.

    Raises:
        DataError: It has examples of other classes; names both lists.
    """
    own = names_of_data(dataset)
    if own is None or own == list(names):
        return dataset
    number_of = {name: number for number, name in enumerate(names)}
    feature = ClassLabel(names=list(names))
    for column in ("label", "clean_label"):
        if not isinstance(dataset.features.get(column), ClassLabel):
            continue
        labels = dataset[column][:]
        occurring = {label for label in labels if label is not None and 0 <= label < len(own)}
        check_known([own[label] for label in sorted(occurring)], names, whose, source)
        numbers = [number_of[own[label]] if label in occurring else label for label in labels]
        dataset = dataset.remove_columns(column).add_column(column, numbers)
        if all(label in occurring for label in labels):  # else there are some that are no class, for others to refuse
            dataset = dataset.cast_column(column, feature)
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
    if own is not None and own != list(names):
        raise DataError(
            f"the classes of {whose} are {first_few(own, SHOWN)} and those of {source} are {first_few(names, SHOWN)}, "
            "in this order: number the labels of both alike, or give the data set as it is stored, with its class names"
        )
