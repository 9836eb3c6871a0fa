"""What a run says on the terminal while it trains: a bar, and about ten lines that fit one screen."""

import math
from typing import Any

from transformers import TrainerState
from transformers.trainer_callback import ProgressCallback

LINES = 10  # of a run, however many epochs it has
ON_TEST_SET = ("eval_accuracy", "eval_test_accuracy")  # the latter of several evaluation sets


class ConsoleProgress(ProgressCallback):
    """transformers' bar of a training, with a line for every tenth of it in place of two for every log.

    Args:
        accuracy: What the accuracy on the test set is, in words.
        has_bar: Whether there is a bar beside the lines.
    """

    def __init__(self, accuracy: str = "test accuracy", has_bar: bool = True):
        super().__init__()
        self.accuracy, self.has_bar = accuracy, has_bar
        self.loss, self.loss_step = math.nan, -1  # and the step that it was logged at
        self.waiting: float | None = None  # an accuracy to tell of, at a step whose loss may be logged after it
        self.tenths = -1  # of the run that lines have told of
        self.is_training = False

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **keywords: Any) -> None:
        self.is_training, self.tenths, self.waiting = True, -1, None
        if self.has_bar:
            super().on_train_begin(args, state, control, **keywords)

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **keywords: Any) -> None:
        self._tell_waiting(state)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **keywords: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **keywords)

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: Any, eval_dataloader: Any = None, **keywords: Any
    ) -> None:
        """Show no bar of an evaluation, which is short beside an epoch."""

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **keywords: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.loss, self.loss_step = logs["loss"], state.global_step
        accuracy = next((logs[name] for name in ON_TEST_SET if name in logs), None)
        is_telling = accuracy is not None or (str(args.eval_strategy.value) == "no" and "loss" in logs)
        if self.is_training and is_telling and self._is_due(state) and state.is_world_process_zero:
            if accuracy is None:
                self.write(self._line(state, None))
            self.waiting = accuracy
        if self.loss_step == state.global_step:
            self._tell_waiting(state)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **keywords: Any) -> None:
        self._tell_waiting(state)
        self.is_training = False
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **keywords)

    def write(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self.training_bar is None:
            print(line, flush=True)
        else:
            self.training_bar.write(line)

    def _tell_waiting(self, state: TrainerState) -> None:
        if self.waiting is not None:
            self.write(self._line(state, self.waiting))
        self.waiting = None

    def _is_due(self, state: TrainerState) -> bool:
        """Return whether another tenth of the run is over; its first evaluation is always told of."""
        tenths = LINES * state.global_step // max(1, state.max_steps)
        is_due, self.tenths = tenths > self.tenths, max(tenths, self.tenths)
        return is_due

    def _line(self, state: TrainerState, accuracy: float | None) -> str:
        epochs = f"epoch {state.epoch or 0:.3g} of {state.num_train_epochs:g}"
        loss = [] if self.loss_step < 0 else [f"loss {self.loss:.4g}"]
        judged = [] if accuracy is None else [f"{self.accuracy} {100 * accuracy:.1f} %"]
        return f"{epochs}: {', '.join([*loss, *judged])}"
