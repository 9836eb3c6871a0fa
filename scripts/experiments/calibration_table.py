"""Is the label report calibrated? Its estimate, its flags and its order beside the truth, and beside cleanlab.

    python scripts/experiments/calibration_table.py digits-15 digits-25        # minutes; fashion and photos take longer
    python scripts/experiments/calibration_table.py --out_of_sample digits-15  # cleanlab as it asks for, five networks

Posterior targets with trusted examples on digits and Fashion-MNIST; `photos`: 3000 images of Fashion-MNIST in folders
of classes, a quarter of them in a wrong one, without trusted examples, as `run_famus.py` takes them. Each cell is on
record in --results_dir, and not repeated. cleanlab (pip install -e .[bench]) gets the beliefs of the same network from
before it learned the labels; with --out_of_sample also what five plain networks predict of the fifth that each did not
see.
"""

import argparse
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from transformers import set_seed

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_noisy_dataset
from famus_hf.cli.program import started_as
from famus_hf.data.labels.noise import corrupt_labels
from famus_hf.reporting.label_report import wrong_labels
from famus_hf.storage.atomic import atomic_write

FASHION = "/usr/share/datasets/fashion-mnist"
NOISES = {
    "none": (0.0, "symmetric"), "symmetric 5 %": (0.05, "symmetric"), "symmetric 20 %": (0.2, "symmetric"),
    "symmetric 40 %": (0.4, "symmetric"), "symmetric 60 %": (0.6, "symmetric"), "pair 20 %": (0.2, "pair"),
    "pair 40 %": (0.4, "pair"),
}  # fmt: skip
FAST: dict[str, Any] = {"preset": "fast"}
DIGITS: dict[str, Any] = {"data": {"name": "digits"}, "backbone": "tiny"}
TABLES: dict[str, dict[str, Any]] = {
    "digits-15": {**DIGITS, "args": {**FAST, "num_train_epochs": 15}, "noises": NOISES},
    "digits-25": {**DIGITS, "args": {**FAST, "num_train_epochs": 25}, "noises": NOISES},
    "fashion": {
        "data": {"name": FASHION, "max_train_samples": 11_000, "num_meta": 1000}, "backbone": "small", "noises": NOISES,
        "args": {"num_train_epochs": 8, "image_size": 14, "learning_rate": 0.2, "lr_scheduler_type": "cosine"},
    },
    "photos": {
        "data": {"name": FASHION, "max_train_samples": 3000}, "backbone": "small",
        "args": {**FAST, "num_train_epochs": 20}, "noises": {"symmetric 25 %": (0.25, "symmetric")},
    },
}  # fmt: skip


class Cell:
    """A table, a kind of noise and a seed: the data, their truth, the networks trained on them."""

    def __init__(self, table: str, noise: str, seed: int, scratch: str):
        self.settings, self.seed, self.scratch = TABLES[table], seed, scratch
        self.is_photos = table == "photos"
        rate, kind = self.settings["noises"][noise]
        self.data = self._photos(rate) if self.is_photos else load_noisy_dataset(
            **self.settings["data"], noise=rate, noise_type=kind, seed=seed
        )  # fmt: skip

    def _photos(self, rate: float) -> DatasetDict:
        """Return a folder of photos as it is loaded; what is really on a photo is in its name."""
        whole = load_noisy_dataset(**self.settings["data"], num_meta=0)["train"]
        names, clean = whole.features["label"].names, np.asarray(whole["label"][:])
        given, _ = corrupt_labels(clean, rate, "symmetric-exclusive", len(names), self.seed, exact_count=True)
        folder = Path(self.scratch) / f"photos-{self.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        for row, example in enumerate(whole):
            path = folder / f"class {given[row]}" / f"{clean[row]}-{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            example["image"].save(path)
        return load_noisy_dataset(str(folder))

    def train(self, train: Dataset, meta: Dataset | None, **settings: Any) -> FaMUSTrainer:
        set_seed(self.seed)
        args = FaMUSTrainingArguments(
            self.scratch, seed=self.seed, save_strategy="no", report_to="none", disable_tqdm=True,
            logging_strategy="no", **{**self.settings["args"], **settings},
        )  # fmt: skip
        model = build_backbone(self.settings["backbone"], train.features["label"].names)
        trainer = FaMUSTrainer(model, args, train_dataset=train, meta_dataset=meta)
        trainer.train()
        return trainer

    def record(self) -> dict[str, Any]:
        """Return the figures of the report of one run, and of cleanlab by its beliefs."""
        trainer = self.train(self.data["train"], self.data.get("meta"))
        test = self.data["test"] if self.is_photos else None
        report = trainer.label_report(test_dataset=test)
        wrong = self._wrong_of(report)
        figures: dict[str, Any] = {"wrong": int(wrong.sum()), "examples": len(wrong)}
        if report.info.description:
            return {**figures, "doubt": report.info.description}
        bounds = wrong_labels(report, trainer.noise_rate_deviation)
        assert bounds is not None
        sound = np.asarray(report["clean_probability"][:])
        ours = {"estimate": bounds[0], "interval": bounds[1:], **judged(wrong, 1 - sound, sound < 0.5)}
        if self.is_photos:
            return {**figures, "report": ours}
        evidence = trainer.evidence
        assert evidence is not None
        return {**figures, "report": ours, "cleanlab": self._cleanlab(evidence.probabilities.numpy(force=True))}

    def _wrong_of(self, report: Dataset) -> np.ndarray:
        if not self.is_photos:
            return np.asarray(report["label"][:]) != np.asarray(report["clean_label"][:])
        names = report.features["label"].names
        labels = [int(names[label].removeprefix("class ")) for label in report["label"][:]]
        return np.asarray(labels) != [int(Path(file).stem.partition("-")[0]) for file in report["file"][:]]

    def out_of_sample(self) -> dict[str, Any]:
        """Return the figures of cleanlab by five plain networks, each of which predicts the fifth that it never saw."""
        train = self.data["train"]
        labels = np.asarray(train["label"][:])
        probabilities = np.zeros((len(train), train.features["label"].num_classes))
        for rows, others in StratifiedKFold(5, shuffle=True, random_state=self.seed).split(labels, labels):
            trainer = self.train(train.select(rows), None, meta_learner="none", preset=None)
            logits = trainer.predict(train.select(others)).predictions
            probabilities[others] = torch.from_numpy(logits).softmax(1).numpy()
        return self._cleanlab(probabilities)

    def _cleanlab(self, probabilities: np.ndarray) -> dict[str, Any]:
        from cleanlab.count import num_label_issues
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        labels = np.asarray(self.data["train"]["label"][:])
        wrong = labels != np.asarray(self.data["train"]["clean_label"][:])
        flagged = find_label_issues(labels, probabilities)
        scores = 1 - get_label_quality_scores(labels, probabilities)
        return {"estimate": int(num_label_issues(labels, probabilities)), **judged(wrong, scores, flagged)}


