"""Generated folders and tables are read as they were written: each file in its split and class, or one sentence."""

import csv
import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from famus_hf.data.load import load_examples
from famus_hf.data.sources.class_folders import SPLIT_WORD
from famus_hf.errors import DataError

# Not "/" or NUL, which no name has, a first dot, which hides it, or what is no UTF-8.
LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/")
ODD_NAMES = ["[ab]", "a*b", "c?", "__x__", "None", "01", "1", "a b", " a", "é", "ß", "train", "test", "val-2", "dev",
             "a.png", "README", "label", "metadata", "{}", "%20", "'", '"', "\\", "-", "~", "Test_tube"]  # fmt: skip
NAMES = (st.sampled_from(ODD_NAMES) | st.text(LETTERS, min_size=1, max_size=12)).filter(
    lambda name: not name.startswith(".") and len(name.encode()) < 100
)
SPLITS = [
    ("train", "test"),
    ("Training", "val"),
    ("seg_train", "seg_test"),
    ("1-train", "2-eval"),
    ("trainset", "testset"),
]
SLOW = [pytest.param(30, id="30"), pytest.param(300, id="300", marks=pytest.mark.slow)]


@st.composite
def layouts(draw):
    """Paths → (split, class), and whether names leave anything open."""
    names = draw(st.lists(NAMES, min_size=2, max_size=4, unique_by=str.casefold))
    splits = draw(st.none() | st.sampled_from(SPLITS))
    wrappers = draw(st.lists(st.sampled_from(["data", "photos 1", "x"]), max_size=2))
    sessions = draw(st.sampled_from([[], ["2021", "2022"], ["left", "right", "top"]]))
    above = draw(st.booleans()) and not sessions
    ending = draw(st.sampled_from([".png", ".PNG", ".bmp", ".gif"]))
    files = {}
    for place, split in enumerate(splits or ("train",)):
        for number, name in enumerate(names):
            inner = [f"group {number}", name] if above else [name]
            for session in sessions or [None]:
                folders = [*wrappers, *([] if splits is None else [split]), *inner, *([session] if session else [])]
                for file in range(draw(st.integers(1, 2))):
                    files["/".join([*folders, f"{file}{ending}"])] = (("train", "test")[place], name)
    is_open = any(SPLIT_WORD.search(name.lower()) for name in names)
    return files, is_open


def write(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    for number, path in enumerate(files):
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("L", (4, 4), number).save(place)


@pytest.mark.parametrize("count", SLOW)
def test_folders_are_read_as_they_were_written(tmp_path, count):
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(layouts())
    def check(layout):
        files, is_open = layout
        folder = tmp_path / "layout"
        write(folder, files)
        found = {}
        try:
            for split in sorted({split for split, _ in files.values()}):
                examples = load_examples(split, name=os.fspath(folder))
                names = examples.features["label"].names
                for picture, label in zip(examples["image"], examples["label"], strict=True):
                    found[picture.convert("L").getpixel((0, 0))] = (split, names[label])
        except DataError as error:
            assert is_open, error
            assert "\n" not in str(error)
            return
        if not is_open or len(found) == len(files):
            assert found == dict(enumerate(files.values()))

    check()


LABELS = st.one_of(
    st.lists(st.sampled_from(["01", "1", "001", "None", "NA", "null", "nan", "", " ", "True", "-0", "1e3", "0x1", "٣"])
             | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6), min_size=2, max_size=6),
    st.lists(st.integers(0, 2**40), min_size=2, max_size=6),
    st.lists(st.booleans(), min_size=2, max_size=6),
)  # fmt: skip


def write_table(folder, kind, labels):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    texts = [f"text {row}" for row in range(len(labels))]
    path = folder / f"data.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([("text", "label"), *zip(texts, labels, strict=True)])
    elif kind == "jsonl":
        rows = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
        path.write_text("\n".join(rows), encoding="utf-8")
    else:
        pq.write_table(pa.table({"text": texts, "label": labels}), path)


@pytest.mark.parametrize("count", SLOW)
def test_labels_of_tables_are_read_as_they_were_written(tmp_path, count):
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(["csv", "tsv", "jsonl", "parquet"]), LABELS)
    @example("csv", ["1", "nan"])  # which could be numbers
    @example("csv", ["inf", "1.5"])
    def check(kind, labels):
        write_table(tmp_path / "table", kind, labels)
        try:
            examples = load_examples("train", name=os.fspath(tmp_path / "table"))
        except DataError as error:
            assert "\n" not in str(error)
            assert "have no label" in str(error) and "" in labels, error
            return
        assert examples.features["label"].int2str(examples["label"][:]) == [str(label) for label in labels]
        assert examples["text"][:] == [f"text {row}" for row in range(len(labels))]

    check()
