"""Command line of run_famus.py: its flags, `--config` files and recipes."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from famus_hf import FaMUSTrainingArguments
from famus_hf.data.labels.noise import NOISE_TYPES
from famus_hf.data.media.modalities import AUDIO, TEXT, Modality
from famus_hf.data.sources.benchmarks import BUILDERS
from famus_hf.data.sources.load_source import HUB_DATASETS
from famus_hf.models import BACKBONES

RECIPES = Path(__file__).parent / "recipes"
PROTOCOLS = ("clean", "paper")
CROPPED_DATASETS = ("cifar10", "cifar100", "cifar10n", "cifar100n", "cnwl")  # augmented by pad-crop by default

DEFAULTS = {  # of run_famus.py, where transformers' own would neither evaluate nor save a short run
    "--eval_strategy": "epoch",
    "--save_strategy": "epoch",
    "--save_total_limit": "2",
    "--logging_strategy": "epoch",
}

# For texts and recordings, whose networks are pretrained: transformers' optimizer and schedule, with usual rates.
FINE_TUNING = {
    "optim": "adamw_torch", "lr_scheduler_type": "linear", "weight_decay": "0.01", "max_grad_norm": "1.0",
    "num_train_epochs": "3", "per_device_train_batch_size": "32",
}  # fmt: skip
LEARNING_RATES = {TEXT: "2e-5", AUDIO: "3e-5"}

SOURCE_FLAGS = {  # where the data lie and what their columns are called: flag → argument of load_noisy_dataset
    "dataset_name": "name",
    "dataset_config_name": "config_name",
    "data_dir": "data_dir",
    "train_dir": "train_dir",
    "validation_dir": "validation_dir",
    "image_column_name": "image_column_name",
    "text_column_name": "text_column_name",
    "text_pair_column_name": "text_pair_column_name",
    "audio_column_name": "audio_column_name",
    "label_column_name": "label_column_name",
    "clean_label_column_name": "clean_label_column_name",
}


@dataclass
class ModelArguments:
    """The network."""

    backbone: str | None = field(
        default=None,
        metadata={
            "help": f"Network trained from scratch: {', '.join(BACKBONES)}. Default: tiny for small images, "
            "else wide-resnet-28-10."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A pretrained network on the Hub or on disk, instead of --backbone: of images, of texts "
            "(AutoModelForSequenceClassification) or of recordings (AutoModelForAudioClassification)."
        },
    )
    freeze_feature_encoder: bool = field(
        default=True, metadata={"help": "Leave the lowest part of Wav2Vec2 and its like as it was pretrained."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of --model_name_or_path."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that comes with --model_name_or_path."}
    )
    two_networks: bool = field(
        default=False,
        metadata={
            "help": "Train two such networks, from different weights (pretrained ones differ in their heads), that "
            "divide the training set for each other: no clean label is needed. With --meta_learner none it is "
            "DivideMix. A batch is twice --per_device_train_batch_size, labelled and unlabelled examples together."
        },
    )


@dataclass
class DataArguments:
    """The data and their labels."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": f"digits (the default), {', '.join(HUB_DATASETS)}; {', '.join(BUILDERS)} in --data_dir; a Hub id; "
            "or a local folder: images or recordings in a folder for each class, parquet, csv, jsonl, arrow, idx files "
            "of MNIST's format."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub data set, or variant of a benchmark in --data_dir."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Where a benchmark of its own layout lies."})
    train_dir: str | None = field(
        default=None, metadata={"help": "A folder with the training examples alone, instead of --dataset_name."}
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "A folder to test on, beside --train_dir. Default: a fifth of that."}
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Default: the only image column."})
    text_column_name: str | None = field(
        default=None, metadata={"help": "Default: the only column of strings, or sentence1 and other known pairs."}
    )
    text_pair_column_name: str | None = field(
        default=None, metadata={"help": "Second text of each example, beside --text_column_name."}
    )
    audio_column_name: str | None = field(default=None, metadata={"help": "Default: the only audio column."})
    label_column_name: str | None = field(
        default=None, metadata={"help": "Default: the only ClassLabel column, or the one called label."}
    )
    clean_label_column_name: str | None = field(
        default=None, metadata={"help": "Column of true labels, where the data's own labels are the noisy ones."}
    )
    noise: float = field(default=0.0, metadata={"help": "Rate of label noise to add, from 0 to below 1."})
    noise_type: str = field(default="symmetric", metadata={"help": f"One of {', '.join(NOISE_TYPES)}."})
    noise_exact_count: bool = field(
        default=False,
        metadata={"help": "Strike exactly noise · N examples (DivideMix), and not each with this probability."},
    )
    noise_file: str | None = field(
        default=None,
        metadata={"help": "noise.parquet of another run: train on the very same rows and labels, with its meta set."},
    )
    imbalance_factor: float | None = field(
        default=None, metadata={"help": "Make the training set long-tailed: largest class over smallest."}
    )
    num_meta: int | None = field(
        default=None,
        metadata={
            "help": "Clean meta examples held out of train, class-balanced. Default: a tenth of train, at most 1000; "
            "10 of each class with --imbalance_factor; none with --two_networks."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read examples as they are needed, for sets larger than the disk."}
    )
    protocol: str = field(
        default="clean",
        metadata={
            "help": "clean: test accuracy is recorded and drives nothing; paper: as published code does, checkpoints "
            "and early stopping are selected on the test set."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many training examples."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many test examples."})
    compare: bool = field(
        default=False,
        metadata={
            "help": "Also train plainly (one network), by DivideMix where there are two networks, and with the "
            "meta-learner on all layers, and print them beside."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better accuracy on what --protocol selects on."},
    )


def fail(message: object) -> NoReturn:
    """Ends the program with one sentence on standard error."""
    print(f"run_famus.py: error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def parse_arguments(
    argv: list[str], modality: Modality | None = None
) -> tuple[ModelArguments, DataArguments, FaMUSTrainingArguments]:
    """Flags, and below them the values of `--config file.yaml`; below those what suits texts or recordings."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, FaMUSTrainingArguments),
        description="Trains a classifier of images, texts or recordings on noisy labels.",
    )
    parser.add_argument("--config", default=None, help="YAML file of defaults; flags win.")
    parser.add_argument("--recipe", default=None, help=f"One of {', '.join(recipe_names())}; --config and flags win.")
    parser.error = fail
    known = {option for action in parser._actions for option in action.option_strings}
    recipe, argv = take_flag(argv, "--recipe")
    config, argv = take_flag(argv, "--config")
    from_files = [] if recipe is None else flags_of_yaml(recipe_path(recipe), known)
    from_files += [] if config is None else flags_of_yaml(Path(config), known)
    usual = DEFAULTS | {f"--{name}": value for name, value in fine_tuning(modality).items()}
    flags = [*[f"{flag}={value}" for flag, value in usual.items()], *from_files, *argv]  # the last one wins
    model_args, data_args, args, _ = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    if data_args.protocol not in PROTOCOLS:
        fail(f"--protocol {data_args.protocol!r} is unknown: choose one of {', '.join(PROTOCOLS)}")
    if data_args.dataset_name is None and data_args.train_dir is None:
        data_args.dataset_name = "digits"
    if (
        args.augmentation == "none"
        and data_args.dataset_name in CROPPED_DATASETS
        and "augmentation" not in named(flags)
    ):
        args.augmentation = "pad-crop"
    if model_args.two_networks and args.meta_set is None:  # which need no clean labels, known or not
        args.meta_set = "clean" if data_args.num_meta else "pseudo-clean"
    if args.output_dir == "trainer_output":
        args.output_dir = str(Path("outputs") / short_name(data_args))
    return model_args, data_args, args


def fine_tuning(modality: Modality | None) -> dict[str, str]:
    """Settings of a run with texts or recordings where nobody says otherwise; none for images."""
    return {**FINE_TUNING, "learning_rate": LEARNING_RATES[modality]} if modality in LEARNING_RATES else {}


def named(flags: list[str]) -> set[str]:
    """The names of all flags that were given, on the command line or in a file."""
    return {flag.split("=")[0].removeprefix("--") for flag in flags if flag.startswith("--")}


def source_of(options: Any) -> dict[str, Any]:
    """The arguments of load_noisy_dataset that say where the data lie, from parsed flags; a script may lack some."""
    return {argument: getattr(options, flag, None) for flag, argument in SOURCE_FLAGS.items()}


def short_name(data_args: DataArguments) -> str:
    return Path(str(data_args.dataset_name or data_args.train_dir)).resolve().name


def take_flag(argv: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of a flag, if it is there, and the other arguments."""
    place = next((i for i, flag in enumerate(argv) if flag.split("=")[0] == name), None)
    if place is None:
        return None, argv
    if "=" in argv[place]:
        return argv[place].partition("=")[2], argv[:place] + argv[place + 1 :]
    if place + 1 == len(argv):
        fail(f"{name} needs a value")
    return argv[place + 1], argv[:place] + argv[place + 2 :]


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe. Ends the program where there is none."""
    if name not in recipe_names():
        fail(f"--recipe {name!r} is unknown: choose one of {', '.join(recipe_names())}")
    return RECIPES / f"{name}.yaml"


def flags_of_yaml(path: Path, known: set[str]) -> list[str]:
    """The file's values as flags, so that types are converted as on the command line (`1e-3` stays a number).

    `about` is for the reader: where a recipe's settings come from, and which are doubtful.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        fail(f"--config {path} can't be read: {error}")
    if not isinstance(values, dict):
        fail(f"--config {path} must hold a mapping of flag names to values")
    flags: list[str] = []
    for name, value in values.items():
        if name == "about":
            continue
        if f"--{name}" not in known:
            fail(f"--config {path} has the unknown name {name!r}: use the names of the flags, without dashes")
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
