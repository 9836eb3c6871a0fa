"""What a run of run_famus.py is made of, as its flags say: data, network, what selects, checkpoint, baselines, name."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, set_seed
from transformers.utils import logging

from famus_hf import (
    BilateralBranchForImageClassification,
    FaMUSTrainer,
    FaMUSTrainingArguments,
    TwoNetworksForImageClassification,
    build_backbone,
    load_noisy_dataset,
)
from famus_hf.cli.arguments import DataArguments, ModelArguments, Settings, fine_tuning, parse_arguments
from famus_hf.cli.data_flags import settings_of
from famus_hf.cli.default_network import Images, default_network, has_imagenet_weights, images_of, take_settings
from famus_hf.cli.methods import METHODS
from famus_hf.data.media.modalities import AUDIO, IMAGE, Modality, modality_of_columns
from famus_hf.errors import SettingsError, first_few, reason_of
from famus_hf.hub.push import is_hub_id
from famus_hf.models import num_parameters
from famus_hf.models.timm_wrapper import TIMM_WRAPPER, check_timm, check_timm_config
from famus_hf.storage.checkpoints import to_resume_from
from famus_hf.storage.model_folder import holds_two_networks
from famus_hf.storage.run_folder import CONFIG, META_NET, NETWORKS_APART, TRAINER_STATE
from famus_hf.training_args_checks import DIAGNOSTICS, has_meta_step

logger = logging.get_logger(__name__)

NEW_WEIGHTS = ("missing_keys", "mismatched_keys")  # what a checkpoint lacks, or has in another shape: a head
OF_BELIEFS = ("posterior", "soft")  # meta-learners to which other layers make no other method
WHETHER = {"true": True, "false": False}  # values of flags
SMALLEST = ("tiny", "small")  # backbones, than which none is faster
METHOD_NAMES = {
    "mw-net": "MW-Net", "l2r": "L2R", "mlc": "MLC", "posterior": "posterior targets", "forward": "forward correction",
    "backward": "backward correction", "soft": "soft targets", "l2b": "L2B", "jamal": "class-balanced residual",
    "m-correction": "M-correction", "mentornet": "MentorNet", "mentormix": "MentorMix", "d2l": "D2L",
    "lccn": "LCCN",
}  # fmt: skip


def load_data(data_args: DataArguments, args: FaMUSTrainingArguments) -> Any:
    """Return train, meta and test as the flags say."""
    if data_args.num_meta == 0 and args.meta_set is None and not args.leaves_learner_open and has_meta_step(args):
        raise SettingsError(
            "--num_meta 0 leaves the meta set empty: add --meta_set pseudo-clean, or --meta_learner none"
        )
    with args.main_process_first(desc="loading the data"):  # the others then find its cache
        return load_noisy_dataset(
            **settings_of(data_args),
            meta_set=args.meta_set,
            seed=args.seed,
            sample_weight_column=args.sample_weight_column,
        )


def settings_for(data: Any, argv: list[str], settings: Settings) -> Settings:
    """Return the settings; of texts and recordings with what suits those, which is printed, where nobody said else."""
    modality = modality_of_data(data)
    usual, (model_args, data_args, args) = settings[2], settings
    if fine_tuning(modality):
        model_args, data_args, args = parse_arguments(argv, modality)
        args.output_dir = usual.output_dir
    if "meta" not in data:
        args.use_untrusted_where_open()
        args.train_on_trusted = args.asks_for_trusted  # there are none
    changed = {name for name in fine_tuning(modality) if getattr(args, name) != getattr(usual, name)}
    taken = [f"--{name} {value}" for name, value in fine_tuning(modality).items() if name in changed]
    if taken and args.process_index == 0:
        print(f"for {modality.things}, where nothing else was said: {' '.join(taken)}", flush=True)
    if modality is IMAGE and model_args.backbone is None and model_args.model_name_or_path is None:
        choose_network(model_args, args, images_of(data_args.dataset_name, data["train"]))
    return model_args, data_args, args


def choose_network(model_args: ModelArguments, args: FaMUSTrainingArguments, images: Images) -> None:
    """Take the default network for these images, with what suits it, and print which and why.

    Args:
        model_args: Gets the backbone and the reason.
        args: Get settings that suit it.
        images: Of the run.
    """
    network = default_network(images, args.device.type != "cpu", has_imagenet_weights())
    taken = take_settings(network, args, model_args.given)
    model_args.backbone, size = network.backbone, num_parameters(network.backbone) / 1e6
    model_args.network_choice = f"{network.backbone} ({size:.2f} M parameters), as {network.reason}"
    if args.process_index == 0:
        others = f", with {' '.join(taken)}" if taken else ""
        advice = f"; {network.advice}" if network.advice else ""
        print(f"network: {model_args.network_choice}{others}; --backbone names another{advice}", flush=True)


def modality_of_data(data: Any) -> Modality:
    """Return the modality of what `load_noisy_dataset` gives."""
    return modality_of_columns(data["train"].features) or IMAGE


def build_model(model_args: ModelArguments, data: Any, args: FaMUSTrainingArguments) -> tuple[Any, Any]:
    """Return the network, or both as one, and the processor that came with it, if any.

    The first of two networks is the one that a run of one network starts from. Both are drawn by seeds of their own;
    where they are pretrained, only what their weights do not have, as a rule the head.
    """
    modality = modality_of_data(data)
    _check_modality(model_args, modality)
    classes = data["train"].features["label"].names
    networks = []
    for seed in (args.seed, second_seed(args.seed))[: 1 + model_args.two_networks]:
        set_seed(seed)
        network, processor = build_network(model_args, classes, args.base_loss, modality)
        networks.append(network)
    if model_args.bilateral_branch:
        return BilateralBranchForImageClassification.of(networks[0]), processor
    if not model_args.two_networks:
        return networks[0], processor
    pairs = zip(*(network.parameters() for network in networks), strict=True)
    if all(torch.equal(first, second) for first, second in pairs):
        logger.warning(
            "both networks start from the same weights, as %s has a head for these classes: they come apart by their "
            "batches alone",
            model_args.model_name_or_path,
        )
    return TwoNetworksForImageClassification.of(*networks), processor


def _check_modality(model_args: ModelArguments, modality: Modality) -> None:
    """Raise SettingsError on networks that are for images alone, where the data are not."""
    if modality is IMAGE:
        return
    if model_args.backbone is not None or model_args.model_name_or_path is None:
        raise SettingsError(
            f"the data are {modality.things} (if they hold paths of images, name their column with "
            f"--image_column_name): give a network for {modality.task} with --model_name_or_path, on the Hub or on "
            "disk, and no --backbone"
        )
    if model_args.two_networks:
        raise SettingsError(f"--two_networks is for images, and the data are {modality.things}: leave it out")


def second_seed(seed: int) -> int:
    """Return the seed of the second network's weights."""
    return int(np.random.SeedSequence((seed, 1)).generate_state(1, np.uint32)[0])


