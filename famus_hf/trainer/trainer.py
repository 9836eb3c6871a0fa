"""FaMUSTrainer: transformers' Trainer whose training step runs Virtual-Train, Meta-Train and Actual-Train."""

import copy
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel
from transformers.trainer_utils import has_length
from transformers.utils import PushToHubMixin

from famus_hf.core.autodiff.forward_pass import RECORD_COLUMNS, model_logits, split_inputs
from famus_hf.core.layer_samplers import LayerSampler
from famus_hf.core.losses import CrossEntropyLoss, LDAMLoss, cross_entropy
from famus_hf.core.meta_learners import MetaLearner, PerExampleLoss
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.non_finite import NonFiniteGuard
from famus_hf.core.parallel.dtensor import as_written
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.three_stages import ThreeStageTrainer
from famus_hf.data.inputs.audio_inputs import RecordingCollator, RecordingInputs
from famus_hf.data.inputs.augmentation import META_STREAM, REDRAWN_STREAM, TRAIN_STREAM, make_generator
from famus_hf.data.inputs.class_balanced import ClassBalancedSampler
from famus_hf.data.inputs.convert import as_model_inputs, check_settings, processor_for, raw_modality
from famus_hf.data.inputs.image_processors import make_augmentation, training_processor
from famus_hf.data.inputs.meta_batches import MetaBatches
from famus_hf.data.inputs.model_inputs import ModelInputs, known_labels
from famus_hf.data.labels.noise_file import write_noise_file
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.media.modalities import modality_of_network
from famus_hf.data.per_example import evaluate_examples
from famus_hf.errors import reason_of
from famus_hf.hub.meta_net_files import load_into, save_meta_net
from famus_hf.reporting.averages import MeanMetrics
from famus_hf.reporting.diagnostics.callback import Diagnostics
from famus_hf.reporting.label_report import REPORT_FILE
from famus_hf.reporting.model_card import facts_of_run, render_model_card
from famus_hf.reporting.reports import draw_records, report_of, save_report
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.meta_state import read_meta_state
from famus_hf.trainer import preflight as checks
from famus_hf.trainer.factory import make_base_loss, make_meta_update
from famus_hf.training_args import FaMUSTrainingArguments

META_STATE = "meta_state.pt"


