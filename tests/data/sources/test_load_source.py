"""Data sets from the Hub, through the command line, against a Hub on the loopback interface."""

import io
import json

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from famus_hf.data.labels.noise_file import read_noise_file
from tests.helpers.cifar_hub import cifar_files, superclass

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


@pytest.fixture(scope="module", autouse=True)
def repositories(hub):
    hub.files |= {
        "user/small": {"data/train-00000.parquet": parquet(80), "data/test-00000.parquet": parquet(24)},
        "user/broken": {"data/train-00000.parquet": parquet(80, broken=(7, 50))},
        **cifar_files(),
    }


def test_a_hub_data_set_trains_with_its_class_names(client, tmp_path):
    data = ["--dataset_name", "user/small", "--label_column_name", "fine_label", "--noise", "0.4"]
    client.done("run_famus", argv=[*FLAGS, *data, "--output_dir", str(tmp_path / "run")])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert list(config["id2label"].values()) == list("abcdef")
    assert "user/small" in (tmp_path / "run" / "README.md").read_text()


WRONG = {
    "two label columns": (["--noise", "0.4"], "2 columns of the data set could be the label column"),
    "misspelt": (
        ["--noise", "0.4", "--label_column_name", "lable"],
        "label column 'lable' is not in the data set, which has img, fine_label, coarse_label, score",
    ),
    "floats": (["--noise", "0.4", "--label_column_name", "score"], "which are not classes"),
    "no clean labels": (["--label_column_name", "fine_label"], "not known to be clean"),
    "not there": (["--dataset_name", "user/none", "--noise", "0.4"], "'user/none' could not be loaded"),
    "broken images": (
        ["--dataset_name", "user/broken", "--noise", "0.4", "--label_column_name", "fine_label"],
        "2 of 58 images of the training set can't be read",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_hub_data_gets_one_sentence(client, tmp_path, case):
    flags, sentence = WRONG[case]
    answer = client.call(
        "run_famus", argv=[*FLAGS, "--dataset_name", "user/small", "--output_dir", str(tmp_path), *flags]
    )
    assert answer.error == "SystemExit: 2" and "Traceback" not in answer.printed, answer.printed
    error = answer.printed.strip().splitlines()[-1]
    assert error.startswith("run_famus.py: error: ") and sentence in error


RECIPES = ("table1-mwnet-cifar10", "table1-mwnet-cifar100", "table1-l2r-cifar10", "table1-l2r-cifar100",
           "table2-mlc-cifar10")  # fmt: skip
STEPS = ["--backbone", "tiny", "--per_device_train_batch_size", "8", "--use_cpu", "--disable_tqdm", "true"]


def test_recipes_start_on_data_shaped_like_cifar(client, tmp_path):
    """Every recipe of this version, and asymmetric noise inside CIFAR-100's superclasses."""
    for recipe in RECIPES:
        client.done("run_famus", argv=[
            *STEPS, "--recipe", recipe, "--max_steps", "3", "--meta_batch_size", "8", "--lr_milestones", "1", "2",
            "--num_meta", "100" if recipe.endswith("100") else "20", "--plain_warmup_epochs", "0.1",
            "--max_eval_samples", "8", "--output_dir", str(tmp_path / recipe),
        ])  # fmt: skip
    client.done("run_famus", argv=[
        *STEPS, "--dataset_name", "cifar100", "--noise", "0.5", "--noise_type", "asymmetric", "--meta_learner", "none",
        "--max_steps", "2", "--num_meta", "100", "--output_dir", str(tmp_path / "asymmetric"),
    ])  # fmt: skip
    for recipe in RECIPES:
        results = json.loads((tmp_path / recipe / "all_results.json").read_text())
        assert results["global_step"] == 3 and results["protocol"] == "clean" and results["meta_set"] == "clean"
    noise = read_noise_file(tmp_path / "asymmetric" / "noise.parquet")
    moved = noise.labels != noise.clean_labels
    assert 0.4 < moved.mean() < 0.6
    assert (superclass(noise.labels) == superclass(noise.clean_labels)).all()
    ahead = [fine for fine in range(100) if superclass(fine) == superclass(noise.clean_labels[moved][0])]
    place = ahead.index(noise.clean_labels[moved][0])
    assert noise.labels[moved][0] == ahead[(place + 1) % len(ahead)]
    card = (tmp_path / "asymmetric" / "README.md").read_text()
    assert "uoft-cs/cifar100" in card and "asymmetric, 50 %" in card


LOAD = """
from famus_hf import load_noisy_dataset
columns = {"clean_label_column_name": "clean_label", "label_column_name": "label"}
found = load_noisy_dataset("user/noisy", **columns, num_meta=0)
expected = load_noisy_dataset("cifar10", noise=0.4, num_meta=20)
print(*(found[split]["label"][:] == expected[split]["label"][:] for split in ("train", "test")))
"""


def test_a_converted_data_set_is_pushed_and_loads_by_name(client):
    argv = ["--dataset_name", "cifar10", "--noise", "0.4", "--num_meta", "20", "--hub_dataset_id", "user/noisy"]
    pushed = client.done("push_dataset", argv=argv)
    assert "pushed train (120), meta (20), test (20) to user/noisy" in pushed.printed
    assert client.done("execute", code=LOAD).output.split() == ["True", "True"]
