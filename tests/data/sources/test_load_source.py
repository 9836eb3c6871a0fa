"""Data sets from the Hub, through the command line, against a Hub on the loopback interface."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from famus_hf.data.labels.noise_file import read_noise_file
from tests.helpers import clean_process
from tests.helpers.cifar_hub import cifar_files, superclass
from tests.helpers.loopback_hub import LoopbackHub

SCRIPT = Path(__file__).parents[3] / "scripts" / "run_famus.py"
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
    command = [sys.executable, str(SCRIPT), *FLAGS, "--output_dir", str(folder / "run"), *flags]
    return clean_process.run(command, env={**os.environ, **hub.environment(folder / "home")})


def test_a_hub_data_set_trains_with_its_class_names(hub_files, tmp_path):
    with LoopbackHub(hub_files) as hub:
        result = run(
            hub, tmp_path, "--dataset_name", "user/small", "--label_column_name", "fine_label", "--noise", "0.4"
        )
    assert result.returncode == 0, result.stderr[-3000:]
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
        "images can't be read",
    ),
}
RUN_ALL = """
import json, sys
from famus_hf.cli import run as run_famus
for case, flags in json.loads(sys.argv[1]).items():
    print("case", case, file=sys.stderr, flush=True)
    try:
        run_famus.main(flags)
        print("no error", file=sys.stderr)
    except SystemExit as end:
        print("code", end.code, file=sys.stderr)
"""


def test_wrong_hub_data_gets_one_sentence(hub_files, tmp_path):
    """All cases in one process, since starting one takes longer than they do."""
    common = [*FLAGS, "--dataset_name", "user/small", "--output_dir", str(tmp_path / "run")]
    cases = {case: [*common, *flags] for case, (flags, _) in WRONG.items()}
    with LoopbackHub(hub_files) as hub:
        command = [sys.executable, "-c", RUN_ALL, json.dumps(cases)]
        result = clean_process.run(command, env={**os.environ, **hub.environment(tmp_path / "home")})
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr[-3000:]
    parts = result.stderr.split("case ")[1:]
    assert [part.splitlines()[0] for part in parts] == list(WRONG)
    for part, (_, sentence) in zip(parts, WRONG.values(), strict=True):
        *_, error, code = part.strip().splitlines()
        assert error.startswith("run_famus.py: error: ") and sentence in error, part
        assert code == "code 2"


RECIPES = ("table1-mwnet-cifar10", "table1-mwnet-cifar100", "table1-l2r-cifar10", "table1-l2r-cifar100",
           "table2-mlc-cifar10")  # fmt: skip
START_RECIPES = f"""
import sys
from famus_hf.cli import run as run_famus
for recipe in {RECIPES!r}:
    run_famus.main(["--recipe", recipe, "--backbone", "tiny", "--max_steps", "3", "--per_device_train_batch_size", "8",
        "--num_meta", "100" if recipe.endswith("100") else "20", "--meta_batch_size", "8", "--lr_milestones", "1", "2",
        "--plain_warmup_epochs", "0.1", "--use_cpu", "--disable_tqdm", "true", "--max_eval_samples", "8",
        "--output_dir", f"{{sys.argv[1]}}/{{recipe}}"])
run_famus.main(["--dataset_name", "cifar100", "--noise", "0.5", "--noise_type", "asymmetric", "--meta_learner", "none",
    "--backbone", "tiny", "--max_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "--num_meta", "100",
    "--output_dir", f"{{sys.argv[1]}}/asymmetric"])
"""


def test_recipes_start_on_data_shaped_like_cifar(tmp_path):
    """Every recipe of this version, and asymmetric noise inside CIFAR-100's superclasses."""
    with LoopbackHub(cifar_files()) as hub:
        command = [sys.executable, "-c", START_RECIPES, str(tmp_path)]
        result = clean_process.run(command, env={**os.environ, **hub.environment(tmp_path / "home")}, timeout=400)
    assert result.returncode == 0, result.stderr[-3000:]
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


def test_a_converted_data_set_is_pushed_and_loads_by_name(tmp_path):
    with LoopbackHub(cifar_files()) as hub:
        script = SCRIPT.with_name("push_dataset.py")
        command = [sys.executable, str(script), "--dataset_name", "cifar10", "--noise", "0.4", "--num_meta", "20"]
        environment = {**os.environ, **hub.environment(tmp_path)}
        push = clean_process.run([*command, "--hub_dataset_id", "user/noisy"], env=environment)
        assert push.returncode == 0, push.stderr[-3000:]
        assert "pushed train (120), meta (20), test (20) to user/noisy" in push.stdout
        load = (
            "from famus_hf import load_noisy_dataset as load; a = load('user/noisy', clean_label_column_name="
            "'clean_label', label_column_name='label', num_meta=0); b = load('cifar10', noise=0.4, num_meta=20); "
            "print(a['train']['label'][:] == b['train']['label'][:], a['test']['label'][:] == b['test']['label'][:])"
        )
        loaded = clean_process.run([sys.executable, "-c", load], env=environment)
    assert loaded.stdout.split() == ["True", "True"], loaded.stderr[-3000:]