def judged(wrong: np.ndarray, scores: np.ndarray, flagged: np.ndarray) -> dict[str, Any]:
    """Return how many labels are flagged, the share of these that is wrong and of the wrong ones that are, and AP."""
    return {
        "flagged": int(flagged.sum()),
        "precision": float(wrong[flagged].mean()) if flagged.any() else None,
        "recall": float(flagged[wrong].mean()) if wrong.any() else None,
        "average_precision": float(average_precision_score(wrong, scores)) if wrong.any() else None,
    }


def misses(record: dict[str, Any], is_photos: bool) -> str:
    """Return in which figures a report misses the bar; empty where in none."""
    found, wrong = record["report"], record["wrong"]
    if not wrong:
        return ""
    bars = {
        "estimate": abs(found["estimate"] / wrong - 1) <= 0.15,
        "precision": (found["precision"] or 0) >= 0.9,
        "recall": not is_photos or found["recall"] >= 0.85,
        "average precision": not is_photos or found["average_precision"] >= 0.92,
    }
    return ", ".join(name for name, holds in bars.items() if not holds)


def format_row(noise: str, seed: int, record: dict[str, Any], is_photos: bool) -> list[str]:
    """Return the lines of a cell: the report's, and cleanlab's where it was asked."""
    wrong = record["wrong"]
    if "doubt" in record:
        return [f"| {noise} | {seed} | report | {wrong} | can't tell |  |  |  |  |  |"]
    lines = []
    for name in ("report", "cleanlab", "cleanlab, out of sample"):
        if name not in record:
            continue
        figures = record[name]
        low, high = figures.get("interval", ("", ""))
        shares = [
            "–" if figures[key] is None else f"{100 * figures[key]:.1f} %"
            for key in ("precision", "recall", "average_precision")
        ]
        miss = misses(record, is_photos) if name == "report" else ""
        cells = [noise, seed, name, wrong, f"{figures['estimate']:.0f}", f"{low}–{high}" if high != "" else "",
                 figures["flagged"], *shares, miss]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def record_of(options: argparse.Namespace, table: str, noise: str, seed: int) -> dict[str, Any]:
    """Return the figures of a cell, computed unless they are on record."""
    words = "-".join("".join(c if c.isalnum() else " " for c in noise).split())
    path = Path(options.results_dir) / table / f"{words}-{seed}.json"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    asked = "cleanlab, out of sample" if options.out_of_sample else "wrong"
    if asked not in record:
        cell = Cell(table, noise, seed, options.output_dir)
        record |= {} if "wrong" in record else cell.record()
        if options.out_of_sample:
            record[asked] = cell.out_of_sample()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as beside:
            beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("tables", nargs="+", choices=tuple(TABLES), help="data and training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of data, noise and training")
    parser.add_argument("--noises", nargs="+", help="some kinds of noise alone")
    parser.add_argument("--out_of_sample", action="store_true", help="cleanlab by five networks as well, where missing")
    parser.add_argument("--results_dir", default="model_cards/label-report", help="of the records")
    parser.add_argument("--output_dir", default="outputs/calibration_table", help="scratch of the trainer")
    options = parser.parse_args(argv)
    with started_as("calibration_table.py"):
        if find_spec("cleanlab") is None:  # before minutes of training
            raise ValueError("cleanlab is needed: pip install -c constraints.txt -e .[bench]")
        head = "noise|seed|by|wrong|estimate|95 %|flagged|of these wrong|of wrong flagged|average precision|misses"
        for table in options.tables:
            print(f"\n{table}\n|{head}|\n{'|---' * 11}|")
            for noise in options.noises or TABLES[table]["noises"]:
                for seed in options.seeds:
                    record = record_of(options, table, noise, seed)
                    print("\n".join(format_row(noise, seed, record, table == "photos")), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
