"""Opens a page on which the suspect labels of a run are reviewed by keyboard; each decision is saved as it is made.

    famus-hf review outputs/my_photos                  # → outputs/my_photos/decisions.csv
    famus-hf review outputs/my_photos --random 200     # and 200 examples drawn at random, for a trusted set
    famus-hf review outputs/my_photos --static         # → outputs/my_photos/review.html, one file that needs no server

Keys: 1–9 and 0 give the first ten classes, Enter the suggested one, Space keeps the given one, z takes the last
decision back, / types a part of any class's name, ← → look back and ahead, s shows a sheet of many. The most probably
wrong labels come first. The examples come from the data set that the run was trained on, where it is at hand, from
another place with --dataset_name or --train_dir. The page is for this machine alone, unless --host says otherwise.
"""

import argparse
import webbrowser
from pathlib import Path
from typing import Any

from famus_hf.cli.data_flags import add_source_flags, source_of
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.program import started_as
from famus_hf.data.fingerprint import fingerprint_of_splits
from famus_hf.data.labels.class_names import occurring_names
from famus_hf.data.load import load_splits
from famus_hf.data.sources.load_source import check_source
from famus_hf.errors import DataError, SettingsError
from famus_hf.reporting.label_report import read_report
from famus_hf.review.journal import Journal
from famus_hf.review.page import Examples, Review, static_page
from famus_hf.review.server import ReviewServer
from famus_hf.review.suspects import check_report, suspects_and_left_out
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import DECISIONS, REPORT_FILE, RESULTS
from famus_hf.storage.untrusted import read_json


def main(argv: list[str], program: str = "review.py") -> None:
    """Show the page until Ctrl-C, or write it as one file."""
    options = build_parser(program).parse_args(argv)
    with started_as(program):
        review = review_of(options)
        journal = Journal(options.decisions or options.run / DECISIONS, review.data)
        if options.static is not None:
            write_static(review, journal, Path(options.static or options.run / "review.html"))
            return
        serve(review, journal, options)


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return what reads the flags."""
    parser = command_parser(program, __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a run with a label report")
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="default: decisions.csv in the run's folder")
    parser.add_argument("--most", type=int, default=1000, help="how many suspects at most")
    parser.add_argument("--random", type=int, default=0, help="how many other examples, drawn at random, come behind")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--static", nargs="?", const="", metavar="FILE",
                        help="write one HTML file (default: review.html in the run's folder)")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; beyond this machine it needs a token")
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--no_browser", action="store_true", help="only print the address")
    add_source_flags(parser)
    return parser


def source_of_run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_splits`: from the flags, else the data set that the run says it was trained on."""
    source, results = source_of(options), options.run / RESULTS
    if source["name"] is not None or source["train_dir"] is not None:
        return source
    name = read_json(options.run, results).get("dataset_name") if results.is_file() else None
    try:
        check_source(name if name is None else str(name))
    except DataError as error:
        known = "does not say" if name is None else f"says {name!r}, which is not here, when asked"
        raise SettingsError(
            f"the run {known} what it was trained on: say with --dataset_name where that lies"
        ) from error
    return {**source, "name": str(name)}


def review_of(options: argparse.Namespace) -> Review:
    """Return what is to be reviewed. Raise FaMUSError where the report or the data can't be read, or do not match."""
    if not (options.run / REPORT_FILE).is_file():
        raise SettingsError(f"{str(options.run)!r} has no {REPORT_FILE}: give the output folder of a run that left one")
    report, splits = read_report(options.run / REPORT_FILE), load_splits(**source_of_run(options))
    check_report(report, splits)
    suspects, left_out = suspects_and_left_out(report, options.most, options.random, options.seed)
    title = f"{options.run.resolve().name}: are these labels right?"
    names = occurring_names(splits["train"])
    return Review(title, names, suspects, Examples(splits), fingerprint_of_splits(splits), left_out)


def write_static(review: Review, journal: Journal, path: Path) -> None:
    """Write the page as one file."""
    page = static_page(review, journal.read())
    with atomic_write(path) as beside:
        beside.write_text(page, encoding="utf-8")
    print(f"{path} ({len(page) / 1e6:.1f} MB): open it in a browser, which keeps the decisions until you download them")
    say_what_is_left_out(review)


def say_what_is_left_out(review: Review) -> None:
    if review.note:
        print(review.note, flush=True)


def serve(review: Review, journal: Journal, options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    with ReviewServer(review, journal, options.host, options.port) as server:
        done = len(journal.read())
        print(f"{len(review.suspects)} labels to review, {done} decided: {server.address}", flush=True)
        say_what_is_left_out(review)
        print(f"decisions are saved in {journal.path} as they are made; Ctrl-C ends this", flush=True)
        if not options.no_browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            print(f"\n{len(journal.read())} decisions in {journal.path}: apply them with famus-hf relabel")
