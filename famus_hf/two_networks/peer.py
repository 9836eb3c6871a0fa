"""One of two networks that are trained together: its division, its meta-learner, and what it draws batches from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_pass import model_logits, split_inputs
from famus_hf.core.losses import one_hot
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.three_stages import ThreeStages
from famus_hf.core.timer import Timer
from famus_hf.data.inputs.augmentation import (
    META_STREAM,
    MIX_STREAM,
    REDRAWN_STREAM,
    VIEW_STREAM,
    Augmentation,
    make_generator,
)
from famus_hf.data.inputs.meta_batches import MetaBatches
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.data.inputs.samplers import ClassBalancedSampler
from famus_hf.storage.run_folder import NETWORKS_APART
from famus_hf.training_args import FaMUSTrainingArguments
from famus_hf.two_networks.co_divide import CoDivide, Part, collated
from famus_hf.two_networks.semi_supervised import (
    EqualWeights,
    SemiSupervisedLoss,
    guessed_labels,
    mixed,
    mixing_share,
    refined_labels,
)

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

    Args:
        number: 0 or 1.
        network: Itself.
        train_dataset: That both divide.
        trusted: A clean meta set for both; None means that each is taught by the other's labelled examples.
        args: The settings.
        collate: From examples to a batch.
        prepare: From a batch as it was loaded to one on the device.
        augmentation: Of images.
        processes: That train together.

    Attributes:
        name: Of the network in the model.
        other: The other one.
        division: Of the training set, by this network's losses; the other network learns from it.
        stages: Of its step.
        clock: Seconds of the parts of its meta step.
        epoch: Of the present step.
    """

    other: "Peer"
    stages: ThreeStages
    clock: Timer

    def __init__(
        self,
        number: int,
        network: nn.Module,
        train_dataset: Any,
        trusted: Any,
        *,
        args: FaMUSTrainingArguments,
        collate: Callable[[list[Any]], Any],
        prepare: Callable[[dict[str, Any]], dict[str, Any]],
        augmentation: Augmentation,
        processes: Processes,
    ):
        self.number, self.network, self.name = number, network, NETWORKS_APART[number]
        self.train_dataset, self.trusted, self.args = train_dataset, trusted, args
        self.collate, self.prepare, self.augmentation, self.processes = collate, prepare, augmentation, processes
        self.division = CoDivide(train_dataset)
        self.epoch = 0
        self._batches: dict[int, MetaBatches] = {}
        self._epoch_of_rows = -1

    @property
    def meta(self) -> MetaUpdate:
        """Its meta-learner and layer sampler, and how they move."""
        return self.stages.meta

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

    @property
    def learns(self) -> bool:
        """Whether there is anything for Meta-Train to move."""
        return bool(self.loss.theta()) or not self.loss.keeps_theta

    def seed(self, stream: int = EVERYTHING) -> int:
        """Return a seed, a different one for each stream of the network's draws."""
        sequence = np.random.SeedSequence((self.args.seed, self.number, stream))
        return int(sequence.generate_state(1, np.uint32)[0])

    @property
    def unlabelled_of_a_batch(self) -> int:
        """Unlabelled examples among those that this process draws for a step.

        By the division in eighths of the batch: where it divides by eight, k processes draw what one would.
        """
        size = int(self.args.per_device_train_batch_size)
        if self.args.unlabelled_share == "half":
            return size
        division = self.other.division
        share = len(division.unlabelled) / max(1, len(division.rows) + len(division.unlabelled))
        return min(max(1, round(2 * size * min(max(1, round(8 * share)), 7) / 8)), 2 * size - 1)

    @property
    def unlabelled_weight(self) -> float:
        """What λ_u is multiplied by: at most 1, and less where there are fewer unlabelled than labelled examples."""
        division = self.other.division
        return 1.0 if self.args.unlabelled_share == "half" else min(1.0, len(division.unlabelled) / len(division.rows))

    # ---- Batches ----

    def end_loading(self) -> None:
        """Drop loaded batches, so that the next ones are of whatever the divisions are then."""
        self._batches.clear()

    def drawn(self, source: int, number: int, num_views: int) -> Drawn:
        """Return this process's part of a batch.

        Args:
            source: `EVERYTHING`, `LABELLED` or `UNLABELLED`.
            number: Of the batch since the start of training.
            num_views: How often its images are augmented.
        """
        inputs = self._batches_of(source).next(number)
        batch, labels, _ = split_inputs(self.prepare(inputs))
        views = [
            self._view(batch["pixel_values"], VIEW_STREAM, self.number, source, number, view)
            for view in range(num_views)
        ]
        return Drawn(views, labels, batch["clean_probability"], inputs.get("clean_label"))

    def meta_batch(self) -> dict[str, Any]:
        """Return this process's part of the meta batch of the present meta step."""
        batch = self.prepare(self._batches_of(TRUSTED).next(self.meta.steps))
        return {**batch, "pixel_values": self._view(batch["pixel_values"], META_STREAM, self.number, self.meta.steps)}

    def redrawn_meta_batch(self, draw: int) -> dict[str, Any]:
        """Return a batch like `meta_batch`, but drawn apart from those, anew for each number of a draw."""
        batches = self._batches_of(TRUSTED)
        batch = self.prepare(batches.redrawn(REDRAWN_STREAM, self.meta.steps, draw))
        view = self._view(batch["pixel_values"], REDRAWN_STREAM, self.number, self.meta.steps, draw)
        return {**batch, "pixel_values": view}

    def mixed_batch(self, number: int, clock: Timer) -> tuple[dict[str, Any], Tensor | None]:
        """Return this process's mixed images and targets, and the right labels of their larger parts where known.

        Their order: the labelled examples once for each view, then the unlabelled ones.

        Args:
            number: Of the batch since the start of training.
            clock: Takes the time of `"guessing"`.
        """
        args, processes = self.args, self.processes
        views = num_views(self.augmentation)
        labelled, unlabelled = self.drawn(LABELLED, number, views), self.drawn(UNLABELLED, number, views)
        with clock("guessing"):
            refined, guessed = self._targets(labelled, unlabelled)
        images = torch.cat([*labelled.views, *unlabelled.views])
        targets = torch.cat([refined] * views + [guessed] * views)
        is_labelled = torch.arange(len(images), device=images.device) < views * len(labelled.labels)
        self.loss.is_labelled = processes.gathered(is_labelled)
        draws = make_generator(args.seed, MIX_STREAM, self.number, number)
        share = mixing_share(args.mixup_alpha or 0.0, np.random.default_rng(draws.initial_seed()))
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
        """Return, for each of this process's examples, another one's place among those of all processes; shape (n,).

        A permutation of what one process with all of them has, block by block.

        Args:
            sizes: Of the blocks of this process's examples, each of which continues in the next process.
            draws: The same in all processes.
        """
        k, rank = self.processes.count, self.processes.rank
        places = torch.arange(k * sum(sizes)).view(k, -1)  # as they are gathered
        in_order = torch.cat([block.flatten() for block in places.split(sizes, dim=1)])
        permuted = torch.empty_like(in_order)
        permuted[in_order] = in_order[torch.randperm(len(in_order), generator=draws)]
        return permuted.view(k, -1)[rank]

    @torch.no_grad()
    def _targets(self, labelled: Drawn, unlabelled: Drawn) -> tuple[Tensor, Tensor]:
        """Return refined labels of the labelled and guessed labels of the unlabelled examples, each of shape (n, C).

        The network in training sees the examples as in training, running statistics included, as in DivideMix's code:
        statistics of mixed images alone would not be those of the images that it is to classify. The other one judges
        in evaluation mode.
        """
        other = self.other.network
        sizes = [len(drawn.views) * len(drawn.labels) for drawn in (labelled, unlabelled)]
        of_labelled, of_unlabelled = _predictions(self.network, [*labelled.views, *unlabelled.views]).split(sizes)
        other.eval()
        of_other = _predictions(other, unlabelled.views)
        other.train()
        views, temperature = len(labelled.views), self.args.sharpening_temperature
        guesses = torch.cat([of_unlabelled, of_other]).unflatten(0, (2 * views, -1))
        predictions = of_labelled.unflatten(0, (views, -1)).mean(0)
        targets = one_hot(labelled.labels, predictions.shape[1])
        return (
            refined_labels(targets, predictions, labelled.clean_probabilities, temperature),
            guessed_labels(guesses, temperature),
        )

    def _view(self, images: Tensor, *numbers: int) -> Tensor:
        """Return this process's part of the global batch, cropped and flipped the same for any number of processes."""
        augmentation, processes = self.augmentation, self.processes
        if augmentation.name == "none":
            return images
        generator = make_generator(self.args.seed, *numbers)
        return processes.own_of(augmentation(processes.gathered_unevenly(images), generator), images)

    def _batches_of(self, source: int) -> MetaBatches:
        args = self.args
        is_balanced = args.balanced_batches_per_epoch is not None
        if source == EVERYTHING and is_balanced and self._epoch_of_rows != self.epoch:
            self.end_loading()
        if source not in self._batches:
            size = 2 * args.per_device_train_batch_size
            unlabelled = self.unlabelled_of_a_batch
            sizes = {LABELLED: size - unlabelled, UNLABELLED: unlabelled, TRUSTED: args.meta_batch_size}
            self._batches[source] = MetaBatches(
                self._dataset_of(source),
                args,
                self.collate if source == TRUSTED else partial(collated, self.collate),
                self.processes,
                batch_size=sizes.get(source, size),
                seed=self.seed(source),
            )
        return self._batches[source]

    def _dataset_of(self, source: int) -> Any:
        train, division = self.train_dataset, self.other.division
        if source == TRUSTED:
            return division if self.trusted is None else self.trusted
        if source == EVERYTHING:
            self._epoch_of_rows = self.epoch
            rows = rows_of_epoch(train, self.args, self.processes.count, self.epoch)
            return Part(train, np.arange(len(train)) if rows is None else rows, division.clean_probabilities)
        rows = division.rows if source == LABELLED else division.unlabelled
        return Part(train, rows, division.clean_probabilities)


