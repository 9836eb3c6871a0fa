"""`famus-hf train` and run_famus.py: the help, several processes where they are asked for, else the run itself.

What takes seconds to import is imported when a run needs it, so that the help comes soon.
"""

import os
import sys
from typing import NoReturn

from famus_hf.cli.config_files import take_flag
from famus_hf.cli.program import fail, started_as

INSTALLED = "famus-hf train"  # which starts processes itself; run_famus.py is started by a launcher


def main(argv: list[str], program: str = "run_famus.py") -> None:
    """Print the help, start processes, or train in this one."""
    with started_as(program):
        if {"-h", "--help"} & set(argv):
            print_help(with_processes=program == INSTALLED)
        if program == INSTALLED:
            argv = start_processes(argv)
    from famus_hf.cli import run

    run.main(argv, program)


def print_help(with_processes: bool) -> NoReturn:
    """Print every flag by topic, and end the program."""
    if "transformers.trainer_utils" not in sys.modules:
        sys.modules.setdefault("peft", None)  # type: ignore[arg-type]  # transformers would import it: 3 s for no flag
    from famus_hf.cli.arguments import build_parser

    build_parser({}, with_processes).print_help()
    sys.exit(0)


def start_processes(argv: list[str]) -> list[str]:
    """Return the flags for a run in this process; where several are to train, have them do it, and end this one."""
    count, argv = take_flag(argv, "--num_processes")
    file, argv = take_flag(argv, "--accelerate_config")
    if "LOCAL_RANK" in os.environ:  # a launcher has started this one
        return argv
    if count is not None and not (count.isdecimal() and int(count) > 0):
        fail(f"--num_processes {count!r} is no number of processes: give 1 or more")
    if count == "1" and file is None:
        return argv
    from famus_hf.cli.launch import launch, launcher_flags

    flags, argv = launcher_flags(None if count is None else int(count), file, argv)
    if flags is None:
        return argv
    launch(flags, argv)
    sys.exit(0)
