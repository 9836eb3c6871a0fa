"""One HTML page about a run, for people who do not read code: how good it is, which labels look wrong, and why.

    famus-hf report outputs/digits                                   # → outputs/digits/report.html
    famus-hf report outputs/digits --beside outputs/digits-plain outputs/digits-mw-net
    famus-hf report outputs/my_photos --dataset_name /data/my_photos

The page is self-contained: pictures, images and recordings are inside, it runs no script and fetches nothing. The
images or recordings (their first 5 seconds) of the most suspect examples come from the data set that the run was
trained on, where it is at hand; from another place with --dataset_name or --train_dir. Otherwise the page shows the
contact sheet that the run has left. The beginnings of texts are in the run's label report.
"""

import argparse
from pathlib import Path

from famus_hf.cli.data_flags import add_source_flags, source_of
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.program import started_as
from famus_hf.reporting.page import make_page
from famus_hf.storage.atomic import atomic_write


def main(argv: list[str], program: str = "report.py") -> None:
    """Write the page."""
    options = build_parser(program).parse_args(argv)
    out = options.out or options.run / "report.html"
    with started_as(program):
        page = make_page(options.run, options.beside, source_of(options))
        with atomic_write(out) as path:
            path.write_text(page, encoding="utf-8")
    print(f"{out} ({len(page) / 1e6:.1f} MB)")


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return what reads the flags."""
    parser = command_parser(program, __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_argument("--beside", nargs="+", type=Path, default=[], metavar="RUN", help="runs to compare it with")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the run's folder)")
    add_source_flags(parser)
    return parser
