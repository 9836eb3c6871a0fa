"""From a trainer's settings, network and data to its MetaUpdate, before training starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers.utils import logging

from famus_hf.core.autodiff.attention import report_attention
from famus_hf.core.autodiff.example_scaling import why_gradients_do_not_scale
from famus_hf.core.autodiff.forward_pass import (
    differentiable_attention,
    get_random_state,
    logits_without_trace,
    preserve_rng_state,
    split_inputs,
)
from famus_hf.core.autodiff.training_pass import TrainingPass, logit_tangent, training_pass_without_trace
from famus_hf.core.budget import Budget, LayerCosts
from famus_hf.core.layer_costs import measure_layer_costs, num_timings
from famus_hf.core.layer_samplers import AllLayers, BlockSampler, LayerSampler, LearnedSampler, RandomLayers
from famus_hf.core.layers import Layer, find_layers
from famus_hf.core.losses import ClassBalancedLoss, CrossEntropyLoss, FocalLoss, LDAMLoss, cross_entropy
from famus_hf.core.meta_learners import L2R, MLC, MetaLearner, MWNet, PerExampleLoss
from famus_hf.core.meta_train import MetaObjective
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.timer import Timer
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.errors import reason_of
from famus_hf.trainer.preflight import check_labels, check_meta_learner
from famus_hf.training_args import FaMUSTrainingArguments

if TYPE_CHECKING:
    from famus_hf.trainer.trainer import FaMUSTrainer

logger = logging.get_logger(__name__)


def make_meta_update(
    trainer: "FaMUSTrainer",
    meta_learner: MetaLearner | None,
    layer_sampler: LayerSampler | None,
    seed: int | None = None,
) -> MetaUpdate:
    """The objects given, else those that `trainer.args` name, told of the layers of `trainer.network`.

    Args:
        trainer: Its settings, data and network.
        meta_learner: Ψ.
        layer_sampler: Γ.
        seed: Of their initial weights and of the gates' noise. Default: `trainer.args.seed`.
    """
    args = trainer.args
    seed = args.seed if seed is None else seed
    with preserve_rng_state(args.device):  # plain and meta training of one seed see the same batches
        torch.manual_seed(seed)
        inputs, labels, _ = split_inputs(_examples(trainer, trainer.train_dataset, 2))
        check_labels(trainer, labels)
        with torch.no_grad():
            layers = _find_layers(trainer.network, inputs)
            probe = TrainingPass(
                trainer.network,
                inputs,
                labels,
                logits_without_trace(trainer.network, inputs),
                get_random_state(labels.device),
            )
        num_labels = probe.logits.shape[1]
        if isinstance(meta_learner, MLC) and meta_learner.num_labels != num_labels:
            raise ValueError(f"MLC was made for {meta_learner.num_labels} classes, and the network has {num_labels}")
        if layer_sampler is None:
            layer_sampler = _make_layer_sampler(args)
        meta_learner = meta_learner or make_meta_learner(args, num_labels)
        check_meta_learner(args, meta_learner)
        default_weight = 0.1 if isinstance(layer_sampler, LearnedSampler) else 0.0  # of λ1 and λ2
        meta = MetaUpdate(
            meta_learner,
            layer_sampler,
            layers,
            num_candidates=args.num_candidate_layers,
            objective=MetaObjective(
                args.expected_layers,
                default_weight if args.sparsity_weight is None else args.sparsity_weight,
                default_weight if args.gradient_match_weight is None else args.gradient_match_weight,
                _usable_derivative(trainer, probe),
            ),
            learning_rate=args.meta_learning_rate,
            optimizer=args.meta_optim,
            sampler_learning_rate=args.sampler_learning_rate,
            relative_slopes=args.sampler_relative_slopes,
            virtual_scope=args.virtual_scope,
            seed=seed,
            device=args.device,
        )
        if meta.objective.derivative != "finite":
            _report_attention(trainer)
        if args.scale_example_gradients:
            _check_scaling(trainer)
        if args.meta_budget is not None:
            costs = trainer.processes.first_object(_measure_costs(trainer, meta))
            meta.set_budget(Budget(args.meta_budget, costs), Timer(args.device))
        for module in (meta.meta_learner, meta.layer_sampler):
            trainer.processes.take_from_first([*module.parameters(), *module.buffers()])
        return meta


def _find_layers(model: nn.Module, inputs: dict[str, Any]) -> list[Layer]:
    """`find_layers`. Raises ValueError where the network fails on its inputs, as many do on images too small for it."""
    try:
        return find_layers(model, inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(
            f"{name} {tuple(value.shape[1:])}" for name, value in inputs.items() if hasattr(value, "shape")
        )
        raise ValueError(
            f"the network fails on the first training examples, of shape {shapes} ({reason_of(error)}): if images are "
            "too small for it, set image_size; if texts are too long, max_seq_length"
        ) from error


def make_base_loss(trainer: "FaMUSTrainer") -> PerExampleLoss:
    """The per-example loss that `trainer.args` name. Raises ValueError where it needs class counts and has none."""
    args = trainer.args
    smoothing = args.label_smoothing_factor
    if args.base_loss == "ce":
        return CrossEntropyLoss(smoothing)
    if args.base_loss == "focal":
        return FocalLoss(args.focal_gamma, smoothing)
    labels = known_labels(trainer.train_dataset)
    if not labels:
        raise ValueError(
            f"base_loss={args.base_loss!r} needs the number of examples of each class, which this train_dataset does "
            "not tell: give FaMUSTrainer a base_loss object made with class_counts"
        )
    if min(labels) < 0:
        raise ValueError(f"the training set holds the label {min(labels)}: every example needs a class")
    num_labels = getattr(getattr(trainer.model, "config", None), "num_labels", 0)
    counts = np.bincount(labels, minlength=num_labels).tolist()
    if args.base_loss == "class-balanced":
        return ClassBalancedLoss(counts, args.class_balance_beta, smoothing)
    if smoothing > 0:
        raise ValueError("label_smoothing_factor does not go with base_loss 'ldam', which has margins instead")
    if not getattr(getattr(trainer.model, "config", None), "cosine_classifier", False):
        logger.warning("base_loss 'ldam' is made for a classifier of cosines, which this network is not known to have")
    return LDAMLoss(counts, args.ldam_max_margin, args.ldam_scale, args.ldam_reweight_from, args.class_balance_beta)


def make_meta_learner(args: FaMUSTrainingArguments, num_labels: int = 0) -> MetaLearner:
    """The one that `args.meta_learner` names; mlc alone needs the number of classes."""
    if args.meta_learner == "l2r":
        return L2R()
    if args.meta_learner == "mlc":
        return MLC(num_labels, args.mlc_form, args.mlc_keep_matrix, args.mlc_reduction)
    return MWNet(weight_normalization=args.weight_normalization)


def _make_layer_sampler(args: FaMUSTrainingArguments) -> LayerSampler:
    if args.layer_sampler == "learned":
        bias = args.sampler_initial_bias
        if bias is None:  # with a budget: what it surely pays for is nearly always on
            bias = 0.0 if args.meta_budget is None else 4.0
        return LearnedSampler(temperature=args.sampler_temperature, initial_bias=bias)
    if args.layer_sampler == "block":
        return BlockSampler(int(args.sampler_block or 0))
    if args.layer_sampler == "random":
        return RandomLayers(args.random_layers)
    return AllLayers()


def _usable_derivative(trainer: "FaMUSTrainer", probe: TrainingPass) -> str:
    """`args.derivative`, unless an operation of the network has no forward mode, or its graph has no derivative."""
    derivative = "finite" if trainer.is_fsdp_enabled else trainer.args.derivative
    if derivative == "reverse" and trainer.compiles:
        raise ValueError("derivative='reverse' does not work with torch.compile, whose backward has none: use auto")
    if derivative == "reverse" and (fault := _fault_of_reverse(trainer, probe)) is not None:
        raise ValueError(f"derivative='reverse' does not work with this network ({fault}): use auto")
    if derivative in ("reverse", "finite"):
        return derivative
    direction = {name: torch.ones_like(p) for name, p in trainer.network.named_parameters() if p.requires_grad}
    try:
        with trainer.accelerator.autocast():
            logit_tangent(probe, direction, "forward")
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return _instead_of_forward(trainer, probe, error)
    return "forward" if trainer.compiles else derivative


def _report_attention(trainer: "FaMUSTrainer") -> None:
    inputs, _, _ = split_inputs(_examples(trainer, trainer.train_dataset, min(8, trainer.args.train_batch_size)))
    with trainer.accelerator.autocast():
        sentence = report_attention(trainer.network, inputs)
    if sentence is not None and trainer.args.should_log:
        logger.warning(sentence)


def _instead_of_forward(trainer: "FaMUSTrainer", probe: TrainingPass, error: RuntimeError) -> str:
    if trainer.args.derivative == "forward":
        raise ValueError(f"derivative='forward' does not work with this network ({error}): use auto") from error
    mixed = trainer.accelerator.mixed_precision != "no"  # finite differences drown in its rounding
    if mixed and trainer.compiles:
        raise ValueError(
            f"no derivative is left for this network under torch.compile and mixed precision ({error}): leave one of "
            "them out"
        ) from error
    if mixed:
        fault = _fault_of_reverse(trainer, probe)
        if fault is not None:
            raise ValueError(
                f"no derivative is left for this network under mixed precision ({fault}): leave that out, or load the "
                "network with attn_implementation='sdpa'"
            ) from error
        logger.warning(f"the derivative is taken by two backward passes, as the network has no forward mode ({error})")
        return "reverse"
    logger.warning(
        "the derivative is taken by finite differences, two more forward passes of the training batch in each meta "
        f"step, right to about 1 %, as the network has no forward mode ({error})"
    )
    return "finite"


def _fault_of_reverse(trainer: "FaMUSTrainer", probe: TrainingPass) -> str | None:
    """Why two backward passes do not work with the network; None where they do."""
    parameters = {name: p for name, p in trainer.network.named_parameters() if p.requires_grad}
    try:
        with trainer.accelerator.autocast(), differentiable_attention():
            training_pass = training_pass_without_trace(trainer.network, probe.inputs, probe.labels)
            logit_tangent(training_pass, {name: torch.ones_like(p) for name, p in parameters.items()}, "reverse")
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return reason_of(error)
    return None


def _check_scaling(trainer: "FaMUSTrainer") -> None:
    """Raises ValueError where the examples of a batch are coupled, or gradients have several sources."""
    inputs, labels, _ = split_inputs(_examples(trainer, trainer.train_dataset, 3))
    with _train_mode(trainer.network), trainer.accelerator.autocast():
        training_pass = training_pass_without_trace(trainer.network, inputs, labels)
    parameters = {name: p for name, p in trainer.network.named_parameters() if p.requires_grad}
    losses = cross_entropy(training_pass.logits, labels)
    reason = why_gradients_do_not_scale(losses, parameters, training_pass.record)
    if reason is not None:
        raise ValueError(f"scale_example_gradients does not work with this network, as {reason}: leave it out")


def _measure_costs(trainer: "FaMUSTrainer", meta: MetaUpdate) -> LayerCosts:
    """On a training batch and a meta batch of the sizes that training will see."""
    args, model = trainer.args, trainer.network
    inputs, labels, _ = split_inputs(_examples(trainer, trainer.train_dataset, args.train_batch_size))
    meta_inputs, meta_labels, _ = split_inputs(_examples(trainer, trainer.meta_dataset, args.meta_batch_size))
    with _train_mode(model):
        with trainer.compute_loss_context_manager(), differentiable_attention():
            training_pass = training_pass_without_trace(model, inputs, labels)
        show = args.should_log and not args.disable_tqdm
        with tqdm(total=num_timings(len(meta.candidates)), desc="Timing layers", disable=not show) as bar:
            return measure_layer_costs(
                training_pass,
                meta_inputs,
                meta_labels,
                meta.candidates,
                meta.objective.derivative,
                always=meta.objective.gradient_match_weight > 0,
                on_progress=bar.update,
            )


@contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    """Train mode for the body, and then the mode that there was."""
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)


def _examples(trainer: "FaMUSTrainer", dataset: Any, count: int | None) -> dict[str, Any]:
    """The first examples of a data set as a batch where the network is."""
    if isinstance(dataset, IterableDataset):
        examples = list(islice(dataset, count or 1))
    else:
        examples = [dataset[row] for row in range(min(count or 1, len(dataset)))]
    batch = trainer.central_crop(trainer._prepare_inputs(trainer.data_collator(examples)))
    device = next(trainer.network.parameters()).device  # with FSDP the network goes to its own when training starts
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
