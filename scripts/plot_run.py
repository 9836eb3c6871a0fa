"""Pictures of one or several runs of run_famus.py side by side, as PNG and SVG, from what they have logged.

    python scripts/plot_run.py outputs/digits-plain outputs/digits-mw-net outputs/digits --out outputs/pictures

The same as `famus-hf plot`; all of it is in famus_hf/cli/plot.py.
"""

import sys

from famus_hf.cli.plot import main

if __name__ == "__main__":
    main(sys.argv[1:])
