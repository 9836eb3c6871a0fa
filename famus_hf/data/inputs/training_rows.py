"""The training set as its loader reads it: each example tells its row, and trusted examples stand behind the others."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from famus_hf.data.inputs.model_inputs import known_labels

LABELS = ("labels", "label", "label_ids")  # what transformers' collator takes for an example's label
PARTNER = "partner_"  # what the names of a partner's columns begin with
HELD_OUT = 5  # of as many trusted examples one is never trained on
INSTEAD = ("index", "clean_label")  # of the training examples' columns, what a trusted one may lack


class TrainingRows(torch.utils.data.Dataset):
    """Examples of two data sets with `row`, their number: 0 … N − 1 of the training set, from N on of the trusted.

    A trusted example has what the first training example has, and nothing else: −1 for an `index`, and its label for a
    `clean_label` that it lacks.

    Args:
        train: Map-style, of N examples as mappings, or objects whose attributes are the columns.
        trusted: In the same form.
        chosen: Which rows of `trusted` are taken.
    """

    def __init__(self, train: Any, trusted: Any = None, chosen: Sequence[int] = ()):
        self.train, self.trusted, self.chosen = train, trusted, list(chosen)

    def __len__(self) -> int:
        return len(self.train) + len(self.chosen)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        count = len(self.train)
        of_train = iter(_items(self.train, [row for row in rows if row < count]))
        of_trusted = iter(_items(self.trusted, [self.chosen[row - count] for row in rows if row >= count]))
        return [
            {**columns_of(next(of_train)), "row": row}
            if row < count
            else {**self._in_form(next(of_trusted)), "row": row}
            for row in rows
        ]

    @cached_property
    def _names(self) -> list[str]:
        return list(columns_of(self.train[0]))

    def _in_form(self, example: Any) -> dict[str, Any]:
        example = dict(columns_of(example))
        label = next((example[name] for name in LABELS if name in example), None)
        instead = {"index": -1, "clean_label": label}
        example = {**example, **({"index": -1} if "index" in self._names else {})}
        return {name: example[name] if name in example else instead[name] for name in self._names}

    @property
    def labels(self) -> list[int]:
        """Those that can be told without reading the examples, else none."""
        train, trusted = known_labels(self.train), known_labels(self.trusted)
        return [*train, *(trusted[row] for row in self.chosen)] if train and (trusted or not self.chosen) else []


class PartneredRows(torch.utils.data.Dataset):
    """Pairs of training examples, by their rows: the first one, with image and label of the second beside its own.

    Args:
        train: Map-style, of examples as mappings, or objects whose attributes are the columns.
    """

    def __init__(self, train: Any):
        self.train = train

    def __len__(self) -> int:
        return len(self.train)

    @property
    def labels(self) -> list[int]:
        """Those of the examples, where they can be told without reading these, else none."""
        return known_labels(self.train)

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, Any]:
        return self.__getitems__([pair])[0]

    def __getitems__(self, pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
        examples, partners = (map(columns_of, _items(self.train, [pair[side] for pair in pairs])) for side in (0, 1))
        return [
            {**example, f"{PARTNER}pixel_values": partner["pixel_values"], f"{PARTNER}labels": _label_of(partner)}
            for example, partner in zip(examples, partners, strict=True)
        ]


def _label_of(example: Mapping[str, Any]) -> Any:
    return next(example[name] for name in LABELS if name in example)


def columns_of(example: Any) -> Mapping[str, Any]:
    """Return the columns of an example: itself, or the attributes of an object, as transformers' collator takes it."""
    return example if isinstance(example, Mapping) else vars(example)


def _items(dataset: Any, rows: list[int]) -> list[Any]:
    if not rows:
        return []
    if hasattr(dataset, "__getitems__"):
        return list(dataset.__getitems__(rows))
    return [dataset[row] for row in rows]
