"""Columns are found or named, and classes are the same in all splits."""

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from famus_hf.data.sources.columns import Columns, with_shared_classes, with_standard_columns
from tests.helpers.hostile import refused


def rows(**columns):
    images = [PILImage.new("RGB", (4, 4), (i, 0, 0)) for i in range(3)]
    features = Features({"img": Image(), **{name: feature for name, (feature, _) in columns.items()}})
    return Dataset.from_dict({"img": images, **{name: values for name, (_, values) in columns.items()}}, features)


def test_columns_are_found_or_named():
    fine, coarse = (ClassLabel(names=list("abc")), [0, 1, 2]), (ClassLabel(names=list("xy")), [0, 1, 0])
    found = with_standard_columns(rows(fine=fine), Columns())
    assert set(found.column_names) == {"image", "label"} and found["label"][:] == [0, 1, 2]
    with pytest.raises(ValueError, match="2 columns of the data set could be the label column"):
        with_standard_columns(rows(fine=fine, coarse=coarse), Columns())
    named = Columns(label="coarse", superclass="fine")
    assert with_standard_columns(rows(fine=fine, coarse=coarse), named)["label"][:] == [0, 1, 0]
    with pytest.raises(ValueError, match="label column 'labels' is not in the data set, which has img, fine"):
        with_standard_columns(rows(fine=fine), Columns(label="labels"))
    with pytest.raises(ValueError, match="not an image"):
        with_standard_columns(rows(fine=fine), Columns(image="fine", label="img"))
    with pytest.raises(ValueError, match="can't be both the image and the label column"):
        with_standard_columns(rows(fine=fine), Columns(image="fine", label="fine"))
    for role in ("clean_label", "superclass"):
        with pytest.raises(ValueError, match=f"'fine' can't be both the label and the {role} column"):
            with_standard_columns(rows(fine=fine), Columns(label="fine", **{role: "fine"}))
    texts = rows(text=(Value("string"), list("uvw")), label=(Value("int64"), [0, 1, 0])).remove_columns("img")
    assert with_standard_columns(texts, Columns()).column_names == ["text", "label"]
    both = texts.add_column("title", list("xyz"))
    with pytest.raises(ValueError, match=r"2 columns of the data set could be the text column \(text, title\)"):
        with_standard_columns(both, Columns())
    assert with_standard_columns(both, Columns(text="title"))["text"][:] == list("xyz")


def test_classes_are_the_same_in_all_splits_and_in_clean_labels():
    train = rows(label=(Value("int64"), [10, 2, 0]), clean_label=(Value("int64"), [2, 2, 1]))
    test = rows(label=(Value("int64"), [2, 10, 2]))
    splits = with_shared_classes({"train": train, "test": test})
    assert splits["train"].features["label"].names == ["0", "1", "2", "10"]
    assert splits["train"].features == {**splits["train"].features, "clean_label": splits["test"].features["label"]}
    assert (splits["train"]["label"][:], splits["train"]["clean_label"][:]) == ([3, 2, 0], [2, 2, 1])
    assert splits["test"]["label"][:] == [2, 3, 2]
    named = rows(
        label=(ClassLabel(names=["cat", "dog"]), [0, 1, 1]), clean_label=(ClassLabel(names=["dog", "cat"]), [1, 0, 1])
    )
    numbered = rows(label=(ClassLabel(names=["cat", "dog"]), [0, 1, 1]), clean_label=(Value("int64"), [1, 0, 1]))
    splits = with_shared_classes({"train": numbered})
    assert splits["train"].features["clean_label"].names == ["cat", "dog"], "bare numbers count in the labels' names"
    assert splits["train"]["clean_label"][:] == [1, 0, 1]
    splits = with_shared_classes({"train": named})
    assert splits["train"]["label"][:] == [0, 1, 1] and splits["train"]["clean_label"][:] == [0, 1, 0]


@pytest.mark.parametrize(
    "feature, values, sentence",
    [
        (Value("float32"), [0.5, 1.0, 2.0], "not classes"),
        (ClassLabel(names=list("ab")), [0, -1, 1], "hold -1"),
        (Value("int64"), [0, -100, 1], "hold -100"),
        (Value("string"), ["a", None, "b"], "1 of 3 rows have no label"),
    ],
)
def test_labels_that_are_not_classes_are_refused(feature, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        with_shared_classes({"train": rows(label=(feature, values))})


def test_text_columns_and_pairs_are_found_or_named():
    table = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [0], "idx": [7]})
    found = with_standard_columns(table, Columns())
    assert found.column_names == ["text", "text_pair", "label"] and found[0]["text_pair"] == "b"
    assert with_standard_columns(table, Columns(text="sentence2")).column_names == ["text", "label"]
    swapped = with_standard_columns(table, Columns(text="sentence2", text_pair="sentence1"))
    assert swapped[0] == {"text": "b", "text_pair": "a", "label": 0}
    refused("text column", with_standard_columns, table.add_column("title", ["c"]), Columns())
    refused("can't be both texts of a pair", with_standard_columns, table, Columns(text="idx", text_pair="idx"))
    refused("needs the first text", with_standard_columns, table, Columns(text_pair="sentence1"))
    refused("is not text", with_standard_columns, table, Columns(text="sentence1", text_pair="idx"))
    refused("text and audio column contradict", with_standard_columns, table, Columns(text="idx", audio="idx"))
