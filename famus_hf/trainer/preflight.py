"""What FaMUSTrainer refuses before training starts, each in one sentence: what was seen, what is allowed."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from famus_hf.core.autodiff.forward_pass import RECORD_COLUMNS
from famus_hf.core.fsdp import LOW_PRECISION
from famus_hf.core.losses import LDAMLoss
from famus_hf.core.meta_learners import MetaLearner
from famus_hf.core.parallel.dtensor import is_sharded
from famus_hf.data.inputs.audio_inputs import check_long_enough
from famus_hf.data.inputs.model_inputs import ModelInputs, known_labels
from famus_hf.data.labels.duplicates import rows_of_copies
from famus_hf.data.labels.meta_set import check_no_overlap
from famus_hf.errors import first_few
from famus_hf.storage.model_folder import NETWORKS_APART
from famus_hf.training_args import FaMUSTrainingArguments
from famus_hf.training_args_checks import check_meta_learning_is_supported

if TYPE_CHECKING:
    from famus_hf.trainer.trainer import FaMUSTrainer


def check_not_empty(name: str, dataset: Any) -> None:
    """Raises ValueError on a data set that is known to have no examples."""
    if has_length(dataset) and len(dataset) == 0:
        raise ValueError(f"{name} is empty: give at least a few examples of every class")


def check_batch_size(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError if dropping the last incomplete batch would drop everything."""
    args, train = trainer.args, trainer.train_dataset
    if args.dataloader_drop_last and hasattr(train, "__len__") and len(train) < args.train_batch_size:
        raise ValueError(
            f"the training set has {len(train)} examples, less than one batch of {args.train_batch_size}: "
            "lower per_device_train_batch_size or set dataloader_drop_last to False"
        )


