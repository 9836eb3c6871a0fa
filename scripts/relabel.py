"""Writes a copy of the data of a run with the labels that were decided on; the original stays as it is.

    python scripts/relabel.py outputs/my_photos outputs/my_photos/decisions.csv --out cleaned

The same as `famus-hf relabel`; all of it is in famus_hf/cli/relabel.py.
"""

import sys

from famus_hf.cli.relabel import main

if __name__ == "__main__":
    main(sys.argv[1:])
