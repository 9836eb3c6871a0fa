"""What a run says of its accuracy where nobody knows which of the test labels are right."""

from collections.abc import Mapping
from typing import Any

from famus_hf.core.true_accuracy import TrueAccuracy

ACCURACY, AGREEMENT = "test accuracy", "agreement with the test labels"


def facts_of(estimate: TrueAccuracy | str) -> dict[str, Any]:
    """Return what all_results.json says of test labels that are not known to be right."""
    if isinstance(estimate, str):
        return {"test_labels_known": False, "estimated_true_accuracy": None, "true_accuracy_doubt": estimate}
    return {
        "test_labels_known": False,
        "estimated_true_accuracy": estimate.value,
        "estimated_true_accuracy_interval": [estimate.low, estimate.high],
        "estimated_test_noise_rate": estimate.noise_rate,
    }


def are_known(results: Mapping[str, Any]) -> bool:
    """Return whether the accuracies of a run are by labels that count as right."""
    return results.get("test_labels_known") is not False


def in_words(results: Mapping[str, Any]) -> str:
    """Return what the accuracy at the end of a run means; empty where it is by labels that count as right."""
    if are_known(results):
        return ""
    agreement = f"{100 * results['eval_accuracy']:.1f} % agreement with test labels"
    value = results.get("estimated_true_accuracy")
    if value is None:
        doubt = results.get("true_accuracy_doubt") or "it was not asked"
        return f"{agreement} that are not known to be right; the true accuracy can't be told, as {doubt}"
    low, high = results["estimated_true_accuracy_interval"]
    return (
        f"{agreement} of which about {100 * results['estimated_test_noise_rate']:.0f} % are wrong; the true accuracy "
        f"is about {100 * value:.1f} % (estimated, {100 * low:.0f} to {100 * high:.0f} %)"
    )
