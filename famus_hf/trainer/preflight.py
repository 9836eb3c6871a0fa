"""What FaMUSTrainer refuses before training starts, each in one sentence: what was seen, what is allowed."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, is_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from famus_hf.core.autodiff.forward_pass import RECORD_COLUMNS
from famus_hf.core.fsdp import LOW_PRECISION
from famus_hf.core.losses import IGNORED, LDAMLoss
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.pair_methods.registry import PAIR_METHODS
from famus_hf.core.parallel.dtensor import is_sharded
from famus_hf.data.inputs.audio_inputs import check_long_enough
from famus_hf.data.inputs.model_inputs import ModelInputs, known_labels
from famus_hf.data.labels.duplicates import rows_of_copies, same_content
from famus_hf.errors import DataError, SettingsError, first_few
from famus_hf.storage.run_folder import NETWORKS_APART
from famus_hf.training_args import FaMUSTrainingArguments
from famus_hf.training_args_checks import check_meta_learning_is_supported

# What data sets are converted by.
MADE_FOR = ("image_size", "resize_size", "image_mean", "image_std", "max_seq_length", "max_length_seconds")


def check_not_empty(name: str, dataset: Any) -> None:
    """Raise DataError on several data sets, or columns, by name, and on one that is known to have no examples."""
    if isinstance(dataset, Mapping):
        raise DataError(
            f"{name} is a {type(dataset).__name__} with {', '.join(map(str, dataset))}: give one data set, such as "
            'data["train"]'
        )
    if has_length(dataset) and len(dataset) == 0:
        raise DataError(f"{name} is empty: give at least a few examples of every class")


def check_examples(train: Any, meta: Any, tests: Any, label_name: str = "labels") -> None:
    """Raise DataError on examples that no default collator takes: tuples, for one, or mappings without labels."""
    sets = {"the training set": train, "the meta set": meta}
    sets |= (
        {f"the evaluation set {name!r}": part for name, part in tests.items()}
        if isinstance(tests, dict)
        else {"the evaluation set": tests}
    )
    for whose, dataset in sets.items():
        if not (has_length(dataset) and hasattr(dataset, "__getitem__")) or len(dataset) == 0:
            continue
        example = dataset[0]
        if not (isinstance(example, Mapping) or hasattr(example, "__dict__")):
            raise DataError(
                f"an example of {whose} is a {type(example).__name__}, and a mapping from the names of the network's "
                f'inputs and "{label_name}" to their values is needed: give such examples, or a data_collator that '
                "makes them"
            )
        names = {"label", "labels", "label_ids"} if label_name == "labels" else {label_name}
        if isinstance(example, Mapping) and not names & set(example):
            raise DataError(
                f"the examples of {whose} hold no labels (but {', '.join(map(str, example))}): name their column "
                f"{label_name!r}, or label in raw data"
            )


def check_searched(names: Iterable[str]) -> None:
    """Raise SettingsError on settings that a search can't change, as the data were converted by them."""
    for name in names:
        if name in MADE_FOR:
            raise SettingsError(
                f"{name} can't be searched, as the data sets are made for it with the trainer: make a trainer for each "
                "value of it"
            )


def check_batch_size(args: FaMUSTrainingArguments, train: Any) -> None:
    """Raise SettingsError if dropping the last incomplete batch would drop everything."""
    if args.dataloader_drop_last and hasattr(train, "__len__") and len(train) < args.train_batch_size:
        raise SettingsError(
            f"the training set has {len(train)} examples, less than one batch of {args.train_batch_size}: "
            "lower per_device_train_batch_size or set dataloader_drop_last to False"
        )


def check_balanced_epochs(args: FaMUSTrainingArguments, train: Any) -> None:
    """Raise SettingsError if epochs are to be balanced over labels that are not known."""
    if args.balanced_batches_per_epoch is not None and not known_labels(train):
        raise SettingsError(
            "balanced_batches_per_epoch needs the labels of all training examples, which this train_dataset does not "
            "tell without being read through: leave it out, or give a data set of datasets"
        )


