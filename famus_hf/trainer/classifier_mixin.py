"""What a Trainer needs to train and judge classifiers well: the paper's schedule, whole evaluation sets, its losses."""

from bisect import bisect_right
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import PushToHubMixin

from famus_hf.core.autodiff.forward_pass import model_logits, split_inputs
from famus_hf.core.losses import CrossEntropyLoss, cross_entropy, mean_loss
from famus_hf.core.meta_learners import PerExampleLoss
from famus_hf.data.inputs.class_balanced import ClassBalancedSampler
from famus_hf.data.inputs.convert import as_model_inputs
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.data.inputs.raw_data import DataForm
from famus_hf.reporting.diagnostics.training_time import TrainingTime
from famus_hf.training_args import FaMUSTrainingArguments

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object


def step_decay(milestones: list[int], warmup_steps: int, step: int) -> float:
    """Return the factor of the learning rate at a step: a tenth for each milestone reached, risen linearly before."""
    rise = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return rise * 0.1 ** bisect_right(milestones, step)


class ClassifierMixin(Base):
    """What a Trainer needs beside its own to train classifiers well.

    Attributes:
        base_loss: ℓ, a per-example loss: logits (n, C), labels → (n,).
        training_time: Stopped during evaluations.
        form: How its data sets are taken: with which columns and classes.
    """

    args: FaMUSTrainingArguments
    model: nn.Module
    train_dataset: Any
    base_loss: PerExampleLoss
    training_time: TrainingTime
    form: DataForm
    _is_foreign: bool

    # ---- Optimizer and schedule ----

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return what decays: with SGD all parameters, as in the paper's recipes; otherwise by transformers' rule.

        So too in a run that goes on from a checkpoint of transformers' own Trainer, whose optimizer has these groups.
        """
        if OptimizerNames(self.args.optim) == OptimizerNames.SGD and not self._is_foreign:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        is_constant = SchedulerType(self.args.lr_scheduler_type) == SchedulerType.CONSTANT
        warmup_steps = self.args.get_warmup_steps(num_training_steps)
        if self.lr_scheduler is None and is_constant and (self.args.lr_milestones or warmup_steps):
            steps = [round(m * num_training_steps) if m < 1 else round(m) for m in self.args.lr_milestones]
            target: Any = optimizer or self.optimizer
            decay = partial(step_decay, sorted(steps), warmup_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(target, decay)
            self._created_lr_scheduler = True  # else the next train() would go on with this one, at its end
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- Batches ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        batches = self.args.balanced_batches_per_epoch
        if batches is None:
            return super()._get_train_sampler(train_dataset)
        size = batches * self.args.train_batch_size * self.args.world_size
        return ClassBalancedSampler(known_labels(self.train_dataset), size, self.args.seed)

    # ---- Evaluation ----

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return our base loss in training where it is not plain cross-entropy, else the network's own one.

        Either is a mean over the examples that have a label.
        """
        hard = inputs["labels"].dim() == 1  # with soft targets a network of transformers would train one class by one
        if not isinstance(self.model, PushToHubMixin) or not hard or (model.training and not self._is_network_loss):
            batch, labels, _ = split_inputs(inputs)
            logits = model_logits(model, batch)
            loss = mean_loss(self.base_loss if model.training else cross_entropy, logits, labels)
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @property
    def _is_network_loss(self) -> bool:
        return (
            type(self.base_loss) is CrossEntropyLoss
            and self.base_loss.label_smoothing == self.args.label_smoothing_factor
        )

    def _get_dataloader(self, dataset: Any, *arguments: Any, **keywords: Any) -> DataLoader:
        """Keep evaluation sets whole: transformers drops their last batch too, and so would judge on a part of them."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and keywords.get("is_training", False)
        try:
            return super()._get_dataloader(dataset, *arguments, **keywords)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(self, eval_dataset: Any = None, *arguments: Any, **keywords: Any) -> dict[str, float]:
        with self.training_time.stopped():
            whose = "the evaluation set"
            inputs = as_model_inputs(self.form.of(eval_dataset, whose), self.processing_class, whose)
            return super().evaluate(inputs, *arguments, **keywords)

    def predict(self, test_dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        whose = "the test set"
        inputs = as_model_inputs(self.form.of(test_dataset, whose), self.processing_class, whose)
        return super().predict(inputs, *arguments, **keywords)
