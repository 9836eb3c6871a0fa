"""Runs beside each other: in processes of their own, never twice, with the time that is left."""

import json
import multiprocessing
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from famus_hf.cli import jobs as module
from famus_hf.cli.jobs import Job, TimeLeft, train_missing
from famus_hf.errors import SettingsError
from tests.helpers.jobs import killed, kills_what_started_it, well


def job_of(folder, name, seed=0, **changes):
    return Job(
        name, seed, folder / f"{name}-{seed}", ["--noise=0.4", "--bf16"], record=folder / f"{name}.json", **changes
    )


def test_a_record_tells_a_run_whose_folder_is_gone_by_its_flags_in_any_order_and_form(tmp_path):
    job = job_of(tmp_path, "a", trains=well)
    assert job.results() is None
    job.train()
    assert json.loads((job.folder / "flags.json").read_text()) == job.flags
    moved = replace(job, folder=tmp_path / "gone", flags=["--bf16", "--noise", "0.4", "--output_dir=elsewhere"])
    assert moved.results() == job.figures() == {"eval_accuracy": 1.0, "flags": job.flags}
    for flags in (["--noise=0.4"], ["--noise=0.2", "--bf16"], [*job.flags, "--noise=0.2"]):
        with pytest.raises(
            SettingsError, match="is of a run with other flags: give another --output_dir and --results"
        ):
            replace(job, flags=flags).results()


def test_a_run_of_another_command_counts_as_none(tmp_path):
    job = replace(job_of(tmp_path, "a"), record=None)
    job.folder.mkdir()
    (job.folder / "all_results.json").write_text("{}")
    assert job.results() is None


def test_a_run_whose_process_is_killed_does_not_end_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "START", multiprocessing.get_context("fork"))  # which takes no time
    jobs = [job_of(tmp_path, "a", trains=killed), job_of(tmp_path, "b", trains=well)]
    failed = train_missing(jobs, 1, tmp_path / "console.log")
    assert failed == {jobs[0]: "ChildProcessError: its process was killed, as happens where memory runs out"}
    assert [job.results() is None for job in jobs] == [True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes there are")
def test_a_run_ends_when_what_started_it_is_killed(tmp_path, monkeypatch):
    fork, pids = multiprocessing.get_context("fork"), tmp_path / "pids"
    monkeypatch.setattr(module, "START", fork)
    job = job_of(tmp_path, "a", trains=partial(kills_what_started_it, pids))
    comparison = fork.Process(target=train_missing, args=([job], 1, tmp_path / "console.log"))
    comparison.start()
    comparison.join(20)
    assert comparison.exitcode == -signal.SIGKILL
    run, deadline = int(pids.read_text()), time.monotonic() + 20
    while Path(f"/proc/{run}").exists() and state_of(run) != "Z":
        assert time.monotonic() < deadline, "it trains on, beside the run that is begun again"
        time.sleep(0.01)


def state_of(pid):
    """R, S or Z: one that has ended is Z until somebody asks for its end."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_what_is_not_needed_any_more_is_not_trained(tmp_path, in_this_process):
    jobs = [job_of(tmp_path, name, trains=well) for name in "abc"]
    failed = train_missing(jobs, 1, tmp_path / "log", lambda job: job.name != "b" or jobs[0].results() is None)
    assert not failed and [job.results() is None for job in jobs] == [False, True, False]


def test_after_ctrl_c_no_other_run_begins(tmp_path, monkeypatch, in_this_process):
    begun = Event()

    def interrupted(running, *settings):
        begun.wait()
        raise KeyboardInterrupt

    def slow(flags):
        begun.set()
        time.sleep(0.3)
        return {}

    monkeypatch.setattr(module, "wait", interrupted)
    jobs = [job_of(tmp_path, name, trains=slow) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        train_missing(jobs, 1, tmp_path / "log")
    assert [job.results() is None for job in jobs] == [False, True]


def test_no_runs_at_a_time_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="--jobs 0 trains nothing"):
        train_missing([], 0, tmp_path / "log")


def test_the_time_left_is_by_what_runs_of_the_same_name_and_group_took(tmp_path):
    clock = [0.0]
    quick, slow = (
        [job_of(tmp_path, name, seed, group=group) for group in "pq" for seed in (0, 1)] for name in ("quick", "slow")
    )
    left = TimeLeft([*quick, *slow], at_once=2, now=lambda: clock[0])
    assert left.seconds is None and left.in_words() == ""
    left.begin(quick[0])
    left.begin(slow[0])
    clock[0] = 10
    left.end(quick[0])
    assert left.seconds == pytest.approx((0 + 6 * 10) / 2), "all are taken to be as quick; one has begun"
    clock[0] = 100
    left.end(slow[0])
    assert left.seconds == pytest.approx((3 * 10 + 3 * 100) / 2) and left.in_words() == "about 2.8 minutes left"
    left.begin(slow[2])
    clock[0] = 400
    left.end(slow[2])
    assert left.seconds == 300, "of its own group it takes longer, however many go at a time"
    left.at_once = 1
    assert left.seconds == pytest.approx(3 * 10 + 100 + 300)
    for job in (*quick[1:], slow[1], slow[3]):
        left.end(job, counts=False)
    assert left.seconds is None