def check_balanced_epochs(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError if epochs are to be balanced over labels that are not known."""
    if trainer.args.balanced_batches_per_epoch is not None and not known_labels(trainer.train_dataset):
        raise ValueError(
            "balanced_batches_per_epoch needs the labels of all training examples, which this train_dataset does not "
            "tell without being read through: leave it out, or give a data set of datasets"
        )


def check_problem_type(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError on a network that learns numbers, or several classes of an example."""
    problem = getattr(getattr(trainer.model, "config", None), "problem_type", None)
    if problem in ("multi_label_classification", "regression"):
        raise ValueError(f"the model's problem_type is {problem!r}: FaMUS weighs examples of one class each")


def check_recordings(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError on recordings that are too short for the network."""
    tested = trainer.eval_dataset
    tests = tested.values() if isinstance(tested, dict) else [tested]
    check_long_enough([trainer.train_dataset, trainer.meta_dataset, *tests], trainer.model)


def check_meta_set(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError if `meta_set` and the data sets contradict each other."""
    wanted, given, train = trainer.args.meta_set, trainer.meta_dataset, trainer.train_dataset
    if wanted == "clean" and given is None:
        raise ValueError("meta_set 'clean' needs a meta_dataset: give a small set of examples with trusted labels")
    if wanted == "pseudo-clean" and given is not None:
        raise ValueError("meta_set 'pseudo-clean' is found in train_dataset: leave meta_dataset out")
    if given is None and not (hasattr(train, "__len__") and hasattr(train, "__getitem__")):
        raise ValueError(
            f"train_dataset is a {type(train).__name__}, and a pseudo-clean meta set is found by the losses of all its "
            "examples, so that a stream will not do: give a meta_dataset, or a data set with a length"
        )
    if isinstance(train, IterableDataset) and trainer.args.plain_warmup_epochs:
        raise ValueError("plain_warmup_epochs needs to know how long an epoch is, which a stream does not tell")


def check_meta_learning_is_possible(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError on settings, devices, models and data sets that do not go with a meta-learner."""
    args = trainer.args
    check_meta_learning_is_supported(args)
    _check_processes(trainer)
    if trainer.accelerator.mixed_precision == "fp16" and trainer.accelerator.scaler is None:
        raise ValueError("fp16 was asked for and needs a GPU, which there is none of: use bf16, or leave it out")
    checkpointing: Any = args.gradient_checkpointing_kwargs or {}
    if args.gradient_checkpointing and checkpointing.get("use_reentrant"):
        raise ValueError(
            "gradient_checkpointing with use_reentrant=True gives no single gradients, which the meta step needs: set "
            "it to False"
        )
    _check_sharding(trainer)
    if trainer.compute_loss_func is not None:
        raise ValueError("compute_loss_func returns one number, but FaMUS weighs examples: leave it out")
    _check_data_sets(trainer)


def _check_sharding(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError on a model that others have sharded, and on what does not go with FSDP."""
    if is_sharded(trainer.model):
        raise ValueError(
            "the model's parameters are sharded already (DTensor): give it whole and have accelerate launch --use_fsdp "
            "--fsdp_version 2 shard it, or call famus_hf.sharded_meta_gradient in a loop of your own"
        )
    if not trainer.is_fsdp_enabled:
        return
    args, accelerator = trainer.args, trainer.accelerator
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP version {plugin.fsdp_version} flattens parameters, which the meta step needs apart: start with "
            "--fsdp_version 2"
        )
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise ValueError(
            f"FSDP with {plugin.state_dict_type.name} would leave no model.safetensors: start with "
            "--fsdp_state_dict_type FULL_STATE_DICT"
        )
    try:
        getattr(trainer.model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        raise ValueError(
            f"accelerate 1.15 can't shard a {type(trainer.model).__name__}, whose get_input_embeddings raises: have it "
            "return None, or start without FSDP"
        ) from None
    half = any(parameter.dtype in LOW_PRECISION for parameter in trainer.model.parameters())
    refused = {
        f"derivative={args.derivative!r}": args.derivative not in ("auto", "finite"),
        "reuse_virtual_gradient": args.reuse_virtual_gradient,
        "scale_example_gradients": args.scale_example_gradients,
        f"virtual_scope={args.virtual_scope!r}": args.virtual_scope != "all",
        "meta_budget": args.meta_budget is not None,
        f"mixed precision ({accelerator.mixed_precision})": accelerator.mixed_precision != "no",
        "half precision": half,
        "torch.compile": trainer.compiles,
        "activation checkpointing": plugin.activation_checkpointing or args.gradient_checkpointing,
        "CPU offload": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "a parallelism_config": accelerator.parallelism_config is not None,
        "PEFT": is_peft_model(trainer.model),
    }
    for name, is_asked in refused.items():
        if is_asked:
            raise ValueError(
                f"{name} does not go with a meta-learner under FSDP, which takes the meta gradient by whole passes and "
                "finite differences in float32: leave it out"
            )


def _check_processes(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError on several devices that are not used as the meta step needs it."""
    args = trainer.args
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} devices, and the meta step runs on one in each process: start with "
            f"accelerate launch --num_processes {args.n_gpu}, or make one visible (CUDA_VISIBLE_DEVICES=0)"
        )
    if args.world_size == 1:
        return
    if any(isinstance(module, nn.SyncBatchNorm) for module in trainer.model.modules()):
        raise ValueError(
            "the network has SyncBatchNorm layers, of which torch has neither derivative that the meta step needs: "
            "leave them as batch norm, whose statistics are those of each process"
        )
    if isinstance(trainer.train_dataset, IterableDataset):
        raise ValueError(
            f"a stream is read by one process, and {args.world_size} were started: start one, or load the data set "
            "without streaming"
        )
    if not trainer.accelerator.even_batches:
        raise ValueError("even_batches=False would leave processes without a batch at the end of an epoch: leave it on")
    if trainer.meta_dataset is not None and len(trainer.meta_dataset) < args.world_size:
        raise ValueError(
            f"a meta set of {len(trainer.meta_dataset)} examples can't be shared out among {args.world_size} processes"
        )


def check_two_networks(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError on what two networks that divide the data for each other can't be trained with."""
    args, train = trainer.args, trainer.train_dataset
    networks = [getattr(trainer.model, name, None) for name in NETWORKS_APART]
    if not all(isinstance(network, nn.Module) for network in networks) or networks[0] is networks[1]:
        raise ValueError(
            f"a {type(trainer.model).__name__} is not two networks: give TwoNetworksForImageClassification.of(a, b) of "
            "two that start from different weights"
        )
    if not (has_length(train) and hasattr(train, "__getitem__")):
        raise ValueError(
            "two networks divide the training set, which a stream does not allow: load it without streaming"
        )
    fewest = 2 * args.per_device_train_batch_size * args.world_size
    if len(train) < fewest:
        raise ValueError(
            f"the training set has {len(train)} examples, less than {fewest}, one batch of labelled and one of "
            "unlabelled ones over all processes: lower per_device_train_batch_size"
        )
    inputs = set(trainer.data_collator([train[0]])) - {"labels", *RECORD_COLUMNS}
    if inputs != {"pixel_values"}:
        raise ValueError(
            f"two networks mix images, and these examples hold {', '.join(sorted(inputs))}: give pixel_values alone"
        )
    if args.meta_learner not in ("mw-net", "none"):
        raise ValueError(
            f"meta_learner={args.meta_learner!r} does not go with two networks: choose mw-net, or none for DivideMix"
        )
    refused = {
        "base_loss 'ldam'": isinstance(trainer.base_loss, LDAMLoss),
        "scale_example_gradients": args.scale_example_gradients,
        "FSDP": trainer.is_fsdp_enabled,
        "torch.compile": trainer.compiles,
        "PEFT": is_peft_model(trainer.model),
        "division_history with balanced_batches_per_epoch": args.division_history > 1
        and args.balanced_batches_per_epoch is not None,
    }
    for name, is_asked in refused.items():
        if is_asked:
            raise ValueError(f"{name} does not go with two networks: leave it out")


def check_weighs_by_losses(meta_learner: MetaLearner) -> None:
    """Raises ValueError on a meta-learner whose weights are no function of the losses alone."""
    if not meta_learner.keeps_theta or meta_learner.example_weights(torch.ones(2)) is None:
        raise ValueError(
            f"{type(meta_learner).__name__} gives an example no weight by its loss, which the halves of a mixed batch "
            "need: choose mw-net, or a meta-learner with example_weights"
        )
    if getattr(meta_learner, "detach_losses", True) is False:
        raise ValueError("detach_losses=False does not go with two networks, whose weights are constants to them")


def check_meta_learner(args: FaMUSTrainingArguments, meta_learner: MetaLearner) -> None:
    """Raises ValueError on settings that do not go with a meta-learner whose θ is new in each step."""
    name = type(meta_learner).__name__
    if args.meta_interval > 1 and not meta_learner.keeps_theta:
        raise ValueError(
            f"meta_interval={args.meta_interval} does not go with {name}, which starts afresh in each step: "
            "leave it out"
        )
    if args.reuse_virtual_gradient and not meta_learner.keeps_theta:
        raise ValueError(
            f"reuse_virtual_gradient does not go with {name}, which starts afresh in each step, so that nothing is "
            "learned by the time of the virtual step: leave it out"
        )
    if args.scale_example_gradients and not (meta_learner.weighs_examples and meta_learner.has_virtual_step):
        raise ValueError(
            f"scale_example_gradients does not go with {name}, whose virtual and actual gradients do not differ by "
            "example weights alone: leave it out"
        )


def check_diagnostics(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError where `log_weights` asks for weights that there are not."""
    if not trainer.args.log_weights:
        return
    if not has_length(trainer.train_dataset):
        raise ValueError(
            "log_weights looks at the same training examples again, which a stream does not give: leave it out"
        )
    device = trainer.args.device
    for _, meta in trainer.networks.values():
        with torch.no_grad():
            weights = meta.meta_learner.raw_weights(torch.zeros(1, device=device))
        if weights is None:
            raise ValueError(
                f"log_weights needs a meta-learner that weighs an example by its loss alone, which "
                f"{type(meta.meta_learner).__name__} does not: leave it out"
            )


def _check_data_sets(trainer: "FaMUSTrainer") -> None:
    train, meta = trainer.train_dataset, trainer.meta_dataset
    for name, dataset in (("train_dataset", train), ("meta_dataset", meta)):
        if name == "train_dataset" and isinstance(dataset, IterableDataset):
            continue
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ValueError(f"{name} is a {type(dataset).__name__}: a map-style data set, with a length, is needed")
        check_not_empty(name, dataset)
    if len(set(known_labels(meta))) == 1:
        raise ValueError("the meta set holds a single class: it needs examples of every class")
    if isinstance(train, ModelInputs) and isinstance(meta, ModelInputs):
        check_no_overlap(train.records.get("index", []), meta.records.get("index", []))
        check_no_copies(train, meta)


def check_labels(trainer: "FaMUSTrainer", batch_labels: Tensor) -> None:
    """Raises ValueError on labels that are neither one class index per example nor soft targets.

    Args:
        trainer: Its data sets are checked as far as they can tell their labels without being read through.
        batch_labels: The labels of a few training examples, as they reach the model.
    """
    soft = batch_labels.dim() == 2 and batch_labels.is_floating_point()
    if not soft and (batch_labels.dim() != 1 or batch_labels.is_floating_point()):
        raise ValueError(
            f"labels of shape {tuple(batch_labels.shape)} and type {batch_labels.dtype} are not one class index per "
            "example (nor soft targets, one row of probabilities each)"
        )
    if soft:
        if batch_labels.min() < 0 or (batch_labels.sum(1) - 1).abs().max() > 1e-3:
            raise ValueError("soft targets must be rows of probabilities: at least 0, with a sum of 1")
        if isinstance(trainer.base_loss, LDAMLoss):
            raise ValueError("base_loss 'ldam' has margins for class indices: it does not go with soft targets")
        batch_labels = batch_labels.argmax(1)
    num_labels = getattr(getattr(trainer.model, "config", None), "num_labels", None)
    sets = (("training", [*known_labels(trainer.train_dataset), *batch_labels.tolist()]),
            ("meta", known_labels(trainer.meta_dataset)))  # fmt: skip
    for name, labels in sets:
        wrong = [label for label in labels if label < 0 or (num_labels is not None and label >= num_labels)]
        if wrong:
            allowed = "at least 0" if num_labels is None else f"in 0..{num_labels - 1}"
            raise ValueError(
                f"{len(wrong)} labels of the {name} set are not {allowed} (the first is {wrong[0]}): "
                "remove these examples or build the model with more classes"
            )


def check_no_copies(train: ModelInputs, meta: ModelInputs) -> None:
    """Raises ValueError if an example of the training set (but a placeholder) is in the meta set as well.

    What is not in memory is not compared.
    """
    own, others = train.contents(), meta.contents()
    if own is None or others is None:
        return
    copies = rows_of_copies(own, set(others))
    if copies:
        index = train.records.get("index")
        raise ValueError(
            f"{len(copies)} training {train.modality.things} are also in the meta set, {train.words} (index "
            f"{first_few(copies if index is None else (index[row] for row in copies))}): remove these from one of them"
        )
