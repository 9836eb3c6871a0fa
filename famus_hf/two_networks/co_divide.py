"""The training set as the losses of one network divide it, for the other network to learn from.

Paper: §5.3, after DivideMix (Li, Socher, Hoi, ICLR 2020). The given labels of labelled examples still count, those of
unlabelled ones are replaced by guesses, anew in each step; the labelled ones are the meta set, too.
"""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from famus_hf.core.transitions import with_noise_rate
from famus_hf.data.labels.pseudo_clean import (
    OTHER,
    PseudoCleanSet,
    clean_probabilities,
    is_share,
    largest_if_not_finite,
    scaled_to_one,
)
from famus_hf.data.per_example import PerExample
from famus_hf.errors import LoadError
from famus_hf.storage.saved_state import Check, check_state, is_rows, is_tensor, optional

ANCHOR_QUANTILE = 0.8  # of the probabilities in a class; measured on Fashion-MNIST, see the README
# Labels may be left out beyond those that are wrong, as one wrong label does more harm than one that is missing; not
# many, as hard examples have large losses, too.
CAUTION = 1.25
NEGLIGIBLE = 0.1  # a noise rate that can't be told from none, as a short warm-up leaves some doubt of clean labels, too
MOST_BY_ESTIMATE = 0.5  # beyond which the mixture alone decides: a network that has learned little is sure of nothing
RATES = ("mixture_noise_rate", "noise_rate", "recall")
LABELLED_OF_A_CLASS = 0.1  # share of a class's examples that are labelled where the mixture leaves it without any


def noise_rate_by_anchors(probabilities: np.ndarray) -> float:
    """Return the share of wrong labels by a network's surest predictions.

    The network has learned from the given labels, but not yet memorised the wrong ones. What looks most like a class is
    of that class, so that the network gives it the share of right labels in the class (anchor points: Liu and Tao 2016,
    arXiv:1411.7718; Patrini et al., CVPR 2017, arXiv:1609.03683). Here: one minus the `ANCHOR_QUANTILE` of the largest
    probability among the examples of a predicted class, averaged over examples.

    Args:
        probabilities: Predictions for the training examples, shape (N, C); those that are not finite do not count.
    """
    probabilities = probabilities[np.isfinite(probabilities).all(1)]
    if len(probabilities) == 0:
        return 1.0
    predicted, largest = probabilities.argmax(1), probabilities.max(1)
    surest = {label: np.quantile(largest[predicted == label], ANCHOR_QUANTILE) for label in np.unique(predicted)}
    return float(1 - np.mean([surest[label] for label in predicted]))


