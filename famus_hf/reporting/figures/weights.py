"""Figure 5: what the meta-learner makes of the losses of examples, as training goes on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from famus_hf.reporting.figures.curves import hide_rest
from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.style import (
    KINDS,
    label_of,
    label_panels,
    legend_below,
    line_style,
    new_panels,
    shade,
    short,
    short_class,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[RunRecords]]
CURVES = 5  # steps whose weight curves are drawn


def _tables(groups: Groups) -> dict[str, pd.DataFrame]:
    """Return label → weights of a method's first run; of two networks, of each."""
    return {
        label_of(name, network): table
        for name, runs in groups.items()
        for network, table in runs[0].table("weights").groupby("network")
    }


def _styles(groups: Groups) -> dict[str, tuple[int, int]]:
    """Return label → place of its method among all, and number of the network within it; of all of `_tables`."""
    return {
        label_of(name, network): (place, variant)
        for place, (name, runs) in enumerate(groups.items())
        for variant, (network, _) in enumerate(runs[0].table("weights").groupby("network"))
    }


def _evenly_spaced(steps: Sequence[int], count: int) -> list[int]:
    """Return so many of the steps, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int)
    return [int(steps[place]) for place in dict.fromkeys(places)]


def _histograms(table: pd.DataFrame, step: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield kind, share of its examples in each bin, and edges of the bins."""
    at_step = table[table["step"] == step]
    for kind in KINDS:
        bins = at_step[at_step["kind"] == kind].sort_values("x")
        if bins["value"].sum() > 0:
            left = bins["x"].to_numpy()  # edges of bins of equal width, so that the last right one is known too
            yield kind, (bins["value"] / bins["value"].sum()).to_numpy(), np.append(left, 2 * left[-1] - left[-2])


def draw_weights(groups: Groups) -> "Figure | None":
    """Draw a row for each method: histograms at the first and the last record, right and wrong labels apart."""
    tables = _tables(groups)
    if not tables:
        return None
    columns = max(len(_evenly_spaced(sorted(table["step"].unique()), 2)) for table in tables.values())
    figure, panels = new_panels(len(tables), columns)
    handles: dict[str, Any] = {}
    for row, (name, table) in zip(panels, tables.items(), strict=True):
        steps = _evenly_spaced(sorted(table["step"].unique()), 2)
        for axes, step in zip(row, steps, strict=False):
            for kind, shares, edges in _histograms(table, step):
                label, colour = KINDS[kind]
                handles[label] = axes.stairs(shares, edges, fill=True, alpha=0.4, color=colour, linewidth=0)
                axes.stairs(shares, edges, color=colour, linewidth=1.2, linestyle="-" if kind == "clean" else "--")
            axes.set(title=f"{short(name, 30)}, step {step}", xlabel="weight V", ylabel="share of these")
            axes.locator_params(axis="x", nbins=5)
        hide_rest(row, len(steps))
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def draw_clean_weights(groups: Groups) -> "Figure | None":
    """Draw Figure 5: methods over each other, of the examples with right labels, in shares of the mean weight of all.

    V itself says nothing across methods, as only its share of the batch's sum counts.
    """
    tables = {name: table for name, table in _tables(groups).items() if (table["kind"] == "clean").any()}
    if len(tables) < 2:
        return None
    steps = _evenly_spaced(sorted(set.intersection(*(set(table["step"]) for table in tables.values()))), 3)
    if not steps:
        return None
    steps = steps[1:] if len(steps) > 2 else steps
    figure, panels = new_panels(1, len(steps), share_y=True)
    styles, lines = _styles(groups), dict[str, Any]()
    for axes, step in zip(panels[0], steps, strict=True):
        for name, table in tables.items():
            histograms = {kind: (shares, edges) for kind, shares, edges in _histograms(table, step)}
            mean = _mean_weight(table, step)
            shares, edges = histograms["clean"]
            at_least = np.append(1 - np.cumsum(shares) + shares, 0.0)
            lines[name] = axes.plot(edges / mean, at_least, **line_style(*styles[name]))[0]
        axes.axvline(1, color="#888888", linewidth=0.8)
        axes.set_title(f"step {step}")
    label_panels(panels, len(steps), "weight, in means of all examples", "share with at least this")
    legend_below(figure, list(lines.values()), [short(name, 40) for name in lines])
    return figure