class FaMUSTrainer(ThreeStageTrainer):
    """Trains a classifier on noisy labels; a meta-learner, taught by a clean meta set, weighs the examples.

    Paper: Xu, Zhu, Jiang, Yang, "Faster Meta Update Strategy for Noise-Robust Deep Learning", CVPR 2021,
    arXiv:2104.15092.

    Takes Trainer's arguments, and:

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

    Raises:
        ValueError, TypeError: One sentence, before training starts.
    """

    train_dataset: Any

    def __init__(
        self,
        model: Any = None,
        args: FaMUSTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *arguments: Any,
        meta_dataset: Any = None,
        meta_learner: MetaLearner | None = None,
        layer_sampler: LayerSampler | None = None,
        base_loss: PerExampleLoss | None = None,
        **keywords: Any,
    ):
        args = FaMUSTrainingArguments("famus_output") if args is None else args
        if not isinstance(args, FaMUSTrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}: FaMUSTrainer needs FaMUSTrainingArguments")
        checks.check_not_empty("train_dataset", train_dataset)
        modality = raw_modality(train_dataset)
        self.modality = modality or modality_of_network(model)
        if modality is not None:
            check_settings(modality, args)
        processing_class = processor_for(processing_class, model, train_dataset, args)
        convert = partial(as_model_inputs, processor=training_processor(processing_class, args))
        train_inputs = convert(train_dataset, shuffle_seed=args.data_seed)
        if data_collator is None and isinstance(train_inputs, RecordingInputs):
            data_collator = RecordingCollator(processing_class, model)
        super().__init__(
            model,
            args,
            data_collator,
            train_inputs,
            as_model_inputs(eval_dataset, processing_class),
            processing_class,
            *arguments,
            **keywords,
        )
        self.model_accepts_loss_kwargs = False  # each micro-batch is normalised by itself
        self.processes = Processes(args.process_index, args.world_size, args.device)
        self.augmentation = make_augmentation(args, processing_class)
        self.meta_dataset = convert(meta_dataset)
        self.meta: MetaUpdate | None = None
        self._steps_per_epoch = 0  # of the optimizer
        self._micro_batch = (-1, 0)  # step and place of the batch within it, where gradients are accumulated
        self._averages = MeanMetrics()
        self.faults = NonFiniteGuard(args.nan_policy)
        self.diagnostics = Diagnostics(self)
        self._card: dict[str, Any] = {}
        self._given = (meta_learner, layer_sampler)
        self.base_loss = cross_entropy if base_loss is None else base_loss
        if self.train_dataset is None:
            return  # made for evaluation only
        checks.check_problem_type(self)
        checks.check_recordings(self)
        checks.check_batch_size(self)
        checks.check_balanced_epochs(self)
        if base_loss is None:
            self.base_loss = make_base_loss(self)
        elif args.label_smoothing_factor > 0:
            raise ValueError("label_smoothing_factor does not reach a base_loss object: smooth in the object itself")
        self._set_up_meta_learning()
        if self.diagnostics.is_on:
            checks.check_diagnostics(self)
            self.add_callback(self.diagnostics)

    def _set_up_meta_learning(self) -> None:
        """Meta set and what learns from it, unless training is plain."""
        if self._given[0] is None and self.args.meta_learner == "none":
            return
        checks.check_meta_set(self)
        if self.meta_dataset is None:
            self.meta_dataset = PseudoCleanSet(self.train_dataset)
        self._meta_batches = MetaBatches(self.meta_dataset, self.args, self.data_collator, self.processes)
        checks.check_meta_learning_is_possible(self)
        self._make_meta_model()

    def _make_meta_model(self) -> None:
        self.meta = make_meta_update(self, *(self._given if self.model_init is None else copy.deepcopy(self._given)))

    @property
    def meta_learner(self) -> MetaLearner | None:
        """Ψ, or None in plain training."""
        return self._given[0] if self.meta is None else self.meta.meta_learner

    @property
    def networks(self) -> dict[str, tuple[nn.Module, MetaUpdate]]:
        """What is trained with a meta-learner, by its name in records: one network, without a name, or none."""
        return {} if self.meta is None else {"": (self.model, self.meta)}

    @property
    def layer_sampler(self) -> LayerSampler | None:
        """Γ, or None in plain training."""
        return None if self.meta is None else self.meta.layer_sampler

    # ---- The training step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Virtual-Train, Meta-Train and Actual-Train on one batch. Returns the detached training loss."""
        if isinstance(self.base_loss, LDAMLoss):
            self.base_loss.progress = self.state.global_step / max(self.state.max_steps, 1)
        if self.is_fsdp_enabled:  # running statistics are then shared as in DDP, which broadcasts them likewise
            self.processes.take_from_first(self.model.buffers())
        batch = self._augmented(self._prepare_inputs(inputs), TRAIN_STREAM, *self._place_of_batch())
        if self.meta is None or self.state.global_step < self._warmup_steps():
            return self._plain_step(model, batch)
        self._refresh_meta_set()
        model.train()
        if isinstance(self.model, FSDPModule):  # which reduces the passes of Meta-Train by themselves, so each at once
            self.model.set_requires_gradient_sync(True)
        # Where micro-batches are accumulated, one that is left out has no backward pass for DDP to average in.
        is_replicated = self.processes.count > 1 and not self.is_fsdp_enabled
        accumulates = is_replicated and self.current_gradient_accumulation_steps > 1
        with (
            self.diagnostics.timed(self.meta),
            self.accelerator.no_sync(model) if accumulates else nullcontext(),
            self._attention_of_checkpoints(),
        ):
            loss = self._three_stages(self.meta, model, batch, inputs.get("clean_label"))
        if accumulates and self.accelerator.sync_gradients:
            self._average_gradients()
        return loss / self.current_gradient_accumulation_steps

    def _place_of_batch(self) -> tuple[int, int]:
        """Optimizer step, and place within it where gradients are accumulated."""
        step, place = self._micro_batch
        self._micro_batch = (self.state.global_step, place + 1 if step == self.state.global_step else 0)
        return self._micro_batch

    def _augmented(self, inputs: dict[str, Any], *numbers: int) -> dict[str, Any]:
        """Random crops and flips that are a function of the seed and these numbers, so that resuming is exact."""
        if self.augmentation.name == "none" or "pixel_values" not in inputs:
            return inputs
        generator = make_generator(self.args.seed, *numbers, self.args.process_index)
        return {**inputs, "pixel_values": self.augmentation(inputs["pixel_values"], generator)}

    # ---- Warm-up and pseudo-clean meta set ----

    @property
    def _judges_by_losses(self) -> bool:
        """Whether training examples are told apart by their losses, which must mean something by then."""
        return isinstance(self.meta_dataset, PseudoCleanSet)

    def _warmup_steps(self) -> int:
        """Plain steps before the first meta step."""
        epochs, total = self.args.plain_warmup_epochs, self.state.max_steps
        if epochs is not None:
            return round(epochs * self._steps_per_epoch)
        if not self._judges_by_losses:
            return 0
        return max(round(0.1 * total), min(2 * self._steps_per_epoch, total // 2))

    @property
    def _chosen_sets(self) -> list[PseudoCleanSet]:
        """Sets of training examples that are chosen anew in each epoch."""
        return [self.meta_dataset] if isinstance(self.meta_dataset, PseudoCleanSet) else []

    def _refresh_meta_set(self) -> None:
        """Chooses the pseudo-clean examples at the first meta step, and then at the first step of each epoch."""
        chosen = self.meta_dataset
        if not isinstance(chosen, PseudoCleanSet):
            return
        epoch = self.state.global_step // max(1, self._steps_per_epoch)
        if chosen.epoch >= epoch:
            return
        found = evaluate_examples(self, self.train_dataset, cross_entropy)
        fewest = (self.args.meta_batch_size or 1) * self.processes.count
        chosen.choose(found.losses, found.correct, fewest, self.args.seed, epoch)
        self._meta_batches.restart()
        if chosen.purity is not None:
            self._averages.add("meta_set_purity", torch.tensor(chosen.purity))
        self._averages.add("meta_set_size", torch.tensor(float(len(chosen))))

    def central_crop(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The central part of images that were kept larger for random crops."""
        size = self.augmentation.size
        if size is None or "pixel_values" not in inputs:
            return inputs
        top, left = ((side - size) // 2 for side in inputs["pixel_values"].shape[2:])
        return {**inputs, "pixel_values": inputs["pixel_values"][:, :, top : top + size, left : left + size]}

    def _next_meta_batch(self, meta: MetaUpdate) -> dict[str, Any]:
        batch = self._prepare_inputs(self._meta_batches.next(meta.steps))
        return self._augmented(batch, META_STREAM, meta.steps)

    def _redrawn_meta_batch(self, meta: MetaUpdate, draw: int) -> dict[str, Any]:
        """Like the one that comes next, but drawn beside them all, anew for each number of a draw."""
        numbers = (REDRAWN_STREAM, meta.steps, draw)
        return self._augmented(self._prepare_inputs(self._meta_batches.redrawn(*numbers)), *numbers)

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        with self.diagnostics.loading():
            return super().get_batch_samples(*arguments, **keywords)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs({name: value for name, value in inputs.items() if name not in RECORD_COLUMNS})

    # ---- Logs ----

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
            logs.update(self._averages.take(self.processes))
            if self.faults.count:
                logs["steps_left_out"] = self.faults.count  # since the start of this training
        super().log(logs, start_time)

    # ---- Evaluation ----

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """In training our base loss where it is not plain cross-entropy, else the network's own loss, if it has one."""
        hard = inputs["labels"].dim() == 1  # with soft targets a network of transformers would train one class by one
        if not isinstance(self.model, PushToHubMixin) or not hard or (model.training and not self._is_network_loss):
            batch, labels, _ = split_inputs(inputs)
            logits = model_logits(model, batch)
            loss = (self.base_loss if model.training else cross_entropy)(logits, labels).mean()
            return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @property
    def _is_network_loss(self) -> bool:
        return (
            type(self.base_loss) is CrossEntropyLoss
            and self.base_loss.label_smoothing == self.args.label_smoothing_factor
        )

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        if has_length(self.train_dataset):
            self._steps_per_epoch = max(1, -(-len(loader) // self.args.gradient_accumulation_steps))
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        batches = self.args.balanced_batches_per_epoch
        if batches is None:
            return super()._get_train_sampler(train_dataset)
        size = batches * self.args.train_batch_size * self.args.world_size
        return ClassBalancedSampler(known_labels(self.train_dataset), size, self.args.seed)

    # ---- Suspect labels ----

    def label_report(self, dataset: Any = None) -> Dataset:
        """Which labels are probably wrong, the most suspect first. All processes call it.

        Args:
            dataset: In the form of `train_dataset`, which is the default; each label is judged by the network as it is.

        Returns:
            Columns `index`, `file` (of what lies in folders) or `text` (its beginning), `label`, `predicted_label`,
            `loss` (under `base_loss`; cross-entropy in a trainer without a training set), `weight` (V by the
            meta-learner; None where it has none for a loss alone), `clean_probability` and, where known, `clean_label`.
            `famus_hf.reporting.label_report` has more.

        Raises:
            ValueError: The data set is a stream, or empty, or of other classes.
        """
        return report_of(self, dataset)

    def save_label_report(self, dataset: Any = None, folder: str | Path | None = None) -> Dataset:
        """`label_report`, written to label_report.parquet in the output folder or another; pictures in `figures/`.

        The pictures: the most suspect images, where they are at hand; the meta-learner's weights, if it has such. All
        processes call it.

        Raises:
            ValueError: As `label_report`.
            SaveError: It can't be written.
        """
        return save_report(self, dataset, Path(folder or str(self.args.output_dir)))

    # ---- Checkpoints ----

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        if self.meta is not None and self.model_init is not None:  # as the network, so everything that learns
            self._make_meta_model()
        for chosen in self._chosen_sets:
            chosen.forget()
        for name in ("metrics", "suspects", "seconds_per_step", "baselines", "compared"):  # of an earlier training
            self._card.pop(name, None)
        try:
            return super().train(*arguments, **keywords)
        finally:
            self._end_loading()

    def _end_loading(self) -> None:
        """Whatever loads batches ahead, beside the Trainer's own, stops."""
        if self.meta is not None:
            self._meta_batches.restart()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        with as_written(self.model):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._save_meta_net(Path(output_dir or str(self.args.output_dir)))

    def _save_meta_net(self, folder: Path) -> None:
        save_meta_net(folder, self.meta_learner, self.layer_sampler)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.diagnostics.write()
        if self.args.should_save and self.meta is not None:
            torch.save(self._meta_state(self.meta), Path(output_dir) / META_STATE)

    def _meta_state(self, meta: MetaUpdate) -> dict[str, Any]:
        """What `_take_meta_state` takes back."""
        state = meta.state_dict()
        if isinstance(self.meta_dataset, PseudoCleanSet):
            state["pseudo_clean"] = self.meta_dataset.state_dict()
        return state

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except Exception as error:  # torch.load raises anything on a damaged file
            raise ValueError(
                f"optimizer.pt or scheduler.pt of checkpoint {checkpoint!r} does not fit: {reason_of(error)}"
            ) from error
        if checkpoint is not None and self.meta is not None:
            path = Path(checkpoint) / META_STATE
            if not path.is_file():
                raise ValueError(f"checkpoint {checkpoint!r} has no {META_STATE}: it was saved without optimizers")
            try:
                self._take_meta_state(self.meta, read_meta_state(path))
            except ValueError as error:
                raise ValueError(f"{META_STATE} of checkpoint {checkpoint!r} does not fit: {error}") from error

    def _take_meta_state(self, meta: MetaUpdate, state: dict[str, Any]) -> None:
        is_pseudo_clean = isinstance(self.meta_dataset, PseudoCleanSet)
        if is_pseudo_clean and "pseudo_clean" not in state:
            raise ValueError("it is of a run with a given meta set: give the same")
        meta.load_state_dict(state)
        if is_pseudo_clean:
            self.meta_dataset.load_state_dict(state["pseudo_clean"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PreTrainedModel):
            self._load_network(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_meta_net(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if isinstance(self.model, PreTrainedModel):
            self._load_network(self.model, best)
        else:
            super()._load_best_model()
        self._load_meta_net(best)

    def _load_meta_net(self, checkpoint: str) -> None:
        if self.meta is not None:
            load_into(checkpoint, self.meta.meta_learner, self.meta.layer_sampler)

    # ---- Hub ----

    def save_records(self) -> None:
        """The noise and the label report of the training set, unless they are there already."""
        folder, train = Path(str(self.args.output_dir)), self.train_dataset
        is_there = self.processes.first_object(self.is_of_this_run(folder / REPORT_FILE))
        if self.args.label_report and has_length(train) and not is_there:
            self.save_label_report()
        noise = folder / "noise.parquet"
        if isinstance(train, ModelInputs) and self.is_world_process_zero() and not self.is_of_this_run(noise):
            index = train.records.get("index", list(range(len(train))))
            metadata = {"realised_noise_rate": train.realised_noise_rate}
            write_noise_file(noise, index, train.records["labels"], train.records.get("clean_label"), metadata)

    def create_model_card(self, **facts: Any) -> None:  # type: ignore[override]
        """Writes README.md into the output folder. Facts given once are kept for later calls.

        Args:
            facts: `dataset_name`, `dataset_id`, `data_license`, `noise_description`, `license`, `tags`, `model_name`,
                `metrics` (`last` and `best`, accuracies in [0, 1]), `compared` (other runs, drawn beside this one, by
                `famus_hf.reporting.figures.run_records.read_run`), and what else `render_model_card` knows.
        """
        if self.is_world_process_zero():
            self._card.update({name: value for name, value in facts.items() if value is not None})
            pictures = draw_records(self, self._card.get("compared", ()))
            card = render_model_card({**facts_of_run(self, pictures), **self._card})
            with atomic_write(Path(str(self.args.output_dir)) / "README.md") as path:
                card.save(path)