def labelled_examples(
    losses: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    threshold: float = 0.5,
    tells_apart: bool | None = None,
) -> np.ndarray:
    """Return which examples are labelled: those with c > threshold, but for four cases that training could not bear.

    Fewer than one batch of them, or all equal: the half with the smaller losses. Fewer than one batch of others: that
    many examples with the largest losses are unlabelled. A class without any: a tenth of it, with the smallest losses,
    as far as one batch of others is left; the first classes come first.

    Args:
        losses: Shape (N,).
        probabilities: c, shape (N,).
        labels: Given ones, shape (N,).
        batch_size: Over all processes; at most N/2.
        threshold: In (0, 1).
        tells_apart: Whether the mixture does; default: whether c differ, which calibrated ones of 1 do not.

    Returns:
        Shape (N,), booleans; at least `batch_size` of either kind.
    """
    order = np.argsort(largest_if_not_finite(losses), kind="stable")
    labelled = probabilities > threshold
    if tells_apart is None:
        tells_apart = np.ptp(probabilities) > 0
    if labelled.sum() < batch_size or not tells_apart:
        labelled = _first(order, max(batch_size, len(losses) // 2))
    if (~labelled).sum() < batch_size:
        labelled = _first(order, len(losses) - batch_size)
    spare = int((~labelled).sum()) - batch_size
    for label in np.setdiff1d(labels, labels[labelled]):
        of_class = order[labels[order] == label]
        added = of_class[: min(spare, max(1, round(LABELLED_OF_A_CLASS * len(of_class))))]
        labelled[added] = True
        spare -= len(added)
    return labelled


def _first(order: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[:count]] = True
    return chosen


class CoDivide(PseudoCleanSet):
    """Labelled and unlabelled rows by one network's losses. As a data set it is the labelled rows, a meta set.

    Attributes:
        rows: Labelled rows of the training set; all of them until the first division.
        unlabelled: The others of those that were judged.
        clean_probabilities: c of each training example, shape (N,); 0 where it was not judged.
        mixture_noise_rate: By the mixture, the mean of 1 − c over the judged examples; None before the first division.
        noise_rate: By the network's surest predictions at the first division, see `noise_rate_by_anchors`.
        recall: Share of the right labels that are labelled, where clean labels are known, else None; see `purity`.
        history: Losses of earlier epochs that count too, scaled to [0, 1]; shape (epochs, N).
    """

    def __init__(self, train_dataset: Any):
        super().__init__(train_dataset)
        self.unlabelled = np.arange(0)
        self.clean_probabilities = np.zeros(len(train_dataset))
        self.mixture_noise_rate: float | None = None
        self.noise_rate: float | None = None
        self.recall: float | None = None
        self.history = np.zeros((0, len(train_dataset)))

    def forget(self) -> None:
        super().forget()
        self.history = self.history[:0]
        self.noise_rate = None

    def divide(
        self,
        examples: PerExample,
        judged: np.ndarray | None,
        *,
        batch_size: int,
        threshold: float,
        history: int,
        is_calibrated: bool = False,
        seed: int,
        epoch: int,
    ) -> None:
        """Divide the training set anew.

        Args:
            examples: What the network makes of the judged examples; at the first division with probabilities.
            judged: Their rows, all different; None means all of the training set, in order.
            batch_size: Over all processes; see `labelled_examples`.
            threshold: Likewise.
            history: How many epochs' losses are averaged, this one's included; with `judged` it must be 1.
            is_calibrated: Whether the mixture's share of wrong labels is held between `noise_rate` and `CAUTION` times
                that, and at zero where that is less than `NEGLIGIBLE`.
            seed: Of the mixture.
            epoch: Of the division.
        """
        if self.noise_rate is None and examples.probabilities is not None:
            self.noise_rate = noise_rate_by_anchors(examples.probabilities)
        rows = np.arange(len(self.train_dataset)) if judged is None else judged
        losses = examples.losses.astype(np.float64)
        if history > 1:
            self.history = np.concatenate((self.history, scaled_to_one(losses)[None]))[-history:]
            losses = self.history.mean(0)
        c = clean_probabilities(losses, seed)
        self.mixture_noise_rate, tells_apart = float(1 - c.mean()), bool(np.ptp(c) > 0)
        if is_calibrated and self.noise_rate is not None:
            rate = self.noise_rate if self.noise_rate >= NEGLIGIBLE else 0.0
            most = min(1.0, CAUTION * rate)
            plausible = float(np.clip(self.mixture_noise_rate, min(rate, MOST_BY_ESTIMATE), most))
            c = c if plausible == self.mixture_noise_rate else with_noise_rate(c, plausible)
        labelled = labelled_examples(losses, c, examples.labels, batch_size, threshold, tells_apart)
        self.rows, self.unlabelled = rows[labelled], rows[~labelled]
        self.clean_probabilities = np.zeros(len(self.train_dataset))
        self.clean_probabilities[rows] = c
        self.purity = self.recall = None
        if examples.correct is not None:
            self.purity = float(examples.correct[labelled].mean())
            self.recall = float(labelled[examples.correct].mean()) if examples.correct.any() else None
        self.epoch = epoch

    @property
    def estimated_noise_rate(self) -> float | None:
        """Mean of 1 − c over the judged examples: what the last division says. None before the first one."""
        if self.epoch < 0:
            return None
        return float(1 - self.clean_probabilities[np.concatenate((self.rows, self.unlabelled))].mean())

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "unlabelled": torch.from_numpy(self.unlabelled),
            "clean_probabilities": torch.from_numpy(self.clean_probabilities),
            "mixture_noise_rate": self.mixture_noise_rate,
            "noise_rate": self.noise_rate,
            "recall": self.recall,
            "history": torch.from_numpy(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raise LoadError where that is no division of this training set."""
        check_state("the division", state, self.state_fields())
        if bool(torch.isin(state["unlabelled"], state["rows"]).any()):
            raise LoadError("the division has rows that are both labelled and unlabelled: it is of no run")
        self._take_choice(state)
        self.unlabelled = state["unlabelled"].cpu().numpy()
        self.clean_probabilities = state["clean_probabilities"].numpy(force=True)  # whether or not it has a gradient
        for name in RATES:
            setattr(self, name, state[name])
        self.history = state["history"].numpy(force=True)

    def state_fields(self) -> dict[str, tuple[Check, str]]:
        total, shares = len(self.train_dataset), "that do not lie in [0, 1]"
        return {
            **super().state_fields(),
            "unlabelled": (is_rows(total), f"unlabelled rows that are none of {total} training examples: {OTHER}"),
            "clean_probabilities": (
                is_tensor((total,), torch.float64, 0, 1), f"clean_probabilities that are no {total} numbers in [0, 1]"
            ),
            "history": (is_tensor((None, total), torch.float64, 0, 1), f"a history of losses {shares}: {OTHER}"),
            **{name: (optional(is_share), f"a {name} that does not lie in [0, 1]") for name in RATES},
        }  # fmt: skip


class Part(Dataset):
    """Rows of the training set, each example with its c."""

    def __init__(self, train_dataset: Any, rows: np.ndarray, clean_probabilities: np.ndarray):
        self.train_dataset, self.rows, self.clean_probabilities = train_dataset, rows, clean_probabilities

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Any, float]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> list[tuple[Any, float]]:
        rows = [int(self.rows[place]) for place in places]
        get_batch = getattr(self.train_dataset, "__getitems__", None)  # faster than one by one
        examples = [self.train_dataset[row] for row in rows] if get_batch is None else get_batch(rows)
        return [(example, float(self.clean_probabilities[row])) for example, row in zip(examples, rows, strict=True)]


def collated(collate: Any, examples: list[tuple[Any, float]]) -> dict[str, Any]:
    """Return a batch of a `Part`: what the trainer's collator makes of it, and `clean_probability`, shape (n,)."""
    batch = dict(collate([example for example, _ in examples]))
    return {**batch, "clean_probability": torch.tensor([c for _, c in examples])}
