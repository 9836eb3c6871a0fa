"""From a trainer's settings, network and data to its MetaModel, before training starts."""

from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from famus_hf.checks import check_labels
from famus_hf.derivatives import TrainingPass, logit_tangent
from famus_hf.layer_sampler import AllLayers, BlockSampler, LayerSampler, LearnedSampler, RandomLayers
from famus_hf.layers import Layer, find_layers
from famus_hf.meta_learners import MetaLearner, MWNet
from famus_hf.meta_model import MetaModel
from famus_hf.passes import get_random_state, logits_without_trace, random_state_kept, split_inputs
from famus_hf.stages import MetaObjective
from famus_hf.training_args import FaMUSTrainingArguments

if TYPE_CHECKING:
    from famus_hf.trainer import FaMUSTrainer

logger = logging.get_logger(__name__)


def make_meta_model(
    trainer: "FaMUSTrainer", meta_learner: MetaLearner | None, layer_sampler: LayerSampler | None
) -> MetaModel:
    """The objects given, else those that `trainer.args` name, told of the network's layers."""
    args = trainer.args
    with random_state_kept(args.device):  # plain and meta training of one seed see the same batches
        torch.manual_seed(args.seed)
        if layer_sampler is None:
            layer_sampler = _make_layer_sampler(args)
        default_weight = 0.1 if isinstance(layer_sampler, LearnedSampler) else 0.0  # of λ1 and λ2
        return MetaModel(
            meta_learner or MWNet(weight_normalization=args.weight_normalization),
            layer_sampler,
            _probe_layers(trainer),
            num_candidates=args.num_candidate_layers,
            objective=MetaObjective(
                args.expected_layers,
                default_weight if args.sparsity_weight is None else args.sparsity_weight,
                default_weight if args.gradient_match_weight is None else args.gradient_match_weight,
                _usable_derivative(trainer),
            ),
            learning_rate=args.meta_learning_rate,
            optimizer=args.meta_optim,
            sampler_learning_rate=args.sampler_learning_rate,
            seed=args.seed,
            device=args.device,
        )


def _make_layer_sampler(args: FaMUSTrainingArguments) -> LayerSampler:
    if args.layer_sampler == "learned":
        return LearnedSampler(temperature=args.sampler_temperature, initial_bias=args.sampler_initial_bias)
    if args.layer_sampler == "block":
        return BlockSampler(int(args.sampler_block or 0))
    if args.layer_sampler == "random":
        return RandomLayers(args.random_layers)
    return AllLayers()


def _usable_derivative(trainer: "FaMUSTrainer") -> str:
    """`args.derivative`, unless mixed precision or an operation of the network leaves only one way.

    Under bf16 autocast batch norm mixes precisions in forward mode, and finite differences drown in rounding.
    """
    if trainer.accelerator.mixed_precision == "bf16":
        return "reverse"
    if trainer.args.derivative != "auto":
        return trainer.args.derivative
    inputs, labels, _ = split_inputs(_probe_batch(trainer))
    logits = logits_without_trace(trainer.model, inputs)
    probe = TrainingPass(trainer.model, inputs, labels, logits, get_random_state(labels.device))
    direction = {name: torch.ones_like(p) for name, p in trainer.model.named_parameters() if p.requires_grad}
    try:
        logit_tangent(probe, direction, "forward")
    except NotImplementedError as error:
        logger.warning(f"finite differences are used, as the network has no forward-mode derivative ({error})")
        return "finite"
    return "auto"


def _probe_batch(trainer: "FaMUSTrainer") -> dict[str, Any]:
    examples = [trainer.train_dataset[row] for row in range(min(2, len(trainer.train_dataset)))]
    return trainer._prepare_inputs(trainer.data_collator(examples))


def _probe_layers(trainer: "FaMUSTrainer") -> list[Layer]:
    """Layers in order of their first call, from a pass over two training examples."""
    inputs, labels, _ = split_inputs(_probe_batch(trainer))
    check_labels(trainer, labels)
    with torch.no_grad():
        return find_layers(trainer.model, inputs)
