"""The training set as its loader reads it: rows, the form of trusted examples, labels, and workers that read it."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from famus_hf.data.inputs.training_rows import TrainingRows


def examples(size, first, **columns):
    return [{"x": float(first + row), "labels": row % 3, **columns} for row in range(size)]


def test_rows_count_on_from_the_training_set_to_the_chosen_trusted_examples():
    rows = TrainingRows(examples(4, 0), examples(5, 10), [1, 4])
    assert len(rows) == 6
    assert [rows[row]["row"] for row in range(6)] == list(range(6))
    assert [example["x"] for example in rows.__getitems__([5, 0, 4, 3, 5])] == [14, 0, 11, 3, 14]
    assert rows.__getitems__([]) == []


def test_a_trusted_example_has_what_a_training_example_has_and_nothing_else():
    train = examples(3, 0, index=7, clean_label=2)
    of_trusted = TrainingRows(train, examples(2, 10, note="of the meta set", index=1000), [0, 1])[4]
    assert of_trusted == {"x": 11.0, "labels": 1, "index": -1, "clean_label": 1, "row": 4}
    bare = TrainingRows(examples(3, 0), examples(2, 10, index=1000), [1])[3]
    assert set(bare) == {"x", "labels", "row"}
    named = TrainingRows([{"x": 0.0, "label": 1, "clean_label": 0}], [{"x": 1.0, "label": 2}], [0])[1]
    assert named["clean_label"] == 2
    known = TrainingRows(train, examples(2, 10, clean_label=0), [1])[3]
    assert known["clean_label"] == 0, "what it says of itself"


def test_examples_may_be_objects():
    train = [SimpleNamespace(x=row, labels=0) for row in range(3)]
    assert TrainingRows(train, train, [2])[3] == {"x": 2, "labels": 0, "row": 3}


def test_labels_are_told_where_both_sets_tell_them():
    known = [Dataset.from_list(examples(size, 0)) for size in (4, 5)]
    assert TrainingRows(known[0], known[1], [4, 2]).labels == [0, 1, 2, 0, 1, 2]
    assert TrainingRows(known[0]).labels == [0, 1, 2, 0]
    assert TrainingRows(known[0], examples(5, 0), [1]).labels == TrainingRows(examples(4, 0)).labels == []
    as_tensors = known[0].with_format("torch")
    assert TrainingRows(as_tensors).labels == [0, 1, 2, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_batches_at_once_in_workers_too(workers):
    train = Dataset.from_list(examples(10, 0)).with_format("torch")
    rows = TrainingRows(train, train, [3])
    loader = DataLoader(rows, batch_size=4, num_workers=workers)
    batches = list(loader)
    assert torch.cat([batch["row"] for batch in batches]).tolist() == list(range(11))
    assert torch.cat([batch["x"] for batch in batches]).tolist() == [*range(10), 3]
