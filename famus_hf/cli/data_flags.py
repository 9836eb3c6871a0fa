"""Which arguments of load_noisy_dataset the flags of DataArguments set.

The function says what can be set and to what by default; a flag has its argument's name, but for `--dataset_name`
(`name`) and `--dataset_config_name` (`config_name`).
"""

import argparse
from inspect import signature
from typing import Any

from famus_hf import load_noisy_dataset
from famus_hf.cli.arguments import SOURCE, TOPICS, DataArguments, help_texts


def argument_of(flag: str) -> str:
    """Return the name of the argument that a flag sets."""
    return flag.removeprefix("dataset_")


def source_of(options: Any) -> dict[str, Any]:
    """Return the arguments that say where the data lie, from parsed flags, some of which may be missing."""
    return {argument_of(flag): getattr(options, flag, None) for flag in TOPICS[SOURCE]}


def settings_of(data_args: DataArguments) -> dict[str, Any]:
    """Return every argument that is a flag about data."""
    known = signature(load_noisy_dataset).parameters
    values = {argument_of(flag): value for flag, value in vars(data_args).items()}
    return {argument: value for argument, value in values.items() if argument in known}


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the data lie."""
    texts = help_texts()
    for flag in TOPICS[SOURCE]:
        parser.add_argument(f"--{flag}", help=texts[flag])
