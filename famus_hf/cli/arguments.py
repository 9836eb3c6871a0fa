"""The flags of `famus-hf train` and of run_famus.py, by topic, and how they become settings."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from famus_hf import FaMUSTrainingArguments
from famus_hf.cli.config_files import flags_of_yaml, named, recipe_names, recipe_path, take_flag
from famus_hf.cli.methods import METHODS, with_method
from famus_hf.cli.parser import TopicParser
from famus_hf.cli.program import fail, program_name
from famus_hf.errors import SettingsError

if TYPE_CHECKING:
    from famus_hf.data.media.modalities import Modality

PROTOCOLS = ("clean", "paper")
CROPPED_DATASETS = ("cifar10", "cifar100", "cifar10n", "cifar100n", "cnwl")  # augmented by pad-crop by default

DEFAULTS = {  # where transformers' own would neither evaluate nor save a short run
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": "2",
    "logging_strategy": "epoch",
}

# For texts and recordings, whose networks are pretrained: transformers' optimizer and schedule, with usual rates.
FINE_TUNING = {
    "optim": "adamw_torch", "lr_scheduler_type": "linear", "weight_decay": "0.01", "max_grad_norm": "1.0",
    "num_train_epochs": "3", "per_device_train_batch_size": "32",
}  # fmt: skip
LEARNING_RATES = {"text": "2e-5", "audio": "3e-5"}  # by the column of a modality

PROCESSES = {
    "--num_processes": "Train in so many processes on this machine, by accelerate's launcher: each on its own GPU, or "
    "all on the CPU where there is no GPU or with --use_cpu. 1 is this process alone. Default: as many as "
    "accelerate's own file says, which `accelerate config` writes, else 1.",
    "--accelerate_config": "Start processes as this file of `accelerate config` says (FSDP, several machines), instead "
    "of accelerate's own.",
}

SOURCE, CHANGED = "Where the data lie", "Transformers' flags whose defaults are ours"
SAMPLER = "Layer sampler"
# Topic → flags. Every flag of ours, and every one of transformers' whose default is ours, is in exactly one.
TOPICS: dict[str, tuple[str, ...]] = {
    "Network": ("backbone", "model_name_or_path", "model_revision", "trust_remote_code", "freeze_feature_encoder"),
    SOURCE: (
        "dataset_name", "dataset_config_name", "data_dir", "train_dir", "validation_dir", "image_column_name",
        "text_column_name", "text_pair_column_name", "audio_column_name", "label_column_name",
        "clean_label_column_name",
    ),
    "Examples and wrong labels": (
        "noise", "noise_type", "noise_exact_count", "noise_file", "imbalance_factor", "max_train_samples",
        "max_eval_samples", "streaming",
    ),
    "What helps every method": ("train_on_trusted", "mixup_alpha", "logit_adjustment", "elr_weight",
                                "sample_weight_column"),
    "The run": (
        "method", "protocol", "compare", "early_stopping_patience", "allow_other_data", "label_report", "nan_policy",
        "lr_milestones", "ema_decay",
    ),
    "Meta set and meta-learner": (
        "meta_learner", "meta_set", "meta_dir", "meta_dataset_name", "meta_from", "num_meta", "meta_batch_size",
        "meta_learning_rate", "meta_lr_schedule", "meta_optim", "weight_normalization", "plain_warmup_epochs",
        "mlc_form", "mlc_reduction", "mlc_keep_matrix", "posterior_form", "transition_rate", "transition_counts",
        "transitions", "mentor_quantile", "soft_input", "class_heads", "belief_decay",
    ),
    SAMPLER: (
        "layer_sampler", "expected_layers", "meta_budget", "candidate_layers", "sampler_block", "random_layers",
        "sparsity_weight", "gradient_match_weight", "sampler_learning_rate", "sampler_temperature",
        "sampler_initial_bias", "sampler_relative_slopes",
    ),
    "The virtual step, and what a step costs": (
        "preset", "meta_interval", "virtual_step", "virtual_scope", "reuse_virtual_gradient",
        "scale_example_gradients", "derivative",
    ),
    "Two networks": (
        "two_networks", "clean_threshold", "calibrate_division", "unlabelled_share", "division_history",
        "sharpening_temperature", "unlabelled_weight", "ramp_up_epochs", "warmup_confidence_penalty",
        "pair_method", "noise_rate", "forget_ramp_epochs", "jocor_agreement", "cross_validation_rounds",
        "cross_validation_epochs", "cross_validation_drop",
    ),
    "Base loss and class balance": (
        "base_loss", "focal_gamma", "gce_q", "sce_alpha", "sce_beta", "nce_alpha", "nce_beta", "class_balance_beta",
        "ldam_max_margin", "ldam_scale", "ldam_reweight_from", "balanced_batches_per_epoch", "bilateral_branch",
    ),
    "Images, texts, recordings": (
        "augmentation", "augmentation_padding_mode", "image_size", "resize_size", "image_mean", "image_std",
        "max_seq_length", "max_length_seconds",
    ),
    "Diagnostics": ("log_stage_times", "log_meta_gradient", "meta_gradient_draws", "log_weights", "log_layers"),
    CHANGED: (
        "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate",
        "lr_scheduler_type", "optim", "weight_decay", "max_grad_norm", "dataloader_drop_last",
        "remove_unused_columns", "restore_callback_states_from_checkpoint", "ddp_find_unused_parameters",
        "output_dir", *DEFAULTS,
    ),
}  # fmt: skip
TRUSTED = ("num_meta", "meta_dir", "meta_dataset_name", "meta_from")  # any of them says which examples are trusted
# Flags that a method of the command line has from nowhere else; those of the meta set and of a column are about data.
OF_METHODS = {
    name
    for topic in (
        "What helps every method", "Meta set and meta-learner", SAMPLER,
        "The virtual step, and what a step costs", "Two networks", "Base loss and class balance",
    )
    for name in TOPICS[topic]
} - {"meta_set", "sample_weight_column", *TRUSTED} | {"two_networks", "bilateral_branch"}  # fmt: skip


@dataclass
class ModelArguments:
    """The network."""

    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Network trained from scratch: tiny, small, small-wide, medium, wide-resnet-28-10, "
            "wide-resnet-40-2, preact-resnet-18, cifar-resnet-32, resnet-50, inception-resnet-v2; or from ImageNet "
            "weights: efficientnet-lite0. Default: by the images and the hardware (docs/data.md)."
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
    method: str | None = field(
        default=None,
        metadata={"help": f"A way of training by name, which sets the flags that make it: {', '.join(METHODS)}."},
    )
    two_networks: bool = field(
        default=False,
        metadata={
            "help": "Train two such networks, from different weights (pretrained ones differ in their heads), that "
            "divide the training set for each other: no clean label is needed. With --meta_learner none it is "
            "DivideMix. A batch is twice --per_device_train_batch_size, labelled and unlabelled examples together. "
            "With --pair_method they choose examples in every step instead, of batches as of one network."
        },
    )
    bilateral_branch: bool = field(
        default=False,
        metadata={
            "help": "Give the network a second last block and classifier, for long tails (BBN): one branch learns from "
            "examples as they come, the other one, later more and more, from partners that are drawn the more often "
            "the rarer their class is. A batch comes with as many partners. Without a meta-learner."
        },
    )
    network_choice: str = field(default="", init=False)  # why this backbone, where it is the default for the images
    given: frozenset[str] = field(default=frozenset(), init=False)  # names of flags that somebody gave, or a file


@dataclass
class DataArguments:
    """The data and their labels."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "digits, cifar10, cifar100, fashion_mnist; cifar10n, cifar100n, cnwl, mini-webvision, clothing1m, "
            "food101n, animal10n in --data_dir; a Hub id; or a local folder: images or recordings in a folder for each "
            "class, parquet, csv, jsonl, arrow, idx files of MNIST's format. Default of "
            "train: digits, without --train_dir."
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
    noise_type: str = field(
        default="symmetric",
        metadata={
            "help": "symmetric, symmetric-exclusive (never the true class), asymmetric (between classes that are "
            "alike), pair (the next class), flip (another class for each), flip2 (one of two) or instance (the "
            "class depends on the example)."
        },
    )
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
            "10 of each class with --imbalance_factor; none with --two_networks; all of --meta_dir."
        },
    )
    meta_dir: str | None = field(
        default=None,
        metadata={"help": "A folder of trusted examples, the meta set. Classes are matched by name with train's."},
    )
    meta_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Likewise a data set (Hub id, short name, folder), of which the training split is taken."},
    )
    meta_from: str | None = field(
        default=None,
        metadata={
            "help": "decisions.csv of famus-hf review: the reviewed examples are the meta set, with the labels that "
            "the reviewer gave them. Where the run drew wrong labels (--noise), add its --noise_file."
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


Settings = tuple[ModelArguments, DataArguments, FaMUSTrainingArguments]


def parse_arguments(argv: list[str], modality: "Modality | None" = None) -> Settings:
    """Return the flags' settings; below them the values of `--config`, below those what suits texts or recordings."""
    parser = build_parser(fine_tuning(modality))
    flags = _with_files(argv, parser.flags)
    model_args, data_args, args, _ = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    model_args.given = frozenset(named(flags))
    _complete(model_args, data_args, args)
    return model_args, data_args, args


def _with_files(argv: list[str], known: set[str]) -> list[str]:
    """Return the flags of `--recipe`, `--config` and `--method`, and the others: the last one wins."""
    recipe, argv = take_flag(argv, "--recipe")
    config, argv = take_flag(argv, "--config")
    from_files = [] if recipe is None else flags_of_yaml(recipe_path(recipe), known)
    from_files += [] if config is None else flags_of_yaml(Path(config), known)
    return with_method(from_files, argv, OF_METHODS, TOPICS[SAMPLER])


def build_parser(usual: dict[str, str], with_processes: bool = False) -> TopicParser:
    """Return what reads the flags and prints the help.

    Args:
        usual: Defaults that go before all others.
        with_processes: Whether the flags that start processes are among them; they are taken before others are parsed.
    """
    parser = TopicParser(
        (ModelArguments, DataArguments, FaMUSTrainingArguments),
        topics=TOPICS,
        others="Transformers' other flags",
        description="Trains a classifier of images, texts or recordings on noisy labels, and evaluates it.",
        usage=f"{program_name()} [--recipe NAME] [--config FILE] [flags]",
    )
    parser.add_argument("--recipe", help=f"Settings of one of {', '.join(recipe_names())}; --config and flags win.")
    parser.add_argument("--config", help="YAML file of defaults; flags win.")
    if with_processes:
        for flag, text in PROCESSES.items():
            parser.add_argument(flag, help=text)
    parser.set_defaults(output_dir=None, **DEFAULTS, **usual)
    parser.help_of("output_dir", "Folder of the run. Default: outputs/ and the name of the data set.")
    return parser


def help_texts() -> dict[str, str]:
    """Return the help of each flag about data."""
    return {flag.name: flag.metadata["help"] for flag in fields(DataArguments)}


def _complete(model_args: ModelArguments, data_args: DataArguments, args: FaMUSTrainingArguments) -> None:
    """Fill in defaults that depend on other flags."""
    if data_args.protocol not in PROTOCOLS:
        fail(f"--protocol {data_args.protocol!r} is unknown: choose one of {', '.join(PROTOCOLS)}")
    if data_args.dataset_name is None and data_args.train_dir is None:
        data_args.dataset_name = "digits"
    if args.pair_method is not None and not model_args.two_networks:
        raise SettingsError(
            f"--pair_method {args.pair_method} is for two networks: add --two_networks, or leave it out"
        )
    if model_args.bilateral_branch and model_args.two_networks:
        raise SettingsError("--bilateral_branch is for one network: leave out it or --two_networks")
    if (
        args.augmentation == "none"
        and data_args.dataset_name in CROPPED_DATASETS
        and "augmentation" not in model_args.given
    ):
        args.augmentation = "pad-crop"
    if model_args.two_networks and args.meta_set is None:  # which need no clean labels, known or not
        is_given = any(getattr(data_args, name) for name in TRUSTED)
        args.meta_set = "clean" if is_given else "pseudo-clean"
    if model_args.two_networks or data_args.streaming:
        args.use_paper_where_open()
    if args.output_dir == "trainer_output":  # transformers' default
        args.output_dir = str(Path("outputs") / short_name(data_args))


def fine_tuning(modality: "Modality | None") -> dict[str, str]:
    """Return the settings of a run with texts or recordings where nobody says otherwise; none for images."""
    if modality is None or modality.column not in LEARNING_RATES:
        return {}
    return {**FINE_TUNING, "learning_rate": LEARNING_RATES[modality.column]}


def short_name(data_args: DataArguments) -> str:
    """Return the data set's name without the folders that lead to it."""
    return Path(str(data_args.dataset_name or data_args.train_dir)).resolve().name
