"""The arena: methods × cells as one table, of what `famus-hf compare` has left."""

import csv
from pathlib import Path

import pytest
from experiments import arena_table
from experiments.arena_table import Arena
from scipy.stats import ttest_rel

from famus_hf.reporting.comparison import Comparison

CARD = Path(arena_table.__file__).parents[2] / "model_cards" / "arena"


def rows_of(output):
    """First cell → cells, of the lines of a table that hold figures."""
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in lines[2:]}


def test_the_table_of_the_card_is_what_its_files_say(capsys):
    arena_table.main(["--results_dir", str(CARD), "--show"])
    table = capsys.readouterr().out.strip()
    assert table in (CARD / "README.md").read_text(encoding="utf-8") and len(rows_of(table)) == 35


def test_means_ratios_and_paired_tests_are_of_cells_with_wrong_labels(tmp_path):
    accuracies = {  # cell → method → accuracy of each seed
        "pair-40": {"plain": (0.70, 0.72), "elr": (0.80, 0.81)},
        "instance-40": {"plain": (0.60, 0.65), "elr": (0.75, 0.76)},
        "long-tail-100": {"plain": (0.90, 0.91), "elr": (0.10, 0.12), "bbn": (0.95, 0.94)},
    }
    for cell, by_method in accuracies.items():
        with (tmp_path / f"{cell}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["method", "title", "seed", "eval_accuracy", "best_eval_accuracy", "train_seconds",
                             "wrong_label_average_precision"])  # fmt: skip
            for method, found in by_method.items():
                for seed, accuracy in enumerate(found):
                    seconds, precision = {"plain": (2, ""), "elr": (3, 0.5), "bbn": (8, "")}[method]
                    writer.writerow([method, method.upper(), seed, accuracy, accuracy, seconds, precision])
    arena = Arena({cell: Comparison.read(tmp_path / f"{cell}.csv") for cell in accuracies})
    elr, plain, bbn = rows_of(arena.as_markdown()).values()
    p = ttest_rel([0.80, 0.81, 0.75, 0.76], [0.70, 0.72, 0.60, 0.65]).pvalue
    assert elr == ["ELR", "**80.5 ± 0.7**", "**75.5 ± 0.7**", "11.0 ± 1.4", "78.0", "–", "1.5", "50.0", "2"]
    assert plain == ["PLAIN", "71.0 ± 1.4", "62.5 ± 3.5", "90.5 ± 0.7", "66.8", f"{p:.3f}", "1.0", "–", "2"]
    assert bbn == ["BBN", "–", "–", "**94.5 ± 0.7**", "–", "–", "4.0", "–", "2"]
    assert [name for name, *_ in arena.points()] == ["ELR", "PLAIN"]
    assert arena.points()[0][1:] == (3.0, pytest.approx(0.78))


def test_it_trains_what_is_missing_and_leaves_files_and_a_picture(tmp_path, in_this_process):
    results = tmp_path / "results"
    arena_table.main([
        "--dataset_name", "digits", "--backbone", "tiny", "--image_size", "8", "--max_train_samples", "200",
        "--use_cpu", "--max_eval_samples", "50", "--per_device_train_batch_size", "20", "--max_steps", "4",
        "--num_meta", "20", "--cells", "pair-40", "--methods", "plain", "gce", "--seeds", "0",
        "--output_dir", str(tmp_path / "runs"), "--results_dir", str(results),
    ])  # fmt: skip
    assert sorted(path.name for path in results.iterdir()) == ["accuracy_by_time.png", "pair-40.csv"]
    assert {row.method for row in Comparison.read(results / "pair-40.csv").rows} == {"plain", "gce"}


def test_figures_that_are_not_there_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        arena_table.main(["--results_dir", str(tmp_path), "--show"])
    assert "has no figures of a cell: train without --show" in capsys.readouterr().err
