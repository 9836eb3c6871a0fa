"""When meta steps are taken, and when the pseudo-clean meta set is chosen anew."""

import math
from typing import Any

from transformers import TrainerState

from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.per_example import PerExample
from famus_hf.training_args import FaMUSTrainingArguments


class MetaSetSchedule:
    """The warm-up, the meta steps after it, and the epochs in which examples are told apart by their losses.

    Args:
        args: `plain_warmup_epochs`, `meta_interval`, sizes of batches.
        judges_by_losses: Whether training examples are told apart by their losses, which must mean something by then.

    Attributes:
        plain_share, plain_epochs, plain_steps: Of a run before the first meta step, as `MetaLearner` has them.
        steps_per_epoch: Of the optimizer; 0 while it is not known, as with a stream.
    """

    def __init__(self, args: FaMUSTrainingArguments, judges_by_losses: bool):
        self.args, self.judges_by_losses = args, judges_by_losses
        self.steps_per_epoch = 0
        self.plain_share, self.plain_epochs, self.plain_steps = 0.0, math.inf, 0

    def warmup_steps(self, max_steps: int) -> int:
        """Return the number of plain steps before the first meta step, in a run of `max_steps`."""
        epochs = self.args.plain_warmup_epochs
        if epochs is not None:
            return round(epochs * self.steps_per_epoch)
        if self.plain_share > 0:
            steps = self.plain_share * max_steps
            if self.steps_per_epoch:
                steps = min(steps, max(self.plain_epochs * self.steps_per_epoch, self.plain_steps))
            return max(round(steps), min(self.steps_per_epoch, max_steps // 2))
        if not self.judges_by_losses:
            return 0
        return max(round(0.1 * max_steps), min(2 * self.steps_per_epoch, max_steps // 2))

    def is_warmup(self, state: TrainerState) -> bool:
        """Return whether the present step is a plain one before the first meta step."""
        return state.global_step < self.warmup_steps(state.max_steps)

    def is_meta_step(self, state: TrainerState) -> bool:
        """Return whether θ moves in the present step, which comes after the warm-up."""
        return state.global_step % self.args.meta_interval == 0

    def epoch(self, state: TrainerState) -> int:
        """Return the number of the present step's epoch, from 0."""
        return state.global_step // max(1, self.steps_per_epoch)

    def is_due(self, chosen: Any, state: TrainerState) -> bool:
        """Return whether a set is to be chosen before this step: the first meta step, or the first of an epoch."""
        return isinstance(chosen, PseudoCleanSet) and chosen.epoch < self.epoch(state)

    def choose(self, chosen: PseudoCleanSet, examples: PerExample, state: TrainerState) -> dict[str, float]:
        """Choose the pseudo-clean examples for this epoch. Return what is logged of the choice.

        Args:
            chosen: The meta set.
            examples: What the network makes of all training examples.
            state: Of the training.
        """
        fewest = (self.args.meta_batch_size or 1) * self.args.world_size
        chosen.choose(examples.losses, examples.correct, fewest, self.args.seed, self.epoch(state))
        purity = {} if chosen.purity is None else {"meta_set_purity": chosen.purity}
        return {**purity, "meta_set_size": float(len(chosen))}