def check_problem_type(model: Any) -> None:
    """Raise SettingsError on a network that learns numbers, or several classes of an example."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem in ("multi_label_classification", "regression"):
        raise SettingsError(f"the model's problem_type is {problem!r}: FaMUS weighs examples of one class each")


def check_recordings(model: Any, train: Any, meta: Any, tests: Any) -> None:
    """Raise DataError on recordings that are too short for the network."""
    check_long_enough([train, meta, *(tests.values() if isinstance(tests, dict) else [tests])], model)


def check_meta_set(args: FaMUSTrainingArguments, train: Any, given: Any) -> None:
    """Raise SettingsError if `meta_set` and the data sets contradict each other."""
    meta_set = args.meta_set
    if meta_set == "clean" and given is None:
        raise SettingsError("meta_set 'clean' needs a meta_dataset: give a small set of examples with trusted labels")
    if meta_set == "pseudo-clean" and given is not None:
        raise SettingsError("meta_set 'pseudo-clean' is found in train_dataset: leave meta_dataset out")
    if given is None and not (hasattr(train, "__len__") and hasattr(train, "__getitem__")):
        raise SettingsError(
            f"train_dataset is a {type(train).__name__}, and a pseudo-clean meta set is found by the losses of all its "
            "examples, so that a stream will not do: give a meta_dataset, or a data set with a length"
        )
    if isinstance(train, IterableDataset) and args.plain_warmup_epochs:
        raise SettingsError("plain_warmup_epochs needs to know how long an epoch is, which a stream does not tell")


def check_meta_learning_is_possible(
    args: FaMUSTrainingArguments, model: Any, train: Any, meta: Any, accelerator: Accelerator
) -> None:
    """Raise FaMUSError on settings, devices, models and data sets that do not go with a meta-learner."""
    check_meta_learning_is_supported(args)
    _check_processes(args, model, train, meta, accelerator)
    checkpointing: Any = args.activation_checkpointing_kwargs or {}
    if args.activation_checkpointing and checkpointing.get("use_reentrant"):
        raise SettingsError(
            "activation_checkpointing with use_reentrant=True gives no single gradients, which the meta step needs: "
            "set it to False in activation_checkpointing_kwargs"
        )
    _check_sharding(args, model, accelerator)
    _check_data_sets(train, meta)


def check_loss_function(args: FaMUSTrainingArguments, compute_loss_func: Any, base_loss: Any) -> None:
    """Raise SettingsError on another loss beside Trainer's `compute_loss_func`, which could not both be taken."""
    others = {
        "a base_loss object": base_loss is not None,
        f"base_loss={args.base_loss!r}": args.base_loss != "ce",
        f"label_smoothing_factor={args.label_smoothing_factor}": args.label_smoothing_factor > 0,
        f"mixup_alpha={args.mixup_alpha}": bool(args.mixup_alpha),
        f"logit_adjustment={args.logit_adjustment}": args.logit_adjustment > 0,
        f"elr_weight={args.elr_weight}": args.elr_weight > 0,
        "sample_weight_column": args.sample_weight_column is not None,
    }
    for name, is_given in others.items():
        if compute_loss_func is not None and is_given:
            raise SettingsError(f"compute_loss_func is the whole training loss, so that {name} does nothing: drop one")


def check_precision(accelerator: Accelerator) -> None:
    """Raise SettingsError on fp16 that would not engage, of which accelerate 1.15 says nothing."""
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise SettingsError("fp16 was asked for and needs a GPU, which there is none of: use bf16, or leave it out")


def check_averaging(args: FaMUSTrainingArguments, accelerator: Accelerator) -> None:
    """Raise SettingsError on an average of weights that are spread over processes."""
    for name, plugin in {"FSDP": "fsdp_plugin", "DeepSpeed": "deepspeed_plugin"}.items():
        if args.ema_decay is not None and getattr(accelerator.state, plugin, None) is not None:
            raise SettingsError(f"ema_decay averages whole weights, which {name} spreads over processes: leave it out")


def check_loss_of_meta_steps(kind: type, compute_loss_func: Any) -> None:
    """Raise SettingsError on a loss that has no value for each example, which meta steps would pass over.

    Args:
        kind: The trainer's class, which may have a `compute_loss` of its own.
        compute_loss_func: Trainer's.
    """
    way = (
        "give a base_loss, a callable from logits (n, C) and labels to n losses, or a MetaLearner, which says what the "
        "training loss is"
    )
    if compute_loss_func is not None:
        raise SettingsError(
            f"compute_loss_func returns one number, but FaMUS weighs examples and would never call it: {way}"
        )
    owner = next(owner for owner in kind.__mro__ if "compute_loss" in vars(owner))
    if owner.__module__.partition(".")[0] != "famus_hf":
        raise SettingsError(
            f"{owner.__name__}.compute_loss returns one number, but FaMUS weighs examples, and meta steps would never "
            f"call it: {way}"
        )


