"""Transitions of a file: taken as they are written, and refused in one sentence where they are of something else."""

import json

import pytest

from famus_hf.data.labels.transitions_file import read_transitions

NAMES = ["cat", "dog"]
MATRIX = [[0.75, 0.25], [0, 1]]


def test_a_file_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "transitions.json"
    path.write_text(json.dumps({"class_names": NAMES, "transitions": MATRIX, "source": "two annotators"}))
    assert read_transitions(path, NAMES).tolist() == MATRIX


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "can't be read as JSON"),
        ("[" * 100_000, "can't be read as JSON"),
        ([MATRIX], "must hold an object with class_names"),
        ({"class_names": NAMES}, "must hold an object with class_names"),
        ({"transitions": MATRIX}, "must hold an object with class_names"),
        ({"class_names": NAMES, "transitions": [[1, 0], [1]]}, "a list of equal rows"),
        ({"class_names": NAMES, "transitions": [["a", "b"], ["c", "d"]]}, "a list of equal rows"),
        ({"class_names": NAMES[::-1], "transitions": MATRIX}, "classes dog, cat and the data of cat, dog: order"),
        ({"class_names": [1, {}], "transitions": MATRIX}, "of the classes 1, {} and the data of cat, dog"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(tmp_path, content, words):
    path = tmp_path / "transitions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=words):
        read_transitions(path, NAMES)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="can't be read as JSON: FileNotFoundError"):
        read_transitions(tmp_path / "none.json", NAMES)
