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
two-networks has methods × noises instead, and the seconds of an epoch, the table no-harm cells instead of noises.

Runs are those of `famus-hf compare`: each a process of its own with a folder below --output_dir, so many at a time as
--jobs says, with one bar over all of them; what is finished is not repeated, what fails does not end the others, and
figures of other flags or other labels are refused. They begin seed by seed, and print into console.log. The figures of
each go below --results_dir as well, from which --show prints a table without the folders. Flags that this script does
not know go to every run, as in run_famus.py. Of processes that share the work out among themselves, each takes some of
--noise (or --cells), --seeds and --rows.
"""

import argparse
import copy
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from experiments import no_harm_table as no_harm
from experiments.steps import prepare, seconds_of
from experiments.table_rows import TABLES, rows_of
from experiments.two_networks_table import NOISE, OPTIONAL, SETTINGS, format_methods
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from famus_hf.cli.arguments import parse_arguments
from famus_hf.cli.jobs import LOG, QUIET, Job, check_same_labels, train_missing
from famus_hf.cli.program import USER_ERRORS, fail, started_as
from famus_hf.cli.run import Run, set_up
from famus_hf.cli.run_setup import load_data
from famus_hf.reporting.tables import format_mean

Records = dict[str, dict[str, list[dict[str, Any]]]]  # noise or cell → row → figures of its seeds
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
        if state.global_step % PLAIN_EVERY == 0 or state.global_step == state.max_steps:
            with self.time.stopped():
                self.seconds.append(seconds_of(self.twin, self.batch))


def trimmed_mean(values: list[float]) -> float:
    """Return the mean without the slowest tenth: gates change the cost of a step, hiccups are left out."""
    return statistics.fmean(sorted(values)[: max(1, round(0.9 * len(values)))])


def train_row(table: str, name: str, flags: list[str]) -> dict[str, Any]:
    """Train a row of a table. Return its figures."""
    runs, checkpoint = set_up(flags, no_harm.with_right_labels if name == no_harm.ORACLE else None)
    run = runs[-1]
    run.name = name  # for pictures and cards
    print(f"\n=== {name} → {run.args.output_dir}", flush=True)
    twin = None if table in OWN_FORM else PlainTwin(run)
    if twin is not None:
        run.trainer.add_callback(twin)
    results = run.train(checkpoint)
    results["train_seconds_per_step"] = trimmed_mean(run.timer.per_step)
    if twin is not None:
        results["plain_seconds_per_step"] = trimmed_mean(twin.seconds)
    return no_harm.record_of(run, results) if table == "no-harm" else results


def jobs_of(options: argparse.Namespace, passed_on: list[str], seeds: list[int]) -> list[Job]:
    """Return the runs of a table, those of a seed one after the other: the first one tells which rows need others."""
    jobs = []
    for seed in seeds:
        for noise in options.noise:
            common = flags_of_all_rows(options, noise, seed, passed_on)
            for name, flags in rows_of_noise(options, noise).items():
                plain_name = "".join(c if c.isalnum() else "-" for c in name.lower())
                own = Path(noise.replace(":", "-")) / f"{plain_name}-{seed}"
                record = Path(options.results_dir or options.output_dir) / own.parent / f"{own.name}.json"
                trains = partial(train_row, options.table, name)
                jobs.append(Job(name, seed, Path(options.output_dir) / own, [*common, *flags], noise, trains, record))
    return jobs


def figures_of(jobs: list[Job]) -> Records:
    """Return what the runs that are finished have left."""
    found: Records = {}
    for job in jobs:
        runs = found.setdefault(job.group, {}).setdefault(job.name, [])
        runs += [figures] if (figures := job.figures()) is not None else []
    return found


def rows_of_noise(options: argparse.Namespace, noise: str) -> dict[str, list[str]]:
    """Return row → flags, of one noise or cell."""
    return no_harm.rows_of_cell(noise) if options.table == "no-harm" else rows_of(options)


def flags_of_all_rows(options: argparse.Namespace, noise: str, seed: int, passed_on: list[str]) -> list[str]:
    """Return what the rows have in common."""
    evaluations = 16 if options.table == "figures" else EVALUATIONS
    of_all_tables = [*QUIET, "--save_strategy=no", f"--eval_steps={1 / evaluations}", "--eval_strategy=steps"]
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


def print_tables(options: argparse.Namespace, found: Records) -> None:
    words = f"{options.num_train} training examples"
    if options.table == "no-harm":
        print(no_harm.format_groups(found))
    elif options.table == "two-networks":
        print(f"\n{options.dataset_name}, {words}, no clean label\n{format_methods(found)}")
    else:
        for noise, by_row in found.items():
            print(f"\n{options.dataset_name}, {noise}, {words}\n{format_table(by_row)}")


def format_table(by_row: dict[str, list[dict[str, Any]]]) -> str:
    """Return the finished runs of one noise as a Markdown table."""
    head = ["", "last, %", "best, %", "ms a step", "ratio to plain", "layers on", "gates' cost", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, runs in by_row.items():
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
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, among which the cores are shared out")
    return parser


def main(argv: list[str]) -> None:
    with started_as("reproduce.py", errors=(*USER_ERRORS, TypeError)):
        reproduce(*build_parser().parse_known_args(argv))


def reproduce(options: argparse.Namespace, passed_on: list[str]) -> None:
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
    jobs, log = jobs_of(options, passed_on, options.seeds), Path(options.output_dir) / LOG
    wanted = [job for job in jobs if (job.name in options.rows if options.rows else job.name not in OPTIONAL)]
    failed = 0 if options.show else train_table(options, passed_on, wanted, log)
    print_tables(options, figures_of(jobs))
    if failed:
        fail(f"{failed} of {len(wanted)} runs failed: see {log}")


def train_table(options: argparse.Namespace, passed_on: list[str], jobs: list[Job], log: Path) -> int:
    """Train what is missing of these runs. Return how many failed."""
    first = jobs_of(options, passed_on, [no_harm.FIRST_SEED])

    def is_needed(job: Job) -> bool:
        is_other = options.table == "no-harm" and job.seed != no_harm.FIRST_SEED
        is_lost = is_other and no_harm.has_lost(job.name, figures_of(first)[job.group])
        if is_lost:
            tqdm.write(f"{job} is left out, as it lost on seed {no_harm.FIRST_SEED}")
        return not is_lost

    missing = [job for job in jobs if job.results() is None]
    if missing:  # or each run would fail by itself where flags are wrong, or the data are not there
        load_data(*parse_arguments(missing[0].flags)[1:])
    failed = train_missing(missing, options.jobs, log, is_needed)
    check_same_labels(job for job in jobs if job.name != no_harm.ORACLE)
    return len(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
