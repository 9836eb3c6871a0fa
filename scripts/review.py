"""Opens a page on which the suspect labels of a run are reviewed by keyboard; each decision is saved as it is made.

    python scripts/review.py outputs/my_photos

The same as `famus-hf review`; all of it is in famus_hf/cli/review.py.
"""

import sys

from famus_hf.cli.review import main

if __name__ == "__main__":
    main(sys.argv[1:])
