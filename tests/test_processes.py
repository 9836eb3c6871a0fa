"""Two processes of half the batch learn what one process of the whole batch learns, and hold the same state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from equal_runs import CASES, ROUNDING, run

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes left of all cases."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(
        [*command, str(TESTS / "equal_runs.py"), str(folder)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in expected)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(folder, tmp_path, name):
    found = torch.load(folder / f"{name}-0.pt")
    expected = run(tmp_path, name, CASES[name], 1)
    assert largest_difference(found, expected) < (1e-4 if name == "finite" else 1e-9)


@pytest.mark.parametrize("name", [*CASES, *ROUNDING])
def test_both_processes_hold_the_same_state(folder, name):
    first, second = (torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1))
    assert largest_difference(second, first) == 0
    assert all(tensor.isfinite().all() for tensor in first.values())


@pytest.mark.parametrize("name", ["FaMUS", "accumulation", "pseudo-clean"])
def test_two_processes_resume_bit_for_bit(folder, name):
    for rank in (0, 1):
        whole, again = torch.load(folder / f"resumed {name}-{rank}.pt")
        assert largest_difference(again, whole) == 0


def test_one_process_writes_each_file(folder):
    files = (folder / "files.txt").read_text().split()
    assert {"model.safetensors", "meta_state.pt", "rng_state_0.pth", "rng_state_1.pth"} <= set(files)
    assert [name for name in files if "meta_state" in name] == ["meta_state.pt"]
