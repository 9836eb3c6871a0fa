"""The paper's ablation tables on any data set: method × sampler × auxiliary losses, several seeds, plain beside them.

    python scripts/reproduce.py --table 3 --dataset_name /usr/share/datasets/fashion-mnist --jobs 2
    python scripts/reproduce.py --table speed --jobs 2
    python scripts/reproduce.py --table two-networks --jobs 2     # its settings: two_networks_table.py
    python scripts/reproduce.py --table no-harm --jobs 2          # its cells and rows: no_harm_table.py
    python scripts/reproduce.py --table figures --jobs 2          # for scripts/plot_run.py
    python scripts/reproduce.py --table fine-tuning --dataset_name data/newsgroups-6 \\
        --model_name_or_path data/minilm-1 --num_train 1000 --num_meta 100 --noise symmetric:0.4 --num_train_epochs 10
    python scripts/reproduce.py --table 4 --dataset_name cifar100 --backbone wide-resnet-28-10 --num_train 49000 \\
        --noise symmetric:0.6 --max_steps 20000 --blocks 4 8 12 --random_layers 4 8 16

Prints a Markdown table: last and best test accuracy (mean ± sample standard deviation over the seeds; "best" is the
highest of eight evaluations, of sixteen in the table figures, and selected nothing), milliseconds of a step (over whole
cycles of `--meta_interval`), their ratio to a plain Trainer step timed in the same run (a twin network takes a plain
step now and then), the layers that were on and, with a budget, what their choice really cost in plain steps. The table
two-networks has methods × noises instead, and the seconds of an epoch, the table no-harm cells instead of noises;
--noise or --cells, --seeds and --rows share their runs out among processes. Each run leaves a folder below --output_dir
and its figures below --results_dir. A run whose figures are there is not repeated: an interrupted table goes on, and a
finished one is printed again. Flags that this script does not know go to every run, as in run_famus.py.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments import no_harm_table as no_harm
from experiments.steps import prepare, seconds_of
from experiments.table_rows import TABLES, rows_of
from experiments.two_networks_table import NOISE, OPTIONAL, SETTINGS, format_methods
from transformers import Trainer, TrainerCallback, TrainingArguments

from famus_hf.cli.arguments import parse_arguments
from famus_hf.cli.program import USER_ERRORS, fail, started_as
from famus_hf.cli.run import Run
from famus_hf.cli.run_setup import load_data, settings_for
from famus_hf.reporting.tables import format_mean

PLAIN_EVERY = 10  # steps of a run between two plain steps of its twin
OWN_FORM = ("two-networks", "no-harm")  # tables of a form of their own, without a plain twin
EVALUATIONS = 8  # of a run, evenly spaced; the last one is at its end


class PlainTwin(TrainerCallback):
    """Times a plain Trainer step of a twin network on the same batch size, every `PLAIN_EVERY` steps of a run."""

    def __init__(self, run: Run):
        args = TrainingArguments(
            run.args.output_dir, optim=run.args.optim, optim_args=run.args.optim_args, max_grad_norm=0.0,
            per_device_train_batch_size=run.args.per_device_train_batch_size, use_cpu=run.args.use_cpu,
            bf16=run.args.bf16, report_to="none",
        )  # fmt: skip
        trainer = run.trainer
        self.time = trainer.training_time
        self.twin = Trainer(copy.deepcopy(trainer.model), args, trainer.data_collator, trainer.train_dataset)
        self.batch = prepare(self.twin)
        self.seconds: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if state.global_step % PLAIN_EVERY == 0:
            with self.time.stopped():
                self.seconds.append(seconds_of(self.twin, self.batch))


def trimmed_mean(values: list[float]) -> float:
    """Return the mean without the slowest tenth: gates change the cost of a step, hiccups are left out."""
    return statistics.fmean(sorted(values)[: max(1, round(0.9 * len(values)))])


def train_rows(options: argparse.Namespace, noise: str, seed: int, passed_on: list[str]) -> None:
    """Train every row of the table for one noise and one seed, on the same data."""
    data, first = None, None
    for name, flags in rows_of_job(options, noise).items():
        folder = folder_of(options, noise, name, seed)
        argv = [*flags_of_all_rows(options, noise, seed, passed_on), *flags]
        record = record_of(options, noise, name, seed)
        is_wanted = name in options.rows if options.rows else name not in OPTIONAL
        if not is_wanted or is_finished(record, argv) or is_lost(options, noise, name, seed):
            continue
        words = [f"--output_dir={folder}", *argv]
        settings = parse_arguments(words)
        data = data or load_data(*settings[1:])
        model_args, data_args, args = settings_for(data, words, settings)
        print(f"=== {noise}, seed {seed}: {name} → {folder}", flush=True)
        run = Run(model_args, data_args, args, no_harm.with_right_labels(data) if name == no_harm.ORACLE else data)
        run.name = name  # as the row, for pictures and cards
        first = first or run  # holds the processed images, which the other rows share
        twin = None if options.table in OWN_FORM else PlainTwin(run)
        if twin is not None:
            run.trainer.add_callback(twin)
        results = run.train(None)
        results["train_seconds_per_step"] = trimmed_mean(run.timer.per_step)
        if twin is not None:
            results["plain_seconds_per_step"] = trimmed_mean(twin.seconds)
        if options.table == "no-harm":
            results = no_harm.record_of(run, results)
        results["flags"] = argv
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def is_lost(options: argparse.Namespace, noise: str, name: str, seed: int) -> bool:
    """Return, and say, whether a row of the table no-harm is so far below on the first seed that it needs no other."""
    if options.table != "no-harm" or seed == no_harm.FIRST_SEED:
        return False
    first = argparse.Namespace(**{**vars(options), "seeds": [no_harm.FIRST_SEED]})
    if not no_harm.has_lost(name, {row: finished_runs(first, noise, row) for row in rows_of_job(options, noise)}):
        return False
    print(f"=== {noise}, seed {seed}: {name} is left out, as it lost on seed {no_harm.FIRST_SEED}", flush=True)
    return True


def rows_of_job(options: argparse.Namespace, noise: str) -> dict[str, list[str]]:
    """Return row → flags, of one noise or cell."""
    return no_harm.rows_of_cell(noise) if options.table == "no-harm" else rows_of(options)


def flags_of_all_rows(options: argparse.Namespace, noise: str, seed: int, passed_on: list[str]) -> list[str]:
    """Return what the rows have in common."""
    evaluations = 16 if options.table == "figures" else EVALUATIONS
    of_all_tables = [
        "--save_strategy=no", "--report_to=none", "--disable_tqdm=true", f"--eval_steps={1 / evaluations}",
        "--eval_strategy=steps",
    ]  # fmt: skip
    if options.table == "no-harm":
        return [*no_harm.flags_of_cell(noise, options.dataset_name), f"--seed={seed}", *of_all_tables, *passed_on]
    noise_type, _, rate = noise.partition(":")
    is_pretrained = any(flag.startswith("--model_name_or_path") for flag in passed_on)
    return [
        f"--dataset_name={options.dataset_name}", f"--seed={seed}",
        *([] if is_pretrained else [f"--backbone={options.backbone}"]),
        f"--noise={rate}", f"--noise_type={noise_type}", f"--num_meta={options.num_meta}",
        f"--max_train_samples={options.num_train + options.num_meta}", *of_all_tables,
        *(SETTINGS if options.table == "two-networks" else ()), *passed_on,
    ]  # fmt: skip


def is_finished(record: Path, argv: list[str]) -> bool:
    """Return whether this very run is there already."""
    if not record.is_file():
        return False
    if json.loads(record.read_text(encoding="utf-8")).get("flags") != argv:
        fail(f"{record} is of a run with other settings: give another --output_dir and --results_dir")
    return True


def folder_of(options: argparse.Namespace, noise: str, name: str, seed: int) -> Path:
    """Return the folder of what the run leaves: network, meta-net, model card."""
    plain_name = "".join(c if c.isalnum() else "-" for c in name.lower())
    return Path(options.output_dir) / noise.replace(":", "-") / f"{plain_name}-{seed}"


def record_of(options: argparse.Namespace, noise: str, name: str, seed: int) -> Path:
    """Return the file with the figures of the run."""
    folder = folder_of(options, noise, name, seed)
    return Path(options.results_dir or options.output_dir) / folder.parent.name / f"{folder.name}.json"


def finished_runs(options: argparse.Namespace, noise: str, name: str) -> list[dict[str, Any]]:
    """Return the figures of a row's runs that are there."""
    files = [record_of(options, noise, name, seed) for seed in options.seeds]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def print_tables(options: argparse.Namespace) -> None:
    words = f"{options.num_train} training examples"
    if options.table == "no-harm":
        by_row = {noise: rows_of_job(options, noise) for noise in options.noise}
        found = {noise: {row: finished_runs(options, noise, row) for row in rows} for noise, rows in by_row.items()}
        print(no_harm.format_groups(found))
        return
    if options.table == "two-networks":
        runs = {
            name: {noise: records for noise in options.noise if (records := finished_runs(options, noise, name))}
            for name in rows_of(options)
        }
        print(f"\n{options.dataset_name}, {words}, no clean label\n{format_methods(runs)}")
        return
    for noise in options.noise:
        print(f"\n{options.dataset_name}, {noise}, {words}\n{format_table(options, noise)}")


