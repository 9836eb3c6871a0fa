"""SelectionMixin: for a Trainer of two networks that learn only from what cross-validation selects before."""

import copy
import logging
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from tqdm.auto import tqdm

from famus_hf.core.cross_validation import COUNTS, OPEN, NoisyCrossValidation
from famus_hf.core.pair_methods.base import PairMethod
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.data.inputs.samplers import ChosenRowsSampler
from famus_hf.data.per_example import PerExample
from famus_hf.errors import FaMUSError, LoadError, first_few
from famus_hf.storage.saved_state import Check, check_state, is_tensor, is_whole
from famus_hf.trainer.factory import make_pair_method
from famus_hf.training_args import FaMUSTrainingArguments
from famus_hf.two_networks.ensemble import EnsembleTrainer
from famus_hf.two_networks.half_training import judged_after_learning, settings_of_turn

TURN_SHARE = 0.5  # of the epochs of a run, that a turn takes where nobody says else
SHARE, PRECISION = "selected_share", "selected_precision"  # in the log

logger = logging.getLogger("famus_hf")


class SelectionMixin(EnsembleTrainer):
    """Selects examples before the first step, where the pair method says so, by copies of the first network.

    The turns of the selection are a part of the training: its time contains them, and after each there is a checkpoint
    of step 0 from which a run that is stopped goes on. An epoch of training has as many steps as without a selection.

    Attributes:
        estimate: The share of labels that are wrong; None before, and where it is given or not needed.
        selection: What is selected; None with a method that does without.
    """

    estimate: float | None = None
    selection: NoisyCrossValidation | None = None

    @property
    def pair_method(self) -> PairMethod:
        """Says what is learned from a batch."""
        return make_pair_method(self.args)

    @property
    def estimates_noise_rate(self) -> bool:
        """Whether the share of wrong labels is needed, and nobody gives it."""
        return self.pair_method.forgets and self.args.noise_rate is None

    def forget_earlier_training(self) -> None:
        super().forget_earlier_training()
        self.estimate, self.selection = None, self._new_selection()

    def _new_selection(self) -> NoisyCrossValidation | None:
        args = self.args
        if not self.pair_method.cross_validates:
            return None
        rounds, drop = args.cross_validation_rounds, args.cross_validation_drop
        return NoisyCrossValidation(len(self.train_dataset), rounds, drop, args.seed)

    # ---- The turns ----

    def begin_epoch(self) -> None:
        super().begin_epoch()
        if self.selection is not None and self.state.global_step == 0 and not self.selection.is_over:
            self._select(self.selection)

    def _select(self, selection: NoisyCrossValidation) -> None:
        """Take the turns that are left.

        Raises:
            FaMUSError: Nothing is selected.
        """
        args = self.args
        is_hidden = args.disable_tqdm or not args.should_log
        with tqdm(desc="Cross-validation", total=2 * selection.rounds, disable=is_hidden) as bar:
            bar.update(selection.turn)
            while not selection.is_over:
                self._take_turn(selection)
                bar.update()
                if args.save_strategy != "no" and not args.save_only_model and self.hp_search_backend is None:
                    self._save_checkpoint(self.model, None)
        self._check_selection(selection)

    def _take_turn(self, selection: NoisyCrossValidation) -> None:
        examples = self._judged_half(*selection.halves())
        assert examples.probabilities is not None
        agrees = examples.probabilities.argmax(1) == examples.labels
        selection.take(agrees, examples.losses, examples.correct)
        if self.estimates_noise_rate:
            self.estimate = selection.noise_rate(examples.probabilities.shape[1])
        known = {} if examples.correct is None else {PRECISION: selection.precision}
        self.log({SHARE: float(selection.selected.mean()), **known})

    def _judged_half(self, learned: np.ndarray, judged: np.ndarray) -> PerExample:
        """Return what a copy of the first network, which has not learned yet, makes of rows after it has of others."""
        return judged_after_learning(
            copy.deepcopy(self.both_networks[0]),
            self.train_dataset,
            learned,
            judged,
            self._settings_of_turn,
            collate=self.data_collator,
            processor=self.processing_class,
            base_loss=self.base_loss,
        )

    @property
    def _settings_of_turn(self) -> FaMUSTrainingArguments:
        epochs, steps = self.args.cross_validation_epochs, self.state.max_steps
        of_run = steps / self.schedule.steps_per_epoch
        return settings_of_turn(self.args, max(1.0, TURN_SHARE * of_run) if epochs is None else epochs, steps)

    def _check_selection(self, selection: NoisyCrossValidation) -> None:
        """Warn of classes of which nothing is selected. Raise FaMUSError where nothing is at all."""
        if not selection.selected.any():
            raise FaMUSError(
                f"of {len(selection.selected)} labels none was predicted in cross-validation, so that nothing is left "
                "to learn from: raise cross_validation_epochs"
            )
        labels = np.array(known_labels(self.train_dataset), dtype=np.int64)
        lost = np.setdiff1d(labels, labels[selection.rows]) if len(labels) else labels
        if len(lost):
            self._warn(
                "cross-validation selects no example of %s classes (%s), which are not learned: raise "
                "cross_validation_epochs, or choose another method for rare classes",
                len(lost),
                first_few(lost.tolist()),
            )

    # ---- What they are for ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        selection = self.selection
        if selection is None:
            return super()._get_train_sampler(train_dataset)
        return ChosenRowsSampler(lambda: selection.rows, len(self.train_dataset), self.args.data_seed or 0)

    @property
    def selection_facts(self) -> dict[str, Any]:
        """What is selected: how many, how many of them rightly where that is known, and in how many seconds."""
        told = [entry for entry in self.state.log_history if SHARE in entry]
        if self.selection is None or not told:
            return {}
        return {
            "selected_examples": len(self.selection.rows),
            "selected_precision": told[-1].get(PRECISION),
            "cross_validation_seconds": told[-1].get("train_seconds"),
        }

    # ---- Checkpoints ----

    def _take_selection(self, state: Any) -> None:
        """Take back the state of a selection; None: the checkpoint has none. Raise LoadError where it does not fit."""
        if (state is None) != (self.selection is None):
            whose = "another pair_method" if self.selection is None else "a pair_method without cross-validation"
            raise LoadError(f"it is of a run with {whose}: give the same")
        if self.selection is not None:
            check_state("the selection", state, self._fields_of_selection)
            self.selection.load_state_dict(state)

    @property
    def _fields_of_selection(self) -> dict[str, tuple[Check, str]]:
        total = len(self.train_dataset)
        return {
            **{name: (is_whole(), f"a {name} that is no whole number of at least 0") for name in COUNTS},
            "settled_at": (is_tensor((total,), torch.int64, OPEN), f"settled_at that is not of {total} examples"),
            "selected": (is_tensor((total,), torch.bool), f"selected that is not of {total} examples"),
        }
