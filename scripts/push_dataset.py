"""Converts a noisy data set once and pushes it to the Hub, so that others load it by name.

    python scripts/push_dataset.py --dataset_name clothing1m --data_dir /data/clothing1m --hub_dataset_id me/clothing1m
    python scripts/push_dataset.py --dataset_name cifar10 --noise 0.4 --noise_type asymmetric --hub_dataset_id me/noisy

Splits are those that `load_noisy_dataset` gives: train (columns image or text, label, index, clean_label where known),
test and, where there are any, meta and validation. Check first that the data set's licence lets you publish it.
"""

import argparse
import sys

from famus_hf import load_noisy_dataset
from famus_hf.cli.arguments import source_of
from famus_hf.data.labels.noise import NOISE_TYPES


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hub_dataset_id", required=True, help="where to push, user/name")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--dataset_name", help="as in run_famus.py")
    parser.add_argument("--dataset_config_name", help="as in run_famus.py")
    parser.add_argument("--data_dir", help="as in run_famus.py")
    parser.add_argument("--train_dir", help="as in run_famus.py")
    parser.add_argument("--validation_dir", help="as in run_famus.py")
    parser.add_argument("--noise", type=float, default=0.0, help="rate of label noise to add")
    parser.add_argument("--noise_type", default="symmetric", help=f"one of {', '.join(NOISE_TYPES)}")
    parser.add_argument("--num_meta", type=int, help="clean meta examples held out of train, where labels are clean")
    parser.add_argument("--seed", type=int, default=0, help="of noise and meta set")
    options = parser.parse_args(argv)
    try:
        data = load_noisy_dataset(
            **source_of(options),
            noise=options.noise,
            noise_type=options.noise_type,
            num_meta=options.num_meta,
            seed=options.seed,
        )
        data.push_to_hub(options.hub_dataset_id, private=options.private or None)
    except (ValueError, OSError) as error:
        sys.exit(f"push_dataset.py: error: {' '.join(str(error).split())}")
    print(f"pushed {', '.join(f'{split} ({len(part)})' for split, part in data.items())} to {options.hub_dataset_id}")


if __name__ == "__main__":
    main(sys.argv[1:])
