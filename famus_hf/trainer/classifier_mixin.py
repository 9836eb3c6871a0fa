"""What a Trainer needs to train and judge classifiers well: the paper's schedule, whole evaluation sets, its losses."""

import inspect
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import PredictionOutput, RemoveColumnsCollator, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import PushToHubMixin

from famus_hf.core.autodiff.forward_pass import RECORD_COLUMNS, logits_of, named_outputs
from famus_hf.core.losses import CrossEntropyLoss, adjusted, mean_loss
from famus_hf.core.meta_learners.base import LabelledBatch, PerExampleLoss
from famus_hf.data.inputs.convert import as_model_inputs
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.data.inputs.raw_data import DataForm
from famus_hf.data.inputs.samplers import ClassBalancedSampler
from famus_hf.data.inputs.training_rows import TrainingRows
from famus_hf.storage.model_folder import adapted_network
from famus_hf.trainer.learning_mixin import LearningMixin
from famus_hf.training_args import FaMUSTrainingArguments


def step_decay(milestones: list[int], warmup_steps: int, step: int) -> float:
    """Return the factor of the learning rate at a step: a tenth for each milestone reached, risen linearly before."""
    rise = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return rise * 0.1 ** bisect_right(milestones, step)


@contextmanager
def without_label_smoothing(args: FaMUSTrainingArguments) -> Iterator[None]:
    """Hide it from Trainer's constructor, which fails on networks without a configuration (transformers 5.23)."""
    smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
    try:
        yield
    finally:
        args.label_smoothing_factor = smoothing


def with_labels(collate: Callable[[list[Any]], Any], name: str, examples: list[Any]) -> Any:
    """Return a batch whose labels, called `name` by the network, are called `labels`."""
    batch = collate(examples)
    return {"labels" if key == name else key: value for key, value in batch.items()}


