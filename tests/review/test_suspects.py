"""Which examples are reviewed, in which order, and whether the report is on these data."""

import pytest

from famus_hf.data.load import load_splits
from famus_hf.errors import DataError
from famus_hf.reporting.label_report import read_report
from famus_hf.review.suspects import check_report, examples_in, suspects_of
from famus_hf.storage.run_folder import REPORT_FILE
from tests.helpers.reviews import photos_and_run, report_on, truth_of


@pytest.fixture
def case(tmp_path):
    data, run, splits = photos_and_run(tmp_path)
    return data, splits, read_report(run / REPORT_FILE)


def test_suspects_come_first_the_most_probably_wrong_before_others_and_drawn_ones_behind(case):
    _, _, report = case
    suspects = suspects_of(report, most=100, at_random=5)
    wrong = [own for own in suspects if not own.drawn]
    assert all(own.label != truth_of(own.example) == own.suggested_label for own in wrong) and len(wrong) > 5
    assert [own.clean_probability for own in wrong] == sorted(own.clean_probability for own in wrong)
    assert [own.drawn for own in suspects[-5:]] == [True] * 5 and len({own.key for own in suspects}) == len(wrong) + 5
    assert suspects_of(report, 100, 5) == suspects and suspects_of(report, 100, 5, seed=1) != suspects
    assert suspects_of(report, most=3) == suspects[:3]
    assert suspects[0].split == "train" and suspects[0].suggested_label in suspects[0].reason
    assert suspects[0].suggestion_probability == pytest.approx(0.9)


def test_an_earlier_report_suggests_what_it_predicted_and_without_probabilities_all_that_differ_are_suspect(case):
    report = case[2].remove_columns(["split", "suggested_label", "suggestion_probability", "reason"])
    report = report.remove_columns("clean_probability").add_column("clean_probability", [None] * len(report))
    suspects = suspects_of(report, most=100)
    assert {own.split for own in suspects} == {"train"} and all(own.suggested_label != own.label for own in suspects)
    assert len(suspects) == len(suspects_of(case[2], most=100))


def test_a_report_of_the_data_passes_and_one_of_others_is_refused(case, tmp_path):
    data, splits, report = case
    check_report(report, splits)
    check_report(report_on(splits, "test"), splits)
    (data / examples_in(report)[0].example).unlink()
    with pytest.raises(DataError, match="are not these in the data any more"):
        check_report(report, load_splits(name=str(data)))
    with pytest.raises(DataError, match="48 of 48 examples of the label report are not"):
        check_report(report.remove_columns("split").add_column("split", ["validation"] * len(report)), splits)
