"""One of two networks that are trained together: its division, its meta-learner, and what it draws batches from."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_pass import model_logits, split_inputs
from famus_hf.core.losses import one_hot
from famus_hf.core.meta_learners import MetaLearner
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.timer import Timer
from famus_hf.data.inputs.augmentation import META_STREAM, MIX_STREAM, REDRAWN_STREAM, VIEW_STREAM, make_generator
from famus_hf.data.inputs.class_balanced import ClassBalancedSampler
from famus_hf.data.inputs.meta_batches import MetaBatches
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.storage.model_folder import NETWORKS_APART
from famus_hf.two_networks.co_divide import CoDivide, Part, collated
from famus_hf.two_networks.semi_supervised import (
    EqualWeights,
    SemiSupervisedLoss,
    guessed_labels,
    mixed,
    mixing_share,
    refined_labels,
)

if TYPE_CHECKING:
    from famus_hf.two_networks.trainer import TwoNetworkTrainer

EVERYTHING, LABELLED, UNLABELLED, TRUSTED = range(4)  # what a network draws batches from


@dataclass
class Drawn:
    """This process's examples of a batch.

    Attributes:
        views: Images, each example once in each of them; shape (n, c, H, W).
        labels: Given ones, shape (n,) or (n, C).
        clean_probabilities: c, shape (n,).
        clean_labels: Shape (n,), where they are known.
    """

    views: list[Tensor]
    labels: Tensor
    clean_probabilities: Tensor
    clean_labels: Tensor | None


class Peer:
    """One of the two networks, and what belongs to it alone.

    Attributes:
        number: 0 or 1.
        name: Of the network in the model.
        division: Of the training set, by this network's losses; the other network learns from it.
        meta: Its meta-learner and layer sampler.
        clock: Seconds of the parts of its meta step.
    """

    meta: MetaUpdate
    clock: Timer

    def __init__(self, trainer: "TwoNetworkTrainer", number: int):
        self.trainer, self.number, self.name = trainer, number, NETWORKS_APART[number]
        self.division = CoDivide(trainer.train_dataset)
        self._batches: dict[int, MetaBatches] = {}
        self._epoch_of_rows = -1

    @property
    def network(self) -> nn.Module:
        return self.trainer.model.get_submodule(self.name)

    @property
    def other(self) -> "Peer":
        return self.trainer.peers[1 - self.number]

    @property
    def loss(self) -> SemiSupervisedLoss:
        """J, around the meta-learner."""
        loss: Any = self.meta.meta_learner
        return loss

    @property
    def meta_learner(self) -> MetaLearner | None:
        """Ψ; None where weights are switched off."""
        learner = self.loss.meta_learner
        return None if isinstance(learner, EqualWeights) else learner

    def seed(self, stream: int = EVERYTHING) -> int:
        """For each stream of the network's draws another one."""
        sequence = np.random.SeedSequence((self.trainer.args.seed, self.number, stream))
        return int(sequence.generate_state(1, np.uint32)[0])

    @property
    def unlabelled_of_a_batch(self) -> int:
        """Unlabelled examples among those that this process draws for a step.

        By the division in eighths of the batch: where it divides by eight, k processes draw what one would.
        """
        size = int(self.trainer.args.per_device_train_batch_size)
        if self.trainer.args.unlabelled_share == "half":
            return size
        seen = self.other.division
        share = len(seen.unlabelled) / max(1, len(seen.rows) + len(seen.unlabelled))
        return min(max(1, round(2 * size * min(max(1, round(8 * share)), 7) / 8)), 2 * size - 1)

    @property
    def unlabelled_weight(self) -> float:
        """What λ_u is multiplied by: at most 1, and less where there are fewer unlabelled than labelled examples."""
        seen = self.other.division
        return 1.0 if self.trainer.args.unlabelled_share == "half" else min(1.0, len(seen.unlabelled) / len(seen.rows))

    # ---- Batches ----

    def end_loading(self) -> None:
        """The next batches are of whatever the divisions are then."""
        self._batches.clear()

    def drawn(self, source: int, number: int, num_views: int) -> Drawn:
        """This process's part of a batch.

        Args:
            source: `EVERYTHING`, `LABELLED` or `UNLABELLED`.
            number: Of the batch since the start of training.
            num_views: How often its images are augmented.
        """
        inputs = self._batches_of(source).next(number)
        batch, labels, _ = split_inputs(self.trainer._prepare_inputs(inputs))
        views = [
            self._view(batch["pixel_values"], VIEW_STREAM, self.number, source, number, view)
            for view in range(num_views)
        ]
        return Drawn(views, labels, batch["clean_probability"], inputs.get("clean_label"))

    def meta_batch(self) -> dict[str, Any]:
        """This process's part of the meta batch of its present meta step."""
        batch = self.trainer._prepare_inputs(self._batches_of(TRUSTED).next(self.meta.steps))
        return {**batch, "pixel_values": self._view(batch["pixel_values"], META_STREAM, self.number, self.meta.steps)}

    def redrawn_meta_batch(self, draw: int) -> dict[str, Any]:
        """Like `meta_batch`, but drawn beside them all, anew for each number of a draw."""
        batches = self._batches_of(TRUSTED)
        batch = self.trainer._prepare_inputs(batches.redrawn(REDRAWN_STREAM, self.meta.steps, draw))
        view = self._view(batch["pixel_values"], REDRAWN_STREAM, self.number, self.meta.steps, draw)
        return {**batch, "pixel_values": view}

    def mixed_batch(self, number: int, clock: Timer) -> tuple[dict[str, Any], Tensor | None]:
        """This process's mixed images and targets, and the right labels of their larger parts where known.

        Their order: the labelled examples once for each view, then the unlabelled ones.

        Args:
            number: Of the batch since the start of training.
            clock: Takes the time of `"guessing"`.
        """
        args, processes = self.trainer.args, self.trainer.processes
        views = self.trainer.num_views
        labelled, unlabelled = self.drawn(LABELLED, number, views), self.drawn(UNLABELLED, number, views)
        with clock("guessing"):
            of_labelled, of_unlabelled = self._targets(labelled, unlabelled)
        images = torch.cat([*labelled.views, *unlabelled.views])
        targets = torch.cat([of_labelled] * views + [of_unlabelled] * views)
        is_labelled = torch.arange(len(images), device=images.device) < views * len(labelled.labels)
        self.loss.is_labelled = processes.gathered(is_labelled)
        draws = make_generator(args.seed, MIX_STREAM, self.number, number)
        share = mixing_share(args.mixup_alpha, np.random.default_rng(draws.initial_seed()))
        sizes = [len(labelled.labels)] * views + [len(unlabelled.labels)] * views
        partners = self._partners(sizes, draws).to(images.device)
        batch = {
            "pixel_values": mixed(images, processes.gathered(images)[partners], share),
            "labels": mixed(targets, processes.gathered(targets)[partners], share),
        }
        clean = None
        if labelled.clean_labels is not None and unlabelled.clean_labels is not None:
            clean = torch.cat([labelled.clean_labels] * views + [unlabelled.clean_labels] * views)
        return batch, clean

    def _partners(self, sizes: list[int], draws: torch.Generator) -> Tensor:
        """For each of this process's examples another one's place among those of all processes; shape (n,).

        A permutation of what one process with all of them has, block by block.

        Args:
            sizes: Of the blocks of this process's examples, each of which continues in the next process.
            draws: The same in all processes.
        """
        k, rank = self.trainer.processes.count, self.trainer.processes.rank
        places = torch.arange(k * sum(sizes)).view(k, -1)  # as they are gathered
        in_order = torch.cat([block.flatten() for block in places.split(sizes, dim=1)])
        permuted = torch.empty_like(in_order)
        permuted[in_order] = in_order[torch.randperm(len(in_order), generator=draws)]
        return permuted.view(k, -1)[rank]

    @torch.no_grad()
    def _targets(self, labelled: Drawn, unlabelled: Drawn) -> tuple[Tensor, Tensor]:
        """Refined labels of the labelled and guessed labels of the unlabelled examples, each of shape (n, C).

        The network in training sees the examples as in training, running statistics included, as in DivideMix's code;
        of mixed images alone these would not be those of the images that it is to classify. The other one judges in
        evaluation mode.
        """
        other = self.other.network
        of_both = [len(part.views) * len(part.labels) for part in (labelled, unlabelled)]
        of_labelled, of_unlabelled = _predictions(self.network, [*labelled.views, *unlabelled.views]).split(of_both)
        other.eval()
        of_other = _predictions(other, unlabelled.views)
        other.train()
        views, temperature = len(labelled.views), self.trainer.args.sharpening_temperature
        guesses = torch.cat([of_unlabelled, of_other]).unflatten(0, (2 * views, -1))
        seen = of_labelled.unflatten(0, (views, -1)).mean(0)
        targets = one_hot(labelled.labels, seen.shape[1])
        return (
            refined_labels(targets, seen, labelled.clean_probabilities, temperature),
            guessed_labels(guesses, temperature),
        )

    def _view(self, images: Tensor, *numbers: int) -> Tensor:
        """This process's part of the global batch's random crops and flips, the same for any number of processes."""
        augmentation, processes = self.trainer.augmentation, self.trainer.processes
        if augmentation.name == "none":
            return images
        generator = make_generator(self.trainer.args.seed, *numbers)
        return processes.own_of(augmentation(processes.gathered_unevenly(images), generator), images)

    def _batches_of(self, source: int) -> MetaBatches:
        trainer, args = self.trainer, self.trainer.args
        if (
            source == EVERYTHING
            and args.balanced_batches_per_epoch is not None
            and self._epoch_of_rows != trainer.epoch
        ):
            self.end_loading()
        if source not in self._batches:
            size = 2 * args.per_device_train_batch_size
            unlabelled = self.unlabelled_of_a_batch
            sizes = {LABELLED: size - unlabelled, UNLABELLED: unlabelled, TRUSTED: args.meta_batch_size}
            self._batches[source] = MetaBatches(
                self._dataset_of(source),
                args,
                trainer.data_collator if source == TRUSTED else partial(collated, trainer.data_collator),
                trainer.processes,
                batch_size=sizes.get(source, size),
                seed=self.seed(source),
            )
        return self._batches[source]

    def _dataset_of(self, source: int) -> Any:
        train, seen = self.trainer.train_dataset, self.other.division
        if source == TRUSTED:
            return seen if self.trainer.trusted is None else self.trainer.trusted
        if source == EVERYTHING:
            self._epoch_of_rows = self.trainer.epoch
            rows = rows_of_epoch(self.trainer, self.trainer.epoch)
            return Part(train, np.arange(len(train)) if rows is None else rows, seen.clean_probabilities)
        return Part(train, seen.rows if source == LABELLED else seen.unlabelled, seen.clean_probabilities)


def _predictions(network: nn.Module, views: list[Tensor]) -> Tensor:
    """Probabilities of one view after another, shape (views · n, C)."""
    return model_logits(network, {"pixel_values": torch.cat(views)}).softmax(1)


def rows_of_epoch(trainer: "TwoNetworkTrainer", epoch: int) -> np.ndarray | None:
    """With `balanced_batches_per_epoch` the rows that an epoch is about, if they are enough; None means all."""
    batches = trainer.args.balanced_batches_per_epoch
    if batches is None:
        return None
    size = 2 * trainer.fewest * batches
    sampler = ClassBalancedSampler(known_labels(trainer.train_dataset), size, trainer.args.seed)
    sampler.set_epoch(epoch)
    rows = np.unique(list(sampler))  # of a small class each comes several times
    return rows if len(rows) >= 2 * trainer.fewest else None
