"""Pictures of one or several runs side by side, as PNG and SVG, from what they have logged.

    famus-hf plot outputs/digits --out outputs/pictures
    famus-hf plot outputs/digits-plain outputs/digits-mw-net outputs/digits --out outputs/pictures
    famus-hf plot outputs/a-seed-1 outputs/a-seed-2 outputs/b --names ours ours theirs --out pictures

accuracy and test_loss are there for every run that was evaluated while it trained; mean_weights where right labels are
known; stage_times, meta_gradient, gradient_quality, weights_over_time, clean_weights, weight_curves, weight_by_class
and layers where the run was told to look (--log_stage_times and so on); meta_set with a pseudo-clean meta set, division
with two networks. Runs with the same name are taken for seeds of one method: curves are their mean, with a band of one
standard deviation. A run that has not ended is drawn as far as its newest checkpoint, and left out beside others of its
name that have. A table is printed beside.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from famus_hf.cli.help_page import command_parser
from famus_hf.cli.program import started_as
from famus_hf.errors import SettingsError
from famus_hf.reporting.figures.run_records import RunRecords, read_run
from famus_hf.reporting.figures.runs import PICTURES, draw_runs, grouped
from famus_hf.reporting.figures.style import FORMATS
from famus_hf.reporting.figures.summary import summary


def named_apart(runs: list[RunRecords], folders: list[Path]) -> list[RunRecords]:
    """Return the runs, those of one method told apart by their folders unless they are of different seeds."""
    renamed = []
    for run, folder in zip(runs, folders, strict=True):
        namesakes = [other for other in runs if other.name == run.name]
        seeds = [other.results.get("seed") for other in namesakes]
        is_one_method = None not in seeds and len(set(seeds)) == len(seeds)
        name = run.name if is_one_method or len(namesakes) == 1 else f"{run.name} ({folder.resolve().name})"
        renamed.append(replace(run, name=name))
    return renamed


def read_runs(options: argparse.Namespace) -> list[RunRecords]:
    """Return the records of all runs. Raise SettingsError where a folder has none."""
    if options.names and len(options.names) != len(options.runs):
        raise SettingsError(f"--names has {len(options.names)} names for {len(options.runs)} runs: give one for each")
    names = options.names or [None] * len(options.runs)
    runs = [read_run(folder, name) for folder, name in zip(options.runs, names, strict=True)]
    return runs if options.names else named_apart(runs, options.runs)


def main(argv: list[str], program: str = "plot_run.py") -> None:
    """Draw runs, and print a table beside."""
    options = build_parser(program).parse_args(argv)
    with started_as(program):
        runs = read_runs(options)
        drawn = draw_runs(runs, options.out, options.formats, options.pictures)
        if not drawn:
            raise SettingsError("the runs have recorded nothing of these: see --log_stage_times and so on")
    for name, caption in drawn.items():
        print(f"{options.out / name}.{{{','.join(options.formats)}}}: {caption}")
    print(f"\n{summary(grouped(runs))}")


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return what reads the flags."""
    parser = command_parser(program, __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--names", nargs="+", help="one for each run (default: its method)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: both")
    parser.add_argument("--pictures", nargs="+", choices=tuple(PICTURES), default=tuple(PICTURES), help="default: all")
    return parser