def _mean_weight(table: pd.DataFrame, step: int) -> float:
    """Return the mean weight of all examples, from their histograms."""
    at_step = table[(table["step"] == step) & table["kind"].isin(KINDS)]
    x = np.sort(at_step["x"].unique())
    return float(np.average(at_step["x"] + (x[1] - x[0]) / 2, weights=at_step["value"]))


def clean_above_mean(run: RunRecords) -> float | None:
    """Return how many of the examples with right labels weigh more than the mean of all, in %, at the last record.

    As exact as a bin of the histogram is wide; of two networks the mean. None where right labels are not known.
    """
    table = run.table("weights")
    at_end = table[table["step"] == table["step"].max()]
    shares = []
    for _, bins in at_end[at_end["kind"].isin(["clean", "wrong"])].groupby("network"):
        step, clean = int(bins["step"].iloc[0]), bins[bins["kind"] == "clean"]
        above = clean[clean["x"] >= _mean_weight(bins, step)]["value"].sum()
        shares.append(100 * above / clean["value"].sum())
    return float(np.mean(shares)) if shares else None


def draw_weight_curves(groups: Groups) -> "Figure | None":
    """Draw V against the loss, a panel for each method, darker earlier."""
    tables = _tables(groups)
    if not tables:
        return None
    columns = min(3, len(tables))
    figure, panels = new_panels(-(-len(tables) // columns), columns)
    for axes, (name, table) in zip(panels.flat, tables.items(), strict=False):
        steps = _evenly_spaced(sorted(table["step"].unique()), CURVES)
        for place, step in enumerate(steps):
            curve = table[(table["step"] == step) & (table["kind"] == "curve")].sort_values("x")
            axes.plot(curve["x"], curve["value"], color=shade(place, len(steps)), linewidth=1.5, label=f"step {step}")
        axes.set(title=short(name, 40), xlabel="loss of an example", ylabel="weight V")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    hide_rest(panels, len(tables))
    return figure


def draw_weight_by_class(groups: Groups) -> "Figure | None":
    """Draw mean V of each given label at the last record, divided by the mean over the classes; at most 30 classes."""
    tables = _tables(groups)
    shown = {name: table[(table["kind"] == "class") & (table["step"] == table["step"].max())]
             for name, table in tables.items()}  # fmt: skip
    if not shown or max(len(table) for table in shown.values()) > 30:
        return None
    classes = sorted({int(label) for table in shown.values() for label in table["x"]})
    names = next(iter(groups.values()))[0].class_names
    figure, panels = new_panels(1, 1)
    figure.set_size_inches(max(4.5, 0.5 * len(classes) + 1.5), 3.4)
    axes, handles, styles = panels[0, 0], {}, _styles(groups)
    for place, (name, table) in enumerate(shown.items()):
        mean = table["value"].mean() or 1.0
        marker = "osD^vPX*"[sum(styles[name]) % 8]
        style = {**line_style(*styles[name]), "linestyle": "none", "marker": marker, "markersize": 5}
        offset = 0.12 * (place - (len(shown) - 1) / 2)
        handles[name] = axes.plot(table["x"] + offset, table["value"] / mean, **style)[0]
    axes.axhline(1, color="#888888", linewidth=0.8)
    labels = [short_class(names[label], label, 12) if label < len(names) else str(label) for label in classes]
    axes.set_xticks(classes, labels, rotation=45, ha="right")
    axes.set(ylabel="mean weight (mean class = 1)", xlabel="given label")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    legend_below(figure, list(handles.values()), [short(name, 40) for name in handles])
    return figure
