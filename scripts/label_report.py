"""Which labels of a data set are probably wrong, by a model that FaMUS trained: a table, the most suspect first.

    python scripts/label_report.py --model outputs/my_photos --dataset_name my_photos
    python scripts/label_report.py --model me/famus --dataset_name cifar10 --split test --push_to_hub me/suspects

The same as `famus-hf label-report`; all of it is in famus_hf/cli/label_report.py.
"""

import sys

from famus_hf.cli.label_report import main

if __name__ == "__main__":
    main(sys.argv[1:])
