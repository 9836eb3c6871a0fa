"""Converts a noisy data set once and pushes it to the Hub, so that others load it by name.

    python scripts/push_dataset.py --dataset_name cifar10 --noise 0.4 --noise_type asymmetric --hub_dataset_id me/noisy

The same as `famus-hf push-dataset`; all of it is in famus_hf/cli/push_dataset.py.
"""

import sys

from famus_hf.cli.push_dataset import main

if __name__ == "__main__":
    main(sys.argv[1:])