def format_table(options: argparse.Namespace, noise: str) -> str:
    """Return the finished runs of one noise as a Markdown table."""
    head = ["", "last, %", "best, %", "ms a step", "ratio to plain", "layers on", "gates' cost", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in rows_of(options):
        runs = finished_runs(options, noise, name)
        if runs:
            costs = [run["mean_meta_cost"] for run in runs if run["mean_meta_cost"] is not None]
            cells = [
                name,
                format_mean(100 * run["eval_accuracy"] for run in runs),
                format_mean(100 * run["best_eval_accuracy"] for run in runs),
                f"{statistics.fmean(1000 * run['train_seconds_per_step'] for run in runs):.0f}",
                format_mean((r["train_seconds_per_step"] / r["plain_seconds_per_step"] for r in runs), 2),
                f"{statistics.fmean(run['mean_active_layers'] for run in runs):.1f}",
                format_mean(costs, 2) if costs else "–",
                str(len(runs)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run_jobs(options: argparse.Namespace, argv: list[str]) -> None:
    """Start one process for each noise and seed, `--jobs` at a time, the cores shared out among them.

    In the table no-harm one has all seeds of a cell, as the first one tells which rows need others.
    """
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def run(noise: str, seeds: list[int]) -> int:
        command = [sys.executable, __file__, *argv, "--jobs=1", "--seeds", *map(str, seeds), "--noise", noise]
        return subprocess.run(command, env=environment).returncode

    seeds = [options.seeds] if options.table == "no-harm" else [[seed] for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda job: run(*job), [(n, s) for s in seeds for n in options.noise]))
    if any(codes):
        fail(f"{sum(map(bool, codes))} of {len(codes)} processes failed")


def build_parser() -> argparse.ArgumentParser:
    """Return what reads the flags of this script; others go to every run."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--table", choices=tuple(TABLES), required=True, help="; ".join(f"{name}: {TABLES[name]}" for name in TABLES)
    )  # fmt: skip
    parser.add_argument("--dataset_name", default="/usr/share/datasets/fashion-mnist", help="as in run_famus.py")
    parser.add_argument("--backbone", default="small", help="as in run_famus.py, without --model_name_or_path")
    parser.add_argument("--num_train", type=int, default=10_000, help="noisy training examples")
    parser.add_argument("--num_meta", type=int, default=1000, help="clean meta examples; two-networks has none")
    parser.add_argument(
        "--noise",
        "--cells",
        nargs="+",
        help=f"noise type and rate (pair:0.4 symmetric:0.6; of two-networks {' '.join(NOISE)}); of no-harm cells or "
        f"groups of them ({' '.join(no_harm.GROUPS)})",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of data, noise and training")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3], help="residual blocks of table 4")
    parser.add_argument("--random_layers", type=int, nargs="+", default=[4, 8], help="numbers s of table 4")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.2], help="meta budgets, in plain steps")
    parser.add_argument("--rows", nargs="+", help="only these, by name (two-networks has MW-Net only if named)")
    parser.add_argument("--output_dir", default="outputs/tables", help="a folder for each run is made below")
    parser.add_argument("--results_dir", help="a small JSON file with the figures of each run goes here (--output_dir)")
    parser.add_argument("--show", action="store_true", help="print what is finished, and train nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, one for each noise and seed")
    return parser


def main(argv: list[str]) -> None:
    with started_as("reproduce.py", errors=(*USER_ERRORS, TypeError)):
        reproduce(*build_parser().parse_known_args(argv), argv)


def reproduce(options: argparse.Namespace, passed_on: list[str], argv: list[str]) -> None:
    """Train what is missing, and print the tables."""
    is_clean = options.table not in OWN_FORM
    options.num_meta = options.num_meta if is_clean else 0
    if options.table == "no-harm":
        options.results_dir = options.results_dir or no_harm.RESULTS
        options.noise = no_harm.chosen_cells(options.noise)
    else:
        options.noise = options.noise or (["pair:0.4", "symmetric:0.6"] if is_clean else list(NOISE))
    unknown = sorted(set(options.rows or []) - set(rows_of(options)))
    if unknown:
        fail(f"--rows {unknown[0]!r} is no row of table {options.table}: choose from {', '.join(rows_of(options))}")
    if is_clean and not any(flag.split("=")[0] in ("--num_train_epochs", "--max_steps") for flag in passed_on):
        passed_on = ["--num_train_epochs=16", *passed_on]
    if not options.show:
        train_missing(options, passed_on, argv)
    print_tables(options)


def train_missing(options: argparse.Namespace, passed_on: list[str], argv: list[str]) -> None:
    """Train what has no record yet, in this process or in several."""
    if options.jobs > 1:
        run_jobs(options, argv)
        return
    for noise in options.noise:
        for seed in options.seeds:
            train_rows(options, noise, seed, passed_on)


if __name__ == "__main__":
    main(sys.argv[1:])
