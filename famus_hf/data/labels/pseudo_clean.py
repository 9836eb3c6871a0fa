"""The pseudo-clean meta set: training examples whose loss is small, found by a mixture of two Gaussians.

Paper: §5.3 and Appendix E, after DivideMix (Li, Socher, Hoi 2020). The set is a part of the training set.
"""

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from famus_hf.storage.saved_state import Check, check_state, is_number, is_rows, is_whole, optional

OTHER = "they are of other data"
MIXTURE = {"n_components": 2, "max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}  # DivideMix

is_share = is_number(0, 1)


def clean_probabilities(losses: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return c_i: the posterior of the component with the smaller mean, of losses scaled to [0, 1]. Shape (N,).

    Args:
        losses: Shape (N,), per-example losses in eval mode; those that are not finite count as the largest, and their
            c_i is 0.
        seed: Of the mixture's start.
    """
    losses = np.asarray(losses, dtype=np.float64)
    finite = losses[np.isfinite(losses)]
    if len(finite) < 2 or finite.min() == finite.max():
        return np.where(np.isfinite(losses), 0.5, 0.0)  # nothing to tell them apart by
    scaled = scaled_to_one(losses)
    mixture = GaussianMixture(**MIXTURE, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are what the method asks for
        posteriors = mixture.fit(scaled[:, None]).predict_proba(scaled[:, None])
    # A broad component of small losses takes over again beyond a narrow one of large losses, where these would stand.
    return np.where(np.isfinite(losses), posteriors[:, mixture.means_.argmin()], 0.0)


def pseudo_clean_rows(losses: np.ndarray, probabilities: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the rows with c_i > 0.5, ascending; the half with the smaller losses if those are too few or nearly all.

    Args:
        losses: Shape (N,).
        probabilities: Shape (N,), the c_i.
        batch_size: Fewer than this many, or all but fewer than this many, are too few or nearly all.
    """
    rows = np.flatnonzero(probabilities > 0.5)
    if batch_size <= len(rows) <= len(losses) - batch_size:
        return rows
    order = np.argsort(largest_if_not_finite(losses), kind="stable")
    return np.sort(order[: max(1, len(losses) // 2)])


def scaled_to_one(losses: np.ndarray) -> np.ndarray:
    """Scale losses to [0, 1] by min–max, shape (N,); those that are not finite become 1, and all others 0 if equal."""
    finite = losses[np.isfinite(losses)]
    if len(finite) == 0 or finite.min() == finite.max():
        return np.where(np.isfinite(losses), 0.0, 1.0)
    return (largest_if_not_finite(losses).clip(max=finite.max()) - finite.min()) / np.ptp(finite)


def largest_if_not_finite(losses: np.ndarray) -> np.ndarray:
    """Return the losses with ∞ for those that are not finite."""
    return np.where(np.isfinite(losses), losses, np.inf)


class PseudoCleanSet(torch.utils.data.Dataset):
    """Some rows of the training set, chosen anew in each epoch after the warm-up.

    Attributes:
        rows: Of the training set; all of them until the first choice.
        epoch: In which they were chosen; −1 before.
        purity: Share of them whose label is right, where clean labels are known, else None.
    """

    def __init__(self, train_dataset: Any):
        self.train_dataset = train_dataset
        self.rows = np.arange(len(train_dataset))
        self.epoch = -1
        self.purity: float | None = None

    def forget(self) -> None:
        """Forget the epoch of the choice: a training begins, in which rows will be chosen anew."""
        self.epoch = -1

    def choose(self, losses: np.ndarray, correct: np.ndarray | None, batch_size: int, seed: int, epoch: int) -> None:
        """Choose the rows by their losses.

        Args:
            losses: Shape (N,), of all training examples.
            correct: Shape (N,), whether a label is right, where that is known.
            batch_size: m, see `pseudo_clean_rows`.
            seed: Of the mixture.
            epoch: Of the choice.
        """
        self.rows = pseudo_clean_rows(losses, clean_probabilities(losses, seed), batch_size)
        self.purity = None if correct is None else float(correct[self.rows].mean())
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        return {"rows": torch.from_numpy(self.rows), "epoch": self.epoch, "purity": self.purity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. Raise LoadError where that is no choice of this training set's rows."""
        check_state("the pseudo-clean set", state, self.state_fields())
        self._take_choice(state)

    def _take_choice(self, state: dict[str, Any]) -> None:
        self.rows, self.epoch, self.purity = state["rows"].cpu().numpy(), state["epoch"], state["purity"]

    def state_fields(self) -> dict[str, tuple[Check, str]]:
        """Return what `load_state_dict` takes, see `check_state`."""
        total = len(self.train_dataset)
        return {
            "rows": (is_rows(total, at_least=1), f"rows that are no choice among {total} training examples: {OTHER}"),
            "epoch": (is_whole(-1), "an epoch that is no whole number of at least -1"),
            "purity": (optional(is_share), "a purity that does not lie in [0, 1]"),
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.train_dataset[int(self.rows[place])]
