"""One HTML page about a run, for people who do not read code: how good it is, which labels look wrong, and why.

    python scripts/report.py outputs/digits                                   # → outputs/digits/report.html
    python scripts/report.py outputs/digits --beside outputs/digits-plain outputs/digits-mw-net

The same as `famus-hf report`; all of it is in famus_hf/cli/report.py.
"""

import sys

from famus_hf.cli.report import main

if __name__ == "__main__":
    main(sys.argv[1:])
