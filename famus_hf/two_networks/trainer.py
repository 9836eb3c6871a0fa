"""TwoNetworkTrainer: two networks divide the training set for each other, without any clean label.

Paper: §5.3 (Tables 5–7), after DivideMix (Li, Socher, Hoi, ICLR 2020, arXiv:2002.07394).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from famus_hf.core.autodiff.forward_pass import cloned_buffers, model_logits, split_inputs
from famus_hf.core.layer_samplers import AllLayers
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners import MetaLearner
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.non_finite import all_finite
from famus_hf.core.timer import NO_TIMER, Timer
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.per_example import evaluate_examples
from famus_hf.hub.meta_net_files import load_into, save_meta_net
from famus_hf.models.two_networks import TwoNetworksForImageClassification
from famus_hf.storage.model_folder import NETWORKS_APART, save_networks_apart
from famus_hf.trainer import preflight as checks
from famus_hf.trainer.factory import make_meta_learner, make_meta_update
from famus_hf.trainer.trainer import FaMUSTrainer
from famus_hf.two_networks.co_divide import CoDivide
from famus_hf.two_networks.peer import EVERYTHING, Peer, rows_of_epoch
from famus_hf.two_networks.semi_supervised import EqualWeights, SemiSupervisedLoss, confidence_penalty, ramped_up

TIMED_STEPS = 10  # one step in so many is timed
META_STEP = ("virtual backward", "validation forward", "validation backward", "derivative")


class TwoNetworkTrainer(FaMUSTrainer):
    """FaMUS within two networks that divide the data for each other (paper, §5.3): no clean label is needed.

    After a warm-up on plain cross-entropy, in each epoch, each network is trained on the other's division: labels of
    labelled examples are refined, those of the others guessed by both networks; examples are mixed; each network's own
    meta-learner weighs them, taught by the labelled examples as a pseudo-clean meta set. With `meta_learner="none"` it
    is DivideMix, with `layer_sampler="all"` MW-Net in the place of FaMUS.

    An epoch has as many steps as it takes to see each training example once, in batches of twice
    `per_device_train_batch_size`, labelled and unlabelled ones together. A step trains both networks, each on its own
    batch. Paper: each network is trained for a whole epoch in turn, with as many steps as the labelled examples fill.

    Args are those of FaMUSTrainer, but:
        model: Has two classifiers `model_a` and `model_b`, as `TwoNetworksForImageClassification.of(a, b)` makes it;
            its own logits are the mean of theirs.
        meta_dataset: A clean meta set for both networks; default: pseudo-clean.

    Attributes:
        peers: The two networks, and what belongs to each.
        trusted: The clean meta set, or None.
        clock: Seconds of `"step"`, `"guessing"` and, by each of `peers`, of the meta step, in one step of ten; of every
            `"division"`.
    """

    peers: tuple[Peer, ...] = ()
    trusted: Any = None
    _peer: Peer | None = None  # whose turn it is
    _batches_per_epoch = 0

    # ---- Set-up ----

    def _set_up_meta_learning(self) -> None:
        checks.check_meta_set(self)
        checks.check_two_networks(self)
        self.peers = tuple(Peer(self, number) for number in range(2))
        self.trusted = self.meta_dataset
        if self.meta_dataset is None:
            self.meta_dataset = self.peers[0].division
        self.clock = Timer(self.args.device)
        checks.check_meta_learning_is_possible(self)
        self._make_meta_model()

    def _make_meta_model(self) -> None:
        for peer in self.peers:
            learner, sampler = copy.deepcopy(self._given)
            if learner is None and self.args.meta_learner == "none":
                learner, sampler = EqualWeights(), AllLayers()
            with self._turn_of(peer):
                learner = learner or make_meta_learner(self.args)
                checks.check_weighs_by_losses(learner)
                peer.meta = make_meta_update(self, SemiSupervisedLoss(learner), sampler, peer.seed())
                peer.clock = Timer(self.args.device) if peer.meta.budget is None else peer.meta.clock
        self.meta = self.peers[0].meta

    @property
    def network(self) -> nn.Module:
        return self.model if self._peer is None else self._peer.network

    @contextmanager
    def _turn_of(self, peer: Peer) -> Iterator[nn.Module]:
        """`self.network` is this peer's."""
        self._peer = peer
        try:
            yield self.network
        finally:
            self._peer = None

    @property
    def meta_learner(self) -> MetaLearner | None:
        """Ψ of the first network; None in plain training and where weights are switched off."""
        return self.peers[0].meta_learner if self.peers else None

    @property
    def networks(self) -> dict[str, tuple[nn.Module, MetaUpdate]]:
        return {peer.name: (peer.network, peer.meta) for peer in self.peers}

    @property
    def noise_rate(self) -> float | None:
        """The share of wrong labels by both networks' surest predictions after the warm-up; None before that."""
        rates = [peer.division.noise_rate for peer in self.peers if peer.division.noise_rate is not None]
        return sum(rates) / len(rates) if rates else None

    @property
    def time_shares(self) -> dict[str, float]:
        """Share of an epoch that division, guessing and meta steps take, timed since the start or the last resume.

        Empty before there are any.
        """
        if not self.peers or not {"step", "division", "guessing"} <= set(self.clock.seconds):
            return {}
        meta_steps = [
            sum(peer.clock.seconds.get(part, 0.0) for part in META_STEP) / peer.clock.times.get("forward", 1)
            for peer in self.peers
        ]
        of_steps = {"guessing": 2 * self.clock.mean("guessing"), "meta step": sum(meta_steps)}
        division = self.clock.mean("division")
        epoch = division + self._batches_per_epoch * self.clock.mean("step")
        shares = {name: self._batches_per_epoch * seconds / epoch for name, seconds in of_steps.items()}
        return {"division": division / epoch, **shares}

    # ---- What the Trainer's loop sees ----

    @property
    def epoch(self) -> int:
        """Of the present step, from 0."""
        return self.state.global_step // max(1, self._steps_per_epoch)

    @property
    def num_views(self) -> int:
        """How often an example is augmented before its label is refined or guessed."""
        return 1 if self.augmentation.name == "none" else 2

    @property
    def fewest(self) -> int:
        """Labelled, and unlabelled, examples that a step takes over all processes."""
        return int(self.args.per_device_train_batch_size) * self.processes.count

    def get_train_dataloader(self) -> DataLoader:
        """Nothing but a count of steps: each network draws its own batches, by the division of the day."""
        batches = self.args.balanced_batches_per_epoch or max(1, len(self.train_dataset) // (2 * self.fewest))
        self._batches_per_epoch = batches
        self._steps_per_epoch = -(-batches // self.args.gradient_accumulation_steps)
        return DataLoader(range(batches), batch_size=1, collate_fn=_no_batch, generator=torch.Generator())  # type: ignore[arg-type]

    def num_examples(self, dataloader: DataLoader) -> int:
        return len(self.train_dataset) if isinstance(dataloader.dataset, range) else super().num_examples(dataloader)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # the loop's own batches hold nothing

    def _prepare_for_training(self, *arguments: Any, **keywords: Any) -> Any:
        """Has accelerate prepare each network too, as the model's own forward is not what is trained."""
        prepared = super()._prepare_for_training(*arguments, **keywords)
        for peer in self.peers:
            if not hasattr(peer.network, "_original_forward"):
                self.accelerator.prepare_model(peer.network, device_placement=False, evaluation_mode=True)
        return prepared

    @property
    def _judges_by_losses(self) -> bool:
        return True

    @property
    def _chosen_sets(self) -> list[PseudoCleanSet]:
        return [peer.division for peer in self.peers]

    # ---- The training step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One batch for each network. Returns the mean of both training losses, detached."""
        self.processes.take_from_first(self.model.buffers())  # as DDP does, whose forward is not called here
        self.model.train()
        step, place = self._place_of_batch()
        epochs, step_of_epoch = divmod(step, self._steps_per_epoch)  # the last step of an epoch may have fewer batches
        number = epochs * self._batches_per_epoch + step_of_epoch * self.args.gradient_accumulation_steps + place
        learned = [peer.meta.copy_of_learned() for peer in self.peers] if self.accelerator.scaler is not None else None
        if step < self._warmup_steps():
            losses = [self._warm_up(peer, number) for peer in self.peers]
        else:
            self._divide()
            clock = self.clock if step % TIMED_STEPS == 0 else NO_TIMER
            with clock("step"), self._attention_of_checkpoints():
                losses = [self._learn(peer, number, clock) for peer in self.peers]
        if self.processes.count > 1 and self.accelerator.sync_gradients:
            self._average_gradients()
        if learned is not None and not all_finite([p.grad for p in self.model.parameters() if p.grad is not None]):
            for peer, before in zip(self.peers, learned, strict=True):  # the loss scaling leaves out both networks
                peer.meta.take_back(before)
        return torch.stack(losses).mean()

    def _warm_up(self, peer: Peer, number: int) -> Tensor:
        """Plain training of a network, on as many examples as a step takes later."""
        drawn = peer.drawn(EVERYTHING, number, num_views=1)
        with self._turn_of(peer) as network:
            return self._plain_step(network, {"pixel_values": drawn.views[0], "labels": drawn.labels})

    def _learn(self, peer: Peer, number: int, clock: Timer) -> Tensor:
        """Virtual-Train, Meta-Train and Actual-Train of a network on a mixed batch."""
        epochs = (self.state.global_step - self._warmup_steps()) / self._steps_per_epoch
        if peer.meta.budget is None:  # which measures every step
            peer.meta.clock = peer.clock if clock is self.clock else NO_TIMER
        with self._turn_of(peer) as network, self.diagnostics.timed(peer.meta):
            buffers = cloned_buffers(network)
            with peer.meta.clock("data"):
                batch, clean_labels = peer.mixed_batch(number, clock)
            weight = self.args.unlabelled_weight * peer.unlabelled_weight
            peer.loss.unlabelled_weight = ramped_up(weight, epochs, self.args.ramp_up_epochs)
            self._averages.add("unlabelled_weight", torch.tensor(peer.loss.unlabelled_weight))
            if not self.processes.all_true(all_finite([batch["pixel_values"], batch["labels"]])):
                return self._leave_out(buffers, "the network's logits", is_fault=True)
            loss = self._three_stages(peer.meta, network, batch, clean_labels)
        return loss / self.current_gradient_accumulation_steps

    def _is_meta_step(self, meta: MetaUpdate) -> bool:
        learns = bool(meta.meta_learner.theta()) or not meta.meta_learner.keeps_theta
        return learns and super()._is_meta_step(meta)

    # ---- Divisions ----

    def _divide(self) -> None:
        """Each network divides the training set, at the first step after the warm-up and of each epoch."""
        if self.peers[0].division.epoch >= self.epoch:
            return
        judged = rows_of_epoch(self, self.epoch)
        dataset = self.train_dataset if judged is None else Subset(self.train_dataset, judged.tolist())
        with self.clock("division"):
            for peer in self.peers:
                is_first = peer.division.noise_rate is None
                found = evaluate_examples(self, dataset, cross_entropy, with_probabilities=is_first, model=peer.network)
                peer.division.divide(
                    found,
                    judged,
                    batch_size=self.fewest,
                    threshold=self.args.clean_threshold,
                    history=self.args.division_history,
                    is_calibrated=self.args.calibrate_division,
                    seed=peer.seed(),
                    epoch=self.epoch,
                )
                self._log_division(peer.division)
        self._end_loading()

    def _log_division(self, division: CoDivide) -> None:
        facts = {
            "labelled_size": float(len(division)),
            "labelled_precision": division.purity,
            "labelled_recall": division.recall,
            "mixture_noise_rate": division.mixture_noise_rate,
        }
        for name, value in facts.items():
            if value is not None:
                self._averages.add(name, torch.tensor(value))

    def _end_loading(self) -> None:
        for peer in self.peers:
            peer.end_loading()

    def _next_meta_batch(self, meta: MetaUpdate) -> dict[str, Any]:
        return self._peer_of(meta).meta_batch()

    def _redrawn_meta_batch(self, meta: MetaUpdate, draw: int) -> dict[str, Any]:
        return self._peer_of(meta).redrawn_meta_batch(draw)

    def _peer_of(self, meta: MetaUpdate) -> Peer:
        return next(peer for peer in self.peers if peer.meta is meta)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """In training, which is the warm-up, with the penalty on confident predictions where that is asked for."""
        if not (model.training and self.args.warmup_confidence_penalty):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch, labels, _ = split_inputs(inputs)
        logits = model_logits(model, batch)
        loss = (self.base_loss(logits, labels) + confidence_penalty(logits)).mean()
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    # ---- Checkpoints ----

    def _save_beside_model(self, folder: Path) -> None:
        if isinstance(self.model, TwoNetworksForImageClassification):
            save_networks_apart(folder, self.model, self.processing_class)

    def _save_meta_net(self, folder: Path) -> None:
        for peer in self.peers:
            save_meta_net(folder / peer.name, peer.meta_learner, peer.meta.layer_sampler)

    def _load_meta_net(self, checkpoint: str) -> None:
        for peer in self.peers:
            if peer.meta_learner is not None:
                load_into(Path(checkpoint) / peer.name, peer.meta_learner, peer.meta.layer_sampler)

    def _meta_state(self, meta: MetaUpdate) -> dict[str, Any]:
        return {
            peer.name: {**peer.meta.state_dict(), "pseudo_clean": peer.division.state_dict()} for peer in self.peers
        }

    def _take_meta_state(self, meta: MetaUpdate, state: dict[str, Any]) -> None:
        if set(state) != set(NETWORKS_APART) or not all(
            isinstance(own, dict) and "pseudo_clean" in own for own in state.values()
        ):
            raise ValueError("it is of a run with one network: resume that with FaMUSTrainer")
        for peer in self.peers:
            peer.meta.load_state_dict(state[peer.name])
            peer.division.load_state_dict(state[peer.name]["pseudo_clean"])


def _no_batch(steps: list[int]) -> dict[str, Any]:
    return {}
