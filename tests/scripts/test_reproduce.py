"""scripts/reproduce.py: the tables from one command, resumable, with plain training beside."""

import json
import re
import sys
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import pytest
import reproduce as script
from reproduce import rows_of as rows_of_table

from famus_hf.cli.arguments import parse_arguments
from famus_hf.cli.measurements import StepTimer
from tests.helpers import clean_process

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.py"
SMALL = [
    "--dataset_name", "digits", "--backbone", "tiny", "--num_train", "300", "--num_meta", "30", "--noise", "pair:0.4",
    "--max_steps", "12", "--per_device_train_batch_size", "25", "--use_cpu", "--max_eval_samples", "50",
]  # fmt: skip


def reproduce(folder, *flags):
    command = [sys.executable, str(SCRIPT), *SMALL, "--output_dir", str(folder), *flags]
    result = clean_process.run(command)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def rows_of(output):
    """First cell → line, of the lines of the table that hold figures."""
    lines = [line for line in output.splitlines() if re.match(r"\| [\w\-].* \| \d", line)]
    return {line.split(" | ")[0].lstrip("| "): line for line in lines}


@pytest.fixture
def jobs(monkeypatch):
    """Has what `--jobs` starts run in this process, one job after the other. Returns what was started."""
    started, turn = [], Lock()

    def run(command, env):
        with turn:
            assert command[:2] == [sys.executable, str(SCRIPT)] and env["OMP_NUM_THREADS"]
            started.append(command[2:])
            script.main(command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run))
    return started


def test_table_3_over_seeds_goes_on_where_it_stopped(tmp_path, capsys, jobs):
    names = ["plain training", "sampler, L_c + L_g"]
    flags = ["--table", "3", "--seeds", "0", "1", "--rows", *names]
    script.main([*SMALL, "--output_dir", str(tmp_path), *flags, "--jobs", "2"])
    assert sorted(job[-3] for job in jobs) == ["0", "1"] and all(job[-2:] == ["--noise", "pair:0.4"] for job in jobs)
    rows = rows_of(capsys.readouterr().out.rpartition("training examples\n")[2])
    assert list(rows) == names
    for row in rows.values():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert all(re.fullmatch(r"\d+\.\d ± \d+\.\d", cell) for cell in cells[1:3]) and cells[-1] == "2"
    file = tmp_path / "pair-0.4" / "sampler--l-c---l-g-1.json"
    assert (tmp_path / "pair-0.4" / "sampler--l-c---l-g-1" / "model.safetensors").is_file()
    results = json.loads(file.read_text())
    assert results["mean_active_layers"] > 0 and results["seed"] == 1
    assert results["plain_seconds_per_step"] > 0 and results["global_step"] == 12
    file.unlink()
    script.main([*SMALL, "--output_dir", str(tmp_path), *flags])
    again = capsys.readouterr().out
    assert re.findall(r"^=== (.*) →", again, re.MULTILINE) == ["pair:0.4, seed 1: sampler, L_c + L_g"]
    assert rows_of(again)["plain training"] == rows["plain training"]
    with pytest.raises(SystemExit) as ended:
        script.main([*SMALL, "--output_dir", str(tmp_path), *flags, "--learning_rate", "0.2"])
    assert ended.value.code == 2 and "is of a run with other settings" in capsys.readouterr().err


def test_table_of_fast_modes_has_the_faithful_step_beside_them():
    """All rows are settings that run_famus.py takes, and but for the first two they differ from the faithful one."""
    options = SimpleNamespace(table="speed")
    rows = {
        name: parse_arguments(["--dataset_name=digits", *flags])[2] for name, flags in rows_of_table(options).items()
    }
    faithful, plain = rows.pop("top 4, fixed"), rows.pop("plain training")
    assert plain.meta_learner == "none" and rows.pop("MW-Net, all layers (L_c)").candidate_layers == "all"
    departures = ("reuse_virtual_gradient", "virtual_scope", "meta_interval", "meta_batch_size", "derivative")
    seen = {tuple(getattr(args, name) for name in departures) for args in [faithful, *rows.values()]}
    assert len(seen) == len(rows) + 1 == 9
    assert all(args.candidate_layers == "4" and args.layer_sampler == "all" for args in [faithful, *rows.values()])


def test_times_of_a_step_hold_their_share_of_the_meta_step():
    """A meta step of 3.65 s among nine plain ones of 1 s: 1.265 s a step, whatever hiccup one of ten cycles has."""
    timer = StepTimer()
    timer.cycle = 10
    assert timer.seconds_per_step is None
    timer.seconds = [1.0] * 3
    assert timer.seconds_per_step == 1
    timer.seconds = [3.65, *[1.0] * 9] * 10 + [3.65, 1.0]
    timer.seconds[15] = 100.0
    assert timer.seconds_per_step == pytest.approx(1.265)
    assert script.trimmed_mean(timer.per_step) == pytest.approx(1.265)


def test_table_4_compares_samplers(tmp_path):
    flags = ["--blocks", "3", "--random_layers", "2", "--rows", "block 3", "random, s = 2", "top 4, fixed"]
    rows = rows_of(reproduce(tmp_path, "--table", "4", "--seeds", "0", *flags))
    assert {name: row.split("|")[-4].strip() for name, row in rows.items()} == {
        "block 3": "5.0", "random, s = 2": "2.0", "top 4, fixed": "4.0",
    }  # fmt: skip


def test_the_table_of_two_networks_uses_no_clean_label_and_goes_on_where_it_stopped(tmp_path, capsys):
    rows = ["plain training, one network", "two networks, FaMUS (K = 4)"]
    flags = [
        "--table", "two-networks", "--dataset_name", "digits", "--backbone", "tiny", "--num_train", "300",
        "--seeds", "0", "--noise", "pair:0.4", "--num_train_epochs", "2", "--plain_warmup_epochs", "1", "--use_cpu",
        "--max_eval_samples", "50", "--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "records"),
    ]  # fmt: skip
    script.main([*flags, "--rows", *rows])
    first = rows_of(capsys.readouterr().out)
    assert list(first) == rows
    for line in first.values():
        assert re.fullmatch(r"\d+\.\d \(\d+\.\d\)", line.strip("|").split("|")[1].strip())
    records = [json.loads(file.read_text()) for file in sorted((tmp_path / "records" / "pair-0.4").glob("*.json"))]
    assert [record["meta_set"] for record in records] == [None, "pseudo-clean"]
    assert [record["global_step"] for record in records] == [6, 6], "as many steps with one network as with two"
    script.main([*flags, "--rows", *rows])
    again = capsys.readouterr().out
    assert "===" not in again and rows_of(again) == first


def test_rows_of_two_networks_differ_in_the_method_alone():
    rows = rows_of_table(SimpleNamespace(table="two-networks"))
    found = {}
    for name, flags in rows.items():
        networks, _, args = parse_arguments(["--dataset_name=digits", "--meta_batch_size=9", *flags])
        found[name] = (networks.two_networks, args.meta_learner, args.layer_sampler)
        assert args.per_device_train_batch_size * (1 + networks.two_networks) == 100
    assert len(set(found.values())) == len(rows) == 5
