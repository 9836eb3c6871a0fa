"""scripts/reproduce.py: the tables from one command, resumable, with plain training beside."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reproduce as script
from experiments import no_harm_table as no_harm
from reproduce import rows_of as rows_of_table
from scipy.stats import t as student

from famus_hf import load_noisy_dataset
from famus_hf.cli.arguments import parse_arguments
from famus_hf.cli.measurements import StepTimer
from famus_hf.models.imagenet_weights import PACKAGE as IMAGENET
from tests.helpers import clean_process

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.py"
SMALL = [
    "--dataset_name", "digits", "--backbone", "tiny", "--num_train", "300", "--num_meta", "30", "--noise", "pair:0.4",
    "--max_steps", "12", "--per_device_train_batch_size", "25", "--use_cpu", "--max_eval_samples", "50",
]  # fmt: skip


def rows_of(output):
    """First cell → line, of the lines of the table that hold figures."""
    lines = [line for line in output.splitlines() if re.match(r"\| [\w\-].* \| \d", line)]
    return {line.split(" | ")[0].lstrip("| "): line for line in lines}


def test_table_3_over_seeds_goes_on_where_it_stopped(tmp_path, capsys, in_this_process):
    names = ["plain training", "sampler, L_c + L_g"]
    flags = ["--table", "3", "--seeds", "0", "1", "--rows", *names]
    script.main([*SMALL, "--output_dir", str(tmp_path), *flags, "--jobs", "2"])
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
    assert re.findall(r"^=== (.*) →", again, re.MULTILINE) == ["sampler, L_c + L_g"]
    assert rows_of(again)["plain training"] == rows["plain training"]
    with pytest.raises(SystemExit) as ended:
        script.main([*SMALL, "--output_dir", str(tmp_path), *flags, "--learning_rate", "0.2"])
    assert ended.value.code == 2 and "is of a run with other flags" in capsys.readouterr().err
    labels = tmp_path / "pair-0.4" / "plain-training-0" / "noise.parquet"
    shutil.copy(tmp_path / "pair-0.4" / "plain-training-1" / "noise.parquet", labels)
    with pytest.raises(SystemExit):
        script.main([*SMALL, "--output_dir", str(tmp_path), *flags])
    assert "were trained on different examples or labels" in capsys.readouterr().err


def test_what_every_run_would_fail_by_is_said_once_before_any_is_started(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "train_missing", lambda *settings: pytest.fail("a run was started"))
    for flags, words in ((["--dataset_name", str(tmp_path)], str(tmp_path)), (["--epochs", "3"], "--epochs")):
        with pytest.raises(SystemExit):
            script.main([*SMALL, "--table", "3", "--output_dir", str(tmp_path / "none"), *flags])
        assert words in capsys.readouterr().err


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


def test_table_4_compares_samplers_and_the_script_trains_in_processes_of_its_own(tmp_path, capsys, in_this_process):
    flags = ["--table", "4", "--seeds", "0", "--blocks", "3", "--random_layers", "2", "--output_dir", str(tmp_path)]
    result = clean_process.run([sys.executable, str(SCRIPT), *SMALL, *flags, "--rows", "block 3"])
    assert result.returncode == 0, result.stderr[-3000:]
    assert "=== block 3 →" in (tmp_path / "console.log").read_text() and list(rows_of(result.stdout)) == ["block 3"]
    script.main([*SMALL, *flags, "--rows", "block 3", "random, s = 2", "top 4, fixed"])
    printed = capsys.readouterr().out
    assert re.findall(r"^=== (.*) →", printed, re.MULTILINE) == ["random, s = 2", "top 4, fixed"]
    rows = rows_of(printed)
    assert {name: row.split("|")[-4].strip() for name, row in rows.items()} == {
        "block 3": "5.0", "random, s = 2": "2.0", "top 4, fixed": "4.0",
    }  # fmt: skip


def test_the_table_of_two_networks_uses_no_clean_label_and_goes_on_where_it_stopped(tmp_path, capsys, in_this_process):
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


FAST_MODES = [
    "speed", "--show", "--image_size=14", "--augmentation=none", "--learning_rate=0.2", "--lr_scheduler_type=cosine",
    "--weight_decay=0.0005", "--num_train_epochs=8", "--meta_lr_schedule=constant",
]  # fmt: skip
ONE_SEED = ["MW-Net, all layers (L_c)", "top 4, meta batch n/4", "top 4, finite differences"]


@pytest.mark.parametrize(
    "flags, card, one_seed",
    [
        (FAST_MODES, "fashion-mnist-fast-modes", ONE_SEED),
        (["4", "--rows", "plain training"], "fashion-mnist-ablations", []),
        (["two-networks", "--rows", "DivideMix", "--seeds", "1", "2", "3"], "fashion-mnist-two-networks", []),
    ],
)
def test_commands_of_cards_print_their_figures_again_and_train_nothing(
    flags, card, one_seed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(script, "train_missing", lambda jobs, *others: dict.fromkeys(jobs))
    folders = ["--output_dir", str(tmp_path / "none"), "--results_dir", str(SCRIPT.parents[1] / "model_cards" / card)]
    script.main(["--table", *flags, *folders])
    rows = rows_of(capsys.readouterr().out)
    seeds = {name: int(row.split("|")[-2]) for name, row in rows.items()}
    assert len(rows) > 3 and seeds == {name: 1 if name in one_seed else 3 for name in rows}


# ---- The table no-harm ----


def of_seeds(*accuracies, best=None, estimate=0.4, true=0.4):
    """Records of a row, one for each seed from 0 on; accuracies in %."""
    return [
        {"eval_accuracy": last / 100, "best_eval_accuracy": (best or last) / 100, "train_seconds_per_step": 0.02,
         "estimated_noise_rate_by_label_report": estimate, "realised_noise_rate": true, "seed": seed,
         "wrong_label_average_precision": 0.9}
        for seed, last in enumerate(accuracies)
    ]  # fmt: skip


def test_the_table_no_harm_goes_on_where_it_stopped_and_keeps_what_it_needs(tmp_path, capsys, in_this_process):
    cell, rows = "untrusted-pair-40", ["plain", "MW-Net", "oracle"]
    flags = [
        "--table", "no-harm", "--cells", cell, "--rows", *rows, "--seeds", "0", "1", "--dataset_name", "digits",
        "--backbone", "tiny", "--image_size", "8", "--max_train_samples", "300", "--max_eval_samples", "50",
        "--max_steps", "12", "--per_device_train_batch_size", "25", "--plain_warmup_epochs", "0.5", "--use_cpu",
        "--output_dir", str(tmp_path / "runs"), "--results_dir", str(tmp_path / "records"),
    ]  # fmt: skip
    script.main([*flags, "--jobs", "2"])
    plain = [line for line in capsys.readouterr().out.splitlines() if "**plain**" in line][-1]
    assert plain.endswith("| – | 2 |")
    records = {row: json.loads((tmp_path / "records" / cell / f"{row.lower()}-0.json").read_text()) for row in rows}
    assert all(record["global_step"] == 12 for record in records.values())
    assert records["oracle"]["realised_noise_rate"] == 0 < records["plain"]["realised_noise_rate"]
    assert 0 < records["MW-Net"]["wrong_label_average_precision"] <= 1 and records["MW-Net"]["best_epoch"] > 0
    (tmp_path / "records" / cell / "oracle-0.json").unlink()
    script.main(flags)
    again = capsys.readouterr().out
    assert re.findall(r"^=== (.*) →", again, re.MULTILINE) == ["oracle"] and plain in again


def test_a_row_that_lost_on_the_first_seed_needs_no_other():
    first = {"plain": of_seeds(70), "plain + trusted": of_seeds(84), "MW-Net": of_seeds(81.9), "soft": of_seeds(82.1)}
    first |= {"oracle": of_seeds(90), "posterior": of_seeds(60), "forward": []}
    assert [row for row in first if no_harm.has_lost(row, first)] == ["MW-Net"]


def test_a_lost_row_is_left_out_of_further_seeds(tmp_path, capsys):
    folder = tmp_path / "untrusted-pair-40"
    folder.mkdir()
    for row, last in (("plain", 84.0), ("mw-net", 70.0)):
        (folder / f"{row}-0.json").write_text(json.dumps(of_seeds(last)[0]))
    script.main(
        ["--table", "no-harm", "--cells", "untrusted-pair-40", "--seeds", "1", "--rows", "MW-Net", "--results_dir",
         str(tmp_path)]
    )  # fmt: skip
    assert "MW-Net, seed 1 is left out, as it lost on seed 0" in capsys.readouterr().out
    assert not (folder / "mw-net-1.json").exists()


def test_the_verdict_is_about_the_honest_baseline():
    cell = "by-heart-pair-40"
    runs = {
        "plain": of_seeds(64, best=78), "plain + trusted": of_seeds(80, 82, 81), "forward": of_seeds(83),
        "MW-Net": of_seeds(76), "posterior": of_seeds(84, 84.5, 83.5, estimate=0.44), "oracle": of_seeds(90, 90, 90),
    }  # fmt: skip
    assert no_harm.honest_baseline(runs) == "plain + trusted", "forward has one seed, and the oracle knows too much"
    found = no_harm.verdict(cell, runs)
    assert found["gain"] == pytest.approx(3) and found["over MW-Net"] == pytest.approx(8)
    assert found["forgotten"] == pytest.approx(14) and found["error"] == pytest.approx(0.04) and found["bar"] == "met"
    short = no_harm.verdict(cell, {**runs, "posterior": of_seeds(81, 83, 82, estimate=0.46)})
    assert short["gain"] == pytest.approx(1) and short["bar"] == "gains too little, share"
    assert no_harm.verdict(cell, {**runs, "posterior": of_seeds(79, 81, 80)})["bar"] == "loses, gains too little"
    assert no_harm.verdict(cell, {**runs, "posterior": []}) is None
    lines = no_harm.format_groups({cell: runs, "10k-none": {}}).splitlines()
    differences = np.array([4.0, 2.5, 2.5])
    statistic = differences.mean() / (differences.std(ddof=1) / 3**0.5)
    assert f"| {1 - student(2).cdf(statistic):.3f} | 3 |" in next(line for line in lines if "| posterior |" in line)
    assert "| – | 3 |" in next(line for line in lines if "**plain + trusted**" in line)
    assert lines[-1] == "above MW-Net in 1 of 1 cells"


def test_cells_that_need_what_is_not_there_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(no_harm, "find_spec", {IMAGENET: object()}.get)
    assert no_harm.chosen_cells(["text", "10k-none", "fine-tuning-pair-40"]) == ["10k-none", "fine-tuning-pair-40"]
    assert "text-pair-40 is left out: data/newsgroups-6 and data/minilm-1 not there" in capsys.readouterr().out
    monkeypatch.setattr(no_harm, "find_spec", {}.get)
    assert no_harm.chosen_cells(["fine-tuning"]) == []
    assert f"fine-tuning-pair-40 is left out: {IMAGENET} not there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'cifar' is unknown: choose from 10k, untrusted"):
        no_harm.chosen_cells(["cifar"])


def test_all_rows_of_a_cell_take_the_same_steps_and_differ():
    for name, cell in no_harm.CELLS.items():
        rows = no_harm.rows_of_cell(name)
        own = [tuple(flags) for row, flags in rows.items() if row != "oracle"]
        assert len(set(own)) == len(own) and cell.steps > 0
        assert all(any(flag.startswith("--meta_learner=") for flag in flags) for flags in rows.values())
        assert ("oracle" in rows) == ("none" not in cell.title)
        common = no_harm.flags_of_cell(name, "digits")
        _, data_args, args = parse_arguments([*common, *rows["plain"][:1]])
        assert args.max_steps == cell.steps and data_args.num_meta == cell.trusted
        assert data_args.noise == pytest.approx(0 if "none" in cell.title else float(name[-2:]) / 100)
    assert no_harm.CELLS["60k-none"].steps == 4 * 590 and no_harm.CELLS["long-tail-100"].steps == 12 * 74


def test_the_oracle_sees_right_labels_alone():
    data = load_noisy_dataset("digits", noise=0.4, noise_type="pair", num_meta=100, seed=0)
    right = no_harm.with_right_labels(data)
    assert 0.5 < len(right["train"]) / len(data["train"]) < 0.7 and right["meta"] is data["meta"]
    assert right["train"]["label"][:] == right["train"]["clean_label"][:]
