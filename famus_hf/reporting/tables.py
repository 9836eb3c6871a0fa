"""Runs side by side as text: a table, what stands below it, means and rates."""

import statistics
from collections.abc import Iterable
from typing import Any

from famus_hf.reporting.true_accuracy import are_known, in_words

WITHOUT_META_STEP = ("plain", "forward correction")  # how the names of such methods begin


def format_table(rows: list[dict[str, Any]]) -> str:
    """Return the runs side by side, one line each; agreements and true accuracies where test labels may be wrong."""
    width = max(24, *(len(row["method"]) + 2 for row in rows))
    known = all(map(are_known, rows))
    word, true = ("acc.", "") if known else ("agr.", f"{'true acc.':>11}")
    lines = [
        f"{'method':<{width}}{f'last {word}':>10}{f'best {word}':>10}{true}{'s/step':>9}{'noise':>8}{'layers on':>11}",
        "-" * (width + 48 + len(true)),
    ]
    for row in rows:
        seconds = row["train_seconds_per_step"]
        true = "" if known else f"{format_rate(row.get('estimated_true_accuracy')):>11}"
        lines.append(
            f"{row['method']:<{width}}{100 * row['eval_accuracy']:>9.2f}%{100 * row['best_eval_accuracy']:>9.2f}%{true}"
            f"{'–' if seconds is None else format(seconds, '.4f'):>9}{format_rate(row['realised_noise_rate']):>8}"
            f"{row['mean_active_layers']:>11.2f}"
        )
    return "\n".join(lines)


def format_notes(rows: list[dict[str, Any]]) -> str:
    """Return what stands below the table: seconds of an epoch, and how many labels two networks take for wrong."""
    last = rows[-1]
    lines = [*_beside_honest_baseline(rows)]
    lines += [f"{last['method']}: {words}"] if (words := in_words(last)) else []
    lines += [f"seconds an epoch: {'; '.join(_epoch_of(row, rows[0]) for row in rows)}"]
    if last.get("time_shares"):
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in last["time_shares"].items())
        lines.append(f"of an epoch after the warm-up of {last['method']}: {shares}")
    if "estimated_noise_rate" in last:
        rate = last["estimated_noise_rate"]
        words = "not told, as they have learned too little" if rate is None else format_rate(rate)
        lines.append(f"labels that are wrong, as the networks estimate: {words}")
    return "\n".join(lines)


def _beside_honest_baseline(rows: list[dict[str, Any]]) -> list[str]:
    """Return how far the last row is from the best of those that take no meta step, by accuracy at the end."""
    others = [row for row in rows[:-1] if row["method"].startswith(WITHOUT_META_STEP)]
    if len(others) < 2:
        return []
    best = max(others, key=lambda row: row["eval_accuracy"])
    points = 100 * (rows[-1]["eval_accuracy"] - best["eval_accuracy"])
    name = rows[-1]["method"]
    unit = "points" if are_known(rows[-1]) else "points of agreement with the test labels"
    return [f"{name}: {points:+.1f} {unit} beside the honest baseline, the best without a meta step ({best['method']})"]


def _epoch_of(row: dict[str, Any], first: dict[str, Any]) -> str:
    """Return the seconds of an epoch, and how many of plain training's where that is the first row."""
    seconds, plain = row["seconds_per_epoch"], first["seconds_per_epoch"]
    if seconds is None:
        return f"{row['method']} –"
    ratio = f" ({seconds / plain:.2f} × plain)" if first["method"] == "plain" and row is not first and plain else ""
    return f"{row['method']} {seconds:.2f}{ratio}"


def format_mean(values: Iterable[float], digits: int = 1) -> str:
    """Return mean ± sample standard deviation, the latter where there are several."""
    values = list(values)
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def format_rate(rate: float | None) -> str:
    """Return a share in per cent, or a dash where it is not known."""
    return "–" if rate is None else f"{100 * rate:.1f}%"
