"""FaMUSTrainer: transformers' Trainer whose training step runs Virtual-Train, Meta-Train and Actual-Train."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import datasets
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    BaseImageProcessor,
    DataCollator,
    EvalPrediction,
    FeatureExtractionMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import TrainOutput

from famus_hf.core.autodiff.forward_pass import differentiable_attention
from famus_hf.core.layer_samplers import LayerSampler
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import MetaLearner, PerExampleLoss
from famus_hf.core.non_finite import GuardedStep, NonFiniteGuard
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.three_stages import ThreeStages
from famus_hf.data.inputs.audio_inputs import RecordingCollator, RecordingInputs
from famus_hf.data.inputs.convert import as_model_inputs, check_settings, processor_for, raw_modality
from famus_hf.data.inputs.image_processors import make_augmentation, training_processor
from famus_hf.data.inputs.raw_data import DataForm
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.media.modalities import modality_of_network
from famus_hf.reporting.diagnostics.mean_metrics import MeanMetrics
from famus_hf.reporting.diagnostics.training_time import TrainingTime
from famus_hf.trainer import preflight
from famus_hf.trainer.averaging_mixin import AveragingMixin
from famus_hf.trainer.batches_mixin import BatchesMixin
from famus_hf.trainer.beliefs_mixin import BeliefsMixin
from famus_hf.trainer.checkpointing import CheckpointingMixin
from famus_hf.trainer.classifier_mixin import ClassifierMixin, without_label_smoothing
from famus_hf.trainer.features_mixin import FeaturesMixin
from famus_hf.trainer.hub_mixin import HubMixin
from famus_hf.trainer.logs_mixin import LogsMixin
from famus_hf.trainer.meta_set_schedule import MetaSetSchedule
from famus_hf.trainer.records_mixin import RecordsMixin
from famus_hf.trainer.sample_weights import read_sample_weights
from famus_hf.trainer.set_up_mixin import SetUpMixin
from famus_hf.training_args import FaMUSTrainingArguments

logger = logging.getLogger("famus_hf")


class FaMUSTrainer(
    SetUpMixin,
    LogsMixin,
    RecordsMixin,
    AveragingMixin,
    FeaturesMixin,
    BeliefsMixin,
    BatchesMixin,
    CheckpointingMixin,
    HubMixin,
    ClassifierMixin,
    Trainer,
):
    """Trains a classifier on noisy labels; a meta-learner, taught by a clean meta set, weighs the examples.

    Paper: Xu, Zhu, Jiang, Yang, "Faster Meta Update Strategy for Noise-Robust Deep Learning", CVPR 2021,
    arXiv:2104.15092.

    Takes Trainer's arguments (`compute_loss_func` in plain training only), and:

    Args:
        model: Any network whose forward accepts `labels` and returns `.logits` of shape (n, C).
        args: Settings; a plain TrainingArguments is not enough.
        meta_dataset: The clean meta set, in the same form as `train_dataset`; not part of it. None: pseudo-clean, the
            training examples with small losses, chosen anew in each epoch after `plain_warmup_epochs`.
        meta_learner: An object instead of `args.meta_learner`, for example `MWNet()`.
        layer_sampler: An object instead of `args.layer_sampler`, for example `LearnedSampler()`.
        base_loss: A per-example loss instead of `args.base_loss`: logits (n, C), labels → (n,).

    Data sets are either raw (`datasets.Dataset` with `image`, `text`, perhaps `text_pair`, or `audio`, and `label`),
    converted with `processing_class` (default: the image processor, tokenizer or feature extractor that came with the
    model; of images, made from the data where there is none), or any map-style data set that already yields model
    inputs and `labels`. The columns `index` and `clean_label` are kept for the logs and never enter the model.

    Attributes:
        modality: Whether it learns from images, texts or recordings.
        form: How its data sets are taken: with which columns and classes.
        schedule: When meta steps are taken.
        guard: What is done about numbers that are not finite.
        evaluate_examples: Network, data set, loss → what the network makes of each example.

    Raises:
        FaMUSError, TypeError: One sentence, before training starts.
    """

    train_dataset: Any

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: FaMUSTrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | datasets.Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | datasets.Dataset | None = None,
        processing_class: PreTrainedTokenizerBase
        | BaseImageProcessor
        | FeatureExtractionMixin
        | ProcessorMixin
        | None = None,
        model_init: Callable[..., PreTrainedModel | nn.Module] | None = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LRScheduler | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        meta_dataset: Dataset | datasets.Dataset | None = None,
        meta_learner: MetaLearner | None = None,
        layer_sampler: LayerSampler | None = None,
        base_loss: PerExampleLoss | None = None,
    ):
        args = FaMUSTrainingArguments("famus_output") if args is None else args
        if not isinstance(args, FaMUSTrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}: FaMUSTrainer needs FaMUSTrainingArguments")
        self._settle_meta_learner(args, train_dataset, meta_dataset, meta_learner)
        preflight.check_not_empty("train_dataset", train_dataset)
        preflight.check_not_empty("meta_dataset", meta_dataset)
        self.sample_weights = read_sample_weights(args.sample_weight_column, train_dataset)
        self.form, train_dataset = DataForm.of_run(model, train_dataset, renames=data_collator is None)
        modality = raw_modality(train_dataset)
        self.modality = modality or modality_of_network(model)
        if modality is not None:
            check_settings(modality, args)
        processing_class = processor_for(processing_class, model, train_dataset, args)
        convert = partial(as_model_inputs, processor=training_processor(processing_class, args))
        train_inputs = convert(train_dataset, name="the training set", shuffle_seed=args.data_seed)
        if data_collator is None and isinstance(train_inputs, RecordingInputs):
            data_collator = RecordingCollator(processing_class, model)
        self.training_time = TrainingTime()
        eval_dataset = self.form.of(eval_dataset, "the evaluation set")
        eval_inputs = as_model_inputs(eval_dataset, processing_class, "the evaluation set")
        with without_label_smoothing(args):
            super().__init__(
                model,
                args,
                data_collator,
                train_inputs,
                eval_inputs,
                processing_class,
                model_init=model_init,
                compute_loss_func=compute_loss_func,
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=optimizers,
                optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
        self._smooth_labels()
        if args.log_level != "passive":  # which leaves it as it is
            logging.getLogger("famus_hf").setLevel(args.get_process_log_level())
        self.form.name_classes(self.model)
        self.add_callback(self.training_time)
        self.model_accepts_loss_kwargs = False  # each micro-batch is normalised by itself
        self.processes = Processes(args.process_index, args.world_size, args.device)
        self.augmentation = make_augmentation(args, processing_class)
        self.meta_dataset = convert(self.form.of(meta_dataset, "the meta set"), name="the meta set")
        self.guard = NonFiniteGuard(args.nan_policy, self.processes, lambda: self.accelerator.scaler)
        self.metrics = MeanMetrics()
        self.evaluate_examples = self._make_evaluator()
        self.diagnostics = self._make_diagnostics()
        self._given = (meta_learner, layer_sampler)
        self.base_loss = cross_entropy if base_loss is None else base_loss
        self.schedule = MetaSetSchedule(args, judges_by_losses=self._judges_by_losses)
        if self.train_dataset is not None:  # else it was made for evaluation only
            self._set_up(base_loss)

    @staticmethod
    def _settle_meta_learner(
        args: FaMUSTrainingArguments, train: Any, meta: Any, meta_learner: MetaLearner | None
    ) -> None:
        """Take another meta-learner where the user names none, and the recommended one is impossible."""
        is_stream = isinstance(train, (IterableDataset, datasets.IterableDataset))
        is_untrusted = train is not None and meta is None
        is_other = meta_learner is not None and (is_untrusted or not meta_learner.needs_beliefs)
        if (is_stream or is_other) and args.use_paper_where_open() and is_stream:
            logger.warning("meta_learner mw-net is taken, as a stream has no rows by which predictions are remembered")
        if is_untrusted:
            args.use_untrusted_where_open()

    # ---- The training step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Take Virtual-Train (Eq. 3), Meta-Train (Eq. 4, 6–12), Actual-Train (Eq. 5) on a batch. Return its loss."""
        self.close_epoch_of_beliefs(is_over=False)
        self.show_features()
        batch, rows = self._training_batch(inputs), inputs.get("row")
        self.batch_weights = self._weights_of(rows)
        if self.stages is None or self.schedule.is_warmup(self.state):
            self._batch_rows = rows
            return self._plain_step(model, self._mix(batch), self.model, num_items_in_batch)
        self._follow_frozen(self.stages)
        self._refresh_meta_set()
        self.show_beliefs()
        self._begin_training_mode(model)
        learner = self.stages.meta.meta_learner
        batch = self._mix(batch, learner)
        is_meta_step = learner.has_meta_step and not learner.waits and self.schedule.is_meta_step(self.state)
        clean_labels = inputs.get("clean_label")
        with self._guarded_step(model, self.stages) as step:
            train = self.stages.forward(model, batch, is_meta_step)  # z at w; its graph serves both backward passes
            self.describe(train, rows)
            virtual = None
            if is_meta_step:
                # g = ∇_w J(w, θ), ŵ = w − αPg: Eq. (3)
                virtual = self.stages.virtual_train(train, self.optimizer, keep_weights=clean_labels is not None)
                self.diagnostics.measure_meta_gradient(self.stages, train, virtual)
                outcome = self.stages.meta_train(train, virtual, self._next_meta_batch())  # θ, η: Eq. (4), (6)–(12)
                self._note_meta_step(outcome)
            self._empty_cache()
            step.loss = self.stages.actual_train(train, virtual, self._accumulated)  # ∇_w J(w, θ'): Eq. (5)
            self._note_weights(self.stages, train, virtual, clean_labels)
        return step.loss / self._accumulated

    def _plain_step(
        self, model: nn.Module, batch: dict[str, Any], network: nn.Module, num_items_in_batch: Any = None
    ) -> Tensor:
        """Do what Trainer does: the mean loss of the batch, and its gradient."""
        with self.guard.step(network, self.state.global_step, "the loss or its gradient") as step:
            step.loss = super().training_step(model, batch, num_items_in_batch)
        return step.loss

    @contextmanager
    def _guarded_step(self, model: nn.Module, stages: ThreeStages) -> Iterator[GuardedStep]:
        """Guard the body, in which a network learns: where something is not finite, all is as it was before.

        Args:
            model: The network, or DDP around it.
            stages: Of the network.
        """
        if isinstance(stages.network, FSDPModule):  # which reduces the passes of Meta-Train at once, each by itself
            stages.network.set_requires_gradient_sync(True)
        # Where micro-batches are accumulated, one that is left out has no backward pass for DDP to average in.
        is_replicated = self.processes.count > 1 and not self.is_fsdp_enabled
        is_summed_later = is_replicated and self._accumulated > 1
        with (
            self.guard.step(stages.network, self.state.global_step, undo=stages.take_back) as step,
            stages,
            self.diagnostics.timed(stages.meta),
            self.accelerator.no_sync(model) if is_summed_later else nullcontext(),
            self._attention_of_checkpoints(),
        ):
            yield step
        if is_summed_later and self.accelerator.sync_gradients:
            self._average_gradients()

    def _begin_training_mode(self, model: nn.Module) -> None:
        """Have the network, and an optimizer with weights of its own for training (schedule-free), train."""
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()

    def _empty_cache(self) -> None:
        """Return memory to the device before the last backward pass, where `torch_empty_cache_steps` says so."""
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()

    @property
    def _accumulated(self) -> int:
        """Batches of the present step of the optimizer."""
        return int(self.current_gradient_accumulation_steps)

    def _attention_of_checkpoints(self) -> Any:
        """Return what has a checkpointed layer take the same attention kernel when it runs again in backward."""
        return differentiable_attention() if self.args.activation_checkpointing else nullcontext()

    def _average_gradients(self) -> None:
        """Do what DDP would have done after the last of the accumulated micro-batches."""
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        for name, total in self.processes.summed(gradients).items():
            gradients[name].copy_(total / self.processes.count)

    # ---- The pseudo-clean meta set ----

    @property
    def _chosen_sets(self) -> list[PseudoCleanSet]:
        """Sets of training examples that are chosen anew in each epoch."""
        return [self.meta_dataset] if isinstance(self.meta_dataset, PseudoCleanSet) else []

    def _refresh_meta_set(self) -> None:
        """Choose the pseudo-clean examples where that is due."""
        if not self.schedule.is_due(self.meta_dataset, self.state):
            return
        examples = self.evaluate_examples(self.model, self.train_dataset, cross_entropy)
        for name, value in self.schedule.choose(self.meta_dataset, examples, self.state).items():
            self.metrics.add(name, torch.tensor(value))
        self._meta_batches.restart()

    # ---- Training ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint` may be a folder, True for the newest whole one, or a Hub repository.

        Raises:
            LoadError: The checkpoint is damaged or of other data, or there is none.
            HubError: Likewise, of one on the Hub.
            FloatingPointError: Numbers are not finite, see `nan_policy`.
            SaveError: A checkpoint can't be written.
        """
        for chosen in self._chosen_sets:
            chosen.forget()
        self.forget_earlier_training()
        self.begin_beliefs()
        self.begin_features()
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            self._end_loading()

    def _end_loading(self) -> None:
        """Stop whatever loads batches ahead, beside the Trainer's own."""
        if self.stages is not None and self._learns_from_meta_set:
            self._meta_batches.restart()
