"""What a Trainer logs of its meta steps, example weights and times."""

import torch
from torch import Tensor

from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.meta_train import MetaTrain
from famus_hf.core.non_finite import NonFiniteGuard
from famus_hf.core.three_stages import ThreeStages, VirtualTrain
from famus_hf.reporting.diagnostics.mean_metrics import MeanMetrics
from famus_hf.trainer.learning_mixin import LearningMixin


class LogsMixin(LearningMixin):
    """What a Trainer needs to log its meta steps.

    Attributes:
        metrics: Of the next log entry.
        guard: Counts the steps that were left out.
    """

    metrics: MeanMetrics
    guard: NonFiniteGuard

    def _note_meta_step(self, outcome: MetaTrain) -> None:
        self.guard.note_meta_step(outcome.is_finite or self.accelerator.scaler is not None)
        self.metrics.add("mean_active_layers", torch.tensor(float(sum(outcome.switched_on))))
        if outcome.meta_loss is not None:
            self.metrics.add("meta_loss", outcome.meta_loss)

    @torch.no_grad()
    def _note_weights(
        self, stages: ThreeStages, train: TrainingPass, virtual: VirtualTrain | None, clean_labels: Tensor | None
    ) -> None:
        """Log the weights of this step's clean and wrong examples, relative to those of plain training."""
        if clean_labels is None:
            return
        is_reused = virtual is not None and stages.settings.reuse_virtual_gradient
        weights = virtual.weights if virtual is not None and is_reused else stages.example_weights(train)
        if weights is None:
            return
        relative = self.processes.own(weights * len(weights))  # 1 is what plain training gives every example
        labels = train.labels
        wrong = (labels if labels.dim() == 1 else labels.argmax(1)) != clean_labels.to(labels.device)
        for name, group in (("mean_weight_clean", relative[~wrong]), ("mean_weight_noisy", relative[wrong])):
            if len(group):
                self.metrics.add(name, group.mean())

    @property
    def mean_meta_cost(self) -> float | None:
        """With a `meta_budget`: seconds that the gates' choice took so far, in plain steps (forward and backward)."""
        return None if self.meta is None else self.meta.measured_cost

    @property
    def mean_fixed_meta_cost(self) -> float | None:
        """With a `meta_budget`: what the rest of Virtual- and Meta-Train took, likewise."""
        return None if self.meta is None else self.meta.in_plain_steps("virtual backward", "validation forward")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.metrics.take(self.processes))
            if self.guard.count:
                logs["steps_left_out"] = self.guard.count  # since the start of this training
            if self.guard.meta_count:
                logs["meta_steps_left_out"] = self.guard.meta_count
        if self.training_time.seconds is not None:
            logs["train_seconds"] = round(self.training_time.seconds, 3)
        super().log(logs, start_time)
