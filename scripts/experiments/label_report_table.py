"""How many labels are wrong: the label report's estimate beside the truth, for each kind of noise, plain training too.

    python scripts/experiments/label_report_table.py                      # digits, minutes
    python scripts/experiments/label_report_table.py --dataset_name /usr/share/datasets/fashion-mnist \\
        --backbone small --max_train_samples 11000 --num_train_epochs 10 --seeds 0    # half an hour on a core

Each run has a trusted meta set, which plain training does not learn from. Prints a Markdown table: the share of wrong
labels; the estimate, or "can't tell"; of the labels that are flagged (probability below one half) the share that is
wrong; and of those called certain (above 0.99) the share that is wrong. A run whose record is in --results_dir is not
repeated.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_noisy_dataset
from famus_hf.cli.program import started_as
from famus_hf.reporting.tables import format_rate
from famus_hf.storage.atomic import atomic_write

CELLS: dict[str, dict[str, Any]] = {
    "none": {},
    "symmetric 20 %": {"noise": 0.2, "noise_type": "symmetric"},
    "symmetric 40 %": {"noise": 0.4, "noise_type": "symmetric"},
    "pair 20 %": {"noise": 0.2, "noise_type": "pair"},
    "pair 40 %": {"noise": 0.4, "noise_type": "pair"},
    "instance 40 %": {"noise": 0.4, "noise_type": "instance"},
    "long tail 10, pair 30 %": {"noise": 0.3, "noise_type": "pair", "imbalance_factor": 10},
}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"meta_learner": "none"},
    "FaMUS": {"meta_learner": "mw-net", "preset": "fast"},
    "posterior": {},
}


def record_of(options: argparse.Namespace, cell: str, method: str, seed: int) -> dict[str, Any]:
    """Return truth and estimate of a run, trained unless they are on record."""
    words = "-".join("".join(c if c.isalnum() else " " for c in cell).split())
    path = Path(options.results_dir) / Path(options.dataset_name).name / f"{words}-{method}-{seed}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as beside:
            beside.write_text(json.dumps(train(options, cell, method, seed), indent=2) + "\n", encoding="utf-8")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def train(options: argparse.Namespace, cell: str, method: str, seed: int) -> dict[str, Any]:
    """Train a network and make its label report."""
    data = load_noisy_dataset(
        options.dataset_name, max_train_samples=options.max_train_samples, seed=seed, **CELLS[cell]
    )  # fmt: skip
    set_seed(seed)
    args = FaMUSTrainingArguments(
        options.output_dir, num_train_epochs=options.num_train_epochs, seed=seed, save_strategy="no", report_to="none",
        disable_tqdm=True, logging_strategy="no", **METHODS[method],
    )  # fmt: skip
    model = build_backbone(options.backbone, data["train"].features["label"].names)
    trainer = FaMUSTrainer(model, args, train_dataset=data["train"], meta_dataset=data["meta"])
    trainer.train()
    report = trainer.label_report()
    wrong = np.asarray(report["label"][:]) != np.asarray(report["clean_label"][:])
    record: dict[str, Any] = {"examples": len(wrong), "trusted": len(data["meta"]), "true": float(wrong.mean())}
    if report.info.description:
        return {**record, "doubt": report.info.description}
    sound = np.asarray(report["clean_probability"][:])
    flagged, certain = sound < 0.5, sound > 0.99
    return {
        **record,
        "estimate": float(1 - sound.mean()),
        "wrong_of_flagged": float(wrong[flagged].mean()) if flagged.any() else None,
        "wrong_of_certain": float(wrong[certain].mean()) if certain.any() else None,
    }


def format_table(rows: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Return a Markdown table, a line for each cell and method, the seeds beside each other."""
    head = ["noise", "training", "wrong", "estimate", "of flagged wrong", "of certain wrong"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (cell, method), records in rows.items():
        estimates = ["can't tell" if "doubt" in record else format_rate(record["estimate"]) for record in records]
        others = [
            ", ".join(format_rate(record.get(name)) for record in records)
            for name in ("wrong_of_flagged", "wrong_of_certain")
        ]
        cells = [cell, method, ", ".join(format_rate(record["true"]) for record in records), ", ".join(estimates)]
        lines.append(f"| {' | '.join([*cells, *others])} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset_name", default="digits", help="as in run_famus.py")
    parser.add_argument("--backbone", default="tiny", help="as in run_famus.py")
    parser.add_argument("--max_train_samples", type=int, help="meta set included")
    parser.add_argument("--num_train_epochs", type=float, default=25, help="of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of data, noise and training")
    parser.add_argument("--cells", nargs="+", choices=tuple(CELLS), default=tuple(CELLS), help="kinds of noise")
    parser.add_argument("--results_dir", default="model_cards/label-report-shares", help="of the records")
    parser.add_argument("--output_dir", default="outputs/label_report_table", help="scratch of the trainer")
    options = parser.parse_args(argv)
    with started_as("label_report_table.py"):
        rows = {
            (cell, method): [record_of(options, cell, method, seed) for seed in options.seeds]
            for cell in options.cells
            for method in METHODS
        }
        print(f"\n{options.dataset_name}\n{format_table(rows)}")


if __name__ == "__main__":
    main(sys.argv[1:])
