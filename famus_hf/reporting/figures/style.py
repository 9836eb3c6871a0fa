"""How pictures look: sizes, colours that the colour-blind and a grey printer tell apart, files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from famus_hf.storage.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, in an order in which neighbours differ in grey too; beside colours, lines differ in dashes.
COLOURS = ("#000000", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
RIGHT, WRONG, UNKNOWN = "#0072B2", "#D55E00", "#555555"
KINDS = {"clean": ("right labels", RIGHT), "wrong": ("wrong labels", WRONG), "unknown": ("examples", UNKNOWN)}
MAP = "cividis"  # of heat maps, and of what comes one after another
PANEL = (3.4, 2.7)  # inches
# Without the salt, names within an SVG file would be random, and no two files the same.
SETTINGS: Any = {"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "svg.hashsalt": "famus_hf"}
FORMATS = ("png", "svg")


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches, which needs no display."""
    from matplotlib.figure import Figure  # slow to import, and most who import famus_hf draw nothing

    return Figure(figsize=(width, height), layout="constrained")


def new_panels(rows: int, columns: int, share_x: Any = False, share_y: Any = False) -> Any:
    """Return a figure and its axes, an array of shape (rows, columns); sharing as in `matplotlib`'s `subplots`."""
    figure = new_figure(PANEL[0] * columns + 0.4, PANEL[1] * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(color="#DDDDDD", linewidth=0.6)
    return figure, panels


def label_panels(panels: Any, count: int, x: str, y: str) -> None:
    """Hide all panels after the first so many, and label the lowest of each column and the first of each row.

    Args:
        panels: Array of shape (rows, columns), whose x axes are shared within a column, and y axes within a row.
        count: Of the panels that are drawn.
        x: Label.
        y: Label.
    """
    columns = panels.shape[1]
    for place, axes in enumerate(panels.flat):
        is_lowest = place < count <= place + columns
        axes.set_visible(place < count)
        axes.tick_params(labelbottom=is_lowest, labelleft=place % columns == 0)
        axes.set_xlabel(x if is_lowest else "")
        axes.set_ylabel(y if place % columns == 0 else "")


def new_plot(x: str, y: str) -> tuple["Figure", Any]:
    """Return a figure with a single panel, and its axes. x, y: their labels."""
    figure = new_figure(5, 3.2)
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line_style(place: int, variant: int = 0) -> dict[str, Any]:
    """Return colour, dashes and width of the line of a method.

    Args:
        place: Of the method among all that stand beside each other, so that it looks the same in all pictures.
        variant: Of several lines of the method, which differ in dashes.
    """
    dashes = DASHES[(place + variant) % len(DASHES)]
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": dashes, "linewidth": 1.6}


def label_of(method: str, network: str) -> str:
    """Return how a method's network is called."""
    return f"{method}, {network}" if network else method


def shade(place: int, count: int) -> Any:
    """Return the colour of one of several things that follow each other, the first the darkest."""
    from matplotlib import colormaps

    return colormaps[MAP](0.85 * place / max(1, count - 1))


def short(name: str, length: int = 14) -> str:
    """Return a name that fits, in one line; its dollar signs are escaped, which would begin mathematics."""
    name = " ".join(name.split())
    return (name if len(name) <= length else f"{name[: length - 1]}…").replace("$", r"\$")


def short_class(name: str, number: int, length: int = 14) -> str:
    """Return a class's name that fits, as `short`; its number where the font lacks a character of the name."""
    return short(name, length) if _has_glyphs(" ".join(name.split())) else f"class {number}"


def _has_glyphs(text: str) -> bool:
    """Whether the font of the pictures can draw a text."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return all(font.get_char_index(ord(character)) for character in text)


def legend_below(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Draw one legend for all panels, below them and not wider than they are."""
    room = figure.get_figwidth() - 0.2
    widths = [0.6 + 0.075 * len(label) for label in labels]  # inches, of a handle and the label
    columns = next((count for count in range(len(labels), 1, -1) if count * max(widths) <= room), 1)
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def save(figure: "Figure", path: Path, formats: Iterable[str] = ("png",)) -> None:
    """Write a figure as `path` with each of the formats' suffixes; the same figure gives the same bytes."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(SETTINGS):
        for kind in formats:
            metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
            with atomic_write(path.with_suffix(f".{kind}")) as beside:
                figure.savefig(beside, format=kind, dpi=120, metadata=metadata)
