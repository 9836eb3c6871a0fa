"""Writes a copy of the data of a run with the labels that were decided on; the original stays as it is.

    famus-hf relabel outputs/my_photos outputs/my_photos/decisions.csv --out cleaned
    famus-hf relabel outputs/my_photos --auto 0.99 --out cleaned           # suggestions above 0.99, without a review
    famus-hf relabel outputs/my_photos --from me/decisions --out cleaned   # decisions from the Hub

The copy has the form of the original: folders of classes, into which files are copied and beside which metadata.csv has
the columns label, original_label and reviewed; tables and saved data sets get these columns. Its folder .review holds
decisions.csv, the decisions as they are on the copy (for --meta_from), and undo.csv, with which relabel gives the
original labels back. Decisions on other data are refused.
"""

import argparse
from pathlib import Path

from datasets import Dataset, DatasetDict

from famus_hf.cli.data_flags import add_source_flags
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.program import started_as
from famus_hf.cli.review import source_of_run
from famus_hf.data.labels.decisions import Decisions
from famus_hf.data.load import load_splits
from famus_hf.data.reviewed import decisions_on
from famus_hf.data.sources.folders import load_folder
from famus_hf.errors import PushError, SettingsError
from famus_hf.hub.client_errors import hub_reason
from famus_hf.hub.decisions import fetch_decisions, push_decisions
from famus_hf.reporting.label_report import read_report
from famus_hf.review.origin import check_one_folder
from famus_hf.review.relabel import Mended, Suggestions, relabel, suggestions_above
from famus_hf.review.suspects import check_report
from famus_hf.storage.run_folder import REPORT_FILE


def main(argv: list[str], program: str = "relabel.py") -> None:
    """Write the copy, and say what has become of the labels."""
    options = build_parser(program).parse_args(argv)
    with started_as(program):
        if sum(map(bool, (options.decisions, options.hub_decisions))) + (options.auto is not None) == 0:
            raise SettingsError("there is nothing to apply: give decisions.csv, --from user/decisions or --auto 0.99")
        if options.decisions and options.hub_decisions:
            raise SettingsError("a file of decisions and --from contradict each other: give one of them")
        source = source_of_run(options)
        check_one_folder(source)
        splits = load_splits(**source)
        decisions, suggestions = decisions_of(options, splits), Suggestions([], 0.0)
        if options.auto is not None:
            report = read_report(options.run / REPORT_FILE)
            check_report(report, splits)
            suggestions = suggestions_above(report, options.auto, decisions.by_key)
        mended = relabel(source, splits, decisions, suggestions.decisions, options.out)
        print(in_words(mended, suggestions, options.auto))
        if options.push_to_hub:
            push(mended, decisions, options)


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return what reads the flags."""
    parser = command_parser(program, __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of the run whose labels were reviewed")
    parser.add_argument("decisions", nargs="?", type=Path, metavar="DECISIONS", help="decisions.csv of a review")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the copy; new, or empty")
    parser.add_argument("--auto", type=float, metavar="P", help="take suggestions from this probability on, unreviewed")
    parser.add_argument("--from", dest="hub_decisions", metavar="USER/NAME", help="take decisions from the Hub")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="push the copy, and the decisions to NAME-decisions")
    parser.add_argument("--private", action="store_true", help="make these repositories private if they are new")
    add_source_flags(parser)
    return parser


def decisions_of(options: argparse.Namespace, splits: DatasetDict) -> Decisions:
    """Return the decisions that the flags name, checked; none where they name none."""
    path = fetch_decisions(options.hub_decisions) if options.hub_decisions else options.decisions
    return Decisions("") if path is None else decisions_on(splits, path)


def in_words(mended: Mended, suggestions: Suggestions, threshold: float | None) -> str:
    """Return what has become of the labels, and what to do with them."""
    lines = [
        f"{mended.folder}: {mended.examples} examples, {mended.changed} labels changed, {mended.reviewed} reviewed; "
        f"what undoes it is in {mended.undo}"
    ]
    if threshold is not None:
        lines.append(
            f"without review {len(suggestions.decisions)} suggestions of probability {threshold:g} or more were taken, "
            f"of which {suggestions.expected_wrong:.1f} are expected to be wrong (sum of 1 − p)"
        )
    again = f"famus-hf train --dataset_name {mended.folder}"
    return "\n".join([*lines, f"train on it: {again}{f' --meta_from {mended.decisions}' if mended.reviewed else ''}"])


def push(mended: Mended, decisions: Decisions, options: argparse.Namespace) -> None:
    """Push the copy, and the decisions as they are on the original. Raise PushError where it is not taken."""
    data = load_folder(mended.folder, as_table=bool(options.image_column_name or options.audio_column_name))
    data = DatasetDict({"train": data}) if isinstance(data, Dataset) else data
    try:
        data.push_to_hub(options.push_to_hub, private=options.private or None)
    except Exception as error:  # the client's errors have no common class
        raise PushError(f"the copy is in {str(mended.folder)!r}, and its push failed: {hub_reason(error)}") from error
    print(f"pushed the copy to {options.push_to_hub}")
    if len(decisions):
        name = f"{options.push_to_hub}-decisions"
        push_decisions(decisions, name, options.private or None)
        print(f"pushed the decisions to {name}: edit them there, and relabel with --from {name}")
