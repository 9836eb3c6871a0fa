"""`famus-hf train` and run_famus.py: the help, several processes where they are asked for, else the run itself.

What takes seconds to import is imported when a run needs it, so that the help comes soon.
"""

import os
import sys

from famus_hf.cli.config_files import take_flag
from famus_hf.cli.program import fail, started_as

PROCESSES = """
processes:
  --num_processes N     Train in N processes on this machine, by accelerate's
                        launcher: each on a GPU of its own, or all on the CPU
                        where there is no GPU or with --use_cpu. 1 is this
                        process. Default: as many as accelerate's own file
                        says (`accelerate config` writes it), else 1.
  --accelerate_config FILE
                        Start processes as this file of `accelerate config`
                        says (FSDP, several machines, …), instead of its own.
"""


def main(argv: list[str], program: str = "run_famus.py") -> None:
    """Print the help, start processes, or train in this one."""
    with started_as(program):
        if {"-h", "--help"} & set(argv):
            print_help(PROCESSES if program == "famus-hf train" else "")
            return
        if program == "famus-hf train":
            argv = start_processes(argv)
    from famus_hf.cli import run

    run.main(argv, program)


def print_help(more: str) -> None:
    """Print every flag by topic, and what else there is to say."""
    if "transformers.trainer_utils" not in sys.modules:
        sys.modules.setdefault("peft", None)  # type: ignore[arg-type]  # transformers would import it: 3 s for no flag
    from famus_hf.cli.arguments import build_parser

    print(build_parser({}).format_help() + more, end="")


def start_processes(argv: list[str]) -> list[str]:
    """Return the flags for a run in this process; where several are to train, have them do it, and end this one."""
    count, argv = take_flag(argv, "--num_processes")
    file, argv = take_flag(argv, "--accelerate_config")
    if "WORLD_SIZE" in os.environ:  # a launcher has started this one
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
    sys.exit()
