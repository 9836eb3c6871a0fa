"""The command line in this process: its script and the flags of a run of seconds."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_famus.py"


SMALL = [
    "--dataset_name", "digits", "--noise", "0.4", "--max_train_samples", "400", "--max_eval_samples", "60",
    "--num_train_epochs", "2", "--per_device_train_batch_size", "40", "--use_cpu", "--disable_tqdm", "true",
]  # fmt: skip


def in_this_process(code, home, *arguments):
    """What the code prints last; tests/scripts/test_release.py has the clean processes."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["-c", *arguments])
        patch.setitem(sys.modules, "famus_hf", sys.modules["famus_hf"])  # put back, as the code may take it away
        exec(code, {})
    return json.loads(printed.getvalue().splitlines()[-1])
