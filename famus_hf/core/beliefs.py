"""What a network believes of each training example before it learns from it (torch only).

A network that has learned wrong labels by heart believes them. So its predictions are averaged as the examples come by,
each from *before* the step on it, and kept as they were in the last epoch in which they were right about as many of the
trusted examples as ever, and no surer of the training examples than of these, which are never learned from.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from famus_hf.core.parallel.processes import Processes

DECAY = 0.5  # of a running prediction at each visit; chosen on digits and Fashion-MNIST, see docs/label_report.md
LEAST_ACCURACY = 0.75  # on trusted examples; with less, estimates were up to 16 points off on digits
EARLY_DECAY = 0.9  # likewise, of what is believed in the first part of training
TRAINED = "trained_"  # before names of what a checkpoint knows of trusted examples that are trained on
EARLY = "early_"  # likewise, of the first part of training
MARGIN = 0.25  # standard errors by which the accuracy may lie below the best one


@dataclass(frozen=True)
class HonestBeliefs:
    """Beliefs from before anything was learned by heart.

    Attributes:
        probabilities: Shape (N, C); all 0 of an example that had not come by.
        trusted: Of the trusted examples, shape (m, C).
        trusted_labels: Shape (m,).
        epoch: After how many epochs.
        is_of_first_part: Whether they are of the first part of training, and trusted examples were trained on.
    """

    probabilities: Tensor
    trusted: Tensor
    trusted_labels: Tensor
    epoch: int
    is_of_first_part: bool = False


class RunningPredictions:
    """Means of predictions of examples, with decaying weights, as they come by.

    Args:
        num_examples: N.
        num_classes: C.
        device: Where they are kept.
        decay: Of a running prediction at each visit; 0: the last one alone.

    Attributes:
        sums: Decaying sums of predictions, shape (N, C).
        visits: How often each example came by, shape (N,).
        labels: Given ones, as they came by, shape (N,); −1 before.
        losses: By these, from before the last step on each, shape (N,).
    """

    def __init__(self, num_examples: int, num_classes: int, device: torch.device | None = None, decay: float = DECAY):
        self.decay = decay
        self.losses = torch.zeros(num_examples, device=device)
        self.sums = torch.zeros(num_examples, num_classes, device=device)
        self.visits = torch.zeros(num_examples, dtype=torch.int64, device=device)
        self.labels = torch.full((num_examples,), -1, dtype=torch.int64, device=device)
        self._own = torch.zeros(num_examples, dtype=torch.bool, device=device)  # came by in this process alone

    @torch.no_grad()
    def update(self, rows: Tensor, probabilities: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Take in predictions from before a step on these examples; those that are not finite change nothing.

        Args:
            rows: Of these N, shape (n,).
            probabilities: Shape (n, C).
            labels: Given ones, shape (n,).
            losses: By these, shape (n,).
        """
        finite = probabilities.isfinite().all(1, keepdim=True)
        mixed = self.decay * self.sums[rows] + (1 - self.decay) * probabilities.nan_to_num()
        self.sums[rows] = torch.where(finite, mixed, self.sums[rows])
        self.visits[rows] += finite[:, 0].long()
        self.labels[rows] = labels
        self.losses[rows] = torch.where(finite[:, 0], losses.to(self.losses), self.losses[rows])
        self._own[rows] = True

    def of(self, rows: Tensor | slice) -> Tensor:
        """Return what is believed of these examples, shape (n, C), rows sum to 1; 0 of one that has not come by."""
        return self.sums[rows] / (1 - self.decay ** self.visits[rows].clamp(min=1))[:, None]

    def gather(self, processes: Processes) -> None:
        """Take in what came by in other processes, each example in one of them. All processes call it."""
        if processes.count > 1:
            rows = self._own.nonzero()[:, 0]
            own_share = [rows, self.sums[rows], self.visits[rows], self.labels[rows], self.losses[rows]]
            shares = processes.objects([values.cpu() for values in own_share])
            for share in shares:
                rows, sums, visits, labels, losses = (values.to(self.sums.device) for values in share)
                self.sums[rows], self.visits[rows], self.labels[rows], self.losses[rows] = sums, visits, labels, losses
        self._own.zero_()

    def known(self) -> tuple[Tensor, Tensor]:
        """Return what is believed of those that have come by, shape (n, C), and their labels, shape (n,)."""
        came_by = self.visits > 0
        return self.of(came_by), self.labels[came_by]

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors that `load_state_dict` takes; those of other processes must have been gathered."""
        return {"sums": self.sums, "visits": self.visits, "labels": self.labels, "losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave, which must be of as many examples and classes."""
        own = self.sums.device
        self.sums, self.visits, self.labels = (state[name].to(own) for name in ("sums", "visits", "labels"))
        self.losses = state.get("losses", self.losses).to(own)  # not in those of earlier versions