def build_network(
    model_args: ModelArguments, classes: list[str], base_loss: str, modality: Modality
) -> tuple[Any, Any]:
    """Return a network and, where it comes with one, its processor."""
    if model_args.backbone is not None and model_args.model_name_or_path is not None:
        raise SettingsError("--backbone and --model_name_or_path contradict each other: give one of them")
    if model_args.model_name_or_path is None:
        return build_backbone(str(model_args.backbone), classes, cosine_classifier=base_loss == "ldam"), None
    return load_pretrained(model_args, str(model_args.model_name_or_path), classes, modality)


def faster(model_args: ModelArguments, args: FaMUSTrainingArguments, has_meta_step: bool) -> str:
    """Return what would make a run faster on a CPU, in words.

    Args:
        model_args: Of the run.
        args: Of the run.
        has_meta_step: Whether its meta-learner takes meta steps.
    """
    flags = ["--preset fast"] if has_meta_step and not args.is_fast and not model_args.two_networks else []
    if model_args.backbone not in (None, *SMALLEST):
        flags.append("--backbone small")
    epochs = [f"fewer epochs than --num_train_epochs {args.num_train_epochs:g}"] if args.max_steps <= 0 else []
    return ", ".join([*flags, *epochs])


def load_pretrained(model_args: ModelArguments, name: str, classes: list[str], modality: Modality) -> tuple[Any, Any]:
    """`--model_name_or_path` and its image processor, tokenizer or feature extractor."""
    source = {"revision": model_args.model_revision, "trust_remote_code": model_args.trust_remote_code}
    if name.startswith("timm/"):
        check_timm(f"model {name!r}")  # before anything is fetched
    try:
        model, info = modality.classifier.from_pretrained(
            name,
            config=_config_of(name, classes, source),
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            output_loading_info=True,
            **source,
        )
        processor = modality.processor.from_pretrained(name, **source)
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(f"model {name!r} could not be loaded: {reason_of(error)}") from error
    new = sorted({key[0] if isinstance(key, tuple) else key for kind in NEW_WEIGHTS for key in info[kind]})
    if new:
        logger.warning(f"{len(new)} tensors of {name!r} are new and drawn at random ({first_few(new, 4)})")
    if modality is AUDIO and model_args.freeze_feature_encoder and hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    return model, processor


