"""Runs beside each other, of a comparison or a table: each in a process of its own, and what is finished but once."""

import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from famus_hf.cli.config_files import with_values
from famus_hf.cli.run import set_up, train_all
from famus_hf.data.labels.noise_file import NoiseFile, read_noise_file
from famus_hf.errors import SettingsError, reason_of
from famus_hf.reporting.diagnostics.time_estimate import format_duration
from famus_hf.storage import checkpoints
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import NOISE_FILE, RESULTS

FLAGS, LOG = "flags.json", "console.log"  # in the folder of each run; beside the folders
QUIET = ("--disable_tqdm=true", "--report_to=none")
REFRESHED = 5.0  # seconds after which the time left is said anew on a terminal, where it takes no line of its own
# A fork of one process that has imported everything and done nothing yet starts at once, and not in 7 seconds. Only on
# Linux, and where there is no accelerator: its driver does not survive a fork, should an import have woken it.
FORKS = sys.platform == "linux" and not torch.accelerator.is_available()
START = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    START.set_forkserver_preload(["famus_hf.cli.run"])
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


def train(flags: list[str]) -> dict[str, Any]:
    """Train as `famus-hf train` does. Return what all_results.json holds."""
    return train_all(*set_up(flags), flags)[-1]


@dataclass(frozen=True, eq=False)
class Job:
    """A run among others.

    Attributes:
        name: Of its method, or of its row in a table.
        seed: Of labels, trusted examples, weights and batches.
        folder: Its own.
        flags: Of `famus-hf train`, all but its folder.
        group: Which runs it is compared with; those of one seed have the same labels.
        trains: Takes the flags, and returns the figures of the run.
        record: File with its figures and flags, for what is kept without the folder; None: all_results.json is enough.
    """

    name: str
    seed: int
    folder: Path
    flags: list[str]
    group: str = ""
    trains: Callable[[list[str]], dict[str, Any]] = train
    record: Path | None = None

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.group, self.name, f"seed {self.seed}"]))

    def figures(self) -> dict[str, Any] | None:
        """Return what a finished run left, whatever its flags were; None where it has not come to its end."""
        found: dict[str, Any] | None = _read(self.record or self.folder / RESULTS)
        return found

    def results(self) -> dict[str, Any] | None:
        """Return what a finished run left; None where it has not come to its end.

        Raises:
            SettingsError: It was started with other flags.
        """
        figures = self.figures()
        flags = (figures or {}).get("flags") or _read(self.folder / FLAGS)
        if flags is None:
            return None
        if _by_flag(flags) != _by_flag(self.flags):
            where, others = (self.folder, "") if self.record is None else (self.record, " and --results_dir")
            raise SettingsError(f"{str(where)!r} is of a run with other flags: give another --output_dir{others}")
        return figures

    def train(self) -> None:
        """Train in this process, or go on."""
        _write(self.folder / FLAGS, self.flags)
        goes_on = ["--resume_from_checkpoint=true"] if checkpoints.by_age(self.folder) else []
        try:
            figures = self.trains([*self.flags, f"--output_dir={self.folder}", *goes_on])
        except Exception:
            traceback.print_exc()  # to the log; the others go on
            raise
        if self.record is not None:
            _write(self.record, {**figures, "flags": self.flags})


