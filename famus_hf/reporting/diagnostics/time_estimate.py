"""How long a run will take, said once its first steps have been measured."""

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

from famus_hf.core.timer import Timer
from famus_hf.reporting.diagnostics.training_time import TrainingTime

LEFT_OUT, MEASURED = 3, 10  # steps: the first ones allocate memory and are slower
# Plain steps that a later one is taken to cost before any was taken (docs/speed.md): with a meta step, or a fast one.
META_STEP, CHEAP_STEP = 3.0, 1.5
ENOUGH = 30.0  # seconds of steps past the first one, after which slow ones are told of without waiting for more
EVALUATION = 1 / 3  # plain steps: a forward pass over as many examples
HOUR = 3600.0
CHANGED = 1.25  # times the time that was said, from which it is said again


class TimeEstimate(TrainerCallback):
    """Measures some of the first steps and says how long all will take; again where later ones cost something else.

    Args:
        clock: Of the training, which evaluations and checkpoints stop.
        plain_steps: Steps of a run → how many of them are plain, before the first meta step.
        evaluated: Examples of an evaluation.
        advice: What would be faster, in words; said above an hour on a CPU.
        say: Prints a line.
        later_step: Plain steps that one after the plain ones is taken to cost before any was taken.
    """

    def __init__(
        self,
        clock: TrainingTime,
        plain_steps: Callable[[int], int],
        evaluated: int,
        advice: str = "",
        say: Callable[[str], None] = print,
        later_step: float = META_STEP,
    ):
        self.clock, self.plain_steps, self.evaluated = clock, plain_steps, evaluated
        self.advice, self.say, self.later_step = advice, say, later_step

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **keywords: Any) -> None:
        self.first, self.plain = state.global_step, self.plain_steps(state.max_steps)
        self.plain_seconds: float | None = None
        self.said: float | None = None  # seconds that the rest was said to take, from the first step on
        self.ends: list[float] = []  # of the first steps, plain or not, in seconds of the clock
        self.told: set[bool] = set()  # whether of plain steps, and of others

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **keywords: Any) -> None:
        is_plain = state.global_step <= self.plain
        if is_plain in self.told:
            return
        if state.global_step == self.plain + 1:
            self.ends = []
        Timer(args.device).now()  # once the device has done what it was told
        self.ends.append(self.clock.seconds or 0.0)
        seconds = seconds_per_step(self.ends)
        if seconds is not None:
            self.told.add(is_plain)
            self._tell(args, state, seconds, is_plain)

    def _tell(self, args: Any, state: TrainerState, seconds: float, is_plain: bool) -> None:
        """Say what is known by now.

        Args:
            args: Of the run.
            state: Of the training.
            seconds: Of a step as they are now.
            is_plain: Whether these are plain ones, before the first meta step.
        """
        plain, steps = max(0, self.plain - self.first), state.max_steps - self.first
        if is_plain:
            self.plain_seconds = seconds
        plain_seconds = seconds if self.plain_seconds is None else self.plain_seconds
        meta_seconds = self.later_step * seconds if is_plain else seconds
        epochs = steps / max(1, state.max_steps) * state.num_train_epochs
        count = number_of_evaluations(args, epochs, steps, state.max_steps)
        per_evaluation = EVALUATION * plain_seconds * self.evaluated / max(1, args.train_batch_size * args.world_size)
        total = plain * plain_seconds + (steps - plain) * meta_seconds + count * per_evaluation
        is_guess = is_plain and plain < steps
        if self.said is not None and 1 / CHANGED < total / self.said < CHANGED:
            return
        if state.is_world_process_zero:
            self.say(self._sentence(args, total, steps, count, is_guess))
        self.said = total

    def _sentence(self, args: Any, total: float, steps: int, evaluations: int, is_guess: bool) -> str:
        guess = f", those after the plain ones taken to cost {self.later_step:g} of these" if is_guess else ""
        measured = "" if self.said is None else ", now that others than plain ones are measured"
        advice = f"; faster: {self.advice}" if total > HOUR and args.device.type == "cpu" and self.advice else ""
        what = f"{steps} steps and {evaluations} evaluations"
        return f"time: about {format_duration(total)} for {what}{guess}{measured}{advice}"


def seconds_per_step(ends: list[float]) -> float | None:
    """Return the seconds of a step where enough are measured: ten past the first three, or half a minute of slow ones.

    Args:
        ends: Of the steps, in seconds, one after the other.
    """
    if len(ends) >= LEFT_OUT + MEASURED:
        return (ends[-1] - ends[LEFT_OUT - 1]) / (len(ends) - LEFT_OUT)
    if len(ends) > 1 and ends[-1] - ends[0] >= ENOUGH:
        return (ends[-1] - ends[0]) / (len(ends) - 1)
    return None


def number_of_evaluations(args: Any, epochs: float, steps: int, whole: int) -> int:
    """Return how often a run evaluates, the one at its end included.

    Args:
        args: Of the run; `eval_steps` below 1 is a share of all steps, as in transformers.
        epochs: Still to come.
        steps: Still to come.
        whole: Steps of the whole run.
    """
    every = args.eval_steps or whole
    every = math.ceil(whole * every) if every < 1 else int(every)
    during = {"epoch": round(epochs), "steps": steps // max(1, every)}
    return during.get(str(args.eval_strategy.value), 0) + 1


def format_duration(seconds: float) -> str:
    """Return a time as people say it, with about two digits."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            count = seconds / size
            return f"{count:.0f} {unit}" if count >= 9.5 or round(count, 1) % 1 == 0 else f"{count:.1f} {unit}"
    return f"{seconds:.0f} seconds"
