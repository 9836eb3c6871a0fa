"""The table `two-networks` of reproduce.py: two networks that divide the data for each other, and what stands beside.

No clean label is used in any row. All settings are in this file; those of the command line win over SETTINGS.
"""

import statistics
from collections.abc import Iterable
from typing import Any

from famus_hf.reporting.tables import format_mean

NOISE = ("symmetric:0.4", "symmetric:0.6", "pair:0.4", "instance:0.4")
BATCH = 50  # half of a step's examples; rows with one network take twice as many
SETTINGS = (  # of all rows, beside --num_train, --backbone and --seeds
    "--meta_set=pseudo-clean",
    "--num_train_epochs=16",
    "--augmentation=none",
    f"--meta_batch_size={2 * BATCH}",
)
ONE, TWO = (f"--per_device_train_batch_size={2 * BATCH}",), (f"--per_device_train_batch_size={BATCH}", "--two_networks")
PLAIN = "plain training, one network"
ROWS = {
    PLAIN: [*ONE, "--meta_learner=none"],
    "FaMUS, one network, pseudo-clean": [*ONE, "--layer_sampler=learned"],
    "DivideMix": [*TWO, "--meta_learner=none"],
    "two networks, MW-Net, all layers": [*TWO, "--layer_sampler=all"],
    "two networks, FaMUS (K = 4)": [*TWO, "--layer_sampler=learned"],
}

OPTIONAL = ("two networks, MW-Net, all layers",)  # trained where --rows names it


def format_methods(runs: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Return a Markdown table: methods × noises; last (best) test accuracy in %, seconds of an epoch.

    Args:
        runs: Noise → method → what all_results.json has of each seed's run.
    """
    runs = {noise: by_method for noise, by_method in runs.items() if any(by_method.values())}
    head = ["last (best), %", *map(_words, runs), "seconds an epoch", "ratio to plain", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    plain = _seconds(by_method.get(PLAIN, []) for by_method in runs.values())
    for name in ROWS:
        found = [by_method.get(name, []) for by_method in runs.values()]
        seconds, counts = _seconds(found), sorted({len(of_noise) for of_noise in found if of_noise})
        if seconds is None:
            continue
        cells = [
            name,
            *map(_accuracy, found),
            f"{seconds:.1f}",
            "–" if plain is None else f"{seconds / plain:.1f}",
            "–".join(dict.fromkeys([str(counts[0]), str(counts[-1])])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _words(noise: str) -> str:
    kind, _, rate = noise.partition(":")
    return f"`{kind}` {100 * float(rate):g} %"


def _accuracy(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "–"
    last, best = (format_mean(100 * run[name] for run in runs) for name in ("eval_accuracy", "best_eval_accuracy"))
    return f"{last} ({best})"


def _seconds(found: Iterable[list[dict[str, Any]]]) -> float | None:
    """Return the mean over all runs of a row; None where there are none."""
    seconds = [run["seconds_per_epoch"] for of_noise in found for run in of_noise]
    return statistics.fmean(seconds) if seconds else None
