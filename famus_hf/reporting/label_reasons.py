"""Why a label is suspect, in plain words, and which classes are given which labels: counted from posteriors."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

SURE = 0.9  # of a belief, or of a label
OFTEN, SEVERAL = 0.05, 3.0  # share and number of a class's examples that are given another label, to be called often

AGREES = "the network agrees with this label"
UNSURE_OF_LABEL = "the network was never sure of this label, and finds no other likelier"
NOT_JUDGED = "what the network makes of it is not finite"


def reasons(
    labels: np.ndarray, posteriors: np.ndarray, beliefs: np.ndarray, class_names: Sequence[str], doubt: str = ""
) -> list[str]:
    """Return a short sentence on each label.

    Args:
        labels: Shape (N,).
        posteriors: P(true class k | example, given label), shape (N, C), finite.
        beliefs: What the network makes of each example without its label, shape (N, C).
        class_names: C of them.
        doubt: Why probabilities can't be told; then there is no reason that speaks of them.
    """
    moved = np.stack([posteriors[labels == label].sum(0) for label in range(len(class_names))])  # (given, true)
    share = moved / np.maximum(moved.sum(0), 1e-12)
    is_often = (moved >= SEVERAL) & (share >= OFTEN)
    found = []
    for row, (label, other) in enumerate(zip(labels.tolist(), posteriors.argmax(1).tolist(), strict=True)):
        given, name = class_names[label], class_names[other]
        if label == other:
            is_sure = doubt or posteriors[row, label] >= SURE
            found.append(AGREES if is_sure else UNSURE_OF_LABEL)
        elif doubt:
            found.append(f"the network finds {name} likelier; how likely can't be told")
        elif is_often[label, other]:
            found.append(f"examples of {name} are often given as {given} here ({100 * share[label, other]:.0f} %)")
        elif beliefs[row, other] >= SURE:
            found.append(f"the network is sure that this is {name}")
        else:
            found.append(f"the network was never sure of {given}, and finds {name} likelier")
    return found


def given_to_believed(report: Dataset) -> dict[str, dict[str, int]]:
    """Return of each given label how many examples are believed to be of which class, the most frequent first.

    Args:
        report: See `famus_hf.reporting.label_report`; of examples that could be judged.
    """
    names = report.features["label"].names
    pairs = Counter(zip(report["label"][:], report["suggested_label"][:], strict=True))
    counts: dict[str, dict[str, int]] = {}
    for (given, believed), count in sorted(pairs.items(), key=lambda pair: (pair[0][0], -pair[1])):
        counts.setdefault(names[given], {})[names[believed]] = count
    return counts
