"""PairTrainer: two networks learn from the same batches, of which they choose examples for each other in every step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_pass import logits_of
from famus_hf.core.losses import cross_entropy
from famus_hf.core.pair_methods.base import EveryExample, PairBatch
from famus_hf.errors import LoadError
from famus_hf.storage.saved_state import check_state, is_number, optional
from famus_hf.trainer import preflight
from famus_hf.two_networks.co_divide import MOST_BY_ESTIMATE, noise_rate_by_anchors
from famus_hf.two_networks.model_card import describe_estimate, describe_networks, describe_selection, pair_settings_of
from famus_hf.two_networks.selection_mixin import SelectionMixin
from famus_hf.two_networks.semi_supervised import ramped_up

ESTIMATE, SELECTION = "noise_rate", "selection"  # in the meta state of a checkpoint
RAMP_EPOCHS, RAMP_SHARE = 10.0, 0.2  # in which the share that is left out rises: the authors', and most of a run


class PairTrainer(SelectionMixin):
    """Two networks that choose examples of each batch for each other: Co-teaching, JoCoR, Decoupling, INCV.

    `args.pair_method` says how. Both networks see the same batches, and learn with one optimizer; what is chosen is
    chosen over the batches of all processes.

    Args are those of FaMUSTrainer, but:
        model: Has two classifiers `model_a` and `model_b`, as `TwoNetworksForImageClassification.of(a, b)` makes it;
            its own logits are the mean of theirs.
        meta_dataset: Trusted examples, which nothing is learned from: the label report is judged by them.

    Attributes:
        estimate: The share of labels that are wrong by the networks' surest predictions after the warm-up, or by
            cross-validation; None before, and where it is given or not needed.
    """

    takes_pair_method = True
    _logits: Sequence[Tensor] = ()  # of both networks for the present batch
    _clean_labels: Tensor | None = None  # of it, where they are known

    # ---- Set-up ----

    def _set_up_meta_learning(self) -> None:
        args = self.args
        preflight.check_two_networks(args, self.model, self.train_dataset, self.accelerator)
        preflight.check_pair(args, self._given, self.compute_loss_func, self.accelerator)
        super()._set_up_meta_learning()
        self._check_labels()
        method = self.pair_method
        if method.cross_validates:
            preflight.check_cross_validation(args, self.train_dataset)
        self.selection = self._new_selection()
        estimates_later = self.estimates_noise_rate and not method.cross_validates
        self.schedule.judges_by_losses = method.has_warm_up or estimates_later

    # ---- The training step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train both networks on what they choose of a batch. Return the sum of both losses, detached."""
        if self.estimates_noise_rate and self.estimate is None and not self.schedule.is_warmup(self.state):
            self._estimate_noise_rate()
        self._clean_labels = inputs.get("clean_label")
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with _logits_of_each(self.both_networks) as self._logits:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _is_own_loss(self, model: nn.Module) -> bool:
        return not model.training and super()._is_own_loss(model)

    def _loss_of(self, logits: Tensor, labels: Tensor, is_training: bool) -> Tensor:
        if not is_training:
            return super()._loss_of(logits, labels, is_training)
        processes, is_warm_up = self.processes, self.schedule.is_warmup(self.state)
        first, second = (processes.gathered_with_graph(each) for each in self._logits)
        batch = PairBatch((first, second), processes.gathered(labels), self.base_loss, self.forget_rate)
        loss, weights = (EveryExample() if is_warm_up else self.pair_method).training_loss(batch)
        self._note_choice(processes.own(weights.T > 0), labels)
        # Each process has the gradient through its own rows alone, and DDP takes the mean of these, not the sum.
        return processes.count * loss - (processes.count - 1) * loss.detach()

    @torch.no_grad()
    def _note_choice(self, chosen: Tensor, labels: Tensor) -> None:
        """Log how many of this process's examples were chosen, and how many of these are labelled rightly.

        Args:
            chosen: Shape (n, k).
            labels: Given ones, shape (n,) or (n, C).
        """
        self.metrics.add("chosen_share", chosen.float().mean())
        if self._clean_labels is not None and chosen.any():
            given = labels if labels.dim() == 1 else labels.argmax(1)
            correct = given == self._clean_labels.to(given.device)
            self.metrics.add("chosen_precision", correct[:, None].expand_as(chosen)[chosen].float().mean())

    # ---- How much is left out ----

    @property
    def forget_rate(self) -> float:
        """r = τ min(t / T, 1), the share of the present batch that is left out: in epoch t, of wrong labels τ."""
        ramp, schedule = self.args.forget_ramp_epochs, self.schedule
        if ramp is None:
            ramp = min(RAMP_EPOCHS, RAMP_SHARE * self.state.max_steps / schedule.steps_per_epoch)
        of_estimate = min(MOST_BY_ESTIMATE, self.estimate or 0.0)
        rate = of_estimate if self.args.noise_rate is None else self.args.noise_rate
        return ramped_up(rate, schedule.epoch(self.state), ramp)

    @property
    def noise_rate(self) -> float | None:
        """The share of wrong labels, given or estimated; None before, and where the estimate is above one half.

        Networks that have learned little doubt nearly every label, which says nothing of the labels.
        """
        is_told = self.estimate is not None and self.estimate <= MOST_BY_ESTIMATE
        return self.estimate if is_told else self.args.noise_rate

    def _estimate_noise_rate(self) -> None:
        """Take for τ what both networks' surest predictions say at the end of the warm-up, where nobody gives it.

        Not later: networks that choose their examples are as sure as the labels of *these* are right. Paper: τ is
        known.
        """
        rates = []
        for network in self.both_networks:
            examples = self.evaluate_examples(network, self.train_dataset, cross_entropy, with_probabilities=True)
            assert examples.probabilities is not None
            rates.append(noise_rate_by_anchors(examples.probabilities))
        self.estimate = sum(rates) / len(rates)
        self.metrics.add("estimated_noise_rate", torch.tensor(self.estimate))

    # ---- Checkpoints ----

    def _meta_state(self) -> dict[str, Any] | None:
        selected = {} if self.selection is None else {SELECTION: self.selection.state_dict()}
        return {ESTIMATE: self.estimate, **selected}

    def _take_meta_state(self, state: dict[str, Any]) -> None:
        if ESTIMATE not in state:
            raise LoadError("it is of a run without pair_method: resume that with the trainer that it is of")
        rate = {ESTIMATE: (optional(is_number(0, 1)), "a noise_rate that is not in [0, 1]")}
        check_state("the state", state, rate, {SELECTION})
        self._take_selection(state.get(SELECTION))
        self.estimate = state[ESTIMATE] if self.estimates_noise_rate else None

    # ---- Model card ----

    def model_card_facts(self) -> dict[str, Any]:
        return {
            **super().model_card_facts(),
            "estimated_noise": describe_estimate(self.args, self.pair_method, self.estimate, self.noise_rate),
            "division": {},
            "chooses": self.pair_method.about,
        }

    def _settings_on_card(self) -> dict[str, Any]:
        settings = super()._settings_on_card()
        own = pair_settings_of(self.args, self.pair_method) | describe_selection(self.selection_facts)
        return {**settings, "backbone": describe_networks(self.model), **own}


@contextmanager
def _logits_of_each(networks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield what takes in the logits of each network, as passes of a network around them, or of DDP, go through it."""
    found: list[Tensor] = []
    hooks = [
        network.register_forward_hook(lambda _module, _inputs, outputs: found.append(logits_of(outputs)))
        for network in networks
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        found.clear()
