"""Accuracy of several methods against the time that they take."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from famus_hf.reporting.figures.style import COLOURS, legend_below, new_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^v<>PX*hp"
FARTHEST = 10.0  # per cent at least, below the middle one; methods that end lower stand at the lower edge
KEYS_BESIDE = 3  # columns of numbers and names
Point = tuple[str, float, float]  # a method, its seconds and its accuracy


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the methods that no other one beats in both, in order of their time."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point[1], -point[2])):
        if not front or point[2] > front[-1][2]:
            front.append(point)
    return front


def draw_accuracy_by_time(points: Sequence[Point]) -> "Figure":
    """Draw a point for each method, and the front of those that no other one beats in both.

    More methods than there are markers are numbers, in bold those of the front. Of these, methods that end far below
    all others stand at the lower edge with an arrow.
    """
    figure, axes = new_plot("training time, s", "accuracy at the end, %")
    shown = [(name, seconds, 100 * accuracy) for name, seconds, accuracy in points]
    accuracies = [accuracy for *_, accuracy in shown]
    has_markers = len(shown) <= len(MARKERS)
    lowest = min(accuracies) if has_markers else _floor(accuracies)
    front = pareto_front(shown)
    axes.plot(
        [seconds for _, seconds, _ in front], [max(lowest, accuracy) for *_, accuracy in front], color="#AAAAAA",
        linewidth=1, drawstyle="steps-post", zorder=1,
    )  # fmt: skip
    if has_markers:
        _draw_markers(figure, axes, shown)
    else:
        _draw_numbers(figure, axes, shown, front, lowest)
    return figure


def _draw_markers(figure: "Figure", axes: "Axes", points: Sequence[Point]) -> None:
    marks = [
        axes.scatter(seconds, accuracy, color=COLOURS[place % len(COLOURS)], marker=MARKERS[place], s=36)
        for place, (_, seconds, accuracy) in enumerate(points)
    ]
    legend_below(figure, marks, [name for name, *_ in points])


def _draw_numbers(
    figure: "Figure", axes: "Axes", points: Sequence[Point], front: Sequence[Point], lowest: float
) -> None:
    """Draw numbers, and below the panel whose they are; one that is lower than `lowest` stands there, with an arrow."""
    axes.scatter([seconds for _, seconds, _ in points], [max(lowest, accuracy) for *_, accuracy in points], s=0)
    axes.set_xscale("log")
    for of_ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        of_ticks("{x:g}")
    for number, point in enumerate(points, start=1):
        _, seconds, accuracy = point
        is_front = point in front
        axes.text(
            seconds, max(lowest, accuracy), f"{number}{'↓' if accuracy < lowest else ''}", ha="center", va="center",
            fontsize=8, clip_on=False, color="black" if is_front else "#666666",
            fontweight="bold" if is_front else "normal",
        )  # fmt: skip
    (nothing,) = axes.plot([], [], linestyle="none")
    labels = [f"{number}  {name}" for number, (name, *_) in enumerate(points, start=1)]
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(labels) // KEYS_BESIDE))
    figure.legend(
        [nothing] * len(labels), labels, loc="outside lower center", ncols=KEYS_BESIDE, frameon=False, fontsize=8,
        handlelength=0, handletextpad=0,
    )  # fmt: skip


def _floor(values: Sequence[float]) -> float:
    """Return the lowest value that is not further below the middle one than thrice the highest is above it."""
    middle = statistics.median(values)
    least = middle - max(3 * (max(values) - middle), FARTHEST)
    return min(value for value in values if value >= least)
