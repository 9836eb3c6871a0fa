"""The splits of a run as its label report has them: what the network believes of each example, and what follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np

from famus_hf.core.beliefs import HonestBeliefs
from famus_hf.core.judgement import Judgement, judge_by_both, judge_by_labels, judge_by_trusted, judge_with
from famus_hf.core.transitions import of_labels
from famus_hf.data.per_example import PerExample

Judge = Callable[[np.ndarray, np.ndarray], Judgement]  # labels (n,) and probabilities (n, C) → judgement

LEAST_RIGHT = 0.8  # of test examples that the network must seem to be right about, where none are trusted
MOST_APART = 0.1  # by which the shares of wrong labels of two splits may differ, where there are no trusted examples

NO_TRUSTED = (
    "there are neither trusted examples (--num_meta) nor others that were never learned from (a test set with labels "
    "like these), by which to tell wrong labels from mistakes of the network"
)
NOT_SEEN = "what the network believed before it learned from these labels is not known"
BY_HEART = (
    "from the first epochs on the network was surer of the training examples than of the trusted ones, which it never "
    "learned from, or wrong on a quarter of these: it has learned labels by heart, or too little"
)
WRONG_ON_TRUSTED = (
    "the network was wrong about more than a quarter of the trusted examples before it learned from them: it has "
    "learned too little to tell wrong labels from mistakes of its own"
)
TOO_LITTLE = (
    "there are no trusted examples (--num_meta), and of those set apart to test on the network seems to be wrong about "
    "more than a fifth: it has learned too little to tell wrong labels from mistakes of its own"
)


@dataclass(frozen=True)
class JudgedSplit:
    """A split with all that its rows of the report need.

    Attributes:
        name: `train` or `test`.
        examples: What the network makes of them.
        probabilities: Of each class without the given label, shape (N, C); not finite where the network is not.
        posteriors: Likewise with it.
        details: Column → N strings by which a reader knows the examples.
    """

    name: str
    examples: PerExample
    probabilities: np.ndarray
    posteriors: np.ndarray
    details: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        return self.examples.labels

    @property
    def losses(self) -> np.ndarray:
        return self.examples.losses

    @property
    def index(self) -> np.ndarray:
        return np.arange(len(self.labels)) if self.examples.index is None else self.examples.index

    @property
    def known_clean_labels(self) -> list[int | None]:
        known = self.clean_labels
        return [None] * len(self.labels) if known is None else known.tolist()

    @property
    def clean_labels(self) -> np.ndarray | None:
        return self.examples.clean_labels


@dataclass(frozen=True)
class JudgedRun:
    """What a run says of its labels.

    Attributes:
        splits: Training examples, and those set apart to test on where these are judged.
        doubt: Why probabilities can't be told; empty where they can.
        deviation: Standard deviation of the share of wrong labels, by what it was estimated from.
    """

    splits: list[JudgedSplit]
    doubt: str
    deviation: float


def judge_alone(
    name: str, examples: PerExample, details: Mapping[str, Sequence[str | None]], doubt: str = ""
) -> JudgedRun:
    """Judge a split whose labels the network never learned from, by these alone.

    Args:
        name: Of the split.
        examples: What the network makes of them.
        details: Column → strings by which a reader knows the examples.
        doubt: Why probabilities can't be told all the same.
    """
    probabilities = _predictions(examples)
    finite = np.isfinite(probabilities).all(1)
    judgement = _judge(examples, probabilities, finite, judge_by_labels)
    split = JudgedSplit(name, examples, probabilities, _spread(judgement, finite), details)
    return JudgedRun([split], doubt, judgement.deviation)


def judge_run(
    train: PerExample,
    test: PerExample | None,
    evidence: HonestBeliefs | None,
    without_evidence: str,
    details: Sequence[Mapping[str, Sequence[str | None]]],
) -> JudgedRun:
    """Judge the labels that a network learned from, and others that go wrong in the same way.

    Where there are trusted examples, transitions are known by them. Where there are none, they are those that make the
    training labels most likely, and the test examples, which were never learned from, tell whether that holds.

    Args:
        train: What the network makes of the training examples after it has learned from them.
        test: Likewise of others that it never learned from; None where no such are to be judged.
        evidence: What was believed before labels were learned by heart, if that is known.
        without_evidence: Why probabilities can't be told where it is not.
        details: Of each split: column → strings by which a reader knows the examples.
    """
    probabilities = _beliefs_of(train, evidence)
    finite = np.isfinite(probabilities).all(1)
    trusts = evidence is not None and len(evidence.trusted_labels) > 0
    judgement = _judge(train, probabilities, finite, _by_trusted(evidence) if evidence and trusts else judge_by_labels)
    splits = [JudgedSplit("train", train, probabilities, _spread(judgement, finite), details[0])]
    doubt, deviation = "" if evidence is not None else without_evidence, judgement.deviation
    if not doubt and not trusts and test is None:
        doubt = NO_TRUSTED
    if test is not None:
        predictions = _predictions(test)
        is_finite = np.isfinite(predictions).all(1)
        of_test = _judge(test, predictions, is_finite, partial(judge_with, judgement))
        splits.append(JudgedSplit("test", test, predictions, _spread(of_test, is_finite), details[1]))
        if not doubt and not trusts:
            doubt, apart = _check_without_trusted(judgement, train.labels[finite], test, predictions, is_finite)
            deviation = float(np.hypot(deviation, apart))
    return JudgedRun(splits, doubt, deviation)


def _by_trusted(evidence: HonestBeliefs) -> Judge:
    trusted = evidence.trusted_labels.numpy(force=True), evidence.trusted.numpy(force=True)
    judge = judge_by_both if evidence.is_of_first_part else judge_by_trusted
    return lambda labels, probabilities: judge(labels, probabilities, *trusted)


def _judge(examples: PerExample, probabilities: np.ndarray, finite: np.ndarray, judge: Judge) -> Judgement:
    count = probabilities.shape[1]
    if not finite.any():
        return Judgement(np.zeros((0, count)), np.eye(count), 1.0)
    return judge(examples.labels[finite], probabilities[finite])


def _check_without_trusted(
    judgement: Judgement, labels: np.ndarray, test: PerExample, predictions: np.ndarray, finite: np.ndarray
) -> tuple[str, float]:
    """Return why the test examples contradict what was found on the training set, if they do.

    Also how much further apart their shares of wrong labels are than by chance.

    Args:
        judgement: Of the training examples.
        labels: Of those that were judged.
        test: What the network makes of the test examples.
        predictions: Theirs, shape (n, C).
        finite: Which of these are, shape (n,).
    """
    alone = _judge(test, predictions, finite, judge_by_labels)
    given = test.labels[finite]
    believed_right = of_labels(alone.posteriors, predictions[finite].argmax(1))
    if not len(given) or believed_right.mean() < LEAST_RIGHT:
        return TOO_LITTLE, 1.0
    of_train = 1 - of_labels(judgement.posteriors, labels).mean()
    of_test = 1 - of_labels(alone.posteriors, given).mean()
    apart = float(abs(of_train - of_test))
    if apart <= MOST_APART:
        return "", float(max(apart**2 - alone.deviation**2 - judgement.deviation**2, 0) ** 0.5)
    return (
        f"there are no trusted examples (--num_meta), and {100 * of_train:.0f} % of the training labels seem to be "
        f"wrong, but {100 * of_test:.0f} % of those set apart to test on, which were never learned from"
    ), apart


def _predictions(examples: PerExample) -> np.ndarray:
    return cast(np.ndarray, examples.probabilities)


def _beliefs_of(examples: PerExample, evidence: HonestBeliefs | None) -> np.ndarray:
    """Return what was believed, shape (N, C), and of examples that have not come by what the network predicts now."""
    probabilities = _predictions(examples)
    if evidence is None:
        return probabilities
    believed = evidence.probabilities.numpy(force=True)
    finite = np.isfinite(probabilities).all(1, keepdims=True)
    return np.where(finite, np.where(believed.any(1, keepdims=True), believed, probabilities), np.nan)


def _spread(judgement: Judgement, finite: np.ndarray) -> np.ndarray:
    """Return posteriors of all examples, shape (N, C); 0 of those that could not be judged."""
    posteriors = np.zeros((len(finite), judgement.posteriors.shape[1]))
    posteriors[finite] = judgement.posteriors
    return posteriors
