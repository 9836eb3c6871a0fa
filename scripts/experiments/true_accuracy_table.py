"""How near estimates of the true accuracy come: perceptrons on Fashion-MNIST, whose test labels are wrong as well.

    python scripts/experiments/true_accuracy_table.py    # a few minutes on a core; --num_train 2400: one

Each perceptron learns from labels some of which are wrong, and is tested on 0.25 · num_train other images, as many of
whose labels are wrong. The estimate knows these alone, or 200 trusted examples as well; the truth is known here only to
say how far it is off.
"""

import argparse
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from sklearn.neural_network import MLPClassifier

from famus_hf import load_noisy_dataset
from famus_hf.core.true_accuracy import TrueAccuracy, estimate_true_accuracy
from famus_hf.data.labels.noise import corrupt_labels
from famus_hf.data.media.images import pixel_features

CELLS = [("symmetric-exclusive", rate) for rate in (0.0, 0.1, 0.2, 0.4)] + [("pair", r) for r in (0.1, 0.2, 0.25, 0.4)]
EPOCHS = (6, 20, 40)  # after which each network is judged; with more of them it learns more by heart
NUM_TRUSTED = 200


class Row(NamedTuple):
    """One network at one time. Accuracies in per cent; an estimate is None where it can't be told."""

    name: str
    accuracy: float
    agreement: float
    alone: float | None
    with_trusted: float | None

    def __str__(self) -> str:
        cells = [f"{value:.1f}" if value is not None else "not told" for value in self[1:]]
        return f"| {self.name} | {' | '.join(cells)} |"


def rows(options: argparse.Namespace, noise_type: str, rate: float) -> Iterator[Row]:
    """Train a perceptron on labels with this noise, and yield a row after each of `EPOCHS`."""
    train, test = options.num_train, options.num_train // 4
    count = train + test + NUM_TRUSTED
    data = load_noisy_dataset(options.dataset_name, num_meta=0, max_train_samples=count)["train"]
    pixels, true = pixel_features(data)[:, ::3] / 255, np.asarray(data["label"][:])
    classes = np.arange(data.features["label"].num_classes)
    order = np.random.default_rng(options.seed).permutation(count)
    learned, tested, trusted = np.split(order, [train, train + test])
    given, _ = corrupt_labels(true, rate, noise_type, len(classes), options.seed)
    network, sums = MLPClassifier((64,), batch_size=100, random_state=options.seed, learning_rate_init=3e-3), 0.0
    for epoch in range(1, max(EPOCHS) + 1):
        network.partial_fit(pixels[learned], given[learned], classes=classes)
        last = network.predict_proba(pixels[tested])
        sums = sums + last
        if epoch in EPOCHS:
            accuracy, agreement = (100 * float((last.argmax(1) == of[tested]).mean()) for of in (true, given))
            views = given[tested], last, np.asarray(sums) / epoch
            both = estimate_true_accuracy(*views, true[trusted], network.predict_proba(pixels[trusted]))
            name = f"{noise_type} {100 * rate:g} %, {epoch} epochs"
            yield Row(name, accuracy, agreement, in_per_cent(estimate_true_accuracy(*views)), in_per_cent(both))


def in_per_cent(estimate: TrueAccuracy | str) -> float | None:
    """Return the estimate in per cent; None where it can't be told."""
    return None if isinstance(estimate, str) else 100 * estimate.value


def describe_errors(table: list[Row], name: str) -> str:
    """Return how far the estimates of a column are from the truth."""
    estimates = [(getattr(row, name), row.accuracy) for row in table]
    errors = [abs(value - accuracy) for value, accuracy in estimates if value is not None]
    mean = f"mean {statistics.fmean(errors):.1f}, at most {max(errors):.1f} points off" if errors else "none"
    return f"{name}: {mean}; not told of {len(estimates) - len(errors)} of {len(estimates)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="/usr/share/datasets/fashion-mnist", help="as in run_famus.py")
    parser.add_argument("--num_train", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| noise | true accuracy | agreement | estimate | with trusted |\n|---|---|---|---|---|")
    table = []
    for noise_type, rate in CELLS:
        for row in rows(options, noise_type, rate):
            table.append(row)
            print(row, flush=True)
    print("\n".join(describe_errors(table, name) for name in ("alone", "with_trusted")))


if __name__ == "__main__":
    main()
