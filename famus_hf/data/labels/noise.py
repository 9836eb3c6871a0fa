"""Wrong labels: how they are drawn and how often they really differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from scipy.stats import truncnorm

from famus_hf.errors import DataError

INSTANCE_SPREAD = 0.1  # standard deviation of an example's own rate under instance noise
FEATURES_AT_ONCE = 4096  # examples whose features are in memory as floats


def generator_for(purpose: str, seed: int) -> np.random.Generator:
    """Return a generator whose stream belongs to a purpose alone.

    Two draws by one seed are so independent of each other, and of what a user draws by `default_rng(seed)`.

    Args:
        purpose: Its name.
        seed: At least 0.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(purpose.encode())))


@dataclass
class Draw:
    """What a noise model draws from.

    Attributes:
        labels: Shape (N,), the clean class indices.
        noise: Rate in [0, 1).
        num_labels: C.
        generator: Of every draw.
        class_map: Shape (C,), the class that each class is mistaken for (asymmetric noise).
        features: Shape (N, D), pixel values from 0 to 255 or anything on a like scale (instance noise).
    """

    labels: np.ndarray
    noise: float
    num_labels: int
    generator: np.random.Generator
    class_map: np.ndarray | None
    features: np.ndarray | None


def _symmetric(draw: Draw) -> np.ndarray:
    """Redraw uniformly from all classes, the true one among them: realised rate r(C − 1)/C (FaMUS, MW-Net)."""
    return draw.generator.integers(draw.num_labels, size=len(draw.labels))


def _symmetric_exclusive(draw: Draw) -> np.ndarray:
    """Redraw uniformly from the other C − 1 classes: realised rate r (Co-teaching, JoCoR)."""
    return (draw.labels + draw.generator.integers(1, draw.num_labels, size=len(draw.labels))) % draw.num_labels


def _pair(draw: Draw) -> np.ndarray:
    """Return the next class, i → i + 1 mod C (Co-teaching)."""
    return (draw.labels + 1) % draw.num_labels


def _asymmetric(draw: Draw) -> np.ndarray:
    """Return the class that it is easily mistaken for (Patrini et al. 2017, DivideMix)."""
    if draw.class_map is None:
        raise DataError(
            "noise_type 'asymmetric' needs to know which class is mistaken for which: that is known for cifar10 and "
            "cifar100, elsewhere give class_map (one class index for each class) or use 'pair'"
        )
    return draw.class_map[draw.labels]


def _flip(draw: Draw) -> np.ndarray:
    """Return one other class, drawn once for each class (MW-Net)."""
    return _other_classes(draw, 1)[draw.labels, 0]


def _flip2(draw: Draw) -> np.ndarray:
    """Return one of two other classes, drawn once for each class; half of the wrong labels each (MW-Net)."""
    others = _other_classes(draw, 2)
    return others[draw.labels, draw.generator.integers(2, size=len(draw.labels))]


def _other_classes(draw: Draw, count: int) -> np.ndarray:
    """Draw different classes for each class, none of them itself. Shape (C, count)."""
    if draw.num_labels <= count:
        raise DataError(f"noise_type 'flip2' needs at least 3 classes, and there are {draw.num_labels}: use 'flip'")
    shifts = [draw.generator.permutation(draw.num_labels - 1)[:count] + 1 for _ in range(draw.num_labels)]
    return (np.arange(draw.num_labels)[:, None] + np.stack(shifts)) % draw.num_labels


def _instance(draw: Draw) -> np.ndarray:
    """Draw by algorithm 2 of Xia et al. 2020: each example has a rate of its own, its class depends on its features.

    Rates come from a normal distribution around r, truncated to [0, 1]; the wrong class is drawn from the softmax of a
    random projection of the features that belongs to the true class.
    """
    if draw.features is None:
        raise DataError("noise_type 'instance' depends on the examples: give features, one row of numbers for each")
    features = draw.features.reshape(len(draw.labels), -1)
    low, high = (0 - draw.noise) / INSTANCE_SPREAD, (1 - draw.noise) / INSTANCE_SPREAD
    rates = truncnorm.rvs(low, high, draw.noise, INSTANCE_SPREAD, len(draw.labels), random_state=draw.generator)
    struck = draw.generator.random(len(draw.labels)) < rates
    places = draw.generator.random(len(draw.labels))  # where in the cumulated probabilities the class is
    noisy = draw.labels.copy()
    for label in range(draw.num_labels):
        projection = draw.generator.standard_normal((features.shape[1], draw.num_labels), dtype=np.float32)
        rows = np.flatnonzero((draw.labels == label) & struck)
        for start in range(0, len(rows), FEATURES_AT_ONCE):
            chunk = rows[start : start + FEATURES_AT_ONCE]
            scores = features[chunk].astype(np.float32) / 255 @ projection
            scores[:, label] = -np.inf
            cumulated = softmax(scores, axis=1).cumsum(1)
            noisy[chunk] = np.minimum((cumulated < places[chunk, None]).sum(1), _last_other(label, draw.num_labels))
    return noisy


