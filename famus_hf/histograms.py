"""Histograms for the trackers that know such, where they are at work: TensorBoard, Weights & Biases, trackio."""

from typing import TYPE_CHECKING

import numpy as np
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

if TYPE_CHECKING:
    from famus_hf.trainer import FaMUSTrainer


def log_histogram(trainer: "FaMUSTrainer", name: str, values: np.ndarray) -> None:
    """To each tracker that `report_to` names and that has started, by the first process. values: shape (n,).

    No tracker is imported here: its callback of transformers has done that.
    """
    if not trainer.is_world_process_zero() or len(values) == 0:
        return
    step = trainer.state.global_step
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            if callback.tb_writer is not None:
                callback.tb_writer.add_histogram(name, values, step)
        elif isinstance(callback, (WandbCallback, TrackioCallback)) and callback._initialized:
            tracker = callback._wandb if isinstance(callback, WandbCallback) else callback._trackio
            tracker.log({name: tracker.Histogram(values), "train/global_step": step})
