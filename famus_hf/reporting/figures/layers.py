"""Which layers carried the meta gradient, over time."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.style import MAP, label_of, new_figure, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 30  # of layers beside a heat map


def draw_layers(groups: Mapping[str, Sequence[RunRecords]]) -> "Figure | None":
    """Draw a heat map for each method and network whose layers were not all on throughout, of its first run."""
    tables = {
        label_of(name, network): table
        for name, runs in groups.items()
        for network, table in runs[0].table("layers").groupby("network")
        if (table["share_on"] < 1).any()
    }
    if not tables:
        return None
    rows = max(table["layer"].nunique() for table in tables.values())
    figure = new_figure(1.6 + 3.4 * len(tables), 1.4 + 0.17 * min(rows, MOST_NAMES))
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    image: Any = None
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        layers = list(dict.fromkeys(table["layer"]))
        shares = table.pivot_table(index="layer", columns="step", values="share_on").reindex(layers)
        steps = shares.columns.to_numpy(float)
        # A record is of the steps since the one before it, so its column ends at its own step.
        edges = np.append(np.append(2 * steps[0] - steps[1] if len(steps) > 1 else 0.0, steps[:-1]), steps[-1])
        image = axes.pcolormesh(edges, np.arange(len(layers) + 1), shares.to_numpy(), cmap=MAP, vmin=0, vmax=1)
        costs = table["mean_cost"].dropna()
        cost = f"\ncost {costs.iloc[-1]:.2f} plain steps" if len(costs) else ""
        axes.set(title=short(name, 40) + cost, xlabel="training step")
        every = -(-len(layers) // MOST_NAMES)
        named = range(0, len(layers), every)
        axes.set_yticks([place + 0.5 for place in named], [_end_of(layers[place]) for place in named], fontsize=7)
    panels[0].set_ylabel("layer, input at the bottom")
    figure.colorbar(image, ax=list(panels), label="share of steps in which it was on")
    return figure


def _end_of(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"
