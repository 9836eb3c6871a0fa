"""What a network makes of examples after it has learned plainly from others: one turn of cross-validation."""

import copy
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Subset
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import PerExampleLoss
from famus_hf.data.per_example import PerExample
from famus_hf.trainer.trainer import FaMUSTrainer
from famus_hf.training_args import FaMUSTrainingArguments

# Settings of a turn that are not those of its run. It drops what fills no batch, however many examples it learns from.
OF_A_TURN: dict[str, Any] = {
    "pair_method": None, "noise_rate": None, "forget_ramp_epochs": None, "cross_validation_epochs": None,
    "plain_warmup_epochs": None, "label_smoothing_factor": 0.0, "max_steps": -1, "dataloader_drop_last": True,
    "label_report": False, "load_best_model_at_end": False, "eval_on_start": False,
    "eval_strategy": IntervalStrategy.NO, "save_strategy": SaveStrategy.NO, "logging_strategy": IntervalStrategy.NO,
    "report_to": [], "push_to_hub": False, "resume_from_checkpoint": None, "disable_tqdm": True,
}  # fmt: skip


def settings_of_turn(args: FaMUSTrainingArguments, epochs: float, steps: int) -> FaMUSTrainingArguments:
    """Return the settings of a turn: those of the run, its schedule squeezed into fewer epochs.

    They are copied and not made anew, as that would take accelerate's state from under the trainer of the run.

    Args:
        args: Of the run.
        epochs: Of the turn.
        steps: Of the run.
    """
    own = copy.copy(args)
    schedule = {
        "num_train_epochs": epochs,
        "lr_milestones": [point if point < 1 else point / steps for point in args.lr_milestones],
        "warmup_steps": args.warmup_steps if args.warmup_steps < 1 else args.warmup_steps / steps,
    }
    for name, value in {**OF_A_TURN, **schedule}.items():
        setattr(own, name, value)
    return own


def judged_after_learning(
    network: nn.Module,
    train_dataset: Any,
    learned: np.ndarray,
    judged: np.ndarray,
    args: FaMUSTrainingArguments,
    *,
    collate: Callable[[list[Any]], Any],
    processor: Any,
    base_loss: PerExampleLoss,
) -> PerExample:
    """Train a network plainly on some rows. Return what it makes of others. All processes call it.

    Nothing is written, and the random generators are then where they were.

    Args:
        network: Is changed.
        train_dataset: Of model inputs.
        learned: Rows that are trained on.
        judged: Rows that are judged.
        args: See `settings_of_turn`.
        collate: From examples to a batch.
        processor: Of images; None where the inputs were made by others.
        base_loss: ℓ.
    """
    args = copy.copy(args)
    with preserve_rng_state(args.device), TemporaryDirectory() as args.output_dir:
        trainer = FaMUSTrainer(
            network,
            args,
            collate,
            Subset(train_dataset, learned.tolist()),
            processing_class=processor,
            base_loss=base_loss,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        others = Subset(train_dataset, judged.tolist())
        return trainer.evaluate_examples(trainer.model, others, cross_entropy, with_probabilities=True)
