"""From settings, network and data to what a trainer learns with, before training starts."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers.trainer_utils import has_length
from transformers.utils import logging

from famus_hf.core.autodiff.agreement import BackwardReference
from famus_hf.core.autodiff.attention import report_attention
from famus_hf.core.autodiff.example_scaling import why_gradients_do_not_scale
from famus_hf.core.autodiff.forward_pass import (
    differentiable_attention,
    in_mode,
    logits_without_trace,
    preserve_rng_state,
    split_inputs,
)
from famus_hf.core.autodiff.training_pass import training_pass_without_trace
from famus_hf.core.budget import Budget, LayerCosts, measure_layer_costs, num_timings
from famus_hf.core.layer_samplers import LAYER_SAMPLERS, BlockSampler, LayerSampler, LearnedSampler, RandomLayers
from famus_hf.core.layers import Layer, find_layers
from famus_hf.core.losses import (
    IGNORED,
    ActivePassiveLoss,
    ClassBalancedLoss,
    CrossEntropyLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    LDAMLoss,
    SymmetricCrossEntropyLoss,
    cross_entropy,
)
from famus_hf.core.meta_learners.base import MetaLearner, PerExampleLoss
from famus_hf.core.meta_learners.jamal import ClassBalancedResidual
from famus_hf.core.meta_learners.label_noise import SOURCES, LabelNoise
from famus_hf.core.meta_learners.lccn import LCCN
from famus_hf.core.meta_learners.mlc import MLC
from famus_hf.core.meta_learners.mw_net import MWNet
from famus_hf.core.meta_learners.posterior import PosteriorTargets
from famus_hf.core.meta_learners.registry import CORRECTIONS, META_LEARNERS, WITH_TRANSITIONS
from famus_hf.core.meta_learners.soft import SoftTargets, class_groups
from famus_hf.core.meta_train import MetaObjective
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.pair_methods.base import PairMethod
from famus_hf.core.pair_methods.jocor import JoCoR
from famus_hf.core.pair_methods.registry import PAIR_METHODS
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.timer import Timer
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.data.labels.class_names import names_of_network
from famus_hf.data.labels.transitions_file import read_transitions
from famus_hf.errors import DataError, SettingsError, reason_of
from famus_hf.trainer.preflight import check_meta_learner
from famus_hf.training_args import FaMUSTrainingArguments

logger = logging.get_logger(__name__)

MAX_ERROR = 0.5  # of finite differences, relative; beyond it they say nothing
MADE_FOR_CLASSES = (MLC, LabelNoise, SoftTargets, ClassBalancedResidual)  # have `num_labels`, if need be
PROBED = 2  # examples on which the ways of the derivative are compared
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ONE_VALUE = "more than 1 value per channel"  # of torch's error


@dataclass(frozen=True)
class Environment:
    """What a network is trained in.

    Attributes:
        args: The settings.
        train_examples: Returns the first training examples, of a given number, as a batch on the device.
        meta_examples: Likewise of the meta set.
        processes: That train together.
        autocast: Returns a context for passes of a network that accelerate has not prepared yet.
        mixed_precision: As accelerate calls it: `"no"`, `"fp16"` or `"bf16"`.
        is_sharded: Whether FSDP will shard the network.
        train: The training set, for the numbers of examples of its classes.
    """

    args: FaMUSTrainingArguments
    train_examples: Callable[[int], dict[str, Any]]
    meta_examples: Callable[[int], dict[str, Any]]
    processes: Processes = field(default_factory=Processes)
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    mixed_precision: str = "no"
    is_sharded: bool = False
    train: Any = None


def make_meta_update(
    network: nn.Module,
    environment: Environment,
    meta_learner: MetaLearner | None = None,
    layer_sampler: LayerSampler | None = None,
    seed: int | None = None,
) -> MetaUpdate:
    """Return what learns from meta batches: the objects given, else those that the settings name.

    Args:
        network: Of whose layers they are told.
        environment: What it is trained in.
        meta_learner: Ψ.
        layer_sampler: Γ.
        seed: Of their initial weights and of the gates' noise. Default: `args.seed`.
    """
    args, processes = environment.args, environment.processes
    seed = args.seed if seed is None else seed
    with preserve_rng_state(args.device):  # plain and meta training of one seed see the same batches
        torch.manual_seed(seed)
        inputs, _, _ = split_inputs(environment.train_examples(2))
        layers = _find_layers(network, inputs)
        with torch.no_grad():
            num_labels = logits_without_trace(network, inputs).shape[1]
        made_for = getattr(meta_learner, "num_labels", num_labels)
        if isinstance(meta_learner, MADE_FOR_CLASSES) and made_for != num_labels:
            name = type(meta_learner).__name__
            raise SettingsError(f"{name} was made for {made_for} classes, and the network has {num_labels}")
        layer_sampler = layer_sampler or _make_layer_sampler(args)
        counts, names = partial(class_counts, environment.train, num_labels), names_of_network(network)
        examples = len(environment.train) if has_length(environment.train) else 1  # of a stream, which is refused later
        made_for = getattr(meta_learner, "num_examples", examples)
        if isinstance(meta_learner, LCCN) and made_for != examples:
            raise SettingsError(f"LCCN was made for {made_for} examples, and the training set has {examples}")
        meta_learner = meta_learner or make_meta_learner(args, num_labels, counts, names, examples)
        check_meta_learner(args, meta_learner)
        derivative = _usable_derivative(network, environment) if meta_learner.has_meta_step else args.derivative
        meta = MetaUpdate(
            meta_learner,
            layer_sampler,
            layers,
            num_candidates=args.num_candidate_layers,
            objective=_objective(args, layer_sampler, derivative),
            learning_rate=args.meta_learning_rate,
            optimizer=args.meta_optim,
            follows_schedule=None if args.meta_lr_schedule is None else args.meta_lr_schedule == "main",
            sampler_learning_rate=args.sampler_learning_rate,
            relative_slopes=args.sampler_relative_slopes,
            virtual_scope=args.virtual_scope,
            seed=seed,
            device=args.device,
        )
        if meta_learner.has_meta_step and derivative != "finite":
            _report_attention(network, environment)
        if args.scale_example_gradients:
            _check_scaling(network, environment)
        if args.meta_budget is not None:
            costs = processes.first_object(_measure_costs(network, environment, meta))
            meta.set_budget(Budget(args.meta_budget, costs), Timer(args.device))
        for module in (meta.meta_learner, meta.layer_sampler):
            processes.take_from_first([*module.parameters(), *module.buffers()])
        return meta


def follow_layers(network: nn.Module, environment: Environment, meta: MetaUpdate) -> None:
    """Tell what learns from meta batches which layers there are, as parameters were frozen or set free.

    Raises:
        SettingsError: There is none left, or settings do not go with those that there are.
    """
    args, processes = environment.args, environment.processes
    with preserve_rng_state(args.device):
        inputs, _, _ = split_inputs(environment.train_examples(2))
        if not meta.follow(_find_layers(network, inputs)):
            return
        if args.scale_example_gradients:
            _check_scaling(network, environment)
        if meta.budget is not None:
            meta.set_costs(processes.first_object(_measure_costs(network, environment, meta)))
        processes.take_from_first([*meta.layer_sampler.parameters(), *meta.layer_sampler.buffers()])


def _objective(args: FaMUSTrainingArguments, layer_sampler: LayerSampler, derivative: str) -> MetaObjective:
    default = 0.1 if isinstance(layer_sampler, LearnedSampler) else 0.0  # of λ1 and λ2
    return MetaObjective(
        args.expected_layers,
        default if args.sparsity_weight is None else args.sparsity_weight,
        default if args.gradient_match_weight is None else args.gradient_match_weight,
        derivative,
    )


def _find_layers(model: nn.Module, inputs: dict[str, Any]) -> list[Layer]:
    """Return them. Raise SettingsError where the network fails on its inputs, as many do on images too small."""
    try:
        return find_layers(model, inputs)
    except torch.OutOfMemoryError:  # a RuntimeError too, of which the images are not to blame
        raise
    except (RuntimeError, IndexError) as error:
        shapes = ", ".join(
            f"{name} {tuple(value.shape[1:])}" for name, value in inputs.items() if hasattr(value, "shape")
        )
        raise SettingsError(
            f"the network fails on the first training examples, of shape {shapes} ({reason_of(error)}): if images are "
            "too small for it, set image_size; if texts are too long, max_seq_length"
        ) from error


def takes_one_example(
    network: nn.Module, examples: Callable[[int], dict[str, Any]], autocast: Callable[[], AbstractContextManager[Any]]
) -> bool:
    """Return whether a network takes a batch of one example in training, by a pass that leaves no trace.

    Batch norm does not where that leaves it one value for each channel. Networks without it are not asked.

    Args:
        network: The network.
        examples: Returns the first training examples, of a given number, as a batch on the device.
        autocast: Returns a context for its passes.
    """
    if not any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        return True
    device = next(network.parameters()).device
    try:
        with preserve_rng_state(device), torch.no_grad(), in_mode(network, training=True), autocast():
            logits_without_trace(network, split_inputs(examples(1))[0])
    except ValueError as error:
        return ONE_VALUE not in str(error)
    except (RuntimeError, TypeError, IndexError):  # of another cause, which training tells
        return True
    return True


def make_base_loss(args: FaMUSTrainingArguments, model: Any, train: Any) -> PerExampleLoss:
    """Return the per-example loss that the settings name.

    Raises:
        SettingsError: It needs class counts, and the training set does not tell them.
    """
    smoothing = args.label_smoothing_factor
    if args.base_loss == "ce":
        return CrossEntropyLoss(smoothing)
    if args.base_loss == "focal":
        return FocalLoss(args.focal_gamma, smoothing)
    if args.base_loss == "gce":
        return GeneralizedCrossEntropyLoss(args.gce_q, smoothing)
    if args.base_loss == "sce":
        return SymmetricCrossEntropyLoss(args.sce_alpha, args.sce_beta, smoothing)
    if args.base_loss == "nce-rce":
        return ActivePassiveLoss(args.nce_alpha, args.nce_beta, smoothing)
    num_labels = getattr(getattr(model, "config", None), "num_labels", 0)
    counts = class_counts(train, num_labels, f"base_loss={args.base_loss!r}")
    if args.base_loss in ("class-balanced", "cb-focal"):
        gamma = args.focal_gamma if args.base_loss == "cb-focal" else 0.0
        return ClassBalancedLoss(counts, args.class_balance_beta, smoothing, gamma)
    if smoothing > 0:
        raise SettingsError("label_smoothing_factor does not go with base_loss 'ldam', which has margins instead")
    if not getattr(getattr(model, "config", None), "cosine_classifier", False):
        logger.warning("base_loss 'ldam' is made for a classifier of cosines, which this network is not known to have")
    return LDAMLoss(counts, args.ldam_max_margin, args.ldam_scale, args.ldam_reweight_from, args.class_balance_beta)


def class_counts(train: Any, num_labels: int, what: str) -> list[int]:
    """Return the number of training examples of each class, of C or more.

    Args:
        train: The training set.
        num_labels: C.
        what: Needs them, for messages.

    Raises:
        SettingsError: The training set does not tell them.
    """
    labels = [label for label in known_labels(train) if label != IGNORED]
    if not labels:
        raise SettingsError(
            f"{what} needs the number of examples of each class, which this train_dataset does not tell: give "
            f"FaMUSTrainer a {what.partition('=')[0]} object made with class_counts"
        )
    if min(labels) < 0:
        raise DataError(f"the training set holds the label {min(labels)}: every example needs a class")
    counts: list[int] = np.bincount(labels, minlength=num_labels).tolist()
    return counts


def make_meta_learner(
    args: FaMUSTrainingArguments,
    num_labels: int = 0,
    counts_for: Callable[[str], list[int]] | None = None,
    class_names: list[str] | None = None,
    num_examples: int = 1,
) -> MetaLearner:
    """Return the meta-learner that `args.meta_learner` names, with its settings; one of your own with its defaults.

    Args:
        args: The settings.
        num_labels: C, which some alone need.
        counts_for: What needs them → training examples of each class; some alone ask for them.
        class_names: C of them, for transitions of a file; None where nobody named the classes.
        num_examples: Of the training set, for `LCCN`.
    """
    if counts_for is not None and args.meta_learner == "jamal":
        return ClassBalancedResidual(counts_for("meta_learner='jamal'"), args.class_balance_beta)
    if counts_for is not None and args.meta_learner == "soft":
        counts = counts_for("meta_learner='soft' with class_heads") if args.class_heads > 1 else []
        return SoftTargets(args.soft_input, class_groups(counts, args.class_heads) if counts else None)
    if args.meta_learner == "mlc":
        return MLC(num_labels, args.mlc_form, args.mlc_keep_matrix, args.mlc_reduction)
    if args.meta_learner == "mw-net":
        return MWNet(weight_normalization=args.weight_normalization)
    if args.meta_learner in ("mentornet", "mentormix") and args.mentor_quantile is not None:
        return META_LEARNERS[args.meta_learner](args.mentor_quantile)
    if args.meta_learner == "lccn":
        return LCCN(num_labels, num_examples)
    if args.meta_learner in WITH_TRANSITIONS:
        return _make_label_noise(args, num_labels, class_names or list(map(str, range(num_labels))))
    return META_LEARNERS[str(args.meta_learner)]()


def _make_label_noise(args: FaMUSTrainingArguments, num_labels: int, class_names: list[str]) -> LabelNoise:
    is_posterior = args.meta_learner == "posterior"
    asked = args.transitions or ("calibrated" if is_posterior else "counts")
    source = asked if asked in SOURCES[:-1] else "given"
    learner: LabelNoise = (
        PosteriorTargets(num_labels, args.posterior_form, transition_rate=args.transition_rate, source=source)
        if is_posterior
        else CORRECTIONS[str(args.meta_learner)](num_labels, source)
    )
    if source == "given":
        learner.set_transitions(read_transitions(Path(asked), class_names))
    return learner


def make_pair_method(args: FaMUSTrainingArguments) -> PairMethod:
    """Return the pair method that `args.pair_method` names, with its settings; one of your own with its defaults."""
    return JoCoR(args.jocor_agreement) if args.pair_method == "jocor" else PAIR_METHODS[str(args.pair_method)]()


def has_meta_step(args: FaMUSTrainingArguments, meta_learner: MetaLearner | None) -> bool:
    """Return whether a meta-learner, or else the one that the settings name, learns from meta batches."""
    return (META_LEARNERS[str(args.meta_learner)] if meta_learner is None else meta_learner).has_meta_step


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
    return LAYER_SAMPLERS[args.layer_sampler]()


def _usable_derivative(network: nn.Module, environment: Environment) -> str:
    """Return `args.derivative`, checked on a pass of the network; of "auto", what agrees with its own backward pass.

    Of a network that is to be sharded nothing is asked, as it may be too large for one device.

    Raises:
        SettingsError: The one that is asked for is wrong for the network, or all are.
    """
    args, processes = environment.args, environment.processes
    if environment.is_sharded:
        return "finite"
    inputs, labels, _ = split_inputs(environment.train_examples(PROBED))
    with in_mode(network, training=True), environment.autocast(), torch.enable_grad():
        with differentiable_attention():
            probe = BackwardReference(training_pass_without_trace(network, inputs, labels))
        asked: str = args.derivative
        faults = {way: probe.fault_of(way) for way in ("forward", "reverse") if asked in (way, "auto")}
        if asked in faults and faults[asked] is not None:
            raise SettingsError(
                f"derivative={asked!r} does not work with this network, as {_in_words(asked, faults[asked])}: use auto"
            )
        if asked == "auto":
            asked = processes.first_object(_first_without_fault(faults))
        if asked == "reverse" and args.derivative == "auto":
            logger.warning(
                f"the derivative is taken by two backward passes, as {_in_words('forward', faults['forward'])}"
            )
        if asked == "finite":
            _check_differences(probe, environment, [_in_words(way, fault) for way, fault in faults.items()])
    return asked


def _first_without_fault(faults: dict[str, str | None]) -> str:
    if not any(faults.values()):
        return "auto"
    return next((way for way, fault in faults.items() if fault is None), "finite")


def _in_words(way: str, fault: str | None) -> str:
    return f"{'forward mode' if way == 'forward' else 'a second backward pass'} does not work with it ({fault})"


def _check_differences(probe: BackwardReference, environment: Environment, reasons: list[str]) -> None:
    """Say how far finite differences are off on a pass of the network. reasons: Why there is nothing better.

    Raises:
        SettingsError: Too far.
    """
    because = f", as {' and '.join(reasons)}" if reasons else ""
    if environment.mixed_precision != "no":  # in whose rounding they drown
        raise SettingsError(
            f"no derivative is left for this network under mixed precision{because}: leave that out, or load the "
            "network with attn_implementation='sdpa'"
        )
    error = probe.error_of("finite")
    if error > MAX_ERROR:
        raise SettingsError(
            f"no derivative is left for this network{because}; finite differences are off by {100 * error:.0f} % of "
            "what its backward pass gives, as where it rounds: use another network, or meta_learner='none'"
        )
    logger.warning(
        "the derivative is taken by finite differences, two more forward passes of the training batch in each meta "
        f"step, off by {100 * error:.2g} % on the first training examples{because}"
    )


def _report_attention(network: nn.Module, environment: Environment) -> None:
    args = environment.args
    inputs, _, _ = split_inputs(environment.train_examples(min(8, max(2, args.train_batch_size))))
    with environment.autocast():
        sentence = report_attention(network, inputs, Timer(args.device).now)
    if sentence is not None and args.should_log:
        logger.warning(sentence)


def _check_scaling(network: nn.Module, environment: Environment) -> None:
    """Raise SettingsError where the examples of a batch are coupled, or gradients have several sources."""
    inputs, labels, _ = split_inputs(environment.train_examples(3))
    with in_mode(network, training=True), environment.autocast():
        training_pass = training_pass_without_trace(network, inputs, labels)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    losses = cross_entropy(training_pass.logits, labels)
    reason = why_gradients_do_not_scale(losses, parameters, training_pass.record)
    if reason is not None:
        raise SettingsError(f"scale_example_gradients does not work with this network, as {reason}: leave it out")


def _measure_costs(network: nn.Module, environment: Environment, meta: MetaUpdate) -> LayerCosts:
    """Measure costs on a training batch and a meta batch of the sizes that training will see."""
    args = environment.args
    inputs, labels, _ = split_inputs(environment.train_examples(max(2, args.train_batch_size)))
    meta_inputs, meta_labels, _ = split_inputs(environment.meta_examples(args.meta_batch_size or 1))
    with in_mode(network, training=True):
        with environment.autocast(), differentiable_attention():
            training_pass = training_pass_without_trace(network, inputs, labels)
        is_shown = args.should_log and not args.disable_tqdm
        with tqdm(total=num_timings(len(meta.candidates)), desc="Timing layers", disable=not is_shown) as bar:
            return measure_layer_costs(
                training_pass,
                meta_inputs,
                meta_labels,
                meta.candidates,
                meta.objective.derivative,
                always=meta.objective.gradient_match_weight > 0,
                on_progress=bar.update,
            )


def first_examples(dataset: Any, count: int) -> list[Any]:
    """Return the first examples of a data set, or of a stream; fewer where it has fewer."""
    if isinstance(dataset, IterableDataset):
        return list(islice(dataset, count))
    return [dataset[row] for row in range(min(count, len(dataset)))]