def uses_fsdp(accelerator: Accelerator) -> bool:
    """Return whether accelerate shards the network."""
    return getattr(accelerator.state, "fsdp_plugin", None) is not None


def is_compiled(accelerator: Accelerator) -> bool:
    """Return whether torch.compile is on: for the training batch's forward pass and its backward passes."""
    return accelerator.state.dynamo_plugin.backend != DynamoBackend.NO


def _check_sharding(args: FaMUSTrainingArguments, model: Any, accelerator: Accelerator) -> None:
    """Raise SettingsError on a model that others have sharded, and on what does not go with FSDP."""
    if is_sharded(model):
        raise SettingsError(
            "the model's parameters are sharded already (DTensor): give it whole and have accelerate launch --use_fsdp "
            "--fsdp_version 2 shard it, or call famus_hf.sharded_meta_gradient in a loop of your own"
        )
    if not uses_fsdp(accelerator):
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise SettingsError(
            f"FSDP version {plugin.fsdp_version} flattens parameters, which the meta step needs apart: start with "
            "--fsdp_version 2"
        )
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise SettingsError(
            f"FSDP with {plugin.state_dict_type.name} would leave no model.safetensors: start with "
            "--fsdp_state_dict_type FULL_STATE_DICT"
        )
    try:
        getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        raise SettingsError(
            f"accelerate 1.15 can't shard a {type(model).__name__}, whose get_input_embeddings raises: have it "
            "return None, or start without FSDP"
        ) from None
    half = any(parameter.dtype in LOW_PRECISION for parameter in model.parameters())
    refused = {
        f"derivative={args.derivative!r}": args.derivative not in ("auto", "finite"),
        "reuse_virtual_gradient": args.reuse_virtual_gradient,
        "scale_example_gradients": args.scale_example_gradients,
        f"virtual_scope={args.virtual_scope!r}": args.virtual_scope != "all",
        "meta_budget": args.meta_budget is not None,
        f"mixed precision ({accelerator.mixed_precision})": accelerator.mixed_precision != "no",
        "half precision": half,
        "torch.compile": is_compiled(accelerator),
        "activation checkpointing": plugin.activation_checkpointing or args.activation_checkpointing,
        "CPU offload": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "a parallelism_config": accelerator.parallelism_config is not None,
        "PEFT": is_peft_model(model),
    }
    for name, is_asked in refused.items():
        if is_asked:
            raise SettingsError(
                f"{name} does not go with a meta-learner under FSDP, which takes the meta gradient by whole passes and "
                "finite differences in float32: leave it out"
            )


def _check_processes(args: FaMUSTrainingArguments, model: Any, train: Any, meta: Any, accelerator: Accelerator) -> None:
    """Raise SettingsError on several devices that are not used as the meta step needs it."""
    if args.n_gpu > 1:
        raise SettingsError(
            f"one process sees {args.n_gpu} devices, and the meta step runs on one in each process: start with "
            f"accelerate launch --num_processes {args.n_gpu}, or make one visible (CUDA_VISIBLE_DEVICES=0)"
        )
    if args.world_size == 1:
        return
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise SettingsError(
            "the network has SyncBatchNorm layers, of which torch has neither derivative that the meta step needs: "
            "leave them as batch norm, whose statistics are those of each process"
        )
    if isinstance(train, IterableDataset):
        raise SettingsError(
            f"a stream is read by one process, and {args.world_size} were started: start one, or load the data set "
            "without streaming"
        )
    if not accelerator.even_batches:
        raise SettingsError(
            "even_batches=False would leave processes without a batch at the end of an epoch: leave it on"
        )
    if meta is not None and len(meta) < args.world_size:
        raise SettingsError(f"a meta set of {len(meta)} examples can't be shared out among {args.world_size} processes")


def check_takes_pair_method(args: FaMUSTrainingArguments, kind: type, is_taken: bool) -> None:
    """Raise SettingsError on a trainer that would pass over `pair_method`, or does nothing without one.

    Args:
        args: The settings.
        kind: The trainer's class.
        is_taken: Whether it takes one.
    """
    if args.pair_method is not None and not is_taken:
        raise SettingsError(
            f"pair_method={args.pair_method!r} is for two networks, and {kind.__name__} does not take it: use "
            "PairTrainer (--two_networks), or leave it out"
        )
    if args.pair_method is None and is_taken:
        raise SettingsError(
            f"{kind.__name__} needs a pair_method: name one of {', '.join(PAIR_METHODS)}, or use TwoNetworkTrainer"
        )


