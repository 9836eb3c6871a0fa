"""Several processes of `famus-hf train`, by accelerate's launcher."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from famus_hf.cli.program import fail
from famus_hf.errors import reason_of

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU)  # with which accelerate 1.15 starts one process, whatever N is


def launcher_flags(count: int | None, file: str | None, argv: list[str]) -> tuple[list[str] | None, list[str]]:
    """Return the flags of accelerate's launcher, None where this process is enough, and those of each process.

    Args:
        count: `--num_processes`.
        file: `--accelerate_config`; None is accelerate's own, if there is one.
        argv: All other flags.
    """
    path = file if file is not None else default_config_file if Path(default_config_file).is_file() else None
    kind, count_in_file = (DistributedType.NO, 1) if path is None else _kind_and_count(path)
    count = count_in_file if count is None else count
    if path is not None and kind not in PLAIN and (file is not None or count > 1):
        return ["--config_file", path, f"--num_processes={count}"], argv
    from_file = [] if file is None else ["--config_file", file]
    if count < 2:
        return from_file or None, argv
    return [*from_file, *_flags_of_plain_processes(count, with_file=bool(from_file))], _on_a_device_each(count, argv)


def _kind_and_count(path: str) -> tuple[DistributedType, int]:
    """Return how a file of `accelerate config` distributes, and over how many processes."""
    try:
        config = load_config_from_file(path)
        return DistributedType(config.distributed_type), int(config.num_processes)
    except Exception as error:  # the file is a user's: YAML's errors, unknown keys, missing ones
        fail(f"--accelerate_config {path} can't be read: {reason_of(error)}")


def _flags_of_plain_processes(count: int, with_file: bool) -> list[str]:
    """Return what starts processes that each hold a whole network; `--cpu` would start one alone, without a word."""
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    flags = [
        "--multi_gpu", f"--num_processes={count}", "--num_machines=1", "--main_process_port=0",
        f"--num_cpu_threads_per_process={threads}",
    ]  # fmt: skip
    return flags if with_file else [*flags, "--mixed_precision=no", "--dynamo_backend=no"]


def _on_a_device_each(count: int, argv: list[str]) -> list[str]:
    """Return the flags for processes on a GPU each, or on the CPU where there is none or it was asked for."""
    if any(flag.split("=")[0] == "--use_cpu" for flag in argv):
        return argv
    gpus = torch.cuda.device_count()
    if 0 < gpus < count:
        fail(f"--num_processes {count} is more than the GPUs of this machine ({gpus}): give {gpus}, or add --use_cpu")
    return argv if gpus else [*argv, "--use_cpu"]


def launch(flags: list[str], argv: list[str]) -> None:
    """Train in processes of their own. Ends the program as they do where one fails, which has said why."""
    words = [*flags, "--module", "famus_hf.cli.main", "train", "--num_processes=1", *argv]
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 1)  # a signal has a negative one
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
