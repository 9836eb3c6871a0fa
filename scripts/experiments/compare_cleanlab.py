"""Finding wrong labels: the label report beside cleanlab, on the same noisy data and the same networks.

    python scripts/experiments/compare_cleanlab.py            # pip install -e .[bench] brings cleanlab

For each noise and seed: a plain network and a FaMUS network are trained on four fifths of the data, five times, so that
every example gets probabilities of a network that has not seen it; and one FaMUS network on all of them, whose label
report is what a run leaves. Wrong labels are ranked from those probabilities by cleanlab and by our score. Prints a
Markdown table of average precision (mean ± sample standard deviation over the seeds), and of how many labels each one
flags, how many of them are wrong, and how many of the wrong ones they are. A noise and seed whose record is in
--results_dir is not repeated.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from transformers import set_seed

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_noisy_dataset
from famus_hf.cli.program import started_as
from famus_hf.core.transitions import clean_label_probabilities
from famus_hf.reporting.tables import format_mean

NETWORKS: dict[str, dict[str, Any]] = {"plain": {"meta_learner": "none"}, "FaMUS": {"preset": "fast"}}
RANKS = ("self_confidence", "normalized_margin")  # of cleanlab
FOLDS = 5
SETTINGS = ("dataset_name", "backbone", "num_train", "num_meta", "num_train_epochs")  # that a record is of


class Comparison:
    """One noise and one seed."""

    def __init__(self, options: argparse.Namespace, noise: str, seed: int):
        kind, _, rate = noise.partition(":")
        self.options, self.seed = options, seed
        self.data = load_noisy_dataset(
            options.dataset_name, noise=float(rate), noise_type=kind, num_meta=options.num_meta,
            max_train_samples=options.num_train + options.num_meta, seed=seed,
        )  # fmt: skip
        self.labels = np.asarray(self.data["train"]["label"][:])
        self.wrong = self.labels != np.asarray(self.data["train"]["clean_label"][:])

    def train(self, network: str, train: Dataset) -> FaMUSTrainer:
        set_seed(self.seed)
        args = FaMUSTrainingArguments(
            self.options.output_dir, num_train_epochs=self.options.num_train_epochs, seed=self.seed, save_strategy="no",
            report_to="none", disable_tqdm=True, logging_strategy="no", **NETWORKS[network],
        )  # fmt: skip
        model = build_backbone(self.options.backbone, train.features["label"].names)
        meta = None if network == "plain" else self.data["meta"]
        trainer = FaMUSTrainer(model, args, train_dataset=train, meta_dataset=meta)
        trainer.train()
        return trainer

    def out_of_sample(self, network: str) -> np.ndarray:
        """Return what networks that have not seen an example predict for it, shape (N, C)."""
        train = self.data["train"]
        probabilities = np.zeros((len(train), train.features["label"].num_classes))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=self.seed)
        for rows, others in folds.split(self.labels, self.labels):
            logits = self.train(network, train.select(rows)).predict(train.select(others)).predictions
            probabilities[others] = torch.from_numpy(logits).softmax(1).numpy()
        return probabilities

    def rows(self) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield methods and their figures."""
        for network in NETWORKS:
            started = time.perf_counter()
            probabilities = self.out_of_sample(network)
            seconds = time.perf_counter() - started
            for rank in RANKS:
                name = f"cleanlab find_label_issues, {rank}; {network} networks, out of sample"
                yield name, {**self.judge_cleanlab(probabilities, rank), "seconds": seconds}
            ours = self.judge_ours(clean_label_probabilities(self.labels, probabilities))
            yield f"our score; {network} networks, out of sample", {**ours, "seconds": seconds}
        started = time.perf_counter()
        report = self.train("FaMUS", self.data["train"]).label_report()
        order = np.argsort(self.data["train"]["index"][:])
        sound = np.empty(len(order))
        is_told = not report.info.description  # else the order says which is more suspect, and none is flagged
        ranked = report["clean_probability"][:] if is_told else np.linspace(0.5, 1, len(order))
        sound[order] = np.asarray(ranked)[np.argsort(report["index"][:])]
        yield "label report of one FaMUS run", {**self.judge_ours(sound), "seconds": time.perf_counter() - started}

    def judge_cleanlab(self, probabilities: np.ndarray, rank: str) -> dict[str, float]:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        flagged = find_label_issues(self.labels, probabilities, return_indices_ranked_by=rank)
        scores = 1 - get_label_quality_scores(self.labels, probabilities, method=rank)  # in [0, 1]
        scores[flagged] = 2 + np.arange(len(flagged), 0, -1)  # what it flags comes first, in its own order
        return self.judge(scores, np.isin(np.arange(len(self.labels)), flagged))

    def judge_ours(self, sound: np.ndarray) -> dict[str, float]:
        return self.judge(1 - sound, sound < 0.5)

    def judge(self, scores: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
        return {
            "average_precision": float(average_precision_score(self.wrong, scores)),
            "flagged": int(flagged.sum()),
            "precision": float(self.wrong[flagged].mean()) if flagged.any() else 0.0,
            "recall": float(flagged[self.wrong].mean()),
        }


def format_table(records: list[dict[str, dict[str, float]]]) -> str:
    """Return the rows of several seeds as a Markdown table."""

    def mean(name: str, figure: str, scale: float, digits: int) -> str:
        return format_mean((scale * record[name][figure] for record in records), digits)

    lines = ["| | average precision, % | flagged | of them wrong, % | of the wrong ones, % | s |", "|---" * 6 + "|"]
    for name in records[0]:
        cells = [
            name, mean(name, "average_precision", 100, 1), mean(name, "flagged", 1, 0),
            mean(name, "precision", 100, 1), mean(name, "recall", 100, 1),
            f"{statistics.fmean(record[name]['seconds'] for record in records):.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset_name", default="/usr/share/datasets/fashion-mnist", help="as in run_famus.py")
    parser.add_argument("--backbone", default="small", help="as in run_famus.py")
    parser.add_argument("--num_train", type=int, default=10_000, help="noisy training examples")
    parser.add_argument("--num_meta", type=int, default=1000, help="clean meta examples, which FaMUS learns from")
    parser.add_argument("--num_train_epochs", type=float, default=10, help="of every network")
    parser.add_argument("--noise", nargs="+", default=["pair:0.4", "symmetric:0.4"], help="noise type and rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of data, noise, folds and training")
    parser.add_argument("--results_dir", default="model_cards/fashion-mnist-label-report", help="of the records")
    parser.add_argument("--output_dir", default="outputs/compare_cleanlab", help="scratch of the trainer")
    options = parser.parse_args(argv)
    with started_as("compare_cleanlab.py"):
        if find_spec("cleanlab") is None:  # before hours of training
            raise ValueError("cleanlab is needed: pip install -c constraints.txt -e .[bench]")
        for noise in options.noise:
            table = format_table([record_of(options, noise, seed) for seed in options.seeds])
            print(f"\n{options.dataset_name}, {noise}, {options.num_train} training images\n{table}")


def record_of(options: argparse.Namespace, noise: str, seed: int) -> dict[str, dict[str, float]]:
    """Return the rows of a noise and a seed, computed unless they are on record.

    Raises:
        ValueError: The record is of other settings.
    """
    path = Path(options.results_dir) / f"{noise.replace(':', '-')}-{seed}.json"
    settings = {name: getattr(options, name) for name in SETTINGS}
    if not path.is_file():
        record = {"settings": settings, "rows": dict(Comparison(options, noise, seed).rows())}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["settings"] != settings:
        raise ValueError(f"{path} is of other settings: give another --results_dir")
    return record["rows"]


if __name__ == "__main__":
    main(sys.argv[1:])
