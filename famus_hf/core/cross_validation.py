"""Iterative noisy cross-validation selects labels that a network predicts without having seen them (numpy and torch).

INCV (Chen, Liao, Chen, Zhang, ICML 2019, arXiv:1905.05040). In each round the candidates, at first all examples, are
halved at random. A network that starts afresh learns from what is selected and from one half, and judges the other one;
then the other way round. Whoever has the predicted class for a label is selected from the next round on, and of the
others those with the largest losses are dropped.

Symbols: N examples, C classes, ε the share of labels that are wrong.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

OPEN = -1  # the turn of an example that is neither selected nor dropped
COUNTS = ("turn", "judged", "agreed", "right")  # numbers that are saved


def noise_rate_by_agreement(agreement: float, num_classes: int) -> float:
    """Return ε̂, the smallest ε with (1 − ε)² + ε²/(C − 1) ≤ agreement; (C − 1)/C where there is none.

    A network that has learned labels of which ε are wrong, evenly over the other classes, predicts other examples as
    wrongly. It predicts a label that it has not seen where both are right, or both wrong in the same way.

    Args:
        agreement: Share of labels that were predicted, in [0, 1].
        num_classes: C, at least 2.
    """
    largest = (num_classes - 1) / num_classes
    return largest * (1 - math.sqrt(max(0.0, 1 - (1 - agreement) / largest)))


def wrong_share_of_selected(noise_rate: float, num_classes: int) -> float:
    """Return how many of the selected labels are wrong: ε²/(C − 1) of (1 − ε)² + ε²/(C − 1).

    Args:
        noise_rate: ε, in [0, 1).
        num_classes: C, at least 2.
    """
    right, wrong_alike = (1 - noise_rate) ** 2, noise_rate**2 / (num_classes - 1)
    return wrong_alike / (right + wrong_alike)


class NoisyCrossValidation:
    """What is selected, turn by turn: a turn is one half of a round, in which a network learns and another half is
    judged. All that a turn needs is a function of the seed and of the turns before.

    Args:
        num_examples: N.
        rounds: Of two turns each.
        drop: How many are dropped in a turn, as a share of those that are selected in it; in [0, 1].
        seed: Of the halves.

    Attributes:
        turn: How many are over.
        settled_at: In which turn an example was selected or dropped, shape (N,); `OPEN` of a candidate.
        selected: Whether it is selected, shape (N,).
        judged, agreed: Examples that were judged in the turns of the first round, and those whose label was predicted.
        right: How many of the selected labels are right, where that is known.
    """

    def __init__(self, num_examples: int, rounds: int, drop: float, seed: int):
        self.rounds, self.drop, self.seed = rounds, drop, seed
        self.turn = self.judged = self.agreed = self.right = 0
        self.settled_at = np.full(num_examples, OPEN)
        self.selected = np.zeros(num_examples, dtype=bool)

    @property
    def is_over(self) -> bool:
        """Whether all rounds are over, or nothing is left to be halved."""
        return self.turn >= 2 * self.rounds or len(self._candidates) < 2

    @property
    def rows(self) -> np.ndarray:
        """What is selected."""
        return np.flatnonzero(self.selected)

    @property
    def _round(self) -> int:
        return self.turn // 2

    @property
    def _settled_before(self) -> np.ndarray:
        """Whether an example was selected or dropped before the present round, shape (N,)."""
        return (self.settled_at != OPEN) & (self.settled_at < 2 * self._round)

    @property
    def _candidates(self) -> np.ndarray:
        return np.flatnonzero(~self._settled_before)

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that are learned from in the present turn, and those that are judged; ascending."""
        order = np.random.default_rng((self.seed, self._round)).permutation(self._candidates)
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        learned, judged = halves if self.turn % 2 == 0 else halves[::-1]
        return np.sort(np.concatenate((self._selected_before, learned))), np.sort(judged)

    @property
    def _selected_before(self) -> np.ndarray:
        return np.flatnonzero(self.selected & self._settled_before)

    @property
    def precision(self) -> float:
        """Share of the selected labels that are right, where that is known; 0 of none."""
        return self.right / max(1, int(self.selected.sum()))

    def take(self, agrees: np.ndarray, losses: np.ndarray, correct: np.ndarray | None = None) -> None:
        """Select and drop among the judged rows of the present turn, which is then over.

        Args:
            agrees: Whether the label is the predicted class, shape (n,).
            losses: By the label, shape (n,); those that are not finite are the largest.
            correct: Whether the label is right, shape (n,), where that is known.
        """
        judged = self.halves()[1]
        chosen, others = judged[agrees], judged[~agrees]
        order = np.argsort(-np.nan_to_num(losses[~agrees], nan=np.inf), kind="stable")
        dropped = others[order[: round(self.drop * len(chosen))]]
        self.settled_at[chosen] = self.settled_at[dropped] = self.turn
        self.selected[chosen] = True
        self.right += 0 if correct is None else int(correct[agrees].sum())
        if self._round == 0:
            self.judged, self.agreed = self.judged + len(judged), self.agreed + len(chosen)
        self.turn += 1

    def noise_rate(self, num_classes: int) -> float | None:
        """Return ε̂ by the first round; None while that is not over. Paper: by one half of it."""
        return None if self._round == 0 else noise_rate_by_agreement(self.agreed / self.judged, num_classes)

    # ---- Checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "settled_at": torch.from_numpy(self.settled_at),
            "selected": torch.from_numpy(self.selected),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, of as many examples."""
        for name in COUNTS:
            setattr(self, name, state[name])
        self.settled_at, self.selected = (state[name].numpy(force=True) for name in ("settled_at", "selected"))
