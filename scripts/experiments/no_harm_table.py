"""The table `no-harm` of reproduce.py: does the recommended row lose anywhere to what a practitioner would do anyway?

    python scripts/reproduce.py --table no-harm --jobs 2                # all cells, three seeds: days; it goes on where
    python scripts/reproduce.py --table no-harm --cells 10k 60k-pair-40 --rows plain MW-Net --seeds 0     # it stopped

A cell is a data set, a kind of wrong labels and a schedule; --cells takes cells and groups of them. Images are
Fashion-MNIST at 14 × 14: PIL's bilinear filter, which widens with the reduction, averages 4 × 4 pixels with weights
1, 3, 3, 1 a side. Crops shift an image by up to 4 of the 14 pixels. Networks are `small` (0.08 M parameters) and, where
labels are to be learned by heart, `small-wide` (0.30 M). All rows of a cell take the same number of steps, on the same
data, from the same seeds: SGD with momentum 0.9 under a cosine, from a rate that suits plain training (see `IMAGES`).
Seeds draw labels, trusted images, weights and batches; the images of a cell smaller than the data set are the same.

The *honest baseline* of a cell is the best, by mean last accuracy, of plain training, with the trusted images, with
mixup and averaged weights, and with logit adjustment on long tails, and of forward correction by counts. Beside it
stand `oracle`, which learns from the right labels alone; early-learning regularization; and forward correction by the
transitions that posterior targets begin with, which tells what the meta step is worth. Without trusted images the
recommended row is `forward`, and no verdict is given. A row that ends more than `LOST` below the honest baseline on the
first seed is not run on others, but for `plain` and the recommended row. Test accuracy selects nothing else; "best" is
the highest of eight evaluations.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from scipy.stats import ttest_rel

from famus_hf.cli.results import summary_of
from famus_hf.cli.run import Run
from famus_hf.data.labels.long_tail import long_tail_counts
from famus_hf.errors import SettingsError
from famus_hf.models.imagenet_weights import PACKAGE as IMAGENET
from famus_hf.reporting.tables import format_mean

RESULTS = "model_cards/no-harm"
PLAIN, MW_NET, ORACLE, RECOMMENDED = "plain", "MW-Net", "oracle", "posterior"
FIRST_SEED, LOST = 0, 0.02
Runs = Mapping[str, list[dict[str, Any]]]  # row → records of its seeds
KEPT = (  # of all_results.json
    "eval_accuracy", "best_eval_accuracy", "train_seconds_per_step", "realised_noise_rate", "suspect_labels",
    "estimated_noise_rate_by_label_report", "wrong_label_average_precision", "label_report_doubt",
    "mean_active_layers", "global_step", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Data, wrong labels and schedule.

    Attributes:
        group: A key of `GROUPS`.
        title: Which labels are wrong and, of a long tail, the largest class over the smallest.
        flags: Of run_famus.py.
        steps: Of every row.
        trusted: Number of trusted examples; 0: the meta set is pseudo-clean.
        long_tailed: Whether rows adjust logits by the classes' sizes.
        needs: Folders and packages without which the cell is left out.
    """

    group: str
    title: str
    flags: tuple[str, ...]
    steps: int
    trusted: int = 1000
    long_tailed: bool = False
    needs: tuple[str, ...] = ()


