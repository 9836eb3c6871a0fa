"""Trains a classifier on noisy labels with FaMUS, evaluates it and leaves a folder ready for the Hub.

    accelerate launch scripts/run_famus.py --dataset_name digits --noise 0.4 --compare

The same as `famus-hf train`; all of it is in famus_hf/cli.
"""

import sys

from famus_hf.cli.train import main

if __name__ == "__main__":
    main(sys.argv[1:])