def _config_of(name: str, classes: list[str], source: dict[str, Any]) -> Any:
    """Return the configuration of a pretrained network, for these classes."""
    config = AutoConfig.from_pretrained(
        name,
        num_labels=len(classes),  # or a network of timm keeps its own classes
        id2label=dict(enumerate(classes)),
        label2id={label: index for index, label in enumerate(classes)},
        **source,
    )
    if config.model_type == TIMM_WRAPPER:
        check_timm_config(config.to_dict())
        check_timm("it")
    return config


def select_on_meta_set(args: FaMUSTrainingArguments, data_args: DataArguments, data: Any) -> Any:
    """Return what is evaluated during training.

    Under `--protocol clean` whatever is selected is selected on a validation split, if the data have one, else on the
    meta set; never on the test set. Under `--protocol paper` it is selected on the test set.
    """
    if not args.load_best_model_at_end and data_args.early_stopping_patience is None:
        return data["test"]
    if args.eval_strategy == "no":
        raise SettingsError(
            "--load_best_model_at_end and early stopping need evaluations: leave --eval_strategy at epoch"
        )
    by_paper = data_args.protocol == "paper"
    judge = next((split for split in (["test"] if by_paper else ["validation", "meta"]) if split in data), None)
    if judge is None:
        raise SettingsError(
            "--load_best_model_at_end and early stopping select on a validation split or a clean meta set, and there "
            "is neither: set --num_meta above 0, or give a data set with splits validation and test"
        )
    if args.metric_for_best_model in (None, "loss"):
        args.metric_for_best_model = f"{judge}_accuracy"
    if not args.metric_for_best_model.removeprefix("eval_").startswith(f"{judge}_"):
        raise SettingsError(
            f"--metric_for_best_model {args.metric_for_best_model} does not select on the {judge} set, as --protocol "
            f"{data_args.protocol} does here: use {judge}_accuracy or {judge}_loss"
        )
    args.greater_is_better = not args.metric_for_best_model.endswith("loss")
    return {split: data[split] for split in dict.fromkeys(["test", judge])}


def resolve_checkpoint(model_args: ModelArguments, args: FaMUSTrainingArguments) -> str | None:
    """`--resume_from_checkpoint`: a folder, a repository, or `true` for the newest whole one in the output folder."""
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true":
        wanted = str(to_resume_from(True, str(args.output_dir)))
    return wanted if is_hub_id(wanted) else check_checkpoint(wanted, model_args, args)


def check_checkpoint(wanted: str, model_args: ModelArguments, args: FaMUSTrainingArguments) -> str | None:
    """Return the checkpoint in a folder, once it is known to hold a checkpoint of this kind of run."""
    flag, folder = f"--resume_from_checkpoint {wanted!r}", Path(wanted)
    if not (folder / TRAINER_STATE).is_file():
        raise SettingsError(f"{flag} is no checkpoint folder (it has no {TRAINER_STATE})")
    if holds_two_networks(folder) and not model_args.two_networks:
        raise SettingsError(f"{flag} is of two networks: add --two_networks")
    if model_args.two_networks and not holds_two_networks(folder):
        raise SettingsError(f"{flag} is of a run with one network: leave --two_networks out")
    network = folder / NETWORKS_APART[0] if model_args.two_networks else folder
    has_meta_net = (network / META_NET / CONFIG).is_file()
    if model_args.two_networks and args.meta_learner == "none" and has_meta_net:
        raise SettingsError(f"{flag} is of a run with a meta-learner: leave --meta_learner none out")
    if args.meta_learner != "none" and not has_meta_net:
        raise SettingsError(f"{flag} is of a run without a meta-learner: add --meta_learner none")
    return to_resume_from(wanted, str(args.output_dir))


def check_data_of(checkpoint: str, trainer: FaMUSTrainer) -> None:
    """Raise SettingsError on a checkpoint of other data, before anything of the run is trained or written."""
    differing = "" if trainer.args.allow_other_data else trainer.other_data_than(checkpoint)
    if differing:
        raise SettingsError(
            f"the data differ from those of --resume_from_checkpoint {checkpoint!r} in {differing}: give the flags of "
            "that run, or add --allow_other_data to go on with these"
        )


