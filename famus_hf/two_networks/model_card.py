"""What the model card says of a run of two networks that divide the training set for each other."""

from collections.abc import Mapping
from typing import Any

from famus_hf.core.pair_methods.base import PairMethod
from famus_hf.core.parallel.dtensor import class_of
from famus_hf.training_args import FaMUSTrainingArguments
from famus_hf.two_networks.co_divide import CoDivide

NOT_TOLD = "not estimated, as the networks doubt most labels: they have learned too little"


def describe_networks(ensemble: Any) -> str:
    """Return their classes and sizes."""
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in _networks(ensemble)]
    names = [class_of(network).__name__ for network in _networks(ensemble)]
    if len(set(zip(names, sizes, strict=True))) == 1:
        return f"2 × {names[0]}, {sizes[0] / 1e6:.2f} M parameters each"
    return " and ".join(f"{name}, {size / 1e6:.2f} M" for name, size in zip(names, sizes, strict=True)) + " parameters"


def _networks(ensemble: Any) -> tuple[Any, Any]:
    return ensemble.model_a, ensemble.model_b


def pipeline_settings_of(args: FaMUSTrainingArguments, num_views: int) -> dict[str, Any]:
    """Return hyper-parameters, by the words that the card uses.

    Args:
        args: Of the run.
        num_views: Of each example, from which its label is refined or guessed.
    """
    alpha, history = args.mixup_alpha or 0.0, args.division_history
    return {
        "views of an example": num_views,
        "labelled examples": f"those right with a probability above {args.clean_threshold:g}"
        + (f", by the losses of {history} epochs" if history > 1 else "")
        + (", as many as the estimated rate leaves" if args.calibrate_division else ""),
        "unlabelled examples of a batch": "half"
        if args.unlabelled_share == "half"
        else "in proportion to the division",
        "mixing": f"Beta({alpha:g}, {alpha:g})" if alpha > 0 else "none",
        "temperature of labels": args.sharpening_temperature,
        "weight of unlabelled examples, λ_u": f"{args.unlabelled_weight:g}"
        + (f", reached after {args.ramp_up_epochs:g} epochs" if args.ramp_up_epochs and args.unlabelled_weight else ""),
        "warm-up": "a tenth of the run" if args.plain_warmup_epochs is None else f"{args.plain_warmup_epochs:g} epochs",
        "penalty on confidence in the warm-up": "yes" if args.warmup_confidence_penalty else "no",
    }


def describe_division(division: CoDivide) -> str:
    """Return how many examples are labelled, and how rightly where that is known."""
    quality = [
        f"{100 * value:.1f} % {words}"
        for value, words in (
            (division.purity, "of these with the right label"),
            (division.recall, "of the right labels among them"),
        )
        if value is not None
    ]
    counts = f"{len(division)} labelled and {len(division.unlabelled)} unlabelled examples"
    return ", ".join([counts, *quality])


def pair_settings_of(args: FaMUSTrainingArguments, method: PairMethod) -> dict[str, Any]:
    """Return hyper-parameters of two networks that choose examples of each batch, by the words that the card uses.

    Args:
        args: Of the run.
        method: By which they choose.
    """
    if not method.forgets:
        return {"method": args.pair_method}
    rate, ramp = args.noise_rate, args.forget_ramp_epochs
    left_out = "as many as seem wrong" if rate is None else f"{100 * rate:g} %"
    after = "10 epochs, at most a fifth of the run" if ramp is None else f"{ramp:g} epochs"
    settings = {"examples of a batch that are left out": f"{left_out}, reached after {after}"}
    if method.cross_validates:
        epochs = args.cross_validation_epochs
        learned = "half as many epochs as the run" if epochs is None else f"{epochs:g} epochs"
        settings["cross-validation"] = f"{args.cross_validation_rounds} rounds, each half {learned}"
    return {"method": args.pair_method, **settings}


def describe_selection(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what cross-validation has selected, by the words that the card uses. facts: `selection_facts`."""
    if not facts:
        return {}
    precision, seconds = facts["selected_precision"], facts["cross_validation_seconds"]
    right = "" if precision is None else f", {100 * precision:.1f} % of them with the right label"
    return {"selected by cross-validation": f"{facts['selected_examples']} examples{right}, within {seconds:.0f} s"}


def describe_estimate(
    args: FaMUSTrainingArguments, method: PairMethod, estimate: float | None, noise_rate: float | None
) -> str:
    """Return the share of wrong labels as two networks that choose examples estimate it, or why they do not.

    Args:
        args: Of the run.
        method: By which they choose.
        estimate: Whatever came out; None before.
        noise_rate: Where it tells something of the labels.
    """
    if not method.forgets:
        return "not estimated, as the method does without"
    if args.noise_rate is not None:
        return f"not estimated, as it was given: {100 * args.noise_rate:g} %"
    if estimate is None:
        return "not estimated, as the warm-up did not end"
    return NOT_TOLD if noise_rate is None else f"{100 * noise_rate:.1f} %"
