"""Which labels of a data set are probably wrong, by a model that FaMUS trained: a table, the most suspect first.

    famus-hf label-report --model outputs/my_photos --dataset_name my_photos
    famus-hf label-report --model me/famus --dataset_name cifar10 --split test --push_to_hub me/suspects

Leaves in --output_dir: label_report.parquet (and .csv with --csv) with the columns split, index, file (of files in
folders) or text, label, predicted_label, suggested_label, suggestion_probability, reason, loss, weight,
clean_probability and, where known, clean_label;
figures/suspect_labels.png, the most suspect images; and how the meta-net weighs. Losses, and so weights, are those of
plain cross-entropy, whatever --base_loss the run had. Labels that the model was trained on are ranked here and no more:
the report of the run itself judges them, by what the network believed before it learned them.
"""

import argparse
from pathlib import Path

from datasets import Dataset

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, load_famus, load_noisy_dataset
from famus_hf.cli.data_flags import add_source_flags, source_of
from famus_hf.cli.help_page import command_parser
from famus_hf.cli.program import started_as
from famus_hf.data.labels.decisions import FORMULA
from famus_hf.data.load import load_examples
from famus_hf.data.media.modalities import modality_of_network
from famus_hf.errors import SettingsError
from famus_hf.hub.client_errors import hub_reason
from famus_hf.reporting.label_report import names_of, verdict, wrong_labels
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import NOISE_FILE, REPORT_FILE

SHOWN = 20  # rows that are printed


def load_split(options: argparse.Namespace) -> Dataset:
    """Return the examples whose labels are judged: all of a split or, with a noise file, those that it names."""
    source = source_of(options)
    if options.noise_file is None:
        return load_examples(options.split, **source)
    data = load_noisy_dataset(**source, noise_file=options.noise_file, num_meta=0)
    if options.split not in data:
        raise SettingsError(f"--split {options.split!r} is not there: choose one of {', '.join(data)}")
    return data[options.split]


def main(argv: list[str], program: str = "label_report.py") -> None:
    """Make a report, and print its first rows."""
    options = build_parser(program).parse_args(argv)
    with started_as(program):
        report, deviation = make_report(options)
    print(with_names(report.select(range(min(SHOWN, len(report))))).to_pandas().to_string(index=False))
    wrong = wrong_labels(report, deviation)
    print(f"{verdict(report, wrong and wrong[1:])}: see {options.output_dir}")


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return what reads the flags."""
    parser = command_parser(program, __doc__)
    parser.add_argument("--model", required=True, help="folder of a run, or user/name on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    add_source_flags(parser)
    parser.add_argument("--noise_file", help="noise.parquet of a run: rank the labels that it was trained on")
    parser.add_argument("--split", default="train", help="whose labels are judged")
    parser.add_argument("--output_dir", default="outputs/label_report", help="of the table and the pictures")
    parser.add_argument("--csv", action="store_true", help="write label_report.csv as well, with names of classes")
    parser.add_argument("--batch_size", type=int, default=250, help="examples at once")
    parser.add_argument("--use_cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--push_to_hub", metavar="USER/NAME", help="push the table as a data set")
    parser.add_argument("--private", action="store_true", help="make that repository private if it is new")
    return parser


def make_report(options: argparse.Namespace) -> tuple[Dataset, float]:
    """Load model and data, leave the report where the options say. Return it, and its share's standard deviation."""
    model, meta_learner, _, processor = load_famus(options.model, revision=options.revision)
    dataset = load_split(options)
    if processor is None:
        raise SettingsError(f"{options.model!r} has no {modality_of_network(model).processor_name}: add its files")
    trained_on = Path(options.model) / NOISE_FILE
    if options.noise_file is None and trained_on.is_file():
        print(f"judging the labels as they came; those that the run was trained on are in its own {REPORT_FILE}")
    args = FaMUSTrainingArguments(
        options.output_dir,
        per_device_eval_batch_size=options.batch_size,
        use_cpu=options.use_cpu,
        report_to="none",
    )
    trainer = FaMUSTrainer(model, args, processing_class=processor, meta_learner=meta_learner)
    report = trainer.save_label_report(dataset, is_trained_on=options.noise_file is not None, split=options.split)
    if options.csv:
        write_csv(report, (Path(options.output_dir) / REPORT_FILE).with_suffix(".csv"))
    if options.push_to_hub:
        push(report, options)
    return report, trainer.noise_rate_deviation


def write_csv(report: Dataset, path: Path) -> None:
    """Write the report for spreadsheets: in UTF-8 that they know by its first bytes, and with no cell as a formula.

    Raises:
        SaveError: It can't be written.
    """
    table = with_names(report).to_pandas()
    for column in table.select_dtypes(["object", "string"]):
        table[column] = table[column].map(as_text, na_action="ignore")
    with atomic_write(path) as beside:
        table.to_csv(beside, index=False, encoding="utf-8-sig")


def as_text(cell: str) -> str:
    """Return what a spreadsheet shows as text: with an apostrophe in front where it would take it for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def push(report: Dataset, options: argparse.Namespace) -> None:
    """Push the report as a data set. Raise SettingsError, in one sentence, where the Hub does not take it."""
    try:
        report.push_to_hub(options.push_to_hub, split=options.split, private=options.private or None)
    except Exception as error:  # the client's errors have no common class
        raise SettingsError(
            f"the report is in {options.output_dir!r}, and its push failed: {hub_reason(error)}"
        ) from error


def with_names(report: Dataset) -> Dataset:
    """Return the report with the names of its classes, for readers that know nothing of ClassLabel."""
    table = report.to_pandas()
    for column in ("label", "predicted_label", "suggested_label", "clean_label"):
        if column in report.features:
            table[column] = names_of(report, column)
    return Dataset.from_pandas(table, preserve_index=False)
