"""Histograms and pictures for the trackers that know such, where they are at work: TensorBoard, W&B, trackio."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from famus_hf.trainer.trainer import FaMUSTrainer


def at_work(trainer: "FaMUSTrainer") -> Iterator[tuple[Any, bool]]:
    """Each tracker that `report_to` names and that has started, in the first process; and whether it is TensorBoard's.

    No tracker is imported here: its callback of transformers has done that.
    """
    if not trainer.is_world_process_zero():
        return
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            if callback.tb_writer is not None:
                yield callback.tb_writer, True
        elif isinstance(callback, (WandbCallback, TrackioCallback)) and callback._initialized:
            yield callback._wandb if isinstance(callback, WandbCallback) else callback._trackio, False


def log_histogram(trainer: "FaMUSTrainer", name: str, values: np.ndarray) -> None:
    """values: shape (n,)."""
    if len(values) == 0:
        return
    step = trainer.state.global_step
    for tracker, is_tensorboard in at_work(trainer):
        if is_tensorboard:
            tracker.add_histogram(name, values, step)
        else:
            tracker.log({name: tracker.Histogram(values), "train/global_step": step})


def log_picture(trainer: "FaMUSTrainer", name: str, figure: "Figure") -> None:
    """A figure, as the pixels that it has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, as all of matplotlib

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    step = trainer.state.global_step
    for tracker, is_tensorboard in at_work(trainer):
        if is_tensorboard:
            tracker.add_image(name, pixels, step, dataformats="HWC")
        else:
            tracker.log({name: tracker.Image(pixels), "train/global_step": step})
