"""Data as they lie at their source, with every column, and where in them an example of a split is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict

from famus_hf.data.labels.decisions import Key
from famus_hf.data.load import columns_of, load_splits
from famus_hf.data.sources.benchmarks import BUILDERS
from famus_hf.data.sources.columns import label_column
from famus_hf.data.sources.folders import MEDIA, SAVED, form_of, load_folder, load_whole_folder
from famus_hf.data.sources.idx import is_idx_folder
from famus_hf.data.sources.load_source import (
    HUB_DATASETS,
    chosen_splits,
    load_from_hub,
    merged_columns,
    rows_set_apart,
)
from famus_hf.errors import SettingsError


@dataclass(frozen=True)
class Origin:
    """A data set at its source.

    Attributes:
        folder: Where it lies; None where that is no folder of files that could be copied.
        form: Of `form_of`; `SAVED` for all that `save_to_disk` would write.
        splits: As they came, under their own names.
        label: The column of labels.
        places: Key of an example → its own split, and its row in that.
    """

    folder: Path | None
    form: str
    splits: dict[str, Dataset]
    label: str
    places: dict[Key, tuple[str, int]]

    def names(self, split: str) -> list[str]:
        """Return the labels of a split by the names of their classes."""
        feature, values = self.splits[split].features[self.label], self.splits[split][self.label][:]
        return feature.int2str(values) if hasattr(feature, "int2str") else list(map(str, values))

    @property
    def is_media(self) -> bool:
        """Whether it is images or recordings in folders."""
        return self.form in MEDIA


def check_one_folder(source: Mapping[str, str | None]) -> None:
    """Raise SettingsError where data lie in two folders, of which there is no one copy."""
    if source.get("validation_dir") is not None:
        raise SettingsError(
            "a copy is made of one folder: put those of train_dir and validation_dir into one, as train/ and test/, "
            "and name it with --dataset_name"
        )


def origin_of(source: Mapping[str, str | None]) -> Origin:
    """Load a data set as it came.

    Args:
        source: Arguments of `load_splits`.

    Raises:
        DataError: One sentence that says what is wrong and what to do; also SettingsError.
    """
    check_one_folder(source)
    name, columns, whole = source.get("name"), columns_of(source), load_splits(with_test=False, **source)
    folder, form = Path(str(name or source.get("train_dir"))), SAVED
    if name in BUILDERS or name == "digits" or (folder.is_dir() and is_idx_folder(folder)):
        places = {(split, row): (split, row) for split in whole for row in range(len(whole[split]))}
        return Origin(None, SAVED, dict(whole), "label", places)
    if folder.is_dir():
        form = form_of(folder, columns.names_files)[0]
        read = load_whole_folder if name is None else load_folder
        loaded = read(folder, as_table=columns.names_files)
    else:
        hub_id, known = HUB_DATASETS.get(str(name), (str(name), columns))
        loaded, columns = load_from_hub(hub_id, source.get("config_name")), merged_columns(columns, known)
    splits = {"train": loaded} if isinstance(loaded, Dataset) else dict(loaded)
    own_names = chosen_splits(splits, columns, str(name))
    label = label_column(splits["train"].features, columns)
    return Origin(folder if folder.is_dir() else None, form, splits, label, _places(whole, own_names))


def _places(whole: DatasetDict, own_names: Mapping[str, str]) -> dict[Key, tuple[str, int]]:
    """Return where each example is.

    Args:
        whole: Before one to test on is set apart, which the labels and their order alone decide.
        own_names: Split → its own name.
    """
    rows = {split: list(range(len(dataset))) for split, dataset in whole.items()}
    if "test" not in whole:
        rows |= rows_set_apart(whole["train"])
    return {
        (split, index): (own_names.get(split, "train"), row)
        for split, of_split in rows.items()
        for index, row in enumerate(of_split)
    }