def check_two_networks(args: FaMUSTrainingArguments, model: Any, train: Any, accelerator: Accelerator) -> None:
    """Raise SettingsError on what no two networks can be trained with."""
    networks = [getattr(model, name, None) for name in NETWORKS_APART]
    if not all(isinstance(network, nn.Module) for network in networks) or networks[0] is networks[1]:
        raise SettingsError(
            f"a {type(model).__name__} is not two networks: give TwoNetworksForImageClassification.of(a, b) of "
            "two that start from different weights"
        )
    if not (has_length(train) and hasattr(train, "__getitem__")):
        raise SettingsError(
            "two networks look at the whole training set, which a stream does not allow: load it without streaming"
        )
    refuse(
        "two networks",
        {
            "FSDP": uses_fsdp(accelerator),
            "torch.compile": is_compiled(accelerator),
            "PEFT": is_peft_model(model),
            "train_on_trusted": args.asks_for_trusted,
            "logit_adjustment": args.logit_adjustment > 0,
            "elr_weight": args.elr_weight > 0,
            "sample_weight_column": args.sample_weight_column is not None,
        },
    )


def check_division(args: FaMUSTrainingArguments, train: Any, collate: Any, base_loss: Any) -> None:
    """Raise SettingsError on what two networks that divide the training set for each other can't be trained with."""
    fewest = 2 * args.per_device_train_batch_size * args.world_size
    if len(train) < fewest:
        raise SettingsError(
            f"the training set has {len(train)} examples, less than {fewest}, one batch of labelled and one of "
            "unlabelled ones over all processes: lower per_device_train_batch_size"
        )
    inputs = set(collate([train[0]])) - {"labels", *RECORD_COLUMNS}
    if inputs != {"pixel_values"}:
        raise SettingsError(
            f"two networks mix images, and these examples hold {', '.join(sorted(inputs))}: give pixel_values alone"
        )
    if args.meta_learner not in ("mw-net", "none"):
        raise SettingsError(
            f"meta_learner={args.meta_learner!r} does not go with two networks: choose mw-net, or none for DivideMix"
        )
    refuse(
        "two networks",
        {
            "base_loss 'ldam'": isinstance(base_loss, LDAMLoss),
            "scale_example_gradients": args.scale_example_gradients,
            f"train_sampling_strategy={args.train_sampling_strategy!r}": args.train_sampling_strategy != "random",
            "division_history with balanced_batches_per_epoch": args.division_history > 1
            and args.balanced_batches_per_epoch is not None,
        },
    )


def check_pair(args: FaMUSTrainingArguments, given: Any, compute_loss_func: Any, accelerator: Accelerator) -> None:
    """Raise SettingsError on what two networks that choose examples for each other can't be trained with.

    Args:
        args: The settings.
        given: Meta-learner and layer sampler objects, or None for each.
        compute_loss_func: Trainer's.
        accelerator: The run's.
    """
    refuse(
        f"pair_method={args.pair_method!r}",
        {
            "a meta_learner object": given[0] is not None,
            "a layer_sampler object": given[1] is not None,
            "compute_loss_func": compute_loss_func is not None,
            f"mixup_alpha={args.mixup_alpha}": bool(args.mixup_alpha),
            "DeepSpeed": getattr(accelerator.state, "deepspeed_plugin", None) is not None,
            "even_batches=False on several processes": args.world_size > 1 and not accelerator.even_batches,
            f"one process that sees {args.n_gpu} devices": args.n_gpu > 1,
        },
    )


def check_cross_validation(args: FaMUSTrainingArguments, train: Any) -> None:
    """Raise SettingsError on what does not go with a selection of examples by cross-validation."""
    half, batch = len(train) // 2, args.train_batch_size * args.world_size
    if half < batch:
        raise SettingsError(
            f"pair_method={args.pair_method!r} trains on halves of the training set, {half} examples, less than one "
            f"batch of {batch} over all processes: lower per_device_train_batch_size"
        )
    refuse(
        f"pair_method={args.pair_method!r}, which draws batches of what it selects",
        {
            f"balanced_batches_per_epoch={args.balanced_batches_per_epoch}": args.balanced_batches_per_epoch
            is not None,
            f"train_sampling_strategy={args.train_sampling_strategy!r}": args.train_sampling_strategy != "random",
        },
    )


