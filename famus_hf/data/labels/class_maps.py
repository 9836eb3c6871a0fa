"""Which class is mistaken for which: the maps of asymmetric noise."""

import numpy as np
from datasets import Dataset

from famus_hf.errors import DataError, first_few

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_CONFUSIONS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}  # Patrini et al. 2017; DivideMix


def class_map_by_names(names: list[str]) -> list[int] | None:
    """Return for each class the one that it is mistaken for, where these are the ten classes of CIFAR-10."""
    if names != CIFAR10_CLASSES:
        return None
    return [CIFAR10_CONFUSIONS.get(label, label) for label in range(len(names))]


def known_class_map(train: Dataset) -> np.ndarray | None:
    """Return for each class the one that it is mistaken for, shape (C,), where literature or superclasses tell.

    The ten classes of CIFAR-10 are known by their names. Elsewhere a column `superclass` tells: the next class within
    the same superclass, in the order of their numbers, the last one followed by the first (CIFAR-100).

    Raises:
        DataError: A class with several superclasses.
    """
    names = train.features["label"].names
    by_names = class_map_by_names(names)
    if by_names is not None:
        return np.array(by_names)
    if "superclass" not in train.features:
        return None
    labels, superclasses = np.asarray(train["label"][:]), np.asarray(train["superclass"][:])
    class_map = np.arange(len(names))
    pairs = np.unique(np.stack([superclasses, labels]), axis=1)
    several = sorted({names[label] for label in pairs[1] if (pairs[1] == label).sum() > 1})
    if several:
        raise DataError(f"{len(several)} classes are in more than one superclass ({first_few(several)}): check them")
    for superclass in np.unique(pairs[0]):
        members = pairs[1][pairs[0] == superclass]
        class_map[members] = np.roll(members, -1)
    return class_map
