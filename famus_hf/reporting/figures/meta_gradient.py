"""Figures 1c and 4: mean and spread of the meta gradient over re-drawn meta batches."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from famus_hf.reporting.figures.curves import draw_band, mean_curve
from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.style import label_of, label_panels, legend_below, line_style, new_panels, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[RunRecords]]
BANDS = {  # in this order on top of each other
    "exact": ("through all layers", "#0072B2", "--"),
    "sampled": ("through the layers that are on", "#D55E00", "-"),
}


def draw_meta_gradient(groups: Groups) -> "Figure | None":
    """Draw a panel for each method and network, of its first run: sum of the coordinates, mean and standard deviation.

    In norms of the exact gradient at that step (mean over the draws), as both shrink with the learning rate α.
    """
    tables = {
        label_of(name, network): table
        for name, runs in groups.items()
        for network, table in _recorded(runs[0]).groupby("network")
    }
    if not tables:
        return None
    columns = min(3, len(tables))
    figure, panels = new_panels(-(-len(tables) // columns), columns, share_x=True, share_y=True)
    lines: list[Any] = []
    for axes, (name, table) in zip(panels.flat, tables.items(), strict=False):
        draws = table[table["draw"].notna()].copy()
        norms = draws[draws["kind"] == "exact"].groupby("step")["norm"].mean()
        draws["total"] /= draws["step"].map(norms.where(norms > 0))
        lines = []
        for kind, (label, colour, dashes) in BANDS.items():
            by_step = draws[draws["kind"] == kind].groupby("step")["total"]
            mean, spread = by_step.mean(), by_step.std()
            axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0)
            lines += axes.plot(mean.index, mean, color=colour, linestyle=dashes, linewidth=1.4, label=label)
        axes.axhline(0, color="#888888", linewidth=0.6)
        axes.set_title(short(name, 40))
    label_panels(panels, len(tables), "training step", "sum of the meta gradient\n[norms of the exact one]")
    legend_below(figure, lines, [line.get_label() for line in lines])
    return figure


def draw_gradient_quality(groups: Groups) -> "Figure | None":
    """Draw cosine and distance of the means, and ratio of the standard deviations, where some layers were off."""
    shown = {name: runs for name, runs in groups.items() if any(_has_layers_off(run) for run in runs)}
    if not shown:
        return None
    measures = {
        "cosine": ("cosine of the means", 1.0),
        "bias": ("distance of the means", 0.0),
        "spread": ("ratio of standard deviations", 1.0),
        "relative_spread": ("ratio of relative deviations", 1.0),
    }
    figure, panels = new_panels(2, 2, share_x=True)
    bands: dict[str, Any] = {}
    for axes, (measure, (label, ideal)) in zip(panels.flat, measures.items(), strict=True):
        for place, (name, runs) in enumerate(groups.items()):
            if name in shown:
                curve = mean_curve(runs, partial(_quality_series, measure=measure))
                bands[name] = draw_band(axes, *curve, **line_style(place))
        axes.axhline(ideal, color="#888888", linewidth=0.8)
        axes.set(xlabel="training step", ylabel=label)
    for axes in panels[0]:  # those below it have the same
        axes.set_xlabel("")
    panels[0, 0].set_ylim(-1.05, 1.05)
    for axes in panels.flat[1:]:
        axes.set_ylim(bottom=0)
    legend_below(figure, list(bands.values()), [short(name, 40) for name in bands])
    return figure


def quality_of(run: RunRecords) -> pd.DataFrame:
    """Return by step the mean over networks: `cosine`, `bias`, `spread`, `relative_spread`.

    The spread is the ratio of the standard deviations, √(variance sampled / variance exact). The relative one is the
    ratio of these, each divided by the norm of its mean, as a gradient that is small all over varies little. All are of
    gradients over re-drawn meta batches at the same weights; steps with undefined ones are left out.
    """
    table = _recorded(run)
    whole = table[table["draw"].isna()].set_index(["step", "network"])
    sampled, exact = whole[whole["kind"] == "sampled"], whole[whole["kind"] == "exact"]
    quality = sampled[["cosine", "bias"]].copy()
    quality["spread"] = np.sqrt(sampled["variance"] / exact["variance"].where(exact["variance"] > 0))
    quality["relative_spread"] = quality["spread"] * exact["norm"] / sampled["norm"].where(sampled["norm"] > 0)
    return quality.dropna().groupby("step").mean()


def _quality_series(run: RunRecords, measure: str) -> dict[int, float]:
    return {int(step): float(value) for step, value in quality_of(run)[measure].items()}


def _recorded(run: RunRecords) -> pd.DataFrame:
    return run.table("meta_gradient")


def _has_layers_off(run: RunRecords) -> bool:
    by_kind = _recorded(run).groupby("kind")["layers"].mean()
    return bool(by_kind.get("sampled", 0) < by_kind.get("exact", 0))
