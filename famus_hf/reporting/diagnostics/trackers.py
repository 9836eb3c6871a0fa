"""Histograms and pictures for the trackers that know such, where they are at work: TensorBoard, W&B, trackio."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tracker(NamedTuple):
    """What a callback writes to.

    Attributes:
        writer: TensorBoard's, or the module of W&B or trackio.
        is_tensorboard: Which of them it is.
    """

    writer: Any
    is_tensorboard: bool


def at_work(callbacks: Iterable[TrainerCallback]) -> Iterator[Tracker]:
    """Yield each tracker that `report_to` names and that has started.

    No tracker is imported here: its callback of transformers has done that.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            if callback.tb_writer is not None:
                yield Tracker(callback.tb_writer, True)
        elif isinstance(callback, (WandbCallback, TrackioCallback)) and callback._initialized:
            yield Tracker(callback._wandb if isinstance(callback, WandbCallback) else callback._trackio, False)


def log_histogram(trackers: Iterable[Tracker], name: str, values: np.ndarray, step: int) -> None:
    """Log a histogram. values: shape (n,)."""
    if len(values) == 0:
        return
    for writer, is_tensorboard in trackers:
        if is_tensorboard:
            writer.add_histogram(name, values, step)
        else:
            writer.log({name: writer.Histogram(values), "train/global_step": step})


def log_picture(trackers: Iterable[Tracker], name: str, figure: "Figure", step: int) -> None:
    """Log a figure, as the pixels that it has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, as all of matplotlib

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    for writer, is_tensorboard in trackers:
        if is_tensorboard:
            writer.add_image(name, pixels, step, dataformats="HWC")
        else:
            writer.log({name: writer.Image(pixels), "train/global_step": step})