def _read(file: Path) -> Any:
    """Return what a file holds; None where it is not there."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _by_flag(flags: list[str]) -> dict[str, list[str]]:
    """Return flag → values, in whatever order and form they were given; a folder may have been moved since."""
    return {flag: values for flag, values in with_values(flags) if flag != "--output_dir"}


def check_same_labels(jobs: Iterable[Job]) -> None:
    """Raise SettingsError where runs of a group and seed were not trained on the same examples with the same labels."""
    first: dict[tuple[str, int], tuple[Job, NoiseFile]] = {}
    for job in jobs:
        file = job.folder / NOISE_FILE
        if file.is_file():  # which a stream does not leave
            found = read_noise_file(file)
            other, expected = first.setdefault((job.group, job.seed), (job, found))
            same = np.array_equal(found.index, expected.index) and np.array_equal(found.labels, expected.labels)
            if not same:
                raise SettingsError(
                    f"{str(job.folder)!r} and {str(other.folder)!r} were trained on different examples or labels, so "
                    "that their figures can't be compared: give another --output_dir"
                )


# ---- Training what is missing ----


def train_missing(
    jobs: list[Job], at_once: int, log: Path, is_needed: Callable[[Job], bool] = lambda job: True
) -> dict[Job, str]:
    """Train what is not finished, each run in a process of its own. Return what failed, and why, which is also printed.

    A run that fails, or whose process is killed, does not end the others. Of those that wait, none begins after Ctrl-C.

    Args:
        jobs: In the order in which they begin.
        at_once: Runs at a time, among which the cores are shared out.
        log: File to which all that runs print is appended.
        is_needed: Asked when a run's turn has come, as what others came to may tell.

    Raises:
        SettingsError: A run was started with other flags.
    """
    if at_once < 1:
        raise SettingsError(f"--jobs {at_once} trains nothing: give 1 or more, or --show")
    missing = [job for job in jobs if job.results() is None]
    if not missing:
        return {}
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
    left, failed = TimeLeft(missing, at_once), {}
    seconds = REFRESHED if sys.stderr.isatty() else None

    def in_turn(job: Job) -> bool:
        if needed := is_needed(job):
            left.begin(job)
            _train_apart(job, log)
        return needed

    pool = ThreadPoolExecutor(at_once)
    try:
        running = {pool.submit(in_turn, job): job for job in missing}
        with tqdm(total=len(missing), desc="runs", bar_format=BAR) as bar:
            while running:
                for future in wait(running, seconds, FIRST_COMPLETED).done:
                    job, error = running.pop(future), future.exception()
                    left.end(job, counts=error is None and future.result())
                    if error is not None and not isinstance(error, Exception | SystemExit):
                        raise error
                    if error is not None:
                        failed[job] = reason_of(error)
                        tqdm.write(f"{job}, failed: {failed[job]}", file=sys.stderr)
                    bar.update()
                bar.set_postfix_str(left.in_words())
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def _train_apart(job: Job, log: Path) -> None:
    """Train in a process of its own, whose peak of memory is then that of this run.

    Raises:
        ChildProcessError: It was killed. What else ends the run is raised as it is.
    """
    with ProcessPoolExecutor(1, START, _begin, (str(log),)) as process:
        try:
            process.submit(job.train).result()
        except BrokenProcessPool:
            raise ChildProcessError("its process was killed, as happens where memory runs out") from None


def _begin(log: str) -> None:
    """Have all that this process prints appended to a file, and the process end when the one that waits for it does."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(other: multiprocessing.process.BaseProcess | None) -> None:
    """Wait until another process has ended, then end this one: a run that is begun again must not be running still."""
    if other is not None:
        other.join()
        os._exit(1)


class TimeLeft:
    """How long runs still take, by what those took that have ended.

    A run is taken to last as long as the others of its name and group did on the mean; where there are none yet, as
    those of its name in other groups, else as all.

    Args:
        jobs: What is to be trained.
        at_once: Runs at a time.
        now: Seconds of a clock.
    """

    def __init__(self, jobs: Iterable[Job], at_once: int, now: Callable[[], float] = time.monotonic):
        self.begun: dict[Job, float | None] = dict.fromkeys(jobs)  # of those that have not ended
        self.took: list[tuple[Job, float]] = []
        self.at_once, self.now = at_once, now

    def begin(self, job: Job) -> None:
        self.begun[job] = self.now()

    def end(self, job: Job, counts: bool = True) -> None:
        """Take note that a run has ended; `counts` is whether it came to its end."""
        begun = self.begun.pop(job)
        if counts and begun is not None:
            self.took.append((job, self.now() - begun))

    @property
    def seconds(self) -> float | None:
        """None before anything is known."""
        if not self.took or not self.begun:
            return None
        left = [self._expected(job) - (0 if begun is None else self.now() - begun) for job, begun in self.begun.items()]
        left = [max(0.0, seconds) for seconds in left]
        return max(*left, sum(left) / self.at_once)

    def in_words(self) -> str:
        """Return what the bar says."""
        return "" if self.seconds is None else f"about {format_duration(self.seconds)} left"

    def _expected(self, job: Job) -> float:
        of_name = [(other.group, seconds) for other, seconds in self.took if other.name == job.name]
        of_group = [seconds for group, seconds in of_name if group == job.group]
        return statistics.fmean(
            of_group or [seconds for _, seconds in of_name] or [seconds for _, seconds in self.took]
        )
