"""TwoNetworkTrainer: two networks divide the training set for each other, without any clean label.

Paper: §5.3 (Tables 5–7), after DivideMix (Li, Socher, Hoi, ICLR 2020, arXiv:2002.07394).
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from famus_hf.core.autodiff.forward_pass import model_logits, split_inputs
from famus_hf.core.layer_samplers import AllLayers
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.non_finite import LOGITS, GuardedStep, NotFiniteError, all_finite
from famus_hf.core.three_stages import ThreeStages
from famus_hf.core.timer import NO_TIMER, Timer
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.errors import LoadError
from famus_hf.hub.meta_net_files import load_into, save_meta_net
from famus_hf.reporting.model_card import settings_of
from famus_hf.storage.run_folder import NETWORKS_APART
from famus_hf.trainer import preflight
from famus_hf.trainer.checkpointing import take_checked
from famus_hf.trainer.factory import make_meta_learner
from famus_hf.two_networks.co_divide import CoDivide
from famus_hf.two_networks.ensemble import EnsembleTrainer
from famus_hf.two_networks.model_card import NOT_TOLD, describe_division, describe_networks, pipeline_settings_of
from famus_hf.two_networks.peer import EVERYTHING, Peer, fewest_examples, num_views, rows_of_epoch
from famus_hf.two_networks.semi_supervised import EqualWeights, SemiSupervisedLoss, confidence_penalty, ramped_up

MIXUP_ALPHA = 0.5  # where the user names none
TIMED_STEPS = 10  # one step in so many is timed
META_STEP = ("virtual backward", "validation forward", "validation backward", "derivative")


class TwoNetworkTrainer(EnsembleTrainer):
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
    _batches_per_epoch = 0

    # ---- Set-up ----

    @staticmethod
    def _settle_meta_learner(args: Any, train: Any, meta: Any, meta_learner: MetaLearner | None) -> None:
        args.use_paper_where_open()

    def _set_up_meta_learning(self) -> None:
        args, train = self.args, self.train_dataset
        self._learns_from_meta_set = True
        if args.mixup_alpha is None:
            args.mixup_alpha = MIXUP_ALPHA
        preflight.check_meta_set(args, train, self.meta_dataset)
        preflight.check_two_networks(args, self.model, train, self.accelerator)
        preflight.check_division(args, train, self._collate, self.base_loss)
        self.trusted = self.meta_dataset
        self.peers = (self._make_peer(0), self._make_peer(1))
        for peer, other in zip(self.peers, reversed(self.peers), strict=True):
            peer.other = other
        if self.meta_dataset is None:
            self.meta_dataset = self.peers[0].division
        self.clock = Timer(args.device)
        self.schedule.judges_by_losses = True
        self._check_meta_learning()
        self._make_stages()

    def _check_additions(self) -> None:
        """Check nothing: what goes with two networks was checked with them."""

    def _check_batches_of_one(self, train: Any, meta: Any) -> None:
        """Look at meta batches alone: others hold labelled and unlabelled examples together."""
        learns = self._given[0] is not None or self.args.meta_learner != "none"
        super()._check_batches_of_one(None, meta if learns else None)

    def _make_peer(self, number: int) -> Peer:
        return Peer(
            number,
            self.model.get_submodule(NETWORKS_APART[number]),
            self.train_dataset,
            self.trusted,
            args=self.args,
            collate=self._collate,
            prepare=self._prepare_inputs,
            augmentation=self.augmentation,
            processes=self.processes,
        )

    def _make_stages(self) -> None:
        for peer in self.peers:
            learner, sampler = copy.deepcopy(self._given)
            if learner is None and self.args.meta_learner == "none":
                learner, sampler = EqualWeights(), AllLayers()
            learner = learner or make_meta_learner(self.args)
            preflight.check_weighs_by_losses(learner)
            peer.stages = self._stages_of(peer.network, SemiSupervisedLoss(learner), sampler, peer.seed())
            peer.clock = Timer(self.args.device) if peer.meta.budget is None else peer.meta.clock
        self.stages = self.peers[0].stages

    def _follow_network(self) -> None:
        """Have accelerate prepare each network too, as the model's own forward is not what is trained."""
        for peer in self.peers:
            peer.network = peer.stages.network = self.model.get_submodule(peer.name)
            peer.stages.watch(self.optimizer)
            if not hasattr(peer.network, "_original_forward"):  # else accelerate would wrap its forward again
                self.accelerator.prepare_model(peer.network, device_placement=False, evaluation_mode=True)

    @property
    def meta_learner(self) -> MetaLearner | None:
        """Ψ of the first network; None in plain training and where weights are switched off."""
        return self.peers[0].meta_learner if self.peers else None

    @property
    def networks(self) -> Mapping[str, ThreeStages]:
        return {peer.name: peer.stages for peer in self.peers}

    @property
    def noise_rate(self) -> float | None:
        """The share of wrong labels by both networks' last divisions; None before any, and where it is above one half.

        Networks that have learned little doubt nearly every label, which says nothing of the labels.
        """
        rates = [rate for peer in self.peers if (rate := peer.division.estimated_noise_rate) is not None]
        return sum(rates) / len(rates) if rates and sum(rates) <= 0.5 * len(rates) else None

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

    def get_train_dataloader(self) -> DataLoader:
        """Return nothing but a count of steps: each network draws its own batches, by the present division."""
        batches = self.args.balanced_batches_per_epoch or max(1, len(self.train_dataset) // (2 * self._fewest))
        self._batches_per_epoch = batches
        self.schedule.steps_per_epoch = -(-batches // self.args.gradient_accumulation_steps)
        # Its own generator, as a loader else draws a seed from torch's in each epoch.
        return DataLoader(range(batches), batch_size=1, collate_fn=_no_batch, generator=torch.Generator())  # type: ignore[arg-type]

    def num_examples(self, dataloader: DataLoader) -> int:
        return len(self.train_dataset) if isinstance(dataloader.dataset, range) else super().num_examples(dataloader)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # the loop's own batches hold nothing

    @property
    def _fewest(self) -> int:
        return fewest_examples(self.args, self.processes.count)

    @property
    def _chosen_sets(self) -> list[PseudoCleanSet]:
        return [peer.division for peer in self.peers]

    # ---- The training step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train each network on a batch of its own. Return the mean of both training losses, detached."""
        self.processes.take_from_first(self.model.buffers())  # as DDP does, whose forward is not called here
        self._begin_training_mode(self.model)
        number = self._number_of_batch()
        for peer in self.peers:
            peer.epoch = self.schedule.epoch(self.state)
        before = [peer.meta.copy_of_learned() for peer in self.peers] if self.accelerator.scaler is not None else None
        if self.schedule.is_warmup(self.state):
            losses = [self._warm_up(peer, number) for peer in self.peers]
        else:
            self._divide()
            clock = self.clock if self.state.global_step % TIMED_STEPS == 0 else NO_TIMER
            with clock("step"), self._attention_of_checkpoints():
                losses = [self._learn(peer, number, clock) for peer in self.peers]
        if self.processes.count > 1 and self.accelerator.sync_gradients:
            self._average_gradients()
        if before is not None and not all_finite([p.grad for p in self.model.parameters() if p.grad is not None]):
            for peer, learned in zip(self.peers, before, strict=True):  # the loss scaling leaves out both networks
                peer.meta.take_back(learned)
        return torch.stack(losses).mean()

    def _number_of_batch(self) -> int:
        """Return the number of the present batch since the start of training."""
        step, place = self._place_of_batch()
        epochs, step_of_epoch = divmod(step, self.schedule.steps_per_epoch)  # an epoch's last one may have less batches
        return epochs * self._batches_per_epoch + step_of_epoch * self.args.gradient_accumulation_steps + place

    def _warm_up(self, peer: Peer, number: int) -> Tensor:
        """Train a network plainly, on as many examples as a step takes later."""
        drawn = peer.drawn(EVERYTHING, number, num_views=1)
        return self._plain_step(peer.network, {"pixel_values": drawn.views[0], "labels": drawn.labels}, peer.network)

    def _learn(self, peer: Peer, number: int, clock: Timer) -> Tensor:
        """Take a network's Virtual-Train (Eq. 3), Meta-Train (4, 6–12) and Actual-Train (5) on a mixed batch."""
        stages = peer.stages
        self._follow_frozen(stages)
        if stages.meta.budget is None:  # which measures every step
            stages.meta.clock = peer.clock if clock is self.clock else NO_TIMER
        with self._guarded_step(peer.network, stages) as step:
            batch, clean_labels = self._mixed_batch(peer, number, clock)
            is_meta_step = peer.learns and self.schedule.is_meta_step(self.state)
            train, virtual = stages.forward(peer.network, batch, is_meta_step), None
            if is_meta_step:
                virtual = stages.virtual_train(train, self.optimizer, keep_weights=clean_labels is not None)
                self.diagnostics.measure_meta_gradient(stages, train, virtual)
                self._note_meta_step(stages.meta_train(train, virtual, self._meta_batch_of(peer)))
            self._empty_cache()
            step.loss = stages.actual_train(train, virtual, self._accumulated)
            self._note_weights(stages, train, virtual, clean_labels)
        return step.loss / self._accumulated

    @contextmanager
    def _guarded_step(self, model: nn.Module, stages: ThreeStages) -> Iterator[GuardedStep]:
        """Guard the body as with one network, but without DDP, which has no part in it."""
        with (
            self.diagnostics.timed(stages.meta),
            self.guard.step(stages.network, self.state.global_step, undo=stages.take_back) as step,
            stages,
        ):
            yield step

    def _mixed_batch(self, peer: Peer, number: int, clock: Timer) -> tuple[dict[str, Any], Tensor | None]:
        """Return the network's mixed batch, and right labels where known; set the weight of its unlabelled part."""
        state, schedule = self.state, self.schedule
        with peer.meta.clock("data"):
            batch, clean_labels = peer.mixed_batch(number, clock)
        epochs = (state.global_step - schedule.warmup_steps(state.max_steps)) / schedule.steps_per_epoch
        weight = self.args.unlabelled_weight * peer.unlabelled_weight
        peer.loss.unlabelled_weight = ramped_up(weight, epochs, self.args.ramp_up_epochs)
        self.metrics.add("unlabelled_weight", torch.tensor(peer.loss.unlabelled_weight))
        if not self.processes.all_true(all_finite([batch["pixel_values"], batch["labels"]])):
            raise NotFiniteError(LOGITS)
        return batch, clean_labels

    def _meta_batch_of(self, peer: Peer) -> dict[str, Any]:
        with peer.meta.clock("meta data"):
            return peer.meta_batch()

    def redrawn_meta_batch(self, network: str, draw: int) -> dict[str, Any]:
        return next(peer for peer in self.peers if peer.name == network).redrawn_meta_batch(draw)

    # ---- Divisions ----

    def _divide(self) -> None:
        """Have each network divide the training set, at the first step after the warm-up and of each epoch."""
        epoch = self.schedule.epoch(self.state)
        if self.peers[0].division.epoch >= epoch:
            return
        judged = rows_of_epoch(self.train_dataset, self.args, self.processes.count, epoch)
        dataset = self.train_dataset if judged is None else Subset(self.train_dataset, judged.tolist())
        with self.clock("division"):
            for peer in self.peers:
                is_first = peer.division.noise_rate is None
                examples = self.evaluate_examples(peer.network, dataset, cross_entropy, with_probabilities=is_first)
                peer.division.divide(
                    examples,
                    judged,
                    batch_size=self._fewest,
                    threshold=self.args.clean_threshold,
                    history=self.args.division_history,
                    is_calibrated=self.args.calibrate_division,
                    seed=peer.seed(),
                    epoch=epoch,
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
                self.metrics.add(name, torch.tensor(value))

    def _end_loading(self) -> None:
        for peer in self.peers:
            peer.end_loading()

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss; in training, which is the warm-up, with the confidence penalty where that is asked for."""
        if not (model.training and self.args.warmup_confidence_penalty):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch, labels, _ = split_inputs(inputs)
        logits = model_logits(model, batch)
        loss = (self.base_loss(logits, labels) + confidence_penalty(logits)).mean()
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    # ---- Checkpoints ----

    def _save_meta_net(self, folder: Path) -> None:
        for peer in self.peers:
            save_meta_net(folder / peer.name, peer.meta_learner, peer.meta.layer_sampler)

    def _load_meta_net(self, checkpoint: str) -> None:
        self._follow_frozen_of(checkpoint)
        for peer in self.peers:
            if peer.meta_learner is not None:
                load_into(Path(checkpoint) / peer.name, peer.meta_learner, peer.meta.layer_sampler)

    def _meta_state(self) -> dict[str, Any] | None:
        if not self.peers:
            return None
        return {
            peer.name: {**peer.meta.state_dict(), "pseudo_clean": peer.division.state_dict()} for peer in self.peers
        }

    def _take_meta_state(self, state: dict[str, Any]) -> None:
        if set(state) != set(NETWORKS_APART) or not all(
            isinstance(peer_state, dict) and "pseudo_clean" in peer_state for peer_state in state.values()
        ):
            raise LoadError(
                "it is of a run with one network: resume that with FaMUSTrainer, or with PairTrainer if it had a "
                "pair_method"
            )
        for peer in self.peers:
            take_checked(peer.meta, state[peer.name])
            peer.division.load_state_dict(state[peer.name]["pseudo_clean"])

    # ---- Model card ----

    def model_card_facts(self) -> dict[str, Any]:
        rate = self.noise_rate
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.time_shares.items())
        divisions = {peer.name: peer.division for peer in self.peers if peer.division.epoch >= 0}
        untold = NOT_TOLD if divisions else "not estimated, as the warm-up did not end"
        return {
            **super().model_card_facts(),
            "estimated_noise": untold if rate is None else f"{100 * rate:.1f} %",
            "division": {
                f"the division by `{name}`": describe_division(division) for name, division in divisions.items()
            },
            "time_shares": shares or None,
        }

    def _settings_on_card(self) -> dict[str, Any]:
        args, views = self.args, num_views(self.augmentation)
        settings = settings_of(args, self.state, describe_networks(self.model), 2 * args.per_device_train_batch_size)
        return {**super()._settings_on_card(), **settings, **pipeline_settings_of(args, views)}


def _no_batch(steps: list[int]) -> dict[str, Any]:
    return {}