class RunningBeliefs(RunningPredictions):
    """Running predictions of the training examples, and of trusted ones beside them.

    Args:
        num_examples: N.
        num_classes: C.
        num_trusted: m, of those that are never trained on.
        device: Where they are kept.
        decay: Of a running prediction at each visit; 0: the last one alone.
        begun: In which epoch of the run they begin: 0, or a later one where earlier beliefs were lost.
        num_trained: Trusted examples that are trained on. Their rows follow the N.
        keeps_early: Whether what is believed in the first part of training is remembered apart.

    Attributes:
        trusted_sums: As `sums`, of the m trusted examples after each epoch, shape (m, C).
        trained: Running predictions of the trusted examples that are trained on, which are as old as the others'.
        early: Of both, N and then those, with a long memory, as long as `is_early`; None where it is not kept.
        is_early: Whether the training is in its first part, in which few wrong labels are learned by heart.
        epoch: Epochs that are closed, since they began.
        is_pending: Whether examples came by since then.
        is_shown: Whether a meta-learner has looked at them.
        best: The largest share of trusted examples, classes weighed as in training, that beliefs were right about after
            any of them.
        honest: Of the last epoch in which nothing was learned by heart; None where there was none.
    """

    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        num_trusted: int,
        device: torch.device | None = None,
        decay: float = DECAY,
        begun: int = 0,
        num_trained: int = 0,
        keeps_early: bool = False,
    ):
        super().__init__(num_examples, num_classes, device, decay)
        self.begun, self.is_shown = begun, False
        self.trusted_sums = torch.zeros(num_trusted, num_classes, device=device)
        self.trained = RunningPredictions(num_trained, num_classes, device, decay)
        count = num_examples + num_trained
        self.early = RunningPredictions(count, num_classes, device, EARLY_DECAY) if keeps_early else None
        self.is_early = True
        self.epoch = 0
        self.is_pending = False
        self.best = 0.0
        self.honest: HonestBeliefs | None = None

    def update(self, rows: Tensor, probabilities: Tensor, labels: Tensor, losses: Tensor) -> None:
        count = len(self.sums)
        for memory, chosen, first in ((self, rows < count, 0), (self.trained, rows >= count, count)):
            given = probabilities[chosen], labels[chosen], losses[chosen]
            RunningPredictions.update(memory, rows[chosen] - first, *given)
        if self.early is not None and self.is_early:
            self.early.update(rows, probabilities, labels, losses)
        self.is_pending = True

    def gather(self, processes: Processes) -> None:
        super().gather(processes)
        for memory in self._parts.values():
            if len(memory.sums):
                memory.gather(processes)

    @property
    def _parts(self) -> dict[str, RunningPredictions]:
        """The memories beside its own, by what their names in a checkpoint begin with."""
        return {TRAINED: self.trained} if self.early is None else {TRAINED: self.trained, EARLY: self.early}

    def close_epoch(self) -> None:
        """Close an epoch."""
        self.epoch, self.is_pending = self.epoch + 1, False

    @torch.no_grad()
    def observe(self, trusted: Tensor, trusted_labels: Tensor) -> None:
        """Close an epoch: take in the trusted examples' predictions, and keep all beliefs where they are honest.

        Args:
            trusted: Shape (m, C).
            trusted_labels: Shape (m,).
        """
        self.close_epoch()
        decay = self.decay
        self.trusted_sums = decay * self.trusted_sums + (1 - decay) * trusted.to(self.trusted_sums)
        of_trusted, labels = self.trusted_sums / (1 - decay**self.epoch), trusted_labels.to(self.labels)
        probabilities = self.of(slice(None))
        weights = self._weights_of_trusted(labels)
        right = min(1.0, float((weights * (of_trusted.argmax(1) == labels)).sum()))  # which rounding may exceed
        self.best = max(right, self.best)
        least = max(LEAST_ACCURACY, self.best - MARGIN * (right * (1 - right) / len(labels)) ** 0.5)
        is_as_right = right >= least and right > LEAST_ACCURACY
        came_by = self.visits > 0
        surer = probabilities[came_by].max(1).values.mean() - (weights * of_trusted.max(1).values).sum()
        if is_as_right and surer <= 0:
            self.honest = HonestBeliefs(probabilities, of_trusted, labels, self.epoch)

    def _weights_of_trusted(self, labels: Tensor) -> Tensor:
        """Return weights by which classes are as frequent among trusted examples as in the given labels of training.

        Args:
            labels: Of the trusted examples, shape (m,).

        Returns:
            Shape (m,), sum 1.
        """
        count = self.sums.shape[1]
        shares = self.labels[self.visits > 0].bincount(minlength=count).float()
        weights = (shares / labels.bincount(minlength=count).clamp(min=1))[labels]
        return weights / weights.sum().clamp(min=1e-12)

    @property
    def of_first_part(self) -> HonestBeliefs | None:
        """Beliefs of the first part of training, as trusted those that are trained on.

        Of an example that did not come by then, as in a training taken up later, and where too little was learned then,
        it is what is believed now. None before any example came by, and where the network is wrong about a quarter of
        the trusted ones even now.
        """
        if not (self.visits > 0).any():
            return None
        memories = (self, self.trained)
        now = torch.cat([RunningPredictions.of(memory, slice(None)) for memory in memories])
        known = [now]
        if self.early is not None:
            known.insert(0, torch.where((self.early.visits > 0)[:, None], self.early.of(slice(None)), now))
        labels, visits = (torch.cat([getattr(memory, name) for memory in memories]) for name in ("labels", "visits"))
        count = len(self.sums)
        trusted = count + (visits[count:] > 0).nonzero()[:, 0]
        for believed in known:
            right = (believed[trusted].argmax(1) == labels[trusted]).float()
            if not len(trusted) or right.mean() >= LEAST_ACCURACY:
                return HonestBeliefs(believed[:count], believed[trusted], labels[trusted], self.epoch, True)
        return None

    # ---- Checkpoints ----

    def state_dict(self) -> dict[str, Tensor]:
        state = {
            **super().state_dict(),
            **{f"{prefix}{name}": value for prefix, memory in self._parts.items()
               for name, value in memory.state_dict().items()},
            "trusted_sums": self.trusted_sums, "epoch": torch.tensor(self.epoch),
            "is_pending": torch.tensor(int(self.is_pending)), "best": torch.tensor(self.best),
            "begun": torch.tensor(self.begun), "is_shown": torch.tensor(int(self.is_shown)),
        }  # fmt: skip
        if self.honest is not None:
            state |= {
                "honest": self.honest.probabilities, "honest_trusted": self.honest.trusted,
                "honest_trusted_labels": self.honest.trusted_labels, "honest_epoch": torch.tensor(self.honest.epoch),
            }  # fmt: skip
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        own = self.sums.device
        self.trusted_sums = state["trusted_sums"].to(own)
        if "begun" in state:  # not in those of earlier versions
            self.begun, self.is_shown = int(state["begun"]), bool(state["is_shown"])
        for prefix, memory in self._parts.items():
            if f"{prefix}sums" in state:  # likewise
                memory.load_state_dict({k[len(prefix) :]: value for k, value in state.items() if k.startswith(prefix)})
        self.epoch, self.is_pending = int(state["epoch"]), bool(state["is_pending"])
        self.best = float(state["best"])
        self.honest = None
        if "honest" in state:
            honest, trusted, labels = (
                state[name].to(own) for name in ("honest", "honest_trusted", "honest_trusted_labels")
            )
            self.honest = HonestBeliefs(honest, trusted, labels, int(state["honest_epoch"]))
