"""Memory that is freed stays in the process, so that buffers are not faulted in again."""

import sys

import pytest

from famus_hf.cli import freed_memory
from famus_hf.cli.freed_memory import keep_freed_memory
from tests.helpers import clean_process

FAULTS = """
import resource
import numpy as np
from famus_hf.cli.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        buffers = [np.empty(2**19) for _ in range(30)]  # of 4 MiB
        for buffer in buffers:
            buffer.fill(1)
        del buffers, buffer
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults(), keep_freed_memory(), faults() and faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_buffers_are_not_faulted_in_again():
    before, done, after = clean_process.run_python(FAULTS, {}).split()
    assert (done, int(after)) == ("True", 0) and int(before) >= 20


def test_what_a_user_has_chosen_stays_and_another_library_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4000000000")
    assert not keep_freed_memory()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
