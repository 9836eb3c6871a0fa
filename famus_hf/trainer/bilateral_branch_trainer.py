"""BilateralBranchTrainer: a network with two branches learns from examples as they come and from those of rare classes.

BBN (Zhou, Cui, Wei, Chen, CVPR 2020, arXiv:1912.02413).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.cumulative_learning import conventional_share, cumulative_losses
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.data.inputs.augmentation import PARTNER_STREAM
from famus_hf.data.inputs.samplers import PartnerSampler
from famus_hf.data.inputs.training_rows import PARTNER, PartneredRows
from famus_hf.trainer import preflight_branches
from famus_hf.trainer.trainer import FaMUSTrainer

IMAGES, LABELS = f"{PARTNER}pixel_values", f"{PARTNER}labels"  # of the partners, in a batch
ABOUT = (  # how it was trained, on the model card
    "by two branches on one trunk, of which one sees the rarer classes more often "
    "([BBN](https://huggingface.co/papers/1912.02413)),"
)


class BilateralBranchTrainer(FaMUSTrainer):
    """Trains a `BilateralBranchForImageClassification`: each example has a partner, likelier the rarer its class.

    The loss is α ℓ(z, y) + (1 − α) ℓ(z, y'), by the logits z of example and partner together; α falls from 1, epoch by
    epoch. A step takes as many partners as examples. In evaluation both branches see the same images, with α = 0.5.

    Args are those of FaMUSTrainer, but:
        model: As `BilateralBranchForImageClassification.of(network)` makes it.
        meta_dataset: Trusted examples, which nothing is learned from.
    """

    _partner_labels: Tensor | None = None  # of the present batch, shape (n,)

    # ---- Set-up ----

    def _set_up_meta_learning(self) -> None:
        preflight_branches.check_bilateral_branch(
            self.args,
            self.model,
            self.train_dataset,
            self.base_loss,
            self._given,
            self.compute_loss_func,
            self.accelerator,
        )
        super()._set_up_meta_learning()
        with preserve_rng_state(self.args.device):  # examples may draw
            preflight_branches.check_partners(self.train_dataset, self._collate)

    @property
    def mixes_examples(self) -> bool:
        return True

    # ---- Batches ----

    def get_train_dataloader(self) -> DataLoader:
        own = self.train_dataset
        self.train_dataset = PartneredRows(own)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = own

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        train: Any = self.train_dataset if train_dataset is None else train_dataset
        return PartnerSampler(train.labels, self.args.data_seed or 0)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [name for name in (IMAGES, LABELS) if name not in columns]

    def _mix(self, batch: dict[str, Any], learner: MetaLearner | None = None) -> dict[str, Any]:
        """Return a training batch with the images of its partners, and how much the examples themselves count."""
        batch = super()._mix(batch, learner)
        self._partner_labels = batch[LABELS]
        partners = self.augmented({"pixel_values": batch[IMAGES]}, PARTNER_STREAM, *self._micro_batch)
        share = self.conventional_share
        self.metrics.add("conventional_share", torch.tensor(share))
        own = {name: value for name, value in batch.items() if name not in (IMAGES, LABELS)}
        return {**own, IMAGES: partners["pixel_values"], "conventional_share": share}

    @property
    def conventional_share(self) -> float:
        """α in the present epoch."""
        epochs = self.state.max_steps / max(1, self.schedule.steps_per_epoch)
        return conventional_share(self.schedule.epoch(self.state), epochs)

    # ---- Loss ----

    def _is_own_loss(self, model: nn.Module) -> bool:
        return not model.training and super()._is_own_loss(model)

    def _loss_of(self, logits: Tensor, labels: Tensor, is_training: bool) -> Tensor:
        if not is_training:
            return super()._loss_of(logits, labels, is_training)
        assert self._partner_labels is not None
        share = self.conventional_share
        return cumulative_losses(self.base_loss, logits, labels, self._partner_labels, share).mean()

    # ---- Model card ----

    def model_card_facts(self) -> dict[str, Any]:
        return {**super().model_card_facts(), "trained_how": ABOUT}
