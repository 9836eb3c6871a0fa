"""What users give, and what comes of it: the right classes, a warning that counts and names, or one sentence.

Every case was found in the reports of users, of this tool or another; the right outcome is in the table.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from famus_hf import load_noisy_dataset
from famus_hf.data.load import load_examples
from tests.helpers import data_cases as make
from tests.helpers.data_cases import NAMES, class_of

TWENTY = dict.fromkeys(NAMES, 20)


@dataclass
class Case:
    """One input.

    Attributes:
        write: Writes it into a folder.
        arguments: Of load_noisy_dataset; a value that starts with "/" is below the folder.
        found: Split → class → examples; of a test split that is made here, those of train and test together, as `all`.
        said: Parts of warnings.
        refused: Part of the one sentence.
        class_of_picture: Class → what its pictures show, where that is known.
    """

    write: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    found: dict[str, dict[str, int]] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    refused: str | None = None
    class_of_picture: dict[str, int] = field(default_factory=lambda: {name: k for k, name in enumerate(NAMES)})


def two(first, second):
    return {"class_of_picture": {}, "found": {"all": {first: 20, second: 20}}}


CASES = {
    "A trusted folder that lacks a class": Case(
        make.trusted,
        {"train_dir": "/train", "meta_dir": "/trusted"},
        found={"all": TWENTY, "meta": {"bee": 5, "cow": 5}},
    ),
    "A trusted data set by name": Case(
        make.trusted,
        {"train_dir": "/train", "meta_dataset_name": "/trusted", "num_meta": 4},
        found={"all": TWENTY, "meta": {"bee": 2, "cow": 2}},
    ),
    "A trusted folder with a class too many": Case(
        make.strange_trusted,
        {"train_dir": "/train", "meta_dir": "/trusted"},
        refused="1 classes of the trusted examples (dog) are none of the training set, whose 3 classes are ant, bee, "
        "cow: give both the same names",
    ),
    "A trusted folder, and none": Case(
        make.trusted, {"train_dir": "/train", "meta_dir": "/trusted", "num_meta": 0}, refused="contradict each other"
    ),
    "B folders below the classes": Case(
        make.years,
        found={"all": TWENTY},
        said=("the 3 classes", "are its folders ant, bee, cow; those below them (2021, 2022) are none"),
    ),
    "B folders above the classes": Case(
        make.superclasses,
        found={"all": TWENTY},
        said=("are its folders ant, bee, cow; those above them (insects, mammals) are none",),
    ),
    "B mixed depths": Case(
        make.mixed_depths,
        refused="lie at different depths (60 as 'ant/0.png', 3 as 'cow/old/0.png'), so that it is open which folder",
    ),
    "B an image beside the classes": Case(make.loose, refused="(1 as 'cover.png', 60 as 'ant/0.png')"),
    "C a linked class": Case(make.linked, {"name": "/here"}, found={"all": TWENTY}),
    "C classes with underscores": Case(
        make.underscores,
        found={"all": {"__ant__": 20, "_bee": 20, "__MACOSX": 20}},
        class_of_picture={"__ant__": 0, "_bee": 1, "__MACOSX": 2},
    ),
    "C hidden files and empty folders": Case(
        make.hidden,
        found={"all": TWENTY},
        said=(
            "3 images in",
            "(.ipynb_checkpoints/0.png, .ipynb_checkpoints/1.png, ant/._0.png)",
            "1 folders in",
            "hold no images (dog)",
        ),
    ),
    "D splits by part of a name": Case(make.part_of_name, found={"train": TWENTY, "test": dict.fromkeys(NAMES, 5)}),
    "D a folder beside splits": Case(
        make.beside_splits,
        refused="lie beside those of the splits (seg_pred): move them, give each split a folder for each class, or "
        "name the folders to read with --train_dir and --validation_dir",
    ),
    "D folders that may be splits": Case(
        make.like_splits,
        said=("are called like splits and taken for classes (photos_trn, photos_tst): if they are splits, name",),
        class_of_picture={},
        found={"all": {"photos_trn": 60, "photos_tst": 15}},
    ),
    "D classes that are called like splits": Case(
        make.called_train,
        found={"all": {"bus": 20, "car": 20, "train": 20}},
        class_of_picture={"bus": 0, "car": 1, "train": 2},
        said=("the folder 'train'", "is taken for a class"),
    ),
    "D splits without classes": Case(
        make.flat_splits, refused="lie in no folder of a class: sort them into a folder for each class"
    ),
    "D nothing to train on": Case(make.only_test, refused="has the splits test, but no 'train'"),
    "F None": Case(partial(make.words, labels=["None", "Some"]), **two("None", "Some")),
    "F leading zeros": Case(partial(make.words, labels=["01", "1"]), **two("01", "1")),
    "F a spy": Case(partial(make.words, labels=["007", "NA"]), **two("007", "NA")),
    "F spaces": Case(
        partial(make.words, labels=["cat", "Cat "]),
        said=("1 classes differ from others in capitals or spaces alone ('Cat ' and 'cat')",),
        **two("cat", "Cat "),
    ),
    "F booleans": Case(partial(make.words, labels=[True, False]), **two("True", "False")),
    "F numbers": Case(partial(make.words, labels=[10, 9]), **two("9", "10")),
    "F no label": Case(partial(make.words, labels=["a", ""]), refused="20 of 40 rows have no label"),
    "F no classes": Case(partial(make.words, labels=[0.5, 1.25]), refused="which are not classes"),
    "G metadata at the root": Case(make.root_metadata, found={"train": TWENTY, "test": dict.fromkeys(NAMES, 5)}),
    "G metadata for a part of the images": Case(partial(make.root_metadata, drop=2), refused="2 of 75 files in"),
    "G metadata for images that are not there": Case(
        partial(make.root_metadata, extra=["train/x/99.png"]), refused="(train/x/99.png): give each file one row"
    ),
    "G metadata without labels": Case(make.metadata_without_labels, found={"all": TWENTY}),
    "H absent classes": Case(
        make.absent,
        {"noise": 0.3},
        found={"all": dict.fromkeys(("c2", "c5", "c7"), 100)},
        said=("7 of 10 classes have no example and are left out (c0, c1, c3, …)",),
        class_of_picture={},
    ),
    "H rare classes": Case(
        make.rare,
        {"noise": 0.3},
        found={"all": {f"c{k}": 50 if k < 20 else 3 for k in range(40)}},
        said=("20 of 40 classes have too few examples for an even share of the meta set (c20 has 2",),
        class_of_picture={},
    ),
    "H a class of one": Case(
        make.single,
        {"noise": 0.3},
        found={"all": {"ant": 20, "bee": 20, "cow": 1}},
        said=("1 of 3 classes have no example in the test split ('cow')", "(cow has 1): others make up for it"),
    ),
    "H a single class": Case(make.one_class, refused="the examples are of one class ('ant')"),
    "H one example of each": Case(make.one_each, refused="none can be set apart to test on: give a set to test on"),
    "J a stray table": Case(
        make.stray_table, found={"all": TWENTY}, said=("name none of its images and are not read (classes.csv)",)
    ),
    "J a table of paths": Case(make.table_of_paths, found={"all": TWENTY}),
    "J a table of paths, named": Case(make.table_of_paths, {"image_column_name": "image"}, found={"all": TWENTY}),
    "K base64": Case(make.base64_table, found={"all": TWENTY}),
    "K a data URI": Case(partial(make.base64_table, head="data:image/png;base64,"), found={"all": TWENTY}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_is_what_was_written(tmp_path, caught, name):
    case = CASES[name]
    folder = tmp_path / "data"
    case.write(folder)
    places = {
        key: f"{folder}{value}" if isinstance(value, str) and value.startswith("/") else value
        for key, value in case.arguments.items()
    }
    arguments = places if "train_dir" in places else {"name": str(folder), **places}
    if case.refused is not None:
        with pytest.raises(ValueError) as error:
            load_noisy_dataset(**arguments)
        assert case.refused in str(error.value) and "\n" not in str(error.value)
        return
    data = load_noisy_dataset(**arguments)
    column = "clean_label" if case.arguments.get("noise") else "label"
    counts = {split: names_in(dataset, column) for split, dataset in data.items()}
    counts["all"] = sum((counts[split] for split in ("train", "test", "meta") if split != "meta" or column != "label"
                         if split in counts), Counter())  # fmt: skip
    for split, expected in case.found.items():
        assert counts[split] == expected, split
    for sentence in case.said:
        assert sentence in caught.text
    for split, dataset in data.items() if case.class_of_picture else ():
        for picture, label in zip(dataset["image"], dataset[column], strict=True):
            assert case.class_of_picture[dataset.features["label"].names[label]] == class_of(picture), split


def names_in(dataset, column):
    return Counter(dataset.features[column].int2str(dataset[column][:]))


def test_every_example_is_judged_where_labels_are(tmp_path):
    """What the label report is of: no test split is set apart, and a single class or a rare one will do."""
    for write, expected in ((make.flat, TWENTY), (make.one_class, {"ant": 20}), (make.single, {**TWENTY, "cow": 1})):
        folder = tmp_path / write.__name__
        write(folder)
        examples = load_examples("train", name=str(folder))
        assert names_in(examples, "label") == expected and examples["index"][:] == list(range(len(examples)))
    with pytest.raises(ValueError, match="split 'test' is not there: choose one of train"):
        load_examples("test", name=str(folder))
