"""What BilateralBranchTrainer refuses before training starts, each in one sentence: what was seen, what is allowed."""

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_peft_model

from famus_hf.core.losses import LDAMLoss
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.data.inputs.training_rows import PARTNER, PartneredRows, columns_of
from famus_hf.errors import DataError, SettingsError
from famus_hf.models.bilateral_branch import BilateralBranchForImageClassification
from famus_hf.trainer import preflight
from famus_hf.training_args import FaMUSTrainingArguments


def check_bilateral_branch(
    args: FaMUSTrainingArguments,
    model: Any,
    train: Any,
    base_loss: Any,
    given: Any,
    compute_loss_func: Any,
    accelerator: Accelerator,
) -> None:
    """Raise SettingsError on what a network with two branches can't be trained with.

    Args:
        args: The settings.
        model: The network.
        train: The training set.
        base_loss: ℓ.
        given: Meta-learner and layer sampler objects, or None for each.
        compute_loss_func: Trainer's.
        accelerator: The run's.
    """
    if not isinstance(model, BilateralBranchForImageClassification):
        raise SettingsError(
            f"a {type(model).__name__} has no two branches: give BilateralBranchForImageClassification.of(network)"
        )
    if args.meta_learner != "none" or given[0] is not None:
        raise SettingsError(
            "two branches learn without a meta-learner, and one is asked for: set meta_learner to 'none' (--method bbn)"
        )
    labels = known_labels(train)
    if not labels or min(labels) < 0:
        raise SettingsError(
            "the partners of two branches are drawn by class, and this train_dataset does not tell the class of every "
            "example without being read through: give a data set of datasets with class labels"
        )
    preflight.refuse(
        "two branches",
        {
            "FSDP": preflight.uses_fsdp(accelerator),
            "DeepSpeed": getattr(accelerator.state, "deepspeed_plugin", None) is not None,
            "PEFT": is_peft_model(model),
            "a layer_sampler object": given[1] is not None,
            "compute_loss_func": compute_loss_func is not None,
            "train_on_trusted": args.asks_for_trusted,
            f"mixup_alpha={args.mixup_alpha}": bool(args.mixup_alpha),
            "base_loss 'ldam'": isinstance(base_loss, LDAMLoss),
            "logit_adjustment": args.logit_adjustment > 0,
            "elr_weight": args.elr_weight > 0,
            "sample_weight_column": args.sample_weight_column is not None,
            f"balanced_batches_per_epoch={args.balanced_batches_per_epoch}": args.balanced_batches_per_epoch
            is not None,
            f"train_sampling_strategy={args.train_sampling_strategy!r}": args.train_sampling_strategy != "random",
            f"one process that sees {args.n_gpu} devices": args.n_gpu > 1,
        },
    )
    batch = args.gradient_accumulation_steps * args.train_batch_size * args.world_size
    epochs = args.max_steps * batch / len(train) if args.max_steps > 0 else args.num_train_epochs
    if epochs <= 1:
        raise SettingsError(
            f"{epochs:.2g} epochs leave two branches none in which the re-balancing one learns, whose share is 0 in "
            "the first: train longer"
        )


def check_partners(train: Any, collate: Callable[[list[Any]], Any]) -> None:
    """Raise FaMUSError on examples that can't have the image and the label of a partner beside their own."""
    columns = columns_of(train[0])
    if "pixel_values" not in columns:
        raise DataError(f"two branches take images, and the examples hold {', '.join(columns)}: give pixel_values")
    pairs = PartneredRows(train).__getitems__([(0, 0)] * 2)
    dropped = sorted(name for name in set(pairs[0]) - set(collate(pairs)) if name.startswith(PARTNER))
    if dropped:
        raise SettingsError(
            f"two branches need the column {dropped[0]!r} in each training batch, which the data_collator drops: have "
            "it keep that column"
        )