def _cell(
    group: str,
    noise: str,
    flags: Iterable[str],
    examples: int,
    epochs: int,
    *,
    batch: int = 100,
    factor: int | None = None,
    trusted: int = 1000,
    needs: tuple[str, ...] = (),
) -> Cell:
    """Return a cell.

    Args:
        group: A key of `GROUPS`.
        noise: "none", or type and rate in per cent ("pair-40").
        flags: Of the group.
        examples: To train on, without the trusted ones; of a long tail, before classes are made smaller.
        epochs: Passes over what is trained on.
        batch: Examples of a step.
        factor: Largest class over the smallest of a long tail.
        trusted: As `Cell` has it.
        needs: Likewise.
    """
    kind, _, rate = noise.rpartition("-")
    title = f"{kind} {rate} %" if kind else noise
    own = [
        f"--per_device_train_batch_size={batch}",
        f"--num_meta={trusted}",
        f"--max_train_samples={examples + trusted}",
    ]
    own += [f"--noise_type={kind}", f"--noise={int(rate) / 100}"] if kind else []
    own += [] if trusted else ["--meta_set=pseudo-clean"]
    if factor is not None:
        own.append(f"--imbalance_factor={factor}")
        title, examples = f"{factor}, {title}", sum(long_tail_counts(examples, 10, factor))
    return Cell(group, title, (*flags, *own), epochs * (examples // batch), trusted, factor is not None, needs)


# Learning rate: plain training in `10k` with 0.05, 0.1, 0.2, 0.4 (seed 0, none trusted) is right on 74.2, 76.1, 78.9,
# 80.1 % of 5000 training images that no cell of 10 000 uses after pair noise, and on 87.6, 88.1, 88.1, 88.2 % without.
IMAGES = (
    "--backbone=small", "--image_size=14", "--augmentation=none", "--learning_rate=0.2",
    "--lr_scheduler_type=cosine", "--weight_decay=0.0005",
)  # fmt: skip
BY_HEART, CROPS = (*IMAGES, "--backbone=small-wide"), (*IMAGES, "--augmentation=pad-crop")
# Cells of these folders are run where they are there: experiments/fetch_text_and_audio.py fetches the former.
TEXTS, ENCODER = "data/newsgroups-6", "data/minilm-1"
TEXT = (f"--dataset_name={TEXTS}", f"--model_name_or_path={ENCODER}")
FINE_TUNING = (
    "--backbone=efficientnet-lite0", *IMAGES[1:], "--image_size=64", "--learning_rate=0.02", "--max_eval_samples=2000",
)  # fmt: skip

FEW: Any = {"batch": 32, "trusted": 200, "needs": (IMAGENET,)}

GROUPS = {
    "10k": "10 000 images, 1000 trusted, 8 epochs",
    "untrusted": "10 000 images, none trusted, 8 epochs",
    "by-heart": "10 000 images, 1000 trusted, 24 epochs of a wider network",
    "60k": "59 000 images, 1000 trusted, crops and flips, 4 epochs",
    "long-tail": "30 000 images made a long tail, 1000 trusted, 12 epochs",
    "text": "20 Newsgroups, six classes: 1000 texts, 100 trusted, 10 epochs of a pretrained encoder",
    "fine-tuning": "2000 images at 64 × 64, 200 trusted, 6 epochs of a network with ImageNet weights",
}
FOUR = ("none", "symmetric-40", "pair-40", "instance-40")
SEVEN = (*FOUR, "symmetric-20", "symmetric-60", "flip-40")
CELLS = {
    **{f"10k-{noise}": _cell("10k", noise, IMAGES, 10_000, 8) for noise in SEVEN},
    **{f"untrusted-{noise}": _cell("untrusted", noise, IMAGES, 10_000, 8, trusted=0) for noise in FOUR[1:]},
    **{f"by-heart-{noise}": _cell("by-heart", noise, BY_HEART, 10_000, 24) for noise in FOUR},
    **{f"60k-{noise}": _cell("60k", noise, CROPS, 59_000, 4) for noise in FOUR},
    "long-tail-10": _cell("long-tail", "none", IMAGES, 30_000, 12, factor=10),
    "long-tail-100": _cell("long-tail", "none", IMAGES, 30_000, 12, factor=100),
    "long-tail-50-symmetric-40": _cell("long-tail", "symmetric-40", IMAGES, 30_000, 12, factor=50),
    **{
        f"text-{noise}": _cell("text", noise, TEXT, 1000, 10, batch=32, trusted=100, needs=(TEXTS, ENCODER))
        for noise in FOUR[1:3]
    },
    **{
        f"fine-tuning-{noise}": _cell("fine-tuning", noise, FINE_TUNING, 2000, 6, **FEW)
        for noise in FOUR[2:]
    },
}  # fmt: skip


def rows_of_cell(name: str) -> dict[str, list[str]]:
    """Return row → flags of run_famus.py.

    Averaged weights remember a tenth of the run.
    """
    cell = CELLS[name]
    trusted, alone = (["--train_on_trusted=true"], ["--train_on_trusted=false"]) if cell.trusted else ([], [])
    base = f"{PLAIN} + trusted" if cell.trusted else PLAIN
    prior = ["--logit_adjustment=1"] if cell.long_tailed else []
    practice = ["--mixup_alpha=1", f"--ema_decay={1 - 10 / cell.steps:.4f}"]
    plain, paper = ["--meta_learner=none"], ["--meta_learner=mw-net", "--meta_lr_schedule=constant"]
    posterior = ["--meta_learner=posterior", "--preset=fast", *trusted, *prior]
    rows = {
        PLAIN: [*plain, *alone],
        f"{PLAIN}, mixup + averaged": [*plain, *alone, *practice],
        base: [*plain, *trusted],
        f"{base}, mixup + averaged": [*plain, *trusted, *practice],
    }
    if cell.long_tailed:
        rows[f"{base}, logit adjustment"] = [*plain, *trusted, *prior]
        rows[f"{base}, logit adjustment, mixup + averaged"] = [*plain, *trusted, *prior, *practice]
    rows |= {
        f"early learning ({base})": [*plain, *trusted, *prior, "--elr_weight=3", "--belief_decay=0.7"],
        "forward, calibrated": ["--meta_learner=forward", "--transitions=calibrated", *trusted, *prior],
        "forward": ["--meta_learner=forward", *trusted, *prior],
        MW_NET: [*paper, "--layer_sampler=all", *alone],
        "FaMUS (paper)": [*paper, "--layer_sampler=learned", *alone],
        "soft": ["--meta_learner=soft", "--preset=fast", *trusted, *prior],
        "posterior": posterior,
        "posterior, likelihood form": [*posterior, "--posterior_form=likelihood"],
        "posterior, mixup + averaged": [*posterior, *practice],
        "posterior, every 10": [*posterior, "--meta_interval=10"],
        "posterior, early learning": [*posterior, "--elr_weight=3"],
    }
    if "none" not in cell.title:
        rows[ORACLE] = [*plain, *trusted, *prior]
    return rows


def all_rows() -> dict[str, list[str]]:
    """Return every row of any cell, with the flags of one of them."""
    return {row: flags for name in CELLS for row, flags in rows_of_cell(name).items()}


def is_baseline(row: str) -> bool:
    """Return whether a row may be the honest baseline."""
    return row == "forward" or row.startswith(PLAIN)


def flags_of_cell(name: str, dataset_name: str) -> list[str]:
    """Return the flags of run_famus.py that all rows of a cell have."""
    return [f"--dataset_name={dataset_name}", *CELLS[name].flags, f"--max_steps={CELLS[name].steps}"]


def chosen_cells(names: list[str] | None) -> list[str]:
    """Return the cells of these names and groups (None: of all) whose data and weights are there; say what is not.

    Raises:
        SettingsError: A name is neither a cell nor a group.
    """
    unknown = sorted(set(names or []) - set(CELLS) - set(GROUPS))
    if unknown:
        raise SettingsError(f"--cells {unknown[0]!r} is unknown: choose from {', '.join([*GROUPS, *CELLS])}")
    chosen = [name for name in CELLS if names is None or name in names or CELLS[name].group in names]
    missing = {name: [need for need in CELLS[name].needs if not _is_there(need)] for name in chosen}
    for name, needs in missing.items():
        if needs:
            print(f"{name} is left out: {' and '.join(needs)} not there", flush=True)
    return [name for name in chosen if not missing[name]]


def _is_there(need: str) -> bool:
    """Return whether a folder is there, or a package can be imported."""
    return Path(need).is_dir() or find_spec(need) is not None


def with_right_labels(data: DatasetDict) -> DatasetDict:
    """Return the data with those training examples alone whose labels are right."""
    train = data["train"]
    right = np.flatnonzero(np.asarray(train["label"][:]) == np.asarray(train["clean_label"][:]))
    return DatasetDict({**data, "train": train.select(right)})


def record_of(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a finished run, what its label report says, and the epoch of its best evaluation."""
    results = {**results, **summary_of(run.trainer.label_report())}
    evaluations = [entry for entry in run.trainer.state.log_history if "eval_accuracy" in entry]
    best = max(evaluations, key=lambda entry: entry["eval_accuracy"])
    return {**{name: results[name] for name in KEPT if name in results}, "best_epoch": best["epoch"]}


def has_lost(row: str, first: Runs) -> bool:
    """Return whether a row needs no further seeds.

    Args:
        row: Its name.
        first: Row → its record of the first seed, where there is one.
    """
    if row in (PLAIN, RECOMMENDED) or not first.get(row):
        return False
    honest = max((last(runs) for name, runs in first.items() if runs and is_baseline(name)), default=0.0)
    return last(first[row]) < honest - LOST


def last(runs: Iterable[dict[str, Any]]) -> float:
    """Return the mean accuracy at the end."""
    return statistics.fmean(run["eval_accuracy"] for run in runs)


def honest_baseline(runs: Runs) -> str | None:
    """Return the honest baseline of a cell; None where none has been run.

    Of rows that have all seeds of the recommended one it is the best on these, else the best of all.
    """
    wanted = {run["seed"] for run in runs.get(RECOMMENDED, [])}
    candidates = {row: found for row, found in runs.items() if is_baseline(row) and found}
    on_wanted = {row: [run for run in found if run["seed"] in wanted] for row, found in candidates.items()}
    whole = {row: found for row, found in on_wanted.items() if wanted and len(found) == len(wanted)}
    means = {row: last(found) for row, found in (whole or candidates).items()}
    return max(means, key=means.__getitem__, default=None)


def differences(runs: Runs, row: str, other: str) -> list[float]:
    """Return how many points a row ends above another, for each seed that both have."""
    by_seed = {run["seed"]: run["eval_accuracy"] for run in runs.get(other, [])}
    found = [run for run in runs.get(row, []) if run["seed"] in by_seed]
    return [100 * (run["eval_accuracy"] - by_seed[run["seed"]]) for run in found]


# ---- As Markdown ----


def format_groups(runs: Mapping[str, Runs]) -> str:
    """Return a table for each group of cells, and what the recommended row comes to in each.

    Args:
        runs: Cell → row → records of its seeds.
    """
    parts = []
    for group, title in GROUPS.items():
        cells = {name: rows for name, rows in runs.items() if CELLS[name].group == group and any(rows.values())}
        if cells:
            lines = [line for name, rows in cells.items() for line in _lines(name, rows)]
            head = ["wrong labels", "row", "last, %", "best, %", "ms a step", "AP", "est. / true", "p", "seeds"]
            parts += [f"\n{title}\n", _table(head, lines)]
    trusted = {name: rows for name, rows in runs.items() if CELLS[name].trusted}
    verdicts = {name: found for name, rows in trusted.items() if (found := verdict(name, rows)) is not None}
    if verdicts:
        above = [found["over MW-Net"] > 0 for found in verdicts.values() if found["over MW-Net"] is not None]
        head = ["cell", "honest baseline", "recommended row over it", "plain: best − last", "over MW-Net",
                "estimate − truth", "bar"]  # fmt: skip
        lines = [[name, *map(_shown, found.values())] for name, found in verdicts.items()]
        parts += [f"\nThe recommended row: {RECOMMENDED}\n", _table(head, lines)]
        parts.append(f"\nabove MW-Net in {sum(above)} of {len(above)} cells")
    return "\n".join(parts)


def verdict(name: str, runs: Runs) -> dict[str, Any] | None:
    """Return what the recommended row comes to in a cell, in points; None where it has not been run.

    The bar: at most 0.3 below the honest baseline; at least 2 above it where plain training ends more than 2 below its
    best; the share of wrong labels within 0.05 of the truth.
    """
    baseline = honest_baseline(runs)
    if baseline is None or not runs.get(RECOMMENDED):
        return None
    gain = _mean(differences(runs, RECOMMENDED, baseline))
    forgotten = _mean([100 * (run["best_eval_accuracy"] - run["eval_accuracy"]) for run in runs.get(PLAIN, [])])
    errors = [
        run["estimated_noise_rate_by_label_report"] - run["realised_noise_rate"]
        for run in runs[RECOMMENDED]
        if run.get("estimated_noise_rate_by_label_report") is not None
    ]
    missed = ["loses"] if gain is not None and gain < -0.3 else []
    missed += ["gains too little"] if gain is not None and (forgotten or 0) > 2 and gain < 2 else []
    missed += ["share"] if not errors or max(map(abs, errors)) > 0.05 else []
    return {
        "baseline": baseline,
        "gain": gain,
        "forgotten": forgotten,
        "over MW-Net": _mean(differences(runs, RECOMMENDED, MW_NET)),
        "error": _mean(errors),
        "bar": ", ".join(missed) or "met",
    }


def _lines(name: str, runs: Runs) -> list[list[str]]:
    """Return the cells of a table's lines, one for each row that was run; the honest baseline is bold."""
    baseline = honest_baseline(runs)
    return [
        [
            CELLS[name].title,
            f"**{row}**" if row == baseline else row,
            format_mean(100 * run["eval_accuracy"] for run in found),
            format_mean(100 * run["best_eval_accuracy"] for run in found),
            f"{statistics.fmean(1000 * run['train_seconds_per_step'] for run in found):.0f}",
            *_of_wrong_labels(row, found),
            "–" if baseline is None or row in (baseline, ORACLE) else _p(differences(runs, row, baseline)),
            str(len(found)),
        ]
        for row, found in runs.items()
        if found
    ]


def _of_wrong_labels(row: str, runs: list[dict[str, Any]]) -> tuple[str, str]:
    """Return average precision of finding them, in %, and the estimated and the true share."""
    if row == ORACLE:
        return "–", "–"
    precisions, estimates, truths = (
        [run[key] for run in runs if run.get(key) is not None]
        for key in ("wrong_label_average_precision", "estimated_noise_rate_by_label_report", "realised_noise_rate")
    )
    estimate = f"{statistics.fmean(estimates):.3f}" if estimates else "can't tell"
    return (
        format_mean(100 * value for value in precisions) if precisions else "–",
        f"{estimate} / {statistics.fmean(truths):.3f}",
    )


def _p(values: list[float]) -> str:
    """Return the p of a paired one-sided t test that a row is better, from its differences; needs two that differ."""
    if len(set(values)) < 2:
        return "–"
    return f"{ttest_rel(values, np.zeros(len(values)), alternative='greater').pvalue:.3f}"


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _shown(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:+.2f}"
    return "–" if value is None else str(value)


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])
