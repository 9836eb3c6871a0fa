"""Accuracy of several methods against the time that they take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from famus_hf.reporting.figures.style import COLOURS, legend_below, new_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^v<>PX*hp"
Point = tuple[str, float, float]  # a method, its seconds and its accuracy


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the methods that no other one beats in both, in order of their time."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point[1], -point[2])):
        if not front or point[2] > front[-1][2]:
            front.append(point)
    return front


def draw_accuracy_by_time(points: Sequence[Point]) -> "Figure":
    """Draw a point for each method, and the front of those that no other one beats in both."""
    figure, axes = new_plot("training time, s", "accuracy at the end, %")
    front = pareto_front(points)
    axes.plot(
        [seconds for _, seconds, _ in front], [100 * accuracy for *_, accuracy in front], color="#AAAAAA",
        linewidth=1, drawstyle="steps-post", zorder=1,
    )  # fmt: skip
    marks = [
        axes.scatter(
            seconds, 100 * accuracy, color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)], s=36
        )
        for place, (_, seconds, accuracy) in enumerate(points)
    ]
    legend_below(figure, marks, [name for name, *_ in points])
    return figure
