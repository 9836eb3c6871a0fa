"""What a Trainer's network believes of its training examples before it learns them: for meta-learners and reports."""

from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_pass import logits_of, preserve_rng_state
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.beliefs import HonestBeliefs
from famus_hf.core.losses import adjusted, cross_entropy, mean_loss
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_learners.label_noise import LabelNoise
from famus_hf.core.training_signal import TrainingSignal, training_signal
from famus_hf.core.transitions import joint_by_trusted, transitions_of_joint
from famus_hf.data.inputs.model_inputs import ModelInputs
from famus_hf.data.per_example import ExampleEvaluator
from famus_hf.trainer import preflight_rows
from famus_hf.trainer.beliefs_checkpoints_mixin import BeliefsCheckpointsMixin

MEMORY_LIMIT = 2**30  # bytes of running predictions; of larger sets none are kept


class BeliefsMixin(BeliefsCheckpointsMixin):
    """Keeps running predictions where there are trusted examples to compare them with.

    Attributes:
        evaluate_examples: Network, data set, loss → what the network makes of each example.
    """

    evaluate_examples: ExampleEvaluator
    _observed_at: int | None = None  # step before which the meta-learner last looked at beliefs
    _batch_rows: Tensor | None = None  # of the examples whose plain step is being taken

    def begin_beliefs(self) -> None:
        """Begin a training: nothing is believed yet."""
        train, learner = self.train_dataset, self.meta_learner
        self.beliefs, self.logit_shift, self._observed_at = None, None, None
        self._needs_beliefs = preflight_rows.needs_beliefs(self.args, learner)
        is_told_apart = isinstance(train, ModelInputs) and not self.mixes_examples
        self.keeps_beliefs = self._needs_beliefs or (self.args.label_report and is_told_apart)
        self.__dict__.pop("_trusted_in_training", None)  # of another seed, or another meta set
        if self.args.logit_adjustment:
            self._set_prior(torch.tensor(preflight_rows.class_labels(train)).bincount())

    @property
    def mixes_examples(self) -> bool:
        """Whether what the network makes of a training batch is not of single examples."""
        return bool(self.mixup_alpha)

    def _set_prior(self, of_training: Tensor) -> None:
        """Take the shares of classes in all that is trained on, for logit adjustment: τ log π.

        Args:
            of_training: Examples of each class without the trusted ones, shape (≤ C,).
        """
        trusted = preflight_rows.class_labels(self.meta_dataset)
        of_trusted = torch.tensor([trusted[row] for row in self._trusted_in_training], dtype=torch.int64).bincount()
        classes = max(self._num_labels, len(of_training), len(of_trusted))
        counts = torch.zeros(classes, dtype=torch.float32)
        for part in (of_training, of_trusted):
            counts[: len(part)] += part.cpu()
        counts = counts.clamp_min(1)
        self.logit_shift = self.args.logit_adjustment * (counts / counts.sum()).log().to(self.args.device)

    @property
    def _num_labels(self) -> int:
        return int(getattr(getattr(self.model, "config", None), "num_labels", 0))

    @property
    def evidence(self) -> HonestBeliefs | None:
        """By which beliefs labels are judged; None where those of before labels were learned by heart are not known."""
        if self.beliefs is None:
            return None
        return self.beliefs.of_first_part if self.judges_by_early else self.beliefs.honest

    def training_signal(self) -> TrainingSignal | None:
        """Return how much of what the network learned from was right, by trusted examples that it did not learn from.

        None without such examples or a meta-learner, and where it is not known how the training labels go wrong.
        """
        learner, beliefs = self.meta_learner, self.beliefs
        if learner is None or beliefs is None or beliefs.epoch == 0 or not self.has_trusted:
            return None
        known = beliefs.honest
        if known is None:
            return None
        given, believed = beliefs.labels.clamp(min=0), known.probabilities
        came_by = believed.any(1)
        of_trusted = known.trusted_labels.numpy(force=True), known.trusted.numpy(force=True)
        joint = joint_by_trusted(given[came_by].numpy(force=True), believed[came_by].numpy(force=True), *of_trusted)
        transitions = torch.from_numpy(transitions_of_joint(joint))
        return training_signal(learner, known.trusted, known.trusted_labels, transitions, self.args.seed)

    # ---- In training ----

    def note_beliefs(self, rows: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Take in what the network predicts before it learns from a batch.

        Args:
            rows: Of the examples, as `TrainingRows` counts them, shape (n,).
            logits: Shape (n, C).
            labels: Shape (n,), or (n, C) of soft targets.

        Returns:
            What is believed of them now, shape (n, C), and their losses by given labels, shape (n,); of a trusted
            example the present prediction.
        """
        scale = self.evaluate_examples.logit_scale(self.model)
        with torch.no_grad():
            logits = adjusted(logits, self.logit_shift) if self._unmixed is None else self._logits_of_unmixed()
            probabilities = (scale * logits.float()).softmax(1)
            losses = self.base_loss(logits, labels.clamp(min=0)).float()
        if self.beliefs is None:
            count, classes = len(self.train_dataset), logits.shape[1]
            if 4 * count * classes > MEMORY_LIMIT and not self._needs_beliefs:
                self.keeps_beliefs = False
                return probabilities, losses
            self.beliefs = self._new_beliefs(classes)
        given = labels if labels.dim() == 1 else labels.argmax(1)
        told = given >= 0  # plain training takes examples without a label, too
        self.beliefs.is_early = self._is_early
        self.beliefs.update(rows[told], probabilities[told], given[told], losses[told])
        own = told & (rows < len(self.train_dataset))
        probabilities[own] = self.beliefs.of(rows[own])
        return probabilities, losses

    def describe(self, train: TrainingPass, rows: Tensor | None) -> None:
        """Tell a training pass what is known of its examples, beside inputs and labels.

        Args:
            train: Of this process's rows.
            rows: As `TrainingRows` counts them, shape (n,), where they are known.
        """
        train.logit_shift = self.logit_shift
        if self.mixture is not None:
            partner, share = self.mixture
            before = self.processes.rows_before(train.labels)
            train.mixture = train.gathered(partner + before), train.gathered(share)
        if rows is None:
            return
        rows = rows.to(train.labels.device)
        if self.batch_weights is not None:
            train.sample_weights = train.gathered(self.batch_weights)
        if self._trusted_in_training:
            train.is_trusted = train.gathered(rows >= len(self.train_dataset))
        if self.meta_learner is not None and self.meta_learner.needs_rows:
            train.rows = train.gathered(rows)
        if self.keeps_beliefs:
            beliefs, losses = self.note_beliefs(rows, train.logits, train.labels)
            if self.meta_learner is not None and self.meta_learner.needs_beliefs:
                train.beliefs = train.gathered(beliefs)
                train.label_losses = None if self.mixture is None else train.gathered(losses)
            if self.args.elr_weight:
                train.elr_targets = train.gathered(self._elr_targets(rows))

    def _elr_targets(self, rows: Tensor) -> Tensor:
        """Return the targets of early-learning regularization once beliefs are noted; 0 where none are, as of trusted.

        They are sums that begin at 0, as in the authors' code. Pulled to beliefs, whose rows sum to 1 from the first
        visit, a network agrees with itself before it has learned anything: with λ = 7 on digits it ended at 17 %, and
        not at 99 %.

        Args:
            rows: As `TrainingRows` counts them, shape (n,).

        Returns:
            Shape (n, C).
        """
        assert self.beliefs is not None
        own = rows < len(self.train_dataset)
        return self.beliefs.sums[rows.where(own, 0)] * own[:, None]

    def show_beliefs(self) -> None:
        """Have the meta-learner look at what is believed, where that is due: after the plain part, then each epoch.

        One that has seen enough looks no more, unless the settings or its method say so.
        """
        learner, step, every = self.meta_learner, self.state.global_step, max(1, self.schedule.steps_per_epoch)
        if not self._needs_beliefs or self.beliefs is None or self._observed_at == step:
            return
        first = self.schedule.warmup_steps(self.state.max_steps) or every
        if step < first or (step - first) % every:
            return
        self._observed_at = step
        self.beliefs.gather(self.processes)
        believed, labels = self.beliefs.known()
        anew = self.args.transition_counts == "each-epoch" or (learner is not None and learner.observes_each_epoch)
        if learner is not None and (anew or not self.beliefs.is_shown or learner.waits):
            if learner.observes_trusted:
                learner.observe_beliefs(*self._predict_trusted())
            else:
                learner.observe_beliefs(believed, labels, self.beliefs.trained.known())
        if self.args.logit_adjustment and not (learner is not None and learner.waits):
            self._set_prior(self._class_counts(believed, labels))
        self.beliefs.is_shown = True

    def _class_counts(self, beliefs: Tensor, labels: Tensor) -> Tensor:
        """Return how many of some examples are thought to be of each class, shape (C,)."""
        learner = self.meta_learner
        if isinstance(learner, LabelNoise) and learner.is_counted:
            return learner.class_counts(beliefs, labels)
        return beliefs.sum(0)

    def close_epoch_of_beliefs(self, is_over: bool) -> None:
        """Share what came by, and look at the trusted examples, if an epoch is over and not closed yet. All call it.

        Args:
            is_over: Whether the training is, and with it its last epoch.
        """
        beliefs = self.beliefs
        if beliefs is None or not beliefs.is_pending:
            return
        if not (is_over or self.schedule.epoch(self.state) > beliefs.begun + beliefs.epoch):
            return
        if not self.has_trusted:
            beliefs.gather(self.processes)
            beliefs.close_epoch()
            return
        predictions, labels = self._predict_trusted()
        beliefs.gather(self.processes)
        beliefs.observe(predictions, labels)

    def _predict_trusted(self) -> tuple[Tensor, Tensor]:
        """Return predictions of trusted examples, shape (m, C), and their labels, shape (m,).

        Their logits are adjusted where those of training are: else the two could not be compared.
        """
        with preserve_rng_state(self.args.device):
            examples = self.evaluate_examples(self.model, self._trusted_sample, cross_entropy, with_probabilities=True)
        predictions = torch.from_numpy(examples.probabilities)
        if self.logit_shift is not None:
            predictions = adjusted(predictions.log(), self.logit_shift).softmax(1)
        return predictions, torch.from_numpy(examples.labels)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rows, self._batch_rows = self._batch_rows, None
        if rows is None or not (model.training and self.keeps_beliefs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs[self.label_name]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        rows, logits = rows.to(labels.device), logits_of(outputs)
        self.note_beliefs(rows, logits.detach(), labels)
        if self.args.elr_weight:
            logits, targets = adjusted(logits, self.logit_shift), self._elr_targets(rows)
            batch = LabelledBatch(logits, labels, self.base_loss, mixture=self.mixture, elr_targets=targets)
            losses = batch.early_learning_losses(self.evaluate_examples.logit_scale(self.model))
            loss = loss + self.args.elr_weight * mean_loss(lambda *_: self.weighted(losses), logits, labels)
        return (loss, outputs) if return_outputs else loss
