"""Several methods beside each other, over seeds: a table, which one ends highest, a picture, one page."""

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from famus_hf.reporting.figures.comparison import Point, draw_accuracy_by_time
from famus_hf.reporting.figures.style import save
from famus_hf.reporting.html import data_uri, rendered
from famus_hf.reporting.tables import format_mean
from famus_hf.storage.atomic import atomic_write

LEVEL = 0.05  # of significance, over all pairs together
TEMPLATE = Path(__file__).with_name("comparison_template.html")
COLUMNS = (
    "method", "last, %", "best, %", "seconds", "ratio to plain", "memory, MB", "average precision, %", "rank", "p",
    "seeds",
)  # fmt: skip
CSV_COLUMNS = (
    "method", "title", "seed", "eval_accuracy", "best_eval_accuracy", "train_seconds", "train_seconds_per_step",
    "peak_memory_mb", "wrong_label_average_precision", "realised_noise_rate", "estimated_noise_rate_by_label_report",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A method's runs.

    Attributes:
        method: Its name.
        runs: What all_results.json holds, of each seed.
    """

    method: str
    runs: list[dict[str, Any]]

    @property
    def title(self) -> str:
        return str(self.runs[0]["method"])

    @property
    def last(self) -> float:
        """Mean accuracy at the end."""
        return statistics.fmean(self.values("eval_accuracy"))

    @property
    def seconds(self) -> float:
        """Mean seconds of training."""
        return statistics.fmean(self.values("train_seconds"))

    def values(self, key: str) -> list[float]:
        """Return a figure of all runs that have it."""
        return [float(run[key]) for run in self.runs if run.get(key) is not None]

    def by_seed(self) -> dict[int, float]:
        """Return seed → accuracy at the end."""
        return {int(run["seed"]): float(run["eval_accuracy"]) for run in self.runs}


@dataclass(frozen=True)
class Comparison:
    """Methods, the one that ends highest first.

    Attributes:
        rows: One for each method.
    """

    rows: list[Row]

    @classmethod
    def of(cls, runs: Iterable[tuple[str, dict[str, Any]]]) -> "Comparison":
        """Return the comparison of finished runs, each given by its method's name and its results."""
        by_method: dict[str, list[dict[str, Any]]] = {}
        for name, results in runs:
            by_method.setdefault(name, []).append(results)
        rows = [Row(name, found) for name, found in by_method.items()]
        return cls(sorted(rows, key=lambda row: -row.last))

    @classmethod
    def read(cls, table: Path) -> "Comparison":
        """Return the comparison that a CSV file of `write` is of; its figures are strings."""
        with table.open(newline="", encoding="utf-8") as file:
            lines = [{name: value or None for name, value in line.items()} for line in csv.DictReader(file)]
        return cls.of((str(line["method"]), {**line, "method": line["title"]}) for line in lines)

    # ---- Which one ends highest ----

    def p_values(self) -> dict[str, float]:
        """Return method → p of a paired two-sided t test against the first one; all of them by Holm's procedure.

        Pairs are of the same seed, that is of the same labels. A method is left out where fewer than two pairs differ.
        """
        first = self.rows[0]
        found = {row.method: p for row in self.rows[1:] if (p := p_of_pairs(pairs_of(first, row))) is not None}
        return holm(found)

    def mean_ranks(self) -> dict[str, float]:
        """Return method → mean over seeds of its place among all methods, 1 the highest; ties share their places.

        Seeds that a method lacks are left out.
        """
        by_seed = {row.method: row.by_seed() for row in self.rows}
        seeds = set.intersection(*(set(found) for found in by_seed.values()))
        return {
            name: statistics.fmean(
                _place(found[seed], [other[seed] for other in by_seed.values()]) for seed in sorted(seeds)
            )
            for name, found in by_seed.items()
            if seeds
        }

    @property
    def verdict(self) -> str:
        """Which method ends highest, and which ones can't be told from it."""
        first, p_values = self.rows[0], self.p_values()
        words = f"{first.title} ends highest ({format_mean(100 * value for value in first.values('eval_accuracy'))} %)."
        if len(self.rows) == 1:
            return words
        alike = [row.title for row in self.rows[1:] if p_values.get(row.method, 1.0) >= LEVEL]
        if len(first.runs) < 2:
            return f"{words} One seed can't tell differences from chance: give several --seeds."
        if not alike:
            return f"{words} Every other method ends lower (paired t tests over seeds, Holm, 5 %)."
        return f"{words} Not told from it by paired t tests over seeds (Holm, 5 %): {', '.join(alike)}."

    # ---- What is shown ----

    def cells(self) -> list[list[str]]:
        """Return the cells of the table, a list for each method, in the order of `COLUMNS`."""
        p_values, ranks = self.p_values(), self.mean_ranks()
        plain = next((row.seconds for row in self.rows if row.method == "plain"), None)
        return [
            [
                row.title,
                format_mean(100 * value for value in row.values("eval_accuracy")),
                format_mean(100 * value for value in row.values("best_eval_accuracy")),
                f"{row.seconds:.0f}",
                mean_as([] if plain is None else [row.seconds / plain], "{:.2f}"),
                mean_as(row.values("peak_memory_mb"), "{:.0f}"),
                mean_as([100 * value for value in row.values("wrong_label_average_precision")], "{:.1f}"),
                mean_as([ranks[row.method]] if row.method in ranks else [], "{:.1f}"),
                mean_as([p_values[row.method]] if row.method in p_values else [], "{:.3f}"),
                str(len(row.runs)),
            ]
            for row in self.rows
        ]

    def as_markdown(self) -> str:
        """Return the table."""
        lines = [list(COLUMNS), ["---"] * len(COLUMNS), *self.cells()]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def points(self) -> list[Point]:
        """Return title, seconds and accuracy of each method."""
        return [(row.title, row.seconds, row.last) for row in self.rows]

    def write(self, folder: Path) -> list[Path]:
        """Write the CSV file, the picture and the page. Return their paths."""
        table, picture, page = (folder / f for f in ("comparison.csv", "accuracy_by_time.png", "comparison.html"))
        with atomic_write(table) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(CSV_COLUMNS)
            writer.writerows(self._lines())
        save(draw_accuracy_by_time(self.points()), picture)
        with atomic_write(page) as path:
            path.write_text(self._page(picture), encoding="utf-8")
        return [table, picture, page]

    def _lines(self) -> list[list[Any]]:
        """Return the lines of the CSV file, one for each run."""
        return [
            [row.method, row.title, *(run.get(name) for name in CSV_COLUMNS[2:])]
            for row in self.rows
            for run in row.runs
        ]

    def _page(self, picture: Path) -> str:
        run = self.rows[0].runs[0]
        return rendered(
            TEMPLATE,
            title=f"{run.get('dataset_name', 'data')}: {len(self.rows)} methods beside each other",
            columns=COLUMNS,
            rows=self.cells(),
            verdict=self.verdict,
            picture=data_uri(picture.read_bytes(), "image/png"),
        )


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Return p values of several tests, made larger so that all of them together err as seldom as one (Holm, 1979)."""
    adjusted, largest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - place)))
        adjusted[name] = largest
    return adjusted


def pairs_of(first: Row, other: Row) -> list[tuple[float, float]]:
    """Return the accuracies at the end of both methods, of each seed that both have."""
    ours, theirs = first.by_seed(), other.by_seed()
    return [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]


def p_of_pairs(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the p of a paired t test; None where fewer than two differences differ."""
    if len({ours - theirs for ours, theirs in pairs}) < 2:
        return None
    p = float(ttest_rel(*zip(*pairs, strict=True)).pvalue)
    return p if math.isfinite(p) else None


def _place(value: float, values: Sequence[float]) -> float:
    """Return the place of a value among all, 1 the highest; equal ones share the mean of their places."""
    return 1 + sum(other > value for other in values) + (values.count(value) - 1) / 2


def mean_as(values: Sequence[float], form: str) -> str:
    """Return the mean in a form of `str.format`; a dash where there is nothing."""
    return form.format(statistics.fmean(values)) if values else "–"
