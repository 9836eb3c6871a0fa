"""Several processes: which flags accelerate's launcher gets, and the installed command that starts two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from famus_hf import load_famus
from famus_hf.cli import launch, train
from tests.helpers.command_line import SCRIPT

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_launcher_and_no_file(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "default_config.yaml"))


def config(path, kind, count):
    path.write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: '{kind}'\nnum_processes: {count}\nnum_machines: 1\n"
        "mixed_precision: 'no'\nuse_cpu: false\n"
    )
    return str(path)


def test_one_process_is_this_one(monkeypatch):
    monkeypatch.setattr(launch, "launch", lambda *arguments: pytest.fail("it starts another one"))
    assert train.start_processes(["--noise", "0.4"]) == ["--noise", "0.4"]
    assert train.start_processes(["--num_processes", "1", "--noise", "0.4"]) == ["--noise", "0.4"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert train.start_processes(["--num_processes=2"]) == []


@pytest.mark.parametrize("gpus", [0, 2])
def test_several_processes_have_a_gpu_each_or_share_the_cpu(monkeypatch, gpus):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: gpus)
    flags, argv = launch.launcher_flags(2, None, ["--noise", "0.4"])
    assert {"--multi_gpu", "--num_processes=2", "--num_machines=1"} <= set(flags) and "--cpu" not in flags
    assert argv == ["--noise", "0.4", *([] if gpus else ["--use_cpu"])]
    assert launch.launcher_flags(9, None, ["--use_cpu=true"])[1] == ["--use_cpu=true"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num_processes", "two"], "--num_processes 'two' is no number of processes"),
        (["--num_processes", "0"], "--num_processes '0' is no number of processes"),
        (["--num_processes"], "--num_processes needs a value"),
        (["--num_processes", "3"], "--num_processes 3 is more than the GPUs of this machine (2)"),
        (["--accelerate_config", "/nowhere.yaml"], "--accelerate_config /nowhere.yaml can't be read"),
    ],
)
def test_wrong_numbers_and_files_are_refused_in_one_sentence(monkeypatch, capsys, flags, sentence):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit) as end:
        train.main(flags, "famus-hf train")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(f"famus-hf train: error: {sentence}"), error


def test_files_of_accelerate_say_how_many_and_how(tmp_path, monkeypatch):
    sharded = config(tmp_path / "fsdp.yaml", "FSDP", 4)
    plain = config(tmp_path / "plain.yaml", "MULTI_CPU", 2)
    alone = config(tmp_path / "alone.yaml", "NO", 1)
    assert launch.launcher_flags(None, sharded, []) == (["--config_file", sharded, "--num_processes=4"], [])
    assert launch.launcher_flags(2, sharded, [])[0] == ["--config_file", sharded, "--num_processes=2"]
    flags, argv = launch.launcher_flags(None, plain, [])
    assert flags[:4] == ["--config_file", plain, "--multi_gpu", "--num_processes=2"], "which accelerate takes for one"
    assert argv == ([] if launch.torch.cuda.device_count() else ["--use_cpu"])
    assert launch.launcher_flags(None, alone, [])[0] == ["--config_file", alone]
    for file, expected in ((alone, None), (sharded, ["--config_file", sharded, "--num_processes=4"])):
        monkeypatch.setattr(launch, "default_config_file", file)
        assert launch.launcher_flags(None, None, []) == (expected, [])


def test_accelerate_launch_and_plain_python_say_the_same(tmp_path, capsys):
    flags = ["--dataset_name", "digit"]
    with pytest.raises(SystemExit) as end:
        train.main(flags)  # as scripts/run_famus.py does, whose process other tests start
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and said.startswith("run_famus.py: error: data set 'digit' is unknown")
    launched = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1", str(SCRIPT)]
    result = subprocess.run([*launched, *flags], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode != 0 and said in result.stderr.splitlines() and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip has put the package into, from a copy of the sources without what has been built."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(ROOT / "famus_hf", folder / "famus_hf", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(folder / "target"), str(folder)], check=True, timeout=300)
    return folder / "target"


def test_the_installed_command_trains_a_recipe_in_two_processes_that_leave_one_folder(installed, tmp_path):
    """Two steps from another folder, with the sources nowhere on the path."""
    (tmp_path / "quick.yaml").write_text("max_steps: 2\nnum_meta: 40\nmax_train_samples: 400\nlabel_report: false\n")
    flags = [
        "train", "--num_processes", "2", "--recipe", "table1-mwnet-cifar10", "--config", "quick.yaml",
        "--dataset_name", "digits", "--backbone", "tiny", "--noise", "0.4", "--max_eval_samples", "60",
        "--per_device_train_batch_size", "25", "--meta_batch_size", "25", "--plain_warmup_epochs", "0.1",
        "--disable_tqdm", "true", "--output_dir", "run",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(installed / "bin" / "famus-hf"), *flags], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("MW-Net + FaMUS  ") == 1
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["global_step"] == 2 and results["method"] == "MW-Net + FaMUS"
    assert load_famus(tmp_path / "run")[1] is not None
