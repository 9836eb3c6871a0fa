"""Runs of one process and of two that are killed and resumed: trainer/checkpointing.py and storage/checkpoints.py."""

import json
import sys
from pathlib import Path

import pytest

from tests.helpers import clean_process

ROOT = Path(__file__).parents[2]


def killed_runs(folder, kills, seed):
    code = "import sys; from tests.helpers.killed_runs import main; main(sys.argv[1], *map(int, sys.argv[2:]))"
    command = [sys.executable, "-c", code, str(folder), str(kills), str(seed)]
    result = clean_process.run(command, cwd=ROOT, timeout=1800)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_runs_that_are_killed_and_resumed_end_bit_identical(tmp_path):
    """A few kills of one process and one of two; a disk that is full for one of the two ends both."""
    assert killed_runs(tmp_path, 4, 0)["kills"] == 4


@pytest.mark.slow
def test_fifty_kills_in_every_kind_of_run_and_of_write(tmp_path):
    found = killed_runs(tmp_path, 50, 1)
    assert found["kills"] == 50 and found["runs"] >= 4 and len(found["places"]) >= 8
