"""The numbers behind the pictures: a line for each method, for text."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from famus_hf.reporting.figures.meta_gradient import quality_of
from famus_hf.reporting.figures.run_records import RunRecords, to_average
from famus_hf.reporting.figures.stage_times import seconds_of_parts
from famus_hf.reporting.figures.weights import clean_above_mean

Measure = Callable[[RunRecords], float | None]


def _last(name: str) -> Measure:
    return lambda run: list(run.series(name).values() or [None])[-1]


def _last_accuracy(run: RunRecords) -> float | None:
    return None if run.last_accuracy is None else 100 * run.last_accuracy


def _best_accuracy(run: RunRecords) -> float | None:
    return 100 * max(run.on_test_set("accuracy").values()) if run.on_test_set("accuracy") else None


def _true_accuracy(run: RunRecords) -> float | None:
    value = run.results.get("estimated_true_accuracy")
    return None if value is None else 100 * value


def _quality(measure: str) -> Measure:
    def of_run(run: RunRecords) -> float | None:
        values = quality_of(run)[measure]
        return float(values.median()) if len(values) else None

    return of_run


def _milliseconds(run: RunRecords) -> float | None:
    table = run.table("stage_times")
    return 1000 * sum(seconds_of_parts(table).values()) if len(table) else None


COLUMNS: dict[str, tuple[Measure, int]] = {  # head → what it is of a run, digits
    "last accuracy, %": (_last_accuracy, 1),
    "best, %": (_best_accuracy, 1),
    "true accuracy, as estimated, %": (_true_accuracy, 1),
    "ms a step": (_milliseconds, 0),
    "cosine": (_quality("cosine"), 2),
    "distance": (_quality("bias"), 2),
    "ratio of deviations": (_quality("spread"), 2),
    "of relative ones": (_quality("relative_spread"), 2),
    "weight of right labels": (_last("mean_weight_clean"), 2),
    "of wrong ones": (_last("mean_weight_noisy"), 2),
    "right labels above the mean weight, %": (clean_above_mean, 0),
}


def summary(groups: Mapping[str, Sequence[RunRecords]]) -> str:
    """Return a Markdown table: methods × what their runs have recorded, mean ± sample standard deviation.

    A run counts with the median over its records of the meta gradient (see `quality_of`), and with its last log entry
    and record of weights. Columns that no run has are left out. `runs` are those that gave a figure; a cell of fewer
    says of how many. Runs that have not come to their ends count where none of their method has.
    """
    counted = {name: to_average(runs) for name, runs in groups.items()}
    values = {
        head: {name: [_finite(measure(run)) for run in runs] for name, runs in counted.items()}
        for head, (measure, _) in COLUMNS.items()
    }
    heads = [
        head for head, by_name in values.items() if any(v is not None for of_runs in by_name.values() for v in of_runs)
    ]
    lines = [f"| | {' | '.join(heads)} | runs |", "|---" * (len(heads) + 2) + "|"]
    for name, runs in groups.items():
        rows = [
            row for row in zip(*(values[head][name] for head in heads), strict=True) if any(v is not None for v in row)
        ]
        columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)] or [
            []
        ] * len(heads)
        cells = [_cell(column, len(rows), COLUMNS[head][1]) for head, column in zip(heads, columns, strict=True)]
        lines.append(f"| {' | '.join([name, *cells, _count(len(rows), runs)])} |")
    return "\n".join(lines)


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _cell(values: Sequence[float], count: int, digits: int) -> str:
    """Return mean and deviation; of fewer than `count` values also of how many."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}{'' if len(values) == count else f' (of {len(values)})'}"


def _count(count: int, runs: Sequence[RunRecords]) -> str:
    """Return how many runs gave a figure, and how many have not come to their ends."""
    not_ended = sum(not run.has_ended for run in runs)
    if not not_ended:
        return str(count)
    return f"{count}, not ended" if not_ended == len(runs) else f"{count} ({not_ended} more not ended)"