def refuse(what: str, parts: Mapping[str, bool]) -> None:
    """Raise SettingsError on the first part that is there and does not go with what there is."""
    for name, is_there in parts.items():
        if is_there:
            raise SettingsError(f"{name} does not go with {what}: leave it out")


def check_weighs_by_losses(meta_learner: MetaLearner) -> None:
    """Raise SettingsError on a meta-learner whose weights are no function of the losses alone."""
    if not meta_learner.keeps_theta or meta_learner.example_weights(torch.ones(2)) is None:
        raise SettingsError(
            f"{type(meta_learner).__name__} gives an example no weight by its loss, which the halves of a mixed batch "
            "need: choose mw-net, or a meta-learner with example_weights"
        )
    if getattr(meta_learner, "detach_losses", True) is False:
        raise SettingsError("detach_losses=False does not go with two networks, whose weights are constants to them")


def check_trusted(meta_learner: MetaLearner, has_trusted: bool) -> None:
    """Raise SettingsError on a meta-learner that looks at trusted examples where there are none."""
    if meta_learner.observes_trusted and not has_trusted:
        raise SettingsError(
            f"{type(meta_learner).__name__} takes transitions from trusted examples, and there are none: give a "
            "meta_dataset, or leave transitions out"
        )


def check_meta_learner(args: FaMUSTrainingArguments, meta_learner: MetaLearner) -> None:
    """Raise SettingsError on settings that do not go with a meta-learner whose θ is new in each step."""
    name = type(meta_learner).__name__
    if args.meta_interval > 1 and not meta_learner.keeps_theta:
        raise SettingsError(
            f"meta_interval={args.meta_interval} does not go with {name}, which starts afresh in each step: "
            "leave it out"
        )
    if args.reuse_virtual_gradient and not meta_learner.keeps_theta:
        raise SettingsError(
            f"reuse_virtual_gradient does not go with {name}, which starts afresh in each step, so that nothing is "
            "learned by the time of the virtual step: leave it out"
        )
    if args.scale_example_gradients and not (meta_learner.weighs_examples and meta_learner.has_virtual_step):
        raise SettingsError(
            f"scale_example_gradients does not go with {name}, whose virtual and actual gradients do not differ by "
            "example weights alone: leave it out"
        )


def check_diagnostics(args: FaMUSTrainingArguments, train: Any, learners: Iterable[MetaLearner]) -> None:
    """Raise SettingsError where `log_weights` asks for weights that there are not."""
    if not args.log_weights:
        return
    if not has_length(train):
        raise SettingsError(
            "log_weights looks at the same training examples again, which a stream does not give: leave it out"
        )
    for learner in learners:
        with torch.no_grad():
            weights = learner.raw_weights(torch.zeros(1, device=args.device))
        if weights is None:
            raise SettingsError(
                f"log_weights needs a meta-learner that weighs an example by its loss alone, which "
                f"{type(learner).__name__} does not: leave it out, or choose meta_learner mw-net"
            )


def _check_data_sets(train: Any, meta: Any) -> None:
    for name, dataset in (("train_dataset", train), ("meta_dataset", meta)):
        if dataset is None or (name == "train_dataset" and isinstance(dataset, IterableDataset)):
            continue  # a meta set is there wherever one is learned from
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(f"{name} is a {type(dataset).__name__}: a map-style data set, with a length, is needed")
        check_not_empty(name, dataset)
    if len(set(known_labels(meta))) == 1:
        raise DataError("the meta set holds a single class: it needs examples of every class")
    if isinstance(train, ModelInputs) and isinstance(meta, ModelInputs):
        check_no_copies(train, meta)


