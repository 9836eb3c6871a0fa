"""What a run says of its labels: test examples beside training ones, with trusted examples and without, and reasons."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from famus_hf.core.beliefs import HonestBeliefs
from famus_hf.core.judgement import judge_by_both, judge_by_labels, judge_by_trusted, judge_with
from famus_hf.core.transitions import of_labels
from famus_hf.data.per_example import PerExample
from famus_hf.reporting.judged_splits import NO_TRUSTED, NOT_SEEN, TOO_LITTLE, judge_alone, judge_run
from famus_hf.reporting.label_reasons import AGREES, NOT_JUDGED, UNSURE_OF_LABEL, given_to_believed, reasons
from famus_hf.reporting.label_report import report_of, verdict, wrong_labels

CLASSES, NAMES = 4, ["coat", "shirt", "bag", "boot"]
NETWORK = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(NAMES))))


def world(count, rate, seed, sharpness=2.0, power=2.0, pair=False):
    """Classes drawn from exact posteriors, wrong labels, and beliefs that are too sure: posteriors to a power."""
    rng = np.random.default_rng(seed)
    scores = np.exp(sharpness * rng.normal(size=(count, CLASSES)))
    exact = scores / scores.sum(1, keepdims=True)
    classes = np.array([rng.choice(CLASSES, p=row) for row in exact])
    struck = rng.random(count) < rate
    wrong = (classes + (1 if pair else rng.integers(1, CLASSES, size=count))) % CLASSES
    beliefs = exact**power
    return beliefs / beliefs.sum(1, keepdims=True), classes, np.where(struck, wrong, classes)


def examples(beliefs, labels, clean=None, index=None):
    losses = -np.log(np.maximum(of_labels(beliefs, labels), 1e-12))
    return PerExample(labels, losses, beliefs, clean, index)


def evidence(beliefs, trusted=None, is_of_first_part=True):
    labels = np.zeros(0, dtype=int) if trusted is None else trusted[1]
    of_trusted = np.zeros((0, CLASSES)) if trusted is None else trusted[0]
    return HonestBeliefs(*map(torch.from_numpy, (beliefs, of_trusted, labels)), 5, is_of_first_part)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_beliefs_that_are_too_sure_or_not_sure_enough_are_told_from_wrong_labels(rate, power):
    beliefs, classes, labels = world(3000, rate, 1, power=power)
    judgement = judge_by_labels(labels, beliefs)
    found, wrong = of_labels(judgement.posteriors, labels), labels != classes
    assert np.allclose(judgement.posteriors.sum(1), 1)
    assert 1 - found.mean() == pytest.approx(wrong.mean(), abs=max(0.01, 4 * judgement.deviation))
    assert 0 <= judgement.deviation < 0.03
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):  # what is called so likely is right as often
        chosen = (found >= low) & (found < high)
        if chosen.sum() > 100:
            assert (~wrong[chosen]).mean() == pytest.approx(found[chosen].mean(), abs=0.12)


def test_the_share_by_labels_counts_as_far_as_trusted_examples_confirm_it():
    beliefs, classes, labels = world(2000, 0.3, 2, sharpness=3.0)
    trusted = world(150, 0.0, 3, sharpness=3.0)
    alone, by_trusted = judge_by_labels(labels, beliefs), judge_by_trusted(labels, beliefs, trusted[1], trusted[0])
    both = judge_by_both(labels, beliefs, trusted[1], trusted[0])
    rates = [1 - of_labels(found.posteriors, labels).mean() for found in (alone, by_trusted, both)]
    precisions = np.array([alone.deviation, by_trusted.deviation]) ** -2
    assert rates[2] == pytest.approx((precisions * rates[:2]).sum() / precisions.sum(), abs=1e-6)
    assert both.deviation == pytest.approx(precisions.sum() ** -0.5)
    leaning = 0.75 * beliefs + 0.25 * np.eye(CLASSES)[labels]  # as of a network that begins to learn them by heart
    by_heart = judge_by_both(labels, leaning, trusted[1], trusted[0])
    expected = judge_by_trusted(labels, leaning, trusted[1], trusted[0])
    assert np.array_equal(by_heart.posteriors, expected.posteriors)
    assert (labels != classes).mean() > 0.2


def test_test_examples_are_judged_by_the_transitions_of_the_run():
    beliefs, _, labels = world(2000, 0.4, 4, sharpness=4.0, pair=True)
    few, classes, given = world(60, 0.4, 5, sharpness=4.0, pair=True)
    known = judge_by_both(labels, beliefs, *reversed(world(300, 0.0, 6, sharpness=4.0)[:2]))
    found = of_labels(judge_with(known, given, few).posteriors, given)
    assert np.mean((found < 0.5) == (given != classes)) > 0.9
    run = judge_run(
        examples(beliefs, labels), examples(few, given), evidence(beliefs, world(300, 0.0, 6, 4.0)[:2]), "", [{}, {}]
    )
    assert [split.name for split in run.splits] == ["train", "test"] and run.doubt == ""
    np.testing.assert_allclose(of_labels(run.splits[1].posteriors, given), found)


def test_without_trusted_examples_those_set_apart_say_whether_it_can_be_told():
    beliefs, _, labels = world(2000, 0.25, 7, sharpness=4.0)
    test = examples(*(world(500, 0.25, 8, sharpness=4.0)[i] for i in (0, 2)))
    train, known = examples(beliefs, labels), evidence(beliefs)
    assert judge_run(train, test, known, "", [{}, {}]).doubt == ""
    assert judge_run(train, None, known, "", [{}]).doubt == NO_TRUSTED
    assert judge_run(train, test, None, NOT_SEEN, [{}, {}]).doubt == NOT_SEEN
    by_heart = evidence(0.05 * beliefs + 0.95 * np.eye(CLASSES)[labels])
    assert "% of those set apart to test on, which were never learned from" in (
        judge_run(train, test, by_heart, "", [{}, {}]).doubt
    )
    guesses = np.random.default_rng(9).dirichlet(np.ones(CLASSES), 500)
    assert judge_run(train, examples(guesses, test.labels), known, "", [{}, {}]).doubt == TOO_LITTLE


def test_a_report_of_two_splits_names_each_example_once():
    beliefs, classes, labels = world(300, 0.3, 10, sharpness=4.0)
    few, _, given = world(40, 0.3, 11, sharpness=4.0)
    few[3] = np.nan
    train = examples(beliefs, labels, clean=classes, index=np.arange(300) + 5)
    run = judge_run(train, examples(few, given), evidence(beliefs, world(100, 0.0, 12, 4.0)[:2]), "",
                    [{"file": [f"a/{row}.png" for row in range(300)]}, {}])  # fmt: skip
    report = report_of(run.splits, NETWORK, None, run.doubt)
    places = set(zip(report["split"][:], report["index"][:], strict=True))
    assert places == {("train", row + 5) for row in range(300)} | {("test", row) for row in range(40)}
    first = report[0]
    assert (first["split"], first["index"], first["reason"]) == ("test", 3, NOT_JUDGED)
    assert first["suggested_label"] is None and first["suggestion_probability"] is None
    rows = [row for row in report if row["split"] == "train"]
    assert all(row["clean_label"] == classes[row["index"] - 5] for row in rows)
    assert all(row["file"] == f"a/{row['index'] - 5}.png" for row in rows)
    assert {row["clean_label"] for row in report if row["split"] == "test"} == {None}
    for row in rows:
        posterior = run.splits[0].posteriors[row["index"] - 5]
        assert row["suggested_label"] == posterior.argmax()
        assert row["suggestion_probability"] == pytest.approx(posterior.max(), abs=1e-6)
    estimate, low, high = wrong_labels(report, run.deviation)
    assert low < estimate < high and "are wrong in all" in verdict(report, (low, high))
    assert wrong_labels(report, 0.2)[1:] == (0, 339) or wrong_labels(report, 0.2)[2] > high


def test_reasons_are_counted_and_speak_plainly():
    labels = np.array([1] * 10 + [0] * 30 + [2, 2, 3])
    posteriors = np.eye(CLASSES)[np.array([0] * 6 + [1] * 4 + [0] * 30 + [3, 2, 3])]
    posteriors[9] = [0.1, 0.6, 0.2, 0.1]
    posteriors[40] = [0.0, 0.0, 0.4, 0.6]
    beliefs = np.full((43, CLASSES), 0.25)
    beliefs[42] = [0, 0, 0, 1]
    found = reasons(labels, posteriors, beliefs, NAMES)
    assert found[0] == "examples of coat are often given as shirt here (17 %)"
    assert found[6] == AGREES and found[9] == UNSURE_OF_LABEL
    assert found[40] == "the network was never sure of bag, and finds boot likelier"
    beliefs[40] = [0, 0, 0, 1]
    assert reasons(labels, posteriors, beliefs, NAMES)[40] == "the network is sure that this is boot"
    assert "can't be told" in reasons(labels, posteriors, beliefs, NAMES, "a doubt")[0]


def test_counts_of_given_and_believed_classes_are_of_all_examples():
    beliefs, _, labels = world(200, 0.3, 13, sharpness=4.0, pair=True)
    run = judge_alone("validation", examples(beliefs, labels), {})
    report = report_of(run.splits, NETWORK, None)
    counts = given_to_believed(report)
    assert set(report["split"][:]) == {"validation"}
    assert sum(sum(row.values()) for row in counts.values()) == 200
    assert counts["shirt"]["coat"] == sum(
        given == 1 and believed == 0
        for given, believed in zip(report["label"][:], report["suggested_label"][:], strict=True)
    )
