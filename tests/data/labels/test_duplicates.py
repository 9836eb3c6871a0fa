"""Training examples that are copies of meta examples are left out or refused."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from famus_hf import FaMUSTrainer, load_noisy_dataset
from famus_hf.data.labels.duplicates import same_content
from tests.helpers.datasets import splits_of, texts
from tests.helpers.models import build_text_model, build_tokenizer, text_data
from tests.helpers.trainers import make_args


def test_training_images_that_are_copies_of_meta_images_are_left_out(monkeypatch):
    """An image twice in the source, once drawn for the meta set; a placeholder that is everywhere stays."""
    pixels = [np.full((4, 4, 3), value, np.uint8) for value in (*range(40), 0, *[200] * 8)]
    labels = [row % 2 for row in range(len(pixels))]
    features = Features({"image": Image(), "label": ClassLabel(names=list("ab"))})
    whole = Dataset.from_dict({"image": list(pixels), "label": labels}, features)
    monkeypatch.setattr(
        "famus_hf.data.sources.load_source.load_from_hub", lambda *arguments: {"train": whole, "test": whole}
    )
    sizes = {}
    for seed in range(30):
        data = load_noisy_dataset("user/set", noise=0.1, num_meta=6, seed=seed)
        kept = {bytes(np.asarray(image)) for image in data["train"]["image"]}
        meta = {bytes(np.asarray(image)) for image in data["meta"]["image"]} - {bytes(pixels[-1])}
        assert not kept & meta
        sizes[len(data["train"])] = seed
    assert set(sizes) == {42, 43}, "with some seeds the copy is in the meta set, and its twin is left out"


def test_what_is_there_three_times_is_a_copy_and_four_times_a_placeholder():
    train = Dataset.from_dict({"text": ["a", "b", "b", "b", "c", "c", "c", "c", "d"], "label": [0] * 9})
    assert same_content(train, Dataset.from_dict({"text": ["a", "b", "c"], "label": [0] * 3})) == [0, 1, 2, 3]


def test_copies_of_meta_examples_are_left_out_or_refused(tmp_path):
    table = text_data(40)
    table["text"] += ["sun and rain"] * 2
    table["label"] += ["wet"] * 2
    Dataset.from_dict(table).to_csv(str(tmp_path / "train.csv"))
    Dataset.from_dict(text_data(12, 1)).to_csv(str(tmp_path / "test.csv"))
    for seed in range(3):
        data = load_noisy_dataset(str(tmp_path), noise=0.2, num_meta=20, seed=seed)
        assert not set(data["train"]["text"]) & set(data["meta"]["text"])
    with pytest.raises(ValueError, match="training texts are also in the meta set, word for word"):
        FaMUSTrainer(
            build_text_model(), make_args(tmp_path), train_dataset=texts(40), meta_dataset=texts(40, 0, 1000),
            processing_class=build_tokenizer(),
        )  # fmt: skip


def test_without_a_meta_set_no_image_is_compared(monkeypatch):
    splits = splits_of([0, 1], [])
    monkeypatch.setattr("famus_hf.data.labels.duplicates._file_content", None)  # whoever looks at an image fails
    assert same_content(splits["train"], splits["test"]) == []
