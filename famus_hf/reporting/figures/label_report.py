"""Pictures of a run, from its label report: how the meta-learner weighs, and which labels it doubts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL.Image import Image

from famus_hf.data.inputs.convert import raw_modality
from famus_hf.data.media.images import as_rgb, as_stored
from famus_hf.data.media.modalities import IMAGE
from famus_hf.reporting.figures.style import RIGHT, UNKNOWN, WRONG, new_figure, new_plot, save, short_class
from famus_hf.storage.run_folder import FIGURES

SHEET, CURVE, HISTOGRAM = PICTURES = ("suspect_labels.png", "weight_curve.png", "weight_histogram.png")
OF_REPORT = {  # picture → what it shows
    CURVE: "Weight that the meta-net gives to an example, by its loss.",
    HISTOGRAM: "Weights of the training examples after training.",
    SHEET: "The training examples whose labels are most suspect: index, given and predicted label.",
}
COLUMNS, SHOWN = 8, 40  # of the contact sheet
CELL, SIDE = (1.5, 2.0), 1.4  # inches of an image with its words, and of its longer side


def draw_report(
    report: Dataset, datasets: Mapping[str, Any], weigh: Callable[[np.ndarray], np.ndarray | None], folder: Path
) -> None:
    """Draw the pictures of a label report, in `figures/` below a folder, in place of those of an earlier one.

    Args:
        report: See `famus_hf.reporting.label_report`; of examples that could be judged.
        datasets: Split → the data set that it is of; its images are drawn where it has any.
        weigh: Losses → weights V, both of shape (n,), or None where the meta-learner has none for a loss alone.
        folder: Of the run.
    """
    target = folder / FIGURES
    for name in PICTURES:  # of an earlier report, which would be taken for this one's
        (target / name).unlink(missing_ok=True)
    if len(report) == 0:
        return
    images = _images_of(report.select(range(min(SHOWN, len(report)))), datasets)
    if images:
        draw_contact_sheet(report, images, target / SHEET)
    if report["weight"][0] is not None:
        draw_weight_curve(report, weigh, target / CURVE)
        draw_weight_histogram(report, target / HISTOGRAM)


def _images_of(report: Dataset, datasets: Mapping[str, Any]) -> list[Image]:
    """Return the images of all these rows; none where a split has no raw images."""
    places = list(zip(report["split"][:], report["index"][:], strict=True))
    images = {
        split: _images(datasets.get(split), [index for name, index in places if name == split])
        for split in dict.fromkeys(report["split"][:])
    }
    is_whole = all(images.values())
    return [images[split][index] for split, index in places] if is_whole else []


def _images(dataset: Any, index: Sequence[int]) -> dict[int, Image]:
    """Return number → image of these numbers in the column `index` (without one: rows); none without raw images."""
    images, records = getattr(dataset, "raw", dataset), getattr(dataset, "records", None)
    if raw_modality(images) is not IMAGE:
        return {}
    numbers = records.get("index") if records is not None else None
    if records is None and "index" in images.column_names:
        numbers = images["index"][:]
    rows = {number: row for row, number in enumerate(range(len(images)) if numbers is None else numbers)}
    images = as_stored(images)
    return {number: images[rows[number]]["image"] for number in index}


def draw_weight_curve(report: Dataset, weigh: Callable[[np.ndarray], np.ndarray | None], path: Path) -> None:
    """Draw V against the loss, over the losses that the examples really have.

    Args:
        report: See `famus_hf.reporting.label_report`.
        weigh: Losses → weights V, both of shape (n,).
        path: Of the PNG file.
    """
    losses = np.asarray(report["loss"][:])
    grid = np.linspace(0, np.quantile(losses, 0.99), 200)
    figure, axes = new_plot("loss of an example (evaluation mode)", "weight V")
    axes.plot(grid, weigh(grid), color="black", linewidth=2)
    axes.set_ylim(bottom=0)
    save(figure, path)


def draw_weight_histogram(report: Dataset, path: Path) -> None:
    """Draw how many examples have which weight, those with right and with wrong labels apart where that is known."""
    weights = np.asarray(report["weight"][:])
    # Equal weights would make bins of no width.
    edges = np.linspace(weights.min(), max(weights.max(), weights.min() + 1e-6), 41)
    figure, axes = new_plot("weight V", "share of these examples")
    for name, mask, colour in _groups(report):
        count = int(mask.sum())
        axes.hist(
            weights[mask], edges, weights=np.full(count, 1 / max(1, count)), label=f"{name} ({count})",
            histtype="stepfilled", alpha=0.5, facecolor=colour, edgecolor=colour, linewidth=1.5,
        )  # fmt: skip
    axes.legend()
    save(figure, path)


def draw_contact_sheet(report: Dataset, images: Sequence[Image], path: Path) -> None:
    """Draw the most suspect examples, each with its given label and the predicted one.

    Args:
        report: Its first rows are drawn.
        images: Of these rows, at most `SHOWN`.
        path: Of the PNG file.
    """
    label, predicted = report.features["label"], report.features["predicted_label"]
    width, height = COLUMNS * CELL[0], -(-len(images) // COLUMNS) * CELL[1]
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))  # a single one, in inches: one for each image takes seconds
    axes.set_axis_off()
    for place, (image, row) in enumerate(zip(images, report.select(range(len(images))), strict=True)):
        middle = (place % COLUMNS + 0.5) * CELL[0]
        top = (place // COLUMNS + 1) * CELL[1] - SIDE - 0.05
        across, down = (SIDE * size / max(image.size) for size in image.size)
        extent = (middle - across / 2, middle + across / 2, top + down, top)
        axes.imshow(as_rgb(image), extent=extent, interpolation="nearest", aspect="auto")
        given, looks_like = (short_class(kind.int2str(row[name]), row[name]) for name, kind in
                        (("label", label), ("predicted_label", predicted)))  # fmt: skip
        words = f"{row['index']}\ngiven {given}\npredicted {looks_like}"
        axes.text(middle, top - 0.05, words, fontsize=7, ha="center", va="bottom")
    axes.set(xlim=(0, width), ylim=(height, 0))
    save(figure, path)


def _groups(report: Dataset) -> list[tuple[str, np.ndarray, str]]:
    """Return name, mask of shape (N,) and colour of the examples that are drawn apart."""
    if "clean_label" not in report.features:
        return [("examples", np.ones(len(report), dtype=bool), UNKNOWN)]
    right = np.asarray(report["label"][:]) == np.asarray(report["clean_label"][:])
    return [("right labels", right, RIGHT), ("wrong labels", ~right, WRONG)]
