"""The arena: every method of `famus-hf compare` on the same wrong labels, in five cells, as one table.

    python scripts/experiments/arena_table.py --jobs 2
    python scripts/experiments/arena_table.py --results_dir model_cards/arena --show    # print it, and train nothing

Each cell is one `famus-hf compare`, which goes on where it stopped; --methods and --cells train fewer. A file
`<cell>.csv` of each cell and a picture go to --results_dir. Other flags go to every run.
"""

import argparse
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from famus_hf.cli import compare
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.methods import METHODS
from famus_hf.cli.program import started_as
from famus_hf.errors import SettingsError
from famus_hf.reporting.comparison import Comparison, Row, holm, mean_as, p_of_pairs, pairs_of
from famus_hf.reporting.figures.comparison import Point, draw_accuracy_by_time
from famus_hf.reporting.figures.style import save
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
        found = {
            cell: Comparison.read(path) for cell in CELLS if (path := options.results_dir / f"{cell}.csv").is_file()
        }
        if not found:
            raise SettingsError(f"{str(options.results_dir)!r} has no figures of a cell: train without --show")
        arena = Arena(found)
        print(arena.as_markdown())
        if arena.means and not options.show:
            save(draw_accuracy_by_time(arena.points()), options.results_dir / "accuracy_by_time.png")


class Arena:
    """Methods × cells; the method with the highest mean over the cells with wrong labels is first.

    Args:
        found: Cell → its comparison.
    """

    def __init__(self, found: Mapping[str, Comparison]):
        self.rows = {cell: {row.method: row for row in comparison.rows} for cell, comparison in found.items()}
        self.highest = {cell: comparison.rows[0].method for cell, comparison in found.items()}
        self.mixed = [by_name for cell, by_name in self.rows.items() if not cell.startswith("long-tail")]
        names = dict.fromkeys(name for by_name in self.rows.values() for name in by_name)
        self.means = {
            name: statistics.fmean(by_name[name].last for by_name in self.mixed)
            for name in names
            if self.mixed and all(name in by_name for by_name in self.mixed)
        }
        self.names = sorted(names, key=lambda name: -self.means.get(name, 0.0))

    def p_values(self) -> dict[str, float]:
        """Return method → p of a paired t test against the first one's mean, over cells and seeds (Holm)."""
        first, *others = [name for name in self.names if name in self.means]
        pairs = {name: [pair for own in self.mixed for pair in pairs_of(own[first], own[name])] for name in others}
        found = {name: p_of_pairs(of_method) for name, of_method in pairs.items()}
        return holm({name: p for name, p in found.items() if p is not None})

    def as_markdown(self) -> str:
        """Return the table. Bold is the highest of a cell."""
        head = ["last, %", *self.rows, "mean of wrong labels", "p", "seconds, plain = 1", "AP, %", "seeds"]
        p_values = self.p_values() if len(self.means) > 1 else {}
        lines = [head, ["---"] * len(head), *(self._cells(name, p_values.get(name)) for name in self.names)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def _cells(self, name: str, p: float | None) -> list[str]:
        own = {cell: by_name[name] for cell, by_name in self.rows.items() if name in by_name}
        plain = {cell: by_name["plain"].seconds for cell, by_name in self.rows.items() if "plain" in by_name}
        precisions = [100 * value for row in own.values() for value in row.values("wrong_label_average_precision")]
        return [
            next(iter(own.values())).title,
            *(last_of(own.get(cell), self.highest[cell]) for cell in self.rows),
            mean_as([100 * self.means[name]] if name in self.means else [], "{:.1f}"),
            "–" if p is None else f"{p:.3f}",
            mean_as([row.seconds / plain[cell] for cell, row in own.items() if cell in plain], "{:.1f}"),
            mean_as(precisions, "{:.1f}"),
            "–".join(map(str, sorted({len(row.runs) for row in own.values()}))),
        ]

    def points(self) -> list[Point]:
        """Return title, mean seconds and mean accuracy over the cells with wrong labels."""
        return [
            (self.mixed[0][name].title, statistics.fmean(rows[name].seconds for rows in self.mixed), self.means[name])
            for name in self.names
            if name in self.means
        ]


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
