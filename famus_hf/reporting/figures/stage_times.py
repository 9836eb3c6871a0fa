"""Figure 1b: where the time of a step goes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.style import new_figure, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Part of the bar → stages of the table, colour, hatching; in the order of a step.
PARTS = {
    "data": (("data", "meta data"), "#999999", ""),
    "forward (Virtual and Actual)": (("forward",), "#56B4E9", ""),
    "Virtual-Train, backward": (("virtual backward",), "#0072B2", ""),
    "sampler": (("sampler",), "#F0E442", ""),
    "Meta-Train, forward": (("validation forward",), "#E69F00", ""),
    "Meta-Train, backward": (("validation backward", "derivative"), "#D55E00", "///"),
    "Actual-Train, backward": (("actual backward", "actual products"), "#009E73", ""),
    "optimizer": (("optimizer",), "#CC79A7", ""),
    "rest": ((), "#DDDDDD", "..."),
}


def seconds_of_parts(table: pd.DataFrame) -> dict[str, float]:
    """Return part → seconds of a step, the median over the steps that were measured; of two networks both together.

    Args:
        table: stage_times of a run.
    """
    by_step = table.groupby(["step", "stage"])["seconds"].sum().unstack(fill_value=0.0)
    loading = table[(table["stage"] == "data") & (table["network"] == "")].groupby("step")["seconds"].sum()
    seconds = {
        part: by_step[[stage for stage in stages if stage in by_step]].sum(axis=1)
        for part, (stages, _, _) in PARTS.items()
        if stages
    }
    known = sum(seconds.values()) + by_step.get("diagnostics", 0.0)
    seconds["rest"] = (by_step["step"] + loading - known).clip(lower=0.0)  # loading is no part of `step`
    return {part: float(values.median()) for part, values in seconds.items()}


def draw_stage_times(groups: Mapping[str, Sequence[RunRecords]]) -> "Figure | None":
    """Draw a bar for each method, made of the stages of its meta steps; the median over the steps of all its runs."""
    tables = {
        name: [run.table("stage_times") for run in runs if len(run.table("stage_times"))]
        for name, runs in groups.items()
    }
    bars = {
        name: pd.DataFrame([seconds_of_parts(table) for table in of_runs]).mean().to_dict()
        for name, of_runs in tables.items()
        if of_runs
    }
    if not bars:
        return None
    figure = new_figure(7, 1.9 + 0.35 * len(bars))
    axes = figure.add_subplot()
    names = [short(name, 40) for name in bars]
    left = [0.0] * len(bars)
    for part, (_, colour, hatch) in PARTS.items():
        widths = [1000 * seconds[part] for seconds in bars.values()]
        if max(widths) > 0:
            axes.barh(names, widths, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, end in enumerate(left):
        axes.text(end, place, f" {end:.0f}", va="center")
    axes.set_xlabel("time of a step [ms], median")
    axes.set_xlim(right=1.1 * max(left))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
