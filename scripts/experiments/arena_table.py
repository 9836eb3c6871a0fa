"""The arena: every method of `famus-hf compare` on the same wrong labels, in five cells, as one table.

    python scripts/experiments/arena_table.py --jobs 2
    python scripts/experiments/arena_table.py --results_dir model_cards/arena --show    # print it, and train nothing

Each cell is one `famus-hf compare`, which goes on where it stopped; --methods and --cells train fewer. A file
`<cell>.csv` of each cell goes to --results_dir. Other flags go to every run.
"""

import argparse
import csv
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.stats import ttest_rel

from famus_hf.cli import compare
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.methods import METHODS
from famus_hf.cli.program import started_as
from famus_hf.errors import SettingsError
from famus_hf.reporting.comparison import Comparison, Row, holm
from famus_hf.reporting.tables import format_mean

CELLS = {  # cell → what its labels and classes are
    **{
        name: (f"--noise_type={kind}", f"--noise={rate}", "--max_train_samples=5500")
        for name, kind, rate in (
            ("symmetric-40", "symmetric", 0.4),
            ("symmetric-60", "symmetric", 0.6),
            ("pair-40", "pair", 0.4),
            ("instance-40", "instance", 0.4),
        )
    },
    "long-tail-100": ("--imbalance_factor=100", "--max_train_samples=20500"),
}
COMMON = (
    "--backbone=small", "--image_size=14", "--augmentation=none", "--learning_rate=0.2", "--lr_scheduler_type=cosine",
    "--weight_decay=0.0005", "--per_device_train_batch_size=100", "--max_steps=500", "--num_meta=500",
    "--eval_strategy=steps", "--eval_steps=0.2", "--save_strategy=no",
)  # fmt: skip
LEFT_OUT = {"class-balanced", "famus-l2r", "famus-mlc", "famus-ldam"}  # of the same kind as others that are there


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing of each cell, and print the table."""
    options, flags = build_parser().parse_known_args(argv)
    with started_as("arena_table.py"):
        for cell in [] if options.show else options.cells:
            folder = Path(options.output_dir) / cell
            compare.main([
                f"--dataset_name={options.dataset_name}", *COMMON, *CELLS[cell], *flags, f"--output_dir={folder}",
                "--methods", *options.methods, "--seeds", *map(str, options.seeds), "--jobs", str(options.jobs),
            ])  # fmt: skip
            options.results_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / "comparison.csv", options.results_dir / f"{cell}.csv")
        found = {cell: read(path) for cell in CELLS if (path := options.results_dir / f"{cell}.csv").is_file()}
        if not found:
            raise SettingsError(f"{str(options.results_dir)!r} has no figures of a cell: train without --show")
        print(format_arena(found))


def read(path: Path) -> Comparison:
    """Return the comparison that a CSV file of `famus-hf compare` is of."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return Comparison.of(
        (line["method"], {**{name: value or None for name, value in line.items()}, "method": line["title"]})
        for line in lines
    )


def format_arena(found: dict[str, Comparison]) -> str:
    """Return methods × cells; the method with the highest mean over the cells with wrong labels is first.

    Bold is the highest of a cell. p is of paired t tests, by Holm's procedure, of whether that mean differs from the
    first one's; pairs are of the same cell and seed.
    """
    rows = {cell: {row.method: row for row in comparison.rows} for cell, comparison in found.items()}
    mixed = [cell for cell in rows if not cell.startswith("long-tail")]
    means = {
        name: statistics.fmean(rows[cell][name].last for cell in mixed)
        for name in METHODS
        if mixed and all(name in rows[cell] for cell in mixed)
    }
    others = {name for by_name in rows.values() for name in by_name} - set(means)
    names = [*sorted(means, key=lambda name: -means[name]), *sorted(others)]
    p_values = holm(
        {
            name: p
            for name in names[1:]
            if name in means and (p := p_of(names[0], name, [rows[c] for c in mixed])) is not None
        }
    )
    head = ["last, %", *found, "mean of wrong labels", "p", "seconds, plain = 1", "AP, %", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in names:
        own = {cell: by_name[name] for cell, by_name in rows.items() if name in by_name}
        ratios = [own[cell].seconds / rows[cell]["plain"].seconds for cell in own if "plain" in rows[cell]]
        precisions = [100 * value for row in own.values() for value in row.values("wrong_label_average_precision")]
        cells = [
            next(iter(own.values())).title,
            *(last_of(own.get(cell), comparison.rows[0].method) for cell, comparison in found.items()),
            f"{100 * means[name]:.1f}" if name in means else "–",
            f"{p_values[name]:.3f}" if name in p_values else "–",
            f"{statistics.fmean(ratios):.1f}" if ratios else "–",
            f"{statistics.fmean(precisions):.1f}" if precisions else "–",
            "–".join(map(str, sorted({len(row.runs) for row in own.values()}))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def p_of(first: str, other: str, rows: Sequence[Mapping[str, Row]]) -> float | None:
    """Return the p of a paired t test over all cells' seeds; None where there are fewer than two pairs."""
    pairs = [
        (accuracy, theirs[seed])
        for by_name in rows
        for theirs in [by_name[other].by_seed()]
        for seed, accuracy in by_name[first].by_seed().items()
        if seed in theirs
    ]
    return float(ttest_rel(*zip(*pairs, strict=True)).pvalue) if len(pairs) > 1 else None


def last_of(row: Row | None, highest: str) -> str:
    """Return the accuracy at the end, bold where it is the highest of its cell."""
    if row is None:
        return "–"
    shown = format_mean(100 * value for value in row.values("eval_accuracy"))
    return f"**{shown}**" if row.method == highest else shown


def build_parser() -> argparse.ArgumentParser:
    """Return what reads the flags of this script; others go to every run."""
    parser = command_parser("arena_table.py", __doc__)
    parser.allow_abbrev = False
    parser.add_argument("--dataset_name", default="/usr/share/datasets/fashion-mnist", help="as in famus-hf train")
    parser.add_argument("--cells", nargs="+", choices=tuple(CELLS), default=list(CELLS), help="only these")
    every = [name for name in METHODS if name not in LEFT_OUT]
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=every, metavar="METHOD",
                        help="only these; default: all but variants of others")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of labels, weights and batches")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, among which the cores are shared out")
    parser.add_argument("--output_dir", default="outputs/arena", help="a folder for each cell is made below")
    parser.add_argument("--results_dir", type=Path, default=Path("outputs/arena"), help="of the files of figures")
    parser.add_argument("--show", action="store_true", help="print what is there, and train nothing")
    return parser


if __name__ == "__main__":
    main()
