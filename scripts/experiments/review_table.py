"""What a review is worth: trusted examples that were suspect beside trusted examples drawn at random.

    python scripts/experiments/review_table.py --dataset_name /usr/share/datasets/fashion-mnist --image_size 14

A first run has no trusted example. Of its report a reviewer, who knows the truth, decides on 400 examples: on the 200
most suspect and 200 drawn at random, or on 400 drawn at random. They are the trusted set of a second run on the very
same labels (`--meta_from`, `--noise_file`). Prints a Markdown table of last test accuracies, mean ± standard deviation
of the seeds. A run whose record is in --results_dir is not repeated.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from famus_hf.cli import run as run_famus
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.program import started_as
from famus_hf.data.fingerprint import fingerprint_of_splits
from famus_hf.data.labels.decisions import Decisions, write_decisions
from famus_hf.data.load import load_splits
from famus_hf.reporting.label_report import read_report
from famus_hf.reporting.tables import format_mean
from famus_hf.review.suspects import examples_in, suspects_of
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import NOISE_FILE, REPORT_FILE, RESULTS

NOISES = ("pair", "symmetric")
ARMS = {
    "200 suspects and 200 at random": (200, 200),
    "400 at random": (0, 400),
}  # suspects and others that are reviewed
FIRST = "no review (the first run)"


def flags_of(options: argparse.Namespace, seed: int, folder: Path) -> list[str]:
    """Return what all runs have in common."""
    return [
        "--dataset_name", options.dataset_name, "--backbone", "small", "--learning_rate", "0.2", "--lr_scheduler_type",
        "cosine", "--augmentation", "none", "--num_train_epochs", str(options.num_train_epochs), "--seed", str(seed),
        "--image_size", str(options.image_size), "--output_dir", str(folder), "--save_strategy", "no",
        "--eval_strategy", "no", "--report_to", "none", "--disable_tqdm", "true",
    ]  # fmt: skip


def trained(flags: list[str], folder: Path) -> dict[str, Any]:
    """Train, and return what all_results.json holds."""
    run_famus.main(flags)
    results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return results


def reviewed(first: Path, dataset_name: str, most: int, at_random: int, seed: int, path: Path) -> int:
    """Write the decisions of a reviewer who knows the truth, and return how many labels were wrong."""
    report = read_report(first / REPORT_FILE)
    truth = report.features["label"].int2str(report["clean_label"][:])
    truth_of = {row.key: name for row, name in zip(examples_in(report), truth, strict=True)}
    decisions = Decisions(fingerprint_of_splits(load_splits(name=dataset_name)))
    for suspect in suspects_of(report, most, at_random, seed):
        decisions.by_key[suspect.key] = suspect.decided(truth_of[suspect.key])
    write_decisions(path, decisions)
    return sum(decision.label != decision.reviewed_label for decision in decisions)


def record_of(options: argparse.Namespace, noise: str, seed: int) -> dict[str, Any]:
    """Return the accuracies of one cell and seed, trained unless they are on record."""
    path = Path(options.results_dir) / f"{noise}-{seed}.json"
    if not path.is_file():
        record = _record(options, noise, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as beside:
            beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _record(options: argparse.Namespace, noise: str, seed: int) -> dict[str, Any]:
    first = Path(options.output_dir) / f"{noise}-{seed}"
    drawn = ["--noise", "0.4", "--noise_type", noise, "--max_train_samples", str(options.max_train_samples)]
    flags = flags_of(options, seed, first)
    results = trained([*flags, *drawn, "--meta_set", "pseudo-clean", "--preset", "fast"], first)
    record: dict[str, Any] = {FIRST: {"accuracy": results["eval_accuracy"], "method": results["method"]}}
    for number, (arm, (most, at_random)) in enumerate(ARMS.items()):
        folder, decisions = first.with_name(f"{first.name}-{number}"), first / f"decisions-{number}.csv"
        wrong = reviewed(first, options.dataset_name, most, at_random, seed, decisions)
        flags = flags_of(options, seed, folder)
        trusted = ["--noise_file", str(first / NOISE_FILE), "--meta_from", str(decisions), "--label_report", "false"]
        results = trained([*flags, *trusted], folder)
        record[arm] = {"accuracy": results["eval_accuracy"], "method": results["method"], "wrong_of_reviewed": wrong}
        shutil.rmtree(folder)
    return record


def format_table(records: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table, a column for each noise."""
    lines = [f"| reviewed | {' | '.join(f'`{noise}` 40 %' for noise in records)} |", "|---" * (len(records) + 1) + "|"]
    for arm in (FIRST, *ARMS):
        cells = [f"{format_mean(100 * record[arm]['accuracy'] for record in cell)} %" for cell in records.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = command_parser("review_table.py", __doc__)
    parser.add_argument("--dataset_name", default="digits", help="as in run_famus.py")
    parser.add_argument("--image_size", type=int, default=8, help="as in run_famus.py")
    parser.add_argument("--max_train_samples", type=int, default=10_000, help="of the first run")
    parser.add_argument("--num_train_epochs", type=float, default=8, help="of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of noise, draws and training")
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES), help="of 40 %%")
    parser.add_argument("--results_dir", default="model_cards/review", help="of the records")
    parser.add_argument("--output_dir", default="outputs/review_table", help="of the runs")
    options = parser.parse_args(argv)
    with started_as("review_table.py"):
        records = {noise: [record_of(options, noise, seed) for seed in options.seeds] for noise in options.noises}
        print(f"\n{format_table(records)}")


if __name__ == "__main__":
    main(sys.argv[1:])