def _predictions(network: nn.Module, views: list[Tensor]) -> Tensor:
    """Return the probabilities of one view after another, shape (views · n, C)."""
    return model_logits(network, {"pixel_values": torch.cat(views)}).softmax(1)


def num_views(augmentation: Augmentation) -> int:
    """Return how often an example is augmented before its label is refined or guessed."""
    return 1 if augmentation.name == "none" else 2


def fewest_examples(args: FaMUSTrainingArguments, processes: int) -> int:
    """Return how many labelled, and how many unlabelled, examples a step takes over all processes."""
    return int(args.per_device_train_batch_size) * processes


def rows_of_epoch(train_dataset: Any, args: FaMUSTrainingArguments, processes: int, epoch: int) -> np.ndarray | None:
    """Return the rows that an epoch is about, with `balanced_batches_per_epoch`, if they are enough; None means all.

    Args:
        train_dataset: That can tell its labels.
        args: The settings.
        processes: How many train together.
        epoch: From 0.
    """
    batches, fewest = args.balanced_batches_per_epoch, fewest_examples(args, processes)
    if batches is None:
        return None
    sampler = ClassBalancedSampler(known_labels(train_dataset), 2 * fewest * batches, args.seed)
    sampler.set_epoch(epoch)
    rows = np.unique(list(sampler))  # of a small class each comes several times
    return rows if len(rows) >= 2 * fewest else None