def _last_other(label: int, num_labels: int) -> int:
    """Return the last class that is not this one: rounding of a cumulated sum must not lead past it."""
    return num_labels - 1 if label != num_labels - 1 else num_labels - 2


NOISE_TYPES: Mapping[str, Callable[[Draw], np.ndarray]] = {
    "symmetric": _symmetric,
    "symmetric-exclusive": _symmetric_exclusive,
    "asymmetric": _asymmetric,
    "pair": _pair,
    "flip": _flip,
    "flip2": _flip2,
    "instance": _instance,
}


def check_noise(noise: float, noise_type: str, exact_count: bool = False) -> None:
    """Raise DataError on a rate outside [0, 1), an unknown noise type, or one that can't be of an exact number."""
    if not 0 <= noise < 1:
        raise DataError(f"noise={noise} is not a rate: choose a number from 0 to below 1, for example 0.4")
    if noise_type not in NOISE_TYPES:
        raise DataError(f"noise_type={noise_type!r} is unknown: choose one of {', '.join(NOISE_TYPES)}")
    if exact_count and noise_type == "instance":
        raise DataError("noise_exact_count does not go with noise_type 'instance', where each example has its rate")


def corrupt_labels(
    labels: Sequence[int] | np.ndarray,
    noise: float,
    noise_type: str,
    num_labels: int,
    seed: int,
    *,
    exact_count: bool = False,
    class_map: Sequence[int] | np.ndarray | None = None,
    features: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Draw wrong labels.

    Args:
        labels: Shape (N,), class indices in [0, num_labels).
        noise: Rate r in [0, 1); what it means is defined by the noise type.
        noise_type: `symmetric` (redrawn from all classes: r(C − 1)/C really differ), `symmetric-exclusive` (from the
            other classes), `asymmetric` (`class_map`), `pair` (the next class), `flip` (one other class, drawn for each
            class), `flip2` (one of two), `instance` (depends on `features`).
        num_labels: C.
        seed: Of the generator; the same arguments give the same labels.
        exact_count: Strike exactly round(r·N) examples (DivideMix) and not each with probability r.
        class_map: Shape (C,), for `asymmetric`: the class that each class is mistaken for.
        features: Shape (N, …), for `instance`: pixel values from 0 to 255, or anything on a like scale.

    Returns:
        The noisy labels, shape (N,), and the realised rate: the share that differs from the given label.

    Raises:
        DataError: A rate, type or label outside what is allowed, or `class_map` or `features` missing.
    """
    check_noise(noise, noise_type, exact_count)
    clean = np.asarray(labels)
    if len(clean) and not (clean.min() >= 0 and clean.max() < num_labels):
        raise DataError(f"labels span {clean.min()}..{clean.max()}, which is not inside 0..{num_labels - 1}")
    if noise == 0 or not len(clean):
        return clean.copy(), 0.0
    if num_labels < 2:
        raise DataError(f"{num_labels} class can't be mistaken for another: noise needs at least two classes")
    generator = generator_for("noise", seed)
    draw = Draw(clean, noise, num_labels, generator, _checked_map(class_map, num_labels), features)
    wrong = NOISE_TYPES[noise_type](draw)
    if noise_type == "instance":
        return wrong, realised_noise_rate(wrong, clean)
    if exact_count:
        struck = generator.permutation(len(clean)) < round(noise * len(clean))
    else:
        struck = generator.random(len(clean)) < noise
    noisy = np.where(struck, wrong, clean)
    return noisy, realised_noise_rate(noisy, clean)


def _checked_map(class_map: Sequence[int] | np.ndarray | None, num_labels: int) -> np.ndarray | None:
    if class_map is None:
        return None
    classes = np.asarray(class_map)
    if classes.shape != (num_labels,) or classes.min() < 0 or classes.max() >= num_labels:
        raise DataError(f"class_map must hold one class index for each of the {num_labels} classes, not {class_map}")
    return classes


def realised_noise_rate(labels: np.ndarray, clean_labels: np.ndarray) -> float:
    """Return the share of labels that differ from the clean ones."""
    return float(np.mean(labels != clean_labels)) if len(labels) else 0.0