def baselines_of(
    model_args: ModelArguments, args: FaMUSTrainingArguments, has_trusted: bool
) -> list[tuple[ModelArguments, FaMUSTrainingArguments]]:
    """Return the runs that this one is compared with, else the same: plain training, and what needs no meta step.

    That is plain training with the trusted examples in its training set and, with these too, forward correction: the
    best of the three is the honest baseline. Posterior targets are compared with the paper's MW-Net and FaMUS as well,
    MW-Net and its like with themselves on all layers. With two networks DivideMix comes between, and the others have no
    trusted examples. Plain training is then what the warm-up does with one network: its batches are as large as a
    labelled and an unlabelled one together, so that its steps are as many. Each run is the method of its name in
    `METHODS`, under the settings of this one.
    """

    def variant(name: str, **changes: Any) -> FaMUSTrainingArguments:
        of_method = METHODS[name].settings if name in METHODS else {}
        changes |= {key: WHETHER.get(value, value) for key, value in of_method.items() if key != "two_networks"}
        folder = f"{args.output_dir}-{name}"
        return dataclasses.replace(args, output_dir=folder, push_to_hub=False, resume_from_checkpoint=None, **changes)

    exact = {"candidate_layers": "all", "sampler_block": None, "meta_budget": None,
             "preset": None, "virtual_scope": "all"}  # fmt: skip
    without = {"train_on_trusted": False, "meta_budget": None, "preset": None,
               "pair_method": None, "noise_rate": None, "forget_ramp_epochs": None, "cross_validation_epochs": None,
               **dict.fromkeys(DIAGNOSTICS, 0)}  # fmt: skip
    match = None if args.meta_learner in ("l2r", "l2b") else 0.0  # which have no such loss
    all_layers = {**exact, "sparsity_weight": 0.0, "gradient_match_weight": match}
    own_name = method_name(model_args, args)
    model_args = dataclasses.replace(model_args, method=None)  # the others are named by their settings
    one_network = dataclasses.replace(model_args, two_networks=False, bilateral_branch=False)
    batch = args.per_device_train_batch_size
    divides = takes_two_batches(model_args, args)
    plain = variant("plain", **without, per_device_train_batch_size=batch * (1 + divides))
    runs = [(one_network, plain)]
    if divides:
        runs.append((model_args, variant("dividemix", **without)))
    elif has_trusted:
        runs.append((one_network, variant("plain-trusted", **without)))
        runs.append((one_network, variant("forward", **{**without, "train_on_trusted": True})))
    if args.meta_learner == "posterior":
        paper = {"preset": "paper", "train_on_trusted": False, "meta_batch_size": args.asked_meta_batch_size}
        runs.append((one_network, variant("mw-net", **{**all_layers, **paper})))
        runs.append((one_network, variant("famus", **{**exact, **paper})))
    elif has_meta_step(args) and args.meta_learner not in OF_BELIEFS:
        runs.append((model_args, variant(str(args.meta_learner), **all_layers, layer_sampler="all")))
    names = (method_name(model_args, args), own_name)
    return [pair for pair in runs if method_name(*pair) not in names]


def takes_two_batches(model_args: ModelArguments, args: FaMUSTrainingArguments) -> bool:
    """Return whether a step takes `per_device_train_batch_size` twice, as two networks that divide the data do."""
    return model_args.two_networks and args.pair_method is None


def method_name(model_args: ModelArguments, args: FaMUSTrainingArguments) -> str:
    """Return what tables, pictures and cards call a run."""
    if model_args.method is not None:
        return METHODS[model_args.method].title
    with_trusted = " + trusted" if args.train_on_trusted else ""
    if args.pair_method is not None:
        return METHODS[args.pair_method].title if args.pair_method in METHODS else args.pair_method
    if model_args.bilateral_branch:
        return "BBN"
    if args.meta_learner == "none":
        return "DivideMix" if model_args.two_networks else f"plain{with_trusted}"
    learner = METHOD_NAMES.get(str(args.meta_learner), str(args.meta_learner))
    if not has_meta_step(args):  # and so no layers of it
        return f"{learner}{with_trusted}"
    samplers = {
        "learned": f"{learner} + FaMUS",
        "all": f"{learner}, {'all' if args.candidate_layers == 'all' else f'top {args.candidate_layers}'} layers",
        "block": f"{learner}, block {args.sampler_block}",
        "random": f"{learner}, {args.random_layers} random layers",
    }
    return f"{'two networks, ' if model_args.two_networks else ''}{samplers[args.layer_sampler]}"
