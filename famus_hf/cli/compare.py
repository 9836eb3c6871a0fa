"""Trains several methods on the same wrong labels, several seeds, and says which one to take.

    famus-hf compare --dataset_name digits --noise 0.4 --methods plain elr famus posterior --seeds 0 1 2 --jobs 2
    famus-hf compare --recipe table5-cifar10-sym40                 # the rows of a table of the paper
    famus-hf compare --dataset_name my_photos --methods plain-trusted mixup gce posterior --num_train_epochs 20

Of each seed all methods have the same examples, labels, trusted examples, network, schedule and number of steps; flags
that are not listed here go to every run, as in `famus-hf train`. Each run has a folder of its own below --output_dir,
as complete as any run's, and a process of its own. One that is finished is not repeated, one that was interrupted goes
on from its newest checkpoint; --show trains nothing, and prints what is finished. Beside the folders lie
comparison.csv, comparison.html (one page with table, ranking and picture) and accuracy_by_time.png. Test accuracy
selects nothing.
"""

import argparse
from pathlib import Path

from famus_hf.cli.arguments import TRUSTED, parse_arguments, short_name
from famus_hf.cli.config_files import methods_of_recipe, named, take_flag
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.jobs import LOG, QUIET, Job, check_same_labels, train_missing
from famus_hf.cli.methods import METHODS, method_of
from famus_hf.cli.program import USER_ERRORS, fail, started_as
from famus_hf.cli.run_setup import load_data, takes_two_batches
from famus_hf.errors import SettingsError
from famus_hf.reporting.comparison import Comparison

OURS = ("method", "seed", "compare", "push_to_hub", "hub_model_id", "resume_from_checkpoint")  # no flags of a run here


def jobs_of(options: argparse.Namespace, flags: list[str]) -> list[Job]:
    """Return the runs, those of a seed one after the other, once their flags are known to be sound.

    Raises:
        SettingsError: One sentence on what is wrong with them.
        ValueError: The data, which are loaded after the flags are checked, can't be; also OSError.
    """
    if not options.methods:
        raise SettingsError(f"--methods names what is compared: choose of {', '.join(METHODS)}")
    mine = sorted(named(flags) & set(OURS))
    if mine:
        raise SettingsError(f"--{mine[0]} is no flag of a comparison: --methods and --seeds say what is compared")
    for values, flag in ((options.methods, "methods"), (options.seeds, "seeds")):
        if len(set(values)) < len(values):
            raise SettingsError(f"--{flag} {' '.join(map(str, values))} names one twice: leave it out")
    methods = {name: method_of(name) for name in options.methods}
    for name in methods:
        parse_arguments([*flags, f"--method={name}"])
    model_args, data_args, args = parse_arguments(flags)
    flags = with_number_of_trusted(flags)
    if options.output_dir is None:
        options.output_dir = Path("outputs") / f"{short_name(data_args)}-compared"
    examples = args.per_device_train_batch_size * (1 + takes_two_batches(model_args, args))  # of a step
    jobs = []
    for seed in options.seeds:
        for name, method in methods.items():
            folder = options.output_dir / f"{name}-{seed}"
            size = max(1, examples // (1 + method.takes_two_batches))
            own = [f"--method={name}", f"--seed={seed}", f"--per_device_train_batch_size={size}"]
            jobs.append(Job(name, seed, folder, [*flags, *QUIET, *own]))
    return jobs


def with_number_of_trusted(flags: list[str]) -> list[str]:
    """Return the flags with the number of trusted examples, whose default is another with two networks.

    Raises:
        ValueError: The data can't be loaded; also OSError.
    """
    _, data_args, args = parse_arguments(flags)
    if {*TRUSTED, "noise_file"} & named(flags) or args.meta_set == "pseudo-clean":
        return flags
    data = load_data(data_args, args)
    return [*flags, f"--num_meta={len(data['meta'])}"] if "meta" in data else flags


def main(argv: list[str], program: str = "famus-hf compare") -> None:
    """Train what is missing; print and write down how the methods compare."""
    with started_as(program, errors=(*USER_ERRORS, TypeError)):
        options, flags = build_parser(program).parse_known_args(argv)
        output_dir, flags = take_flag(flags, "--output_dir")
        options.output_dir = None if output_dir is None else Path(output_dir)
        recipe = take_flag(flags, "--recipe")[0]
        options.methods = options.methods or ([] if recipe is None else methods_of_recipe(recipe))
        jobs = jobs_of(options, flags)
        log = options.output_dir / LOG
        failed = {} if options.show else train_missing(jobs, options.jobs, log)
        finished = {job: found for job in jobs if (found := job.results()) is not None}
        if not finished:
            fail(f"no run in {str(options.output_dir)!r} is finished")
        check_same_labels(list(finished))
        comparison = Comparison.of((job.name, found) for job, found in finished.items())
        print(f"\n{comparison.as_markdown()}\n\n{comparison.verdict}\n")
        for path in comparison.write(options.output_dir):
            print(path)
        if failed:
            fail(f"{len(failed)} of {len(jobs)} runs failed: see {log}")


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return what reads the flags of the comparison."""
    parser = command_parser(program, __doc__)
    parser.allow_abbrev = False  # or --seed of a run would be taken for --seeds
    names = "; ".join(f"{name}: {method.about}" for name, method in METHODS.items())
    parser.add_argument(
        "--methods", nargs="*", metavar="METHOD", default=[], help=f"default: those of --recipe; {names}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of labels, weights and batches")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, among which the cores are shared out")
    parser.add_argument("--show", action="store_true", help="print what is finished, and train nothing")
    return parser
