"""Curves over the steps of runs, and over their seconds."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.style import RIGHT, WRONG, label_panels, legend_below, line_style, new_panels, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[RunRecords]]
Series = Callable[[RunRecords], dict[int, float]]


def mean_curve(runs: Sequence[RunRecords], series: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps that all of the runs have, mean and standard deviation there, each of shape (n,). n may be 0."""
    curves = [curve for run in runs if (curve := series(run))]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    values = np.array([[curve[step] for step in steps] for curve in curves]).reshape(len(curves), len(steps))
    spread = values.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(steps))
    return np.array(steps), values.mean(0) if curves else np.zeros(0), spread


def draw_band(axes: Any, x: np.ndarray, mean: np.ndarray, spread: np.ndarray, **style: Any) -> Any:
    """Draw a line, a dot where it has a single point, and its band. Return the line."""
    (line,) = axes.plot(x, mean, marker="o" if len(x) == 1 else None, markersize=4, **style)
    if spread.any():
        axes.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0)
    return line


def _draw_groups(axes: Any, groups: Groups, series: Series, x_of: Series | None = None, scale: float = 1) -> list[Any]:
    """Draw a curve for each group that has any, and return them; their labels are the groups' names."""
    lines = []
    for place, (name, runs) in enumerate(groups.items()):
        steps, mean, spread = mean_curve(runs, series)
        x = steps
        if x_of is not None and len(steps):
            steps_of_x, x, _ = mean_curve(runs, x_of)
            kept = np.isin(steps, steps_of_x)
            x, mean, spread = x[np.isin(steps_of_x, steps)], mean[kept], spread[kept]
        if len(x):
            lines.append(draw_band(axes, x, scale * mean, scale * spread, label=short(name, 40), **line_style(place)))
    return lines


def draw_accuracy(groups: Groups) -> "Figure | None":
    """Draw Figures 1a and 3a. The time is that of training alone, without evaluations and diagnostics."""
    if not any(run.on_test_set("accuracy") for runs in groups.values() for run in runs):
        return None
    figure, panels = new_panels(1, 2, share_y=True)
    by_step, by_time = panels[0]
    lines = _draw_groups(by_step, groups, partial(RunRecords.on_test_set, name="accuracy"), scale=100)
    _draw_groups(by_time, groups, partial(RunRecords.on_test_set, name="accuracy"), _seconds_of_evaluations, scale=100)
    known = all(run.are_labels_known for runs in groups.values() for run in runs)
    what = "test accuracy" if known else "agreement with the test labels"
    by_step.set(xlabel="training step", ylabel=f"{what} [%]")
    by_time.set(xlabel="training time [s]")
    by_time.tick_params(labelleft=False)
    legend_below(figure, lines, [line.get_label() for line in lines])
    return figure


def _seconds_of_evaluations(run: RunRecords) -> dict[int, float]:
    steps, seconds = run.on_test_set("accuracy"), run.series("train_seconds")
    return {step: seconds[step] for step in steps if step in seconds}


def draw_losses(groups: Groups) -> "Figure | None":
    """Draw Figure 3b."""
    if not any(run.on_test_set("loss") for runs in groups.values() for run in runs):
        return None
    figure, panels = new_panels(1, 1)
    lines = _draw_groups(panels[0, 0], groups, partial(RunRecords.on_test_set, name="loss"))
    panels[0, 0].set(xlabel="training step", ylabel="test loss (cross-entropy)")
    legend_below(figure, lines, [line.get_label() for line in lines])
    return figure


def draw_mean_weights(groups: Groups) -> "Figure | None":
    """Draw the weights in training batches, n·V̂, where right labels are known."""
    shown = {name: runs for name, runs in groups.items() if any(run.series("mean_weight_clean") for run in runs)}
    if not shown:
        return None
    columns = min(3, len(shown))
    figure, panels = new_panels(-(-len(shown) // columns), columns, share_x=True, share_y=True)
    lines = []
    for axes, (name, runs) in zip(panels.flat, shown.items(), strict=False):
        kinds = {"clean": ("right labels", RIGHT, "-"), "noisy": ("wrong labels", WRONG, "--")}
        lines = [
            draw_band(axes, *mean_curve(runs, partial(RunRecords.series, name=f"mean_weight_{kind}")),
                      label=label, color=colour, linestyle=dashes)
            for kind, (label, colour, dashes) in kinds.items()
        ]  # fmt: skip
        axes.axhline(1, color="#888888", linewidth=0.8)
        axes.set_title(short(name, 40))
    label_panels(panels, len(shown), "training step", "mean weight (plain = 1)")
    legend_below(figure, lines, [line.get_label() for line in lines])
    return figure


def draw_meta_set(groups: Groups) -> "Figure | None":
    """Draw size and purity of a pseudo-clean meta set."""
    return _draw_logged(
        groups, {"meta_set_size": ("examples in the meta set", 1), "meta_set_purity": ("right labels in it [%]", 100)}
    )


def draw_division(groups: Groups) -> "Figure | None":
    """Draw how two networks divide the training set, the means over both."""
    names = {
        "labelled_size": ("examples called labelled", 1),
        "labelled_precision": ("right labels among them [%]", 100),
        "labelled_recall": ("share of the right labels [%]", 100),
        "mixture_noise_rate": ("wrong labels by the mixture [%]", 100),
        "unlabelled_weight": ("weight of unlabelled examples, λ_u", 1),
    }
    if not any(run.series("labelled_size") for runs in groups.values() for run in runs):
        return None
    return _draw_logged(groups, names)


def _draw_logged(groups: Groups, names: Mapping[str, tuple[str, float]]) -> "Figure | None":
    """Draw a panel for each name that any run has logged. names: Name → label of the axis, factor."""
    shown = [name for name in names if any(run.series(name) for runs in groups.values() for run in runs)]
    if not shown:
        return None
    columns = min(3, len(shown))
    figure, panels = new_panels(-(-len(shown) // columns), columns)
    handles: dict[str, Any] = {}
    for axes, name in zip(panels.flat, shown, strict=False):
        label, factor = names[name]
        lines = _draw_groups(axes, groups, partial(RunRecords.series, name=name), scale=factor)
        handles |= {line.get_label(): line for line in lines}
        axes.set(xlabel="training step", ylabel=label)
    hide_rest(panels, len(shown))
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def hide_rest(panels: Any, count: int) -> None:
    """Hide all panels of a grid after the first so many."""
    for axes in panels.flat[count:]:
        axes.set_visible(False)
