"""Which batches a step is given: training and meta batches, augmented so that any resume sees the same ones."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_utils import has_length

from famus_hf.core.autodiff.forward_pass import RECORD_COLUMNS, logits_without_trace, split_inputs
from famus_hf.core.losses import LDAMLoss, adjusted
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.data.inputs.augmentation import (
    META_STREAM,
    MIX_STREAM,
    REDRAWN_STREAM,
    TRAIN_STREAM,
    Augmentation,
    make_generator,
)
from famus_hf.data.inputs.meta_batches import MetaBatches
from famus_hf.data.inputs.mixup import draw_mixture, draw_shares, mixed
from famus_hf.data.inputs.training_rows import HELD_OUT, TrainingRows
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.errors import DataError
from famus_hf.trainer.learning_mixin import LearningMixin
from famus_hf.trainer.meta_set_schedule import MetaSetSchedule

TRUSTED_STREAM = 20  # of random numbers


class BatchesMixin(LearningMixin):
    """What a Trainer needs to make its training and meta batches.

    Attributes:
        augmentation: Of images.
        keeps_beliefs: Whether what the network believes of each training example is remembered.
        schedule: Told, by the train data loader, how long an epoch is.
    """

    train_dataset: Any
    base_loss: Any
    augmentation: Augmentation
    schedule: MetaSetSchedule
    _meta_batches: MetaBatches
    meta_dataset: Any
    keeps_beliefs = False
    sample_weights: Tensor | None = None  # of the training examples, shape (N,), mean 1
    _unmixed: dict[str, Any] | None = None  # the present batch without mixup
    _micro_batch = (-1, 0)  # step and place of the batch within it, where gradients are accumulated

    @property
    def has_trusted(self) -> bool:
        """Whether there are examples whose labels are known to be right."""
        return self.meta_dataset is not None and not isinstance(self.meta_dataset, PseudoCleanSet)

    def _training_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return this process's rows on the device, augmented."""
        if isinstance(self.base_loss, LDAMLoss):
            self.base_loss.progress = self.state.global_step / max(self.state.max_steps, 1)
        if self.is_fsdp_enabled:  # running statistics are then shared as in DDP, which broadcasts them likewise
            self.processes.take_from_first(self.model.buffers())
        return self.augmented(self._prepare_inputs(inputs), TRAIN_STREAM, *self._place_of_batch())

    @property
    def mixup_alpha(self) -> float:
        """α of mixup, as the settings name it, or else the meta-learner; 0: examples are not mixed."""
        learner, asked = self.meta_learner, self.args.mixup_alpha
        return float((0.0 if learner is None else learner.mixup_alpha) if asked is None else asked)

    def _mix(self, batch: dict[str, Any], learner: MetaLearner | None = None) -> dict[str, Any]:
        """Return a training batch with its images mixed, as `mixture` tells from then on; without mixup as it is.

        Args:
            batch: As it comes.
            learner: May say who is mixed with whom; None: chance alone does.
        """
        self.mixture, self._unmixed = None, None
        if not self.mixup_alpha:
            return batch
        images, labels = batch["pixel_values"], batch[self.label_name]
        if labels.min() < 0:
            raise DataError(f"a training batch holds the label {int(labels.min())}, which mixup_alpha can't mix")
        self._unmixed = batch
        if learner is not None and learner.mixes_by_losses:
            partner, share = self._mixture_by_losses(learner, labels)
            pixels = mixed(images, (partner, share), self.processes.gathered(images))
            partner = partner - self.processes.rows_before(images)
        else:
            generator = make_generator(self.args.seed, MIX_STREAM, *self._micro_batch, self.args.process_index)
            partner, share = draw_mixture(len(images), self.mixup_alpha, generator)
            pixels = mixed(images, (partner, share))
        self.mixture = (partner.to(images.device), share.to(images.device))
        return {**batch, "pixel_values": pixels}

    def _mixture_by_losses(self, learner: MetaLearner, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return partners among all processes' rows, and own shares, of this one's as a meta-learner says; both (n,).

        labels: Of this process's rows, shape (n,) or (n, C).
        """
        with torch.no_grad():
            losses = self.processes.gathered(self.base_loss(self._logits_of_unmixed(), labels))
        generator = make_generator(self.args.seed, MIX_STREAM, *self._micro_batch)
        shares = draw_shares(len(losses), self.mixup_alpha, generator)
        partner, share = learner.mixture(losses, shares, generator)
        return self.processes.own(partner), self.processes.own(share)

    @torch.no_grad()
    def _logits_of_unmixed(self) -> Tensor:
        """Return logits of the present batch without mixup, adjusted where those of training are; shape (n, C)."""
        assert self._unmixed is not None
        with self.compute_loss_context_manager():
            logits = logits_without_trace(self.model, split_inputs(self._unmixed)[0])
        return adjusted(logits, self.logit_shift)

    def _weights_of(self, rows: Tensor | None) -> Tensor | None:
        """Return how much examples count, shape (n,), a trusted one 1; None where all count alike.

        rows: As `TrainingRows` counts them, shape (n,).
        """
        if self.sample_weights is None or rows is None:
            return None
        rows = rows.cpu()
        own = rows < len(self.sample_weights)
        return torch.where(own, self.sample_weights[rows.where(own, 0)], 1.0).to(self.args.device)

    def _place_of_batch(self) -> tuple[int, int]:
        """Return the optimizer step, and the place within it where gradients are accumulated."""
        step, place = self._micro_batch
        self._micro_batch = (self.state.global_step, place + 1 if step == self.state.global_step else 0)
        return self._micro_batch

    def augmented(self, inputs: dict[str, Any], *numbers: int) -> dict[str, Any]:
        """Return a batch cropped and flipped as a function of the seed and these numbers, so that resuming is exact."""
        if self.augmentation.name == "none" or "pixel_values" not in inputs:
            return inputs
        generator = make_generator(self.args.seed, *numbers, self.args.process_index)
        return {**inputs, "pixel_values": self.augmentation(inputs["pixel_values"], generator)}

    def _evaluation_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch on the device, of images that were kept larger for random crops their central part."""
        inputs = self._prepare_inputs(inputs)
        size = self.augmentation.size
        if size is None or "pixel_values" not in inputs:
            return inputs
        top, left = ((side - size) // 2 for side in inputs["pixel_values"].shape[2:])
        return {**inputs, "pixel_values": inputs["pixel_values"][:, :, top : top + size, left : left + size]}

    def _next_meta_batch(self) -> dict[str, Any]:
        """Return this process's part of the meta batch of the present meta step."""
        assert self.meta is not None
        with self.meta.clock("meta data"):
            batch = self._prepare_inputs(self._meta_batches.next(self.meta.steps))
            return self.augmented(batch, META_STREAM, self.meta.steps)

    def redrawn_meta_batch(self, network: str, draw: int) -> dict[str, Any]:
        """Return a meta batch like the next one, but drawn apart from those of training, anew for each number.

        Args:
            network: Its name in `networks`.
            draw: The number.
        """
        numbers = (REDRAWN_STREAM, self.networks[network].meta.steps, draw)
        return self.augmented(self._prepare_inputs(self._meta_batches.redrawn(*numbers)), *numbers)

    def get_batch_samples(self, *arguments: Any, **keywords: Any) -> Any:
        with self.diagnostics.loading():
            return super().get_batch_samples(*arguments, **keywords)

    def _prepare_inputs(self, inputs: Any) -> Any:
        records = (*RECORD_COLUMNS, self.args.sample_weight_column)
        return super()._prepare_inputs({name: value for name, value in inputs.items() if name not in records})

    @cached_property
    def _trusted_in_training(self) -> list[int]:
        """Rows of the meta set that are trained on, too: four fifths; the others judge what was learned.

        That they can be was found out before (`settle_trusted`).
        """
        if not self.args.train_on_trusted:
            return []
        order = np.random.default_rng((self.args.seed, TRUSTED_STREAM)).permutation(len(self.meta_dataset))
        return sorted(order[len(order) // HELD_OUT :].tolist())

    def get_train_dataloader(self) -> DataLoader:
        own = self.train_dataset
        if self._trusted_in_training or self.keeps_beliefs or self.sample_weights is not None:
            self.train_dataset = TrainingRows(own, self.meta_dataset, self._trusted_in_training)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset = own
        if has_length(self.train_dataset):
            self.schedule.steps_per_epoch = max(1, -(-len(loader) // self.args.gradient_accumulation_steps))
        return loader
