"""Raw data sets as users have them, with the columns that the rest of the library knows and classes by name."""

from dataclasses import dataclass
from typing import Any

from datasets import Audio, ClassLabel, Dataset, Image, List, Value

from famus_hf.data.labels.class_names import (
    SHOWN,
    are_numbers,
    check_same,
    names_of_data,
    names_of_network,
    numbered_by,
)
from famus_hf.data.media.modalities import MODALITIES
from famus_hf.data.sources.columns import KINDS, LABEL_NAMES, STRINGS, Columns, select_and_rename, standard_names
from famus_hf.errors import DataError, first_few

RECORDS = ("label", "clean_label", "index")


def in_standard_form(dataset: Any, whose: str) -> Any:
    """Return a raw `datasets.Dataset` with the columns of `load_noisy_dataset`; anything else as it is.

    Raw is one that has images, recordings or texts, and neither a transform of its own nor a network's inputs. Labels
    that are strings or booleans become classes.

    Raises:
        DataError: The columns can't be told, or some examples have no label.
    """
    if not isinstance(dataset, Dataset) or not _is_raw(dataset):
        return dataset
    dataset = dataset.with_format(None)
    names = set(dataset.column_names)
    if not names & set(KINDS) or "label" not in names:
        dataset = _with_standard_names(dataset, whose)
    return _with_classes(dataset, whose)


def _is_raw(dataset: Dataset) -> bool:
    if dataset.format["type"] == "custom" or any(
        name in dataset.features for modality in MODALITIES for name in modality.inputs
    ):
        return False
    features = [feature for name, feature in dataset.features.items() if name not in (*RECORDS, *LABEL_NAMES)]
    if any(isinstance(feature, Image | Audio) for feature in features) or set(KINDS) & set(dataset.column_names):
        return True
    is_text = any(isinstance(feature, Value) and feature.dtype in STRINGS for feature in features)
    return is_text and all(isinstance(feature, Value | ClassLabel) for feature in features)


def _with_standard_names(dataset: Dataset, whose: str) -> Dataset:
    kind = next((kind for kind in KINDS if kind in dataset.column_names), None)
    pair = "text_pair" if kind == "text" and "text_pair" in dataset.column_names else None
    known = Columns(
        **({} if kind is None else {kind: kind}),
        text_pair=pair,
        label="label" if "label" in dataset.column_names else None,
    )
    features = {name: feature for name, feature in dataset.features.items() if name not in RECORDS[1:]}
    try:
        names = standard_names(features, known)  # type: ignore[arg-type]  # a mapping is all that it needs
    except DataError as error:
        raise DataError(
            f"{whose} has the columns {', '.join(dataset.column_names)}, of which an image, text or audio column and a "
            "column label are needed: rename them with rename_column"
        ) from error
    names |= {name: name for name in RECORDS[1:] if name in dataset.column_names}
    return select_and_rename(dataset, names)


def _with_classes(dataset: Dataset, whose: str) -> Dataset:
    """Make classes of labels that are strings or booleans."""
    feature = dataset.features["label"]
    labels = dataset["label"][:]
    missing = [row for row, label in enumerate(labels) if label is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(labels)} examples of {whose} have no label (row {first_few(missing)}): remove "
            "them, or give them one"
        )
    dtype = getattr(feature, "dtype", "")
    if isinstance(feature, Value) and not dtype.startswith(("int", "uint", "float", "bool", *STRINGS)):
        raise DataError(f"the labels of {whose} are {dtype}, which are no classes: give names or numbers of classes")
    if isinstance(feature, List) and isinstance(feature.feature, Value) and "float" not in feature.feature.dtype:
        raise DataError(f"the labels of {whose} are lists ({labels[0]}), and each example needs one class: give one")
    if isinstance(feature, ClassLabel) or dtype not in (*STRINGS, "bool"):
        return dataset
    alike = [name for name in ("label", "clean_label") if getattr(dataset.features.get(name), "dtype", "") == dtype]
    values = {name: [str(label) for label in dataset[name][:]] for name in alike}
    names = ClassLabel(names=sorted({label for column in values.values() for label in column}))
    for name, column in values.items():
        numbers: Any = names.str2int(column)
        dataset = dataset.remove_columns(name).add_column(name, numbers, feature=names)
    return dataset


@dataclass(frozen=True)
class DataForm:
    """How a trainer takes its data sets: with known columns, and classes by their names.

    Attributes:
        class_names: By which all data sets number their classes; None: they have numbers alone.
        source: What has these names, for messages.
        renames: Whether columns may be renamed, as no collator of the user's expects them.
    """

    class_names: list[str] | None
    source: str
    renames: bool

    @classmethod
    def of_run(cls, network: Any, train: Any, renames: bool) -> tuple["DataForm", Any]:
        """Return that of a run, and its training set in it.

        The network's names count where it has any, else those of the training set.
        """
        train = in_standard_form(train, "the training set") if renames else train
        names, of_data = names_of_network(network), names_of_data(train)
        if names is None or (of_data is not None and are_numbers(names) and not set(of_data) <= set(names)):
            form = cls(of_data, "the training set", renames)
        else:
            form = cls(names, "the network", renames)
        return form, form._by_names(train, "the training set")

    def of(self, dataset: Any, whose: str) -> Any:
        """Return a raw data set, or those of a mapping, in this form, and anything else as it is.

        Args:
            dataset: A raw one has images, texts or recordings, and no transform of its own.
            whose: What it is called, for messages.

        Raises:
            DataError: It has other columns or other classes, or is the network's inputs already and numbers its classes
                in another way.
        """
        if isinstance(dataset, dict):
            return {name: self.of(part, f"{whose} {name!r}") for name, part in dataset.items()}
        if self.renames:
            dataset = in_standard_form(dataset, whose)
        return self._by_names(dataset, whose)

    def _by_names(self, dataset: Any, whose: str) -> Any:
        """Return a data set with its classes numbered by these names."""
        if self.class_names is None:
            return dataset
        if isinstance(dataset, Dataset) and isinstance(dataset.features.get("label"), ClassLabel):
            return numbered_by(dataset, self.class_names, whose, self.source)
        check_same(dataset, self.class_names, whose, self.source)
        return dataset

    def name_classes(self, network: Any) -> None:
        """Give a network that has no names of its classes those of its training set.

        Raises:
            DataError: It has others, which `model_init` may have given it.
        """
        config, names = getattr(network, "config", None), self.class_names
        if names is None or config is None or getattr(config, "id2label", None) is None:
            return
        own = names_of_network(network)
        if (own is None or are_numbers(own)) and len(config.id2label) == len(names):
            config.id2label = dict(enumerate(names))
            config.label2id = {name: number for number, name in enumerate(names)}
        elif own is not None and not are_numbers(own) and own != names:
            raise DataError(
                f"the classes of the network are {first_few(own, SHOWN)} and those of the training set "
                f"{first_few(names, SHOWN)}, in this order: build the network with the names of the training set"
            )
