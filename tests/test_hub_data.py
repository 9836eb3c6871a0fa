"""Data sets from the Hub, through the command line, against a Hub on the loopback interface."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from loopback_hub import LoopbackHub
from PIL import Image as PILImage

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_famus.py"
FLAGS = [
    "--num_train_epochs", "1", "--per_device_train_batch_size", "10", "--use_cpu", "--num_meta", "6", "--disable_tqdm",
    "true", "--backbone", "tiny",
]  # fmt: skip


def parquet(size, broken=()):
    """A small set shaped like CIFAR-100: `img`, `fine_label`, `coarse_label`, and a column of floats."""
    images = []
    for row in range(size):
        file = io.BytesIO()
        PILImage.new("RGB", (8, 8), (40 * (row % 6), row, size)).save(file, "PNG")
        images.append({"bytes": b"GIF?" if row in broken else file.getvalue(), "path": None})
    features = Features({
        "img": Image(),
        "fine_label": ClassLabel(names=list("abcdef")),
        "coarse_label": ClassLabel(names=list("xy")),
        "score": Value("float32"),
    })  # fmt: skip
    labels = [row % 6 for row in range(size)]
    columns = {"img": images, "fine_label": labels, "coarse_label": [label % 2 for label in labels]}
    dataset = Dataset.from_dict({**columns, "score": [0.5] * size}, features=features)
    file = io.BytesIO()
    dataset.to_parquet(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def hub_files():
    return {
        "user/small": {"data/train-00000.parquet": parquet(80), "data/test-00000.parquet": parquet(24)},
        "user/broken": {"data/train-00000.parquet": parquet(80, broken=(7, 50))},
    }


def run(hub, folder, *flags):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *FLAGS, "--output_dir", str(folder / "run"), *flags],
        env={**os.environ, **hub.environment(folder / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_hub_data_set_trains_with_its_class_names(hub_files, tmp_path):
    with LoopbackHub(hub_files) as hub:
        result = run(
            hub, tmp_path, "--dataset_name", "user/small", "--label_column_name", "fine_label", "--noise", "0.4"
        )
    assert result.returncode == 0, result.stderr[-3000:]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert list(config["id2label"].values()) == list("abcdef")
    assert "user/small" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--dataset_name", "user/small", "--noise", "0.4"], "2 columns of the data set could be the label column"),
        (
            ["--dataset_name", "user/small", "--noise", "0.4", "--label_column_name", "lable"],
            "label column 'lable' is not in the data set, which has img, fine_label, coarse_label, score",
        ),
        (["--dataset_name", "user/small", "--noise", "0.4", "--label_column_name", "score"], "which are not classes"),
        (["--dataset_name", "user/small", "--label_column_name", "fine_label"], "not known to be clean"),
        (["--dataset_name", "user/none", "--noise", "0.4"], "'user/none' could not be loaded"),
        (
            ["--dataset_name", "user/broken", "--noise", "0.4", "--label_column_name", "fine_label"],
            "images can't be read",
        ),
    ],
)
def test_wrong_hub_data_gets_one_sentence(hub_files, tmp_path, flags, sentence):
    with LoopbackHub(hub_files) as hub:
        result = run(hub, tmp_path, *flags)
    assert result.returncode != 0
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("run_famus.py: error: ") and sentence in error, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
