"""Pictures of one or several runs of run_famus.py side by side, as PNG and SVG, from what they have logged.

    python scripts/plot_run.py outputs/digits --out outputs/pictures
    python scripts/plot_run.py outputs/digits-plain outputs/digits-mw-net outputs/digits --out outputs/pictures
    python scripts/plot_run.py outputs/a-seed-1 outputs/a-seed-2 outputs/b --names ours ours theirs --out pictures

accuracy and test_loss are there for every run that was evaluated while it trained; mean_weights where right labels are
known; stage_times, meta_gradient, gradient_quality, weights_over_time, clean_weights, weight_curves, weight_by_class
and layers where the run was told to look (--log_stage_times and so on); meta_set with a pseudo-clean meta set, division
with two networks. Runs with the same name are taken for seeds of one method: curves are their mean, with a band of one
standard deviation. A run that has not ended is drawn as far as its newest checkpoint. A table is printed beside.
"""

import argparse
import sys
from pathlib import Path

from famus_hf.reporting.figures.run_records import RunRecords, read_run
from famus_hf.reporting.figures.runs import PICTURES, draw_runs, grouped
from famus_hf.reporting.figures.style import FORMATS
from famus_hf.reporting.figures.summary import summary


def named_apart(runs: list[RunRecords], folders: list[Path]) -> list[RunRecords]:
    """Runs of one method are told apart by their folders, unless they are of different seeds."""
    found = []
    for run, folder in zip(runs, folders, strict=True):
        namesakes = [other for other in runs if other.name == run.name]
        seeds = [other.results.get("seed") for other in namesakes]
        is_one_method = None not in seeds and len(set(seeds)) == len(seeds)
        name = run.name if is_one_method or len(namesakes) == 1 else f"{run.name} ({folder.resolve().name})"
        found.append(RunRecords(name, run.log, run.results, run.tables, run.class_names))
    return found


def read_runs(options: argparse.Namespace) -> list[RunRecords]:
    """The records of all runs. Raises ValueError where a folder has none."""
    if options.names and len(options.names) != len(options.runs):
        raise ValueError(f"--names has {len(options.names)} names for {len(options.runs)} runs: give one for each")
    names = options.names or [None] * len(options.runs)
    runs = [read_run(folder, name) for folder, name in zip(options.runs, names, strict=True)]
    return runs if options.names else named_apart(runs, options.runs)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--names", nargs="+", help="one for each run (default: its method)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: both")
    parser.add_argument("--pictures", nargs="+", choices=tuple(PICTURES), default=tuple(PICTURES), help="default: all")
    options = parser.parse_args(argv)
    try:
        runs = read_runs(options)
        drawn = draw_runs(runs, options.out, options.formats, options.pictures)
    except (ValueError, OSError) as error:
        sys.exit(f"plot_run.py: error: {' '.join(str(error).split())}")
    if not drawn:
        sys.exit("plot_run.py: error: the runs have recorded nothing of these: see --log_stage_times and so on")
    for name, caption in drawn.items():
        print(f"{options.out / name}.{{{','.join(options.formats)}}}: {caption}")
    print(f"\n{summary(grouped(runs))}")


if __name__ == "__main__":
    main(sys.argv[1:])