class ClassifierMixin(LearningMixin):
    """What a Trainer needs beside its own to train classifiers well.

    Attributes:
        base_loss: ℓ, a per-example loss: logits (n, C), labels → (n,).
        form: How its data sets are taken: with which columns and classes.
    """

    train_dataset: Any
    base_loss: PerExampleLoss
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
        train = self.train_dataset if train_dataset is None else train_dataset
        if batches is None:
            is_whole = isinstance(train, TrainingRows) and not train.chosen
            return super()._get_train_sampler(train.train if is_whole else train)  # which may have a column of lengths
        size = batches * self.args.train_batch_size * self.args.world_size
        labels = train.labels if isinstance(train, TrainingRows) else known_labels(train)
        return ClassBalancedSampler(labels, size, self.args.seed)

    @property
    def _collate(self) -> Callable[[list[Any]], Any]:
        """What makes a batch of examples: the collator, perhaps without what neither the network nor the logs take.

        A collator of transformers makes tensors of all that it is given, and so is never given a text; one of the
        user's may need it, and is given all, unless `remove_unused_columns` says otherwise.
        """
        is_transformers = getattr(self.data_collator, "__module__", "").partition(".")[0] == "transformers"
        if not (is_transformers or self.args.remove_unused_columns) or self._takes_any_input:
            return self.data_collator
        self._set_signature_columns_if_needed()
        return RemoveColumnsCollator(self.data_collator, self._signature_columns)

    @property
    def _labelled_collate(self) -> Callable[[list[Any]], Any]:
        """The same, with labels that are called `labels` in any case."""
        name = self.label_name
        return self._collate if name == "labels" else partial(with_labels, self._collate, name)

    @property
    def _own_network(self) -> nn.Module:
        """The network without adapters around it."""
        base = adapted_network(self.model)
        return self.model if base is None else base

    @property
    def _takes_any_input(self) -> bool:
        """Whether the network does not say what it takes, as with `forward(**inputs)`."""
        return not isinstance(self._own_network, PushToHubMixin) and any(
            parameter.kind == parameter.VAR_KEYWORD
            for parameter in inspect.signature(self._own_network.forward).parameters.values()
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [name for name in (self.label_name, *RECORD_COLUMNS) if name not in columns]

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """Leave the data set as it is: a transform, or a sampler by length, may need what `_collate` drops."""
        return dataset

    def _get_dataloader(self, dataset: Any, *arguments: Any, **keywords: Any) -> DataLoader:
        """Keep evaluation sets whole: transformers drops their last batch too, and so would judge on a part of them."""
        drop_last, collator = self.args.dataloader_drop_last, self.data_collator
        self.args.dataloader_drop_last = drop_last and keywords.get("is_training", False)
        self.data_collator = self._collate
        try:
            return super()._get_dataloader(dataset, *arguments, **keywords)
        finally:
            self.args.dataloader_drop_last, self.data_collator = drop_last, collator

    # ---- Loss ----

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch, outside of meta steps.

        It is `compute_loss_func` where there is one. In training it is our base loss where that is not plain
        cross-entropy; else the network's own, and cross-entropy of a network that returns none. Ours is a mean over the
        examples that have a label. In evaluation, too, cross-entropy has label smoothing, as Trainer's has.
        """
        labels = inputs.get(self.label_name)
        is_transformers = isinstance(self._own_network, PushToHubMixin)
        is_hard = labels is None or labels.dim() == 1  # of soft targets its networks would train one class by one
        is_own = self._is_own_loss(model)
        if self.compute_loss_func is not None or (is_transformers and is_hard and is_own):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        sees_labels = not is_transformers and is_own and self._takes_labels
        outputs = model(**{name: value for name, value in inputs.items() if sees_labels or name != self.label_name})
        named = named_outputs(outputs)
        loss = named.get("loss") if sees_labels else None
        if loss is None:
            loss = self._loss_of(logits_of(outputs), labels, model.training)
        return (loss, {**named, "loss": loss}) if return_outputs else loss

    def _loss_of(self, logits: Tensor, labels: Tensor, is_training: bool) -> Tensor:
        if not is_training:
            return mean_loss(CrossEntropyLoss(self.args.label_smoothing_factor), logits, labels)
        logits = adjusted(logits, self.logit_shift)
        if self.mixture is not None:
            return LabelledBatch(logits, labels, self.base_loss, mixture=self.mixture).losses.mean()
        return mean_loss(lambda *given: self.weighted(self.base_loss(*given)), logits, labels)

    def _is_own_loss(self, model: nn.Module) -> bool:
        """Return whether the network's own loss is the one that is asked for, if it returns any."""
        smoothing = self.args.label_smoothing_factor
        if not model.training:
            return smoothing == 0 or isinstance(self._own_network, PushToHubMixin)
        if self.mixture is not None or self.logit_shift is not None or self.batch_weights is not None:
            return False
        if type(self.base_loss) is not CrossEntropyLoss or self.base_loss.label_smoothing != smoothing:
            return False
        if isinstance(self._own_network, PushToHubMixin):
            return smoothing == 0 or self.label_name == "labels"  # which Trainer smooths
        return smoothing == 0 and self.stages is None  # a warm-up learns by the loss of the meta steps after it

    def _smooth_labels(self) -> None:
        """Have Trainer smooth the labels of transformers' networks."""
        smoothing = self.args.label_smoothing_factor
        if smoothing > 0 and isinstance(self._own_network, PushToHubMixin):
            self.label_smoother = LabelSmoother(epsilon=smoothing)

    @property
    def _takes_labels(self) -> bool:
        return self._takes_any_input or self.label_name in inspect.signature(self._own_network.forward).parameters

    # ---- Evaluation ----

    @contextmanager
    def _judged_weights(self) -> Iterator[None]:
        """Have the network, in the body, the weights that a schedule-free optimizer judges by."""
        optimizer: Any = self.optimizer
        if not callable(getattr(optimizer, "eval", None)):
            yield
            return
        was_training = any(group.get("train_mode") for group in optimizer.param_groups)
        optimizer.eval()
        try:
            yield
        finally:
            if was_training:
                optimizer.train()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        with self.training_time.stopped():
            whose = "the evaluation set"
            inputs = as_model_inputs(self.form.of(eval_dataset, whose), self.processing_class, whose)
            return super().evaluate(inputs, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        whose = "the test set"
        inputs = as_model_inputs(self.form.of(test_dataset, whose), self.processing_class, whose)
        return super().predict(inputs, ignore_keys, metric_key_prefix)
