"""What a run says while it trains: lines that fit one screen, and how long it takes."""

from types import SimpleNamespace

import pytest
import torch

from famus_hf.reporting.diagnostics.console import LINES, ConsoleProgress
from famus_hf.reporting.diagnostics.time_estimate import (
    LEFT_OUT,
    MEASURED,
    TimeEstimate,
    format_duration,
    number_of_evaluations,
)


def arguments(strategy="epoch", **changes):
    values = {"eval_steps": None, "device": torch.device("cpu"), "train_batch_size": 10, "world_size": 1, **changes}
    return SimpleNamespace(eval_strategy=SimpleNamespace(value=strategy), **values)


def state_at(step, max_steps=400, epochs=40):
    return SimpleNamespace(
        global_step=step, max_steps=max_steps, epoch=epochs * step / max_steps, num_train_epochs=epochs,
        is_world_process_zero=True,
    )  # fmt: skip


@pytest.mark.parametrize("strategy, name", [("epoch", "eval_accuracy"), ("epoch", "eval_test_accuracy"), ("no", None)])
def test_a_long_run_has_about_ten_lines(capsys, strategy, name):
    console, args = ConsoleProgress("agreement with the test labels", has_bar=False), arguments(strategy)
    console.on_train_begin(args, state_at(0), None)
    for step in range(10, 401, 10):
        console.on_log(args, state_at(step), None, {"loss": 1.5})
        if name is not None:
            console.on_log(args, state_at(step), None, {name: 0.605, "eval_loss": 2.0})
    console.on_train_end(args, state_at(400), None)
    console.on_log(args, state_at(400), None, {"loss": 1.5, name or "eval_accuracy": 0.5})  # of the test at the end
    lines = capsys.readouterr().out.splitlines()
    judged = "" if name is None else ", agreement with the test labels 60.5 %"
    assert lines[0] == f"epoch 1 of 40: loss 1.5{judged}" and lines[-1] == f"epoch 40 of 40: loss 1.5{judged}"
    assert len(lines) == LINES + 1


def test_a_short_run_has_a_line_for_each_epoch(capsys):
    console, args = ConsoleProgress(has_bar=False), arguments()
    console.on_train_begin(args, state_at(0, 6, 3), None)
    for step in (2, 4, 6):
        console.on_log(args, state_at(step, 6, 3), None, {"loss": 0.25})
        console.on_log(args, state_at(step, 6, 3), None, {"eval_accuracy": 0.5})
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"epoch {epoch} of 3" for epoch in (1, 2, 3)
    ]


def test_a_loss_that_is_logged_after_the_accuracy_of_its_step_is_of_that_line(capsys):
    console, args = ConsoleProgress(has_bar=False), arguments("steps", eval_steps=2)
    console.on_train_begin(args, state_at(0, 6, 3), None)
    for step in (1, 2, 3, 4, 5, 6):
        console.on_step_begin(args, state_at(step - 1, 6, 3), None)
        if step % 2 == 0:
            console.on_log(args, state_at(step, 6, 3), None, {"eval_accuracy": step / 10})
        if step == 4:  # at the end of its epoch; the others have none
            console.on_log(args, state_at(step, 6, 3), None, {"loss": 0.25})
    console.on_train_end(args, state_at(6, 6, 3), None)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1 of 3: test accuracy 20.0 %",
        "epoch 2 of 3: loss 0.25, test accuracy 40.0 %",
        "epoch 3 of 3: loss 0.25, test accuracy 60.0 %",
    ]


def told(seconds_of, max_steps, plain, args=None, first=0, advice="--preset fast"):
    """What is said in a run whose steps take so many seconds, by number."""
    clock, lines = SimpleNamespace(seconds=0.0), []
    estimate = TimeEstimate(clock, lambda steps: plain, 30, advice, lines.append)
    args = args or arguments()
    estimate.on_train_begin(args, state_at(first, max_steps, 10), None)
    for step in range(first + 1, max_steps + 1):
        clock.seconds += seconds_of(step)
        estimate.on_step_end(args, state_at(step, max_steps, 10), None)
    return lines


def test_the_time_is_said_once_by_steps_that_are_past_the_slow_first_ones():
    (line,) = told(lambda step: 5.0 if step <= LEFT_OUT else 1.0, 600, 0)
    assert line == "time: about 10 minutes for 600 steps and 11 evaluations"  # each of which is a step's
    assert told(lambda step: 1.0, LEFT_OUT + MEASURED - 1, 0) == []


def test_slow_steps_are_told_of_soon():
    (line,) = told(lambda step: 130.0, 2, 0)
    assert line == "time: about 28 minutes for 2 steps and 11 evaluations"  # each of which is a step's


def test_plain_steps_do_not_stand_for_those_with_a_meta_step():
    first, *others = told(lambda step: 1.0 if step <= 100 else 3.1, 600, 100)
    assert first == (
        "time: about 27 minutes for 600 steps and 11 evaluations, those after the plain ones taken to cost 3 of these"
    )
    assert others == [], "it was right enough"
    _, second = told(lambda step: 1.0 if step <= 100 else 9.0, 600, 100)
    assert second.startswith("time: about 77 minutes") or second.startswith("time: about 1.3 hours")
    assert "now that others than plain ones are measured" in second and second.endswith("; faster: --preset fast")


def test_advice_is_for_hours_on_a_cpu():
    assert "faster: --preset fast" in told(lambda step: 10.0, 600, 0)[0]
    assert "faster" not in told(lambda step: 1.0, 600, 0)[0]
    assert "faster" not in told(lambda step: 10.0, 600, 0, advice="")[0]


def test_a_run_that_goes_on_counts_what_is_left():
    (line,) = told(lambda step: 1.0, 600, 0, first=300)
    assert line == "time: about 5.1 minutes for 300 steps and 6 evaluations"


def test_evaluations_are_counted_by_what_asks_for_them():
    assert number_of_evaluations(arguments(), 3, 30, 30) == 4
    assert number_of_evaluations(arguments("steps", eval_steps=10), 3, 30, 30) == 4
    assert number_of_evaluations(arguments("steps", eval_steps=0.125), 8, 800, 800) == 9
    assert number_of_evaluations(arguments("steps", eval_steps=0.125), 4, 400, 800) == 5  # half of the run is left
    assert number_of_evaluations(arguments("no"), 3, 30, 30) == 1


@pytest.mark.parametrize(
    "seconds, words",
    [(12.4, "12 seconds"), (89.0, "89 seconds"), (150, "2.5 minutes"), (720, "12 minutes"), (9000, "2.5 hours")],
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert format_duration(seconds) == words
