"""Converts a noisy data set once and pushes it to the Hub, so that others load it by name.

    famus-hf push-dataset --dataset_name clothing1m --data_dir /data/clothing1m --hub_dataset_id me/clothing1m
    famus-hf push-dataset --dataset_name cifar10 --noise 0.4 --noise_type asymmetric --hub_dataset_id me/noisy

Splits are those that `load_noisy_dataset` gives: train (columns image or text, label, index, clean_label where known),
test and, where there are any, meta and validation. Check first that the data set's licence lets you publish it.
"""

import argparse

from famus_hf import load_noisy_dataset
from famus_hf.cli.arguments import help_texts
from famus_hf.cli.data_flags import add_source_flags, source_of
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.program import started_as


def main(argv: list[str], program: str = "push_dataset.py") -> None:
    """Convert a data set and push it."""
    options = build_parser(program).parse_args(argv)
    with started_as(program):
        data = load_noisy_dataset(
            **source_of(options),
            noise=options.noise,
            noise_type=options.noise_type,
            num_meta=options.num_meta,
            seed=options.seed,
        )
        data.push_to_hub(options.hub_dataset_id, private=options.private or None)
    print(f"pushed {', '.join(f'{split} ({len(part)})' for split, part in data.items())} to {options.hub_dataset_id}")


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return what reads the flags."""
    parser = command_parser(program, __doc__)
    parser.add_argument("--hub_dataset_id", required=True, help="where to push, user/name")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    add_source_flags(parser)
    texts = help_texts()
    parser.add_argument("--noise", type=float, default=0.0, help=texts["noise"])
    parser.add_argument("--noise_type", default="symmetric", help=texts["noise_type"])
    parser.add_argument("--num_meta", type=int, help="clean meta examples held out of train, where labels are clean")
    parser.add_argument("--seed", type=int, default=0, help="of noise and meta set")
    return parser
