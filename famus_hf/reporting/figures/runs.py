"""Pictures of runs side by side, from their records: Figures 1, 3, 4 and 5 of the paper, and what else a run logs.

Runs with the same name are seeds of one method: their curves are drawn as a mean, with a band of one standard
deviation; pictures that can't be averaged (histograms, heat maps) show the first of them. One that has not come to its
end is left out beside others that have.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from famus_hf.reporting.figures.curves import (
    draw_accuracy,
    draw_division,
    draw_losses,
    draw_mean_weights,
    draw_meta_set,
)
from famus_hf.reporting.figures.layers import draw_layers
from famus_hf.reporting.figures.meta_gradient import draw_gradient_quality, draw_meta_gradient
from famus_hf.reporting.figures.run_records import RunRecords, to_average
from famus_hf.reporting.figures.stage_times import draw_stage_times
from famus_hf.reporting.figures.style import FORMATS, SETTINGS, save
from famus_hf.reporting.figures.weights import (
    draw_clean_weights,
    draw_weight_by_class,
    draw_weight_curves,
    draw_weights,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[RunRecords]]
# File name without suffix → what draws it, or gives None where no run has recorded that; and its caption.
PICTURES: dict[str, tuple[Callable[[Groups], "Figure | None"], str]] = {
    "accuracy": (draw_accuracy, "Accuracy on the test set, by training step and by seconds of training."),
    "test_loss": (draw_losses, "Loss on the test set."),
    "stage_times": (draw_stage_times, "Where the time of a step goes."),
    "meta_gradient": (
        draw_meta_gradient,
        "Meta gradient (sum of its coordinates, in norms of the exact one) over re-drawn meta batches: mean, and a "
        "band of one standard deviation; through the layers that were on, and through all layers at the same weights.",
    ),
    "gradient_quality": (
        draw_gradient_quality,
        "The sampled meta gradient against the exact one at the same weights: how their means point, how far they are "
        "apart, and the ratio of their standard deviations, as such and each in shares of its own mean.",
    ),
    "mean_weights": (
        draw_mean_weights,
        "Mean weight of the training examples with right and with wrong labels; plain training gives each 1.",
    ),
    "weights_over_time": (draw_weights, "Weights of 1000 training examples, at the beginning and at the end."),
    "clean_weights": (draw_clean_weights, "Weights of those with right labels, the methods beside each other."),
    "weight_curves": (draw_weight_curves, "The weight of an example as a function of its loss, as training goes on."),
    "weight_by_class": (draw_weight_by_class, "Mean weight of each given class at the end."),
    "layers": (draw_layers, "Share of the steps in which the meta gradient went through each layer."),
    "meta_set": (draw_meta_set, "Pseudo-clean meta set: its size, and the share of right labels in it."),
    "division": (
        draw_division,
        "How the two networks divide the training set, and the weight of the unlabelled examples.",
    ),
}


def grouped(runs: Iterable[RunRecords]) -> dict[str, list[RunRecords]]:
    """Return the runs by name, in order."""
    groups: dict[str, list[RunRecords]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def draw_runs(
    runs: Iterable[RunRecords], folder: Path, formats: Sequence[str] = FORMATS, names: Sequence[str] = tuple(PICTURES)
) -> dict[str, str]:
    """Draw what the runs have recorded, and remove what an earlier call has drawn and they have not.

    Args:
        runs: Side by side.
        folder: Of the pictures.
        formats: Suffixes of the files.
        names: Of the pictures, from `PICTURES`.

    Returns:
        Name → caption of the pictures that are there now.
    """
    from matplotlib import rc_context

    groups = {name: to_average(of_method) for name, of_method in grouped(runs).items()}
    drawn = {}
    with rc_context(SETTINGS):
        for name in names:
            draw, caption = PICTURES[name]
            for kind in FORMATS:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
            figure: Any = draw(groups)
            if figure is not None:
                save(figure, folder / name, formats)
                drawn[name] = caption
    return drawn