def check_labels(
    batch_labels: Tensor | None, model: Any, base_loss: Any, train: Any, meta: Any, *, may_be_ignored: bool = False
) -> None:
    """Raise DataError on labels that are neither one class index per example nor soft targets.

    Args:
        batch_labels: The labels of a few training examples, as they reach the model.
        model: Whose classes they are.
        base_loss: ℓ.
        train: Checked as far as it can tell its labels without being read through.
        meta: Likewise.
        may_be_ignored: Whether an example may go without a label (−100), as in plain training.
    """
    if batch_labels is None:
        raise DataError("the training examples hold no labels: name their column 'labels', or label in raw data")
    soft = batch_labels.dim() == 2 and batch_labels.is_floating_point()
    if not soft and (batch_labels.dim() != 1 or batch_labels.is_floating_point()):
        raise DataError(
            f"labels of shape {tuple(batch_labels.shape)} and type {batch_labels.dtype} are not one class index per "
            "example (nor soft targets, one row of probabilities each)"
        )
    if soft:
        if batch_labels.min() < 0 or (batch_labels.sum(1) - 1).abs().max() > 1e-3:
            raise DataError("soft targets must be rows of probabilities: at least 0, with a sum of 1")
        if isinstance(base_loss, LDAMLoss):
            raise DataError("base_loss 'ldam' has margins for class indices: it does not go with soft targets")
        batch_labels = batch_labels.argmax(1)
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    sets = (("training", [*known_labels(train), *batch_labels.tolist()]),
            ("meta", known_labels(meta)))  # fmt: skip
    for name, labels in sets:
        ignored = IGNORED if may_be_ignored else None
        wrong = [
            label
            for label in labels
            if label != ignored and (label < 0 or (num_labels is not None and label >= num_labels))
        ]
        if wrong:
            allowed = "at least 0" if num_labels is None else f"in 0..{num_labels - 1}"
            raise DataError(
                f"{len(wrong)} labels of the {name} set are not {allowed} (the first is {wrong[0]}): "
                "remove these examples or build the model with more classes"
            )


def check_batches_of_one(
    args: FaMUSTrainingArguments, train: Any, meta: Any, is_filled_up: bool, takes_one: Callable[[], bool]
) -> None:
    """Raise SettingsError where a process is given a batch of one example, and the network does not take it.

    Args:
        args: The settings.
        train: None where its batches hold several examples in any case.
        meta: None in plain training.
        is_filled_up: Whether the last training batches of several processes are filled up.
        takes_one: Whether the network takes one example in training; asked only where it matters.
    """
    train_size, meta_size = args.train_batch_size, args.meta_batch_size or 0
    batches = {
        f"per_device_train_batch_size={train_size} makes batches": (
            train is not None and train_size == 1,
            "raise it to at least 2",
        ),
        f"the last of the batches of {train_size} training examples is one": (
            train is not None and not (args.world_size > 1 and is_filled_up) and _ends_with_one(args, train),
            "set dataloader_drop_last to True, or another per_device_train_batch_size",
        ),
        f"meta_batch_size={meta_size} and the meta set make batches": (
            meta is not None and min(meta_size * args.world_size, len(meta)) // args.world_size == 1,
            f"raise meta_batch_size to at least 2, with at least {2 * args.world_size} meta examples",
        ),
    }
    for which, (is_of_one, advice) in batches.items():
        if is_of_one and not takes_one():
            raise SettingsError(
                f"{which} of a single example, of which batch norm in this network can't take statistics: {advice}"
            )


def _ends_with_one(args: FaMUSTrainingArguments, train: Any) -> bool:
    """Return whether training gets to a last batch of an epoch that holds one example."""
    is_cut = args.dataloader_drop_last or args.balanced_batches_per_epoch is not None or not has_length(train)
    if is_cut or len(train) % args.train_batch_size != 1:
        return False
    whole, accumulated = len(train) // args.train_batch_size, args.gradient_accumulation_steps
    steps = math.ceil(args.num_train_epochs * -(-(whole + 1) // accumulated))
    return (args.max_steps if args.max_steps > 0 else steps) * accumulated > whole


def check_no_copies(train: ModelInputs, meta: ModelInputs) -> None:
    """Raise DataError if an example of the training set (but a placeholder) is in the meta set as well.

    What is not in memory is compared as it is stored.
    """
    train_contents, meta_contents = train.contents(), meta.contents()
    if train_contents is None or meta_contents is None:
        copies, words = same_content(train.raw, meta.raw), "byte for byte"
    else:
        copies, words = rows_of_copies(train_contents, set(meta_contents)), train.words
    if copies:
        index = train.records.get("index")
        raise DataError(
            f"{len(copies)} training {train.modality.things} are also in the meta set, {words} (index "
            f"{first_few(copies if index is None else (index[row] for row in copies))}): remove these from one of them"
        )
