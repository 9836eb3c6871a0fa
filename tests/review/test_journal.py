"""Several reviewers write to one file: nothing is lost, and who was too late hears of it."""

import threading

import pytest

from famus_hf.data.labels.decisions import Decision, read_decisions
from famus_hf.errors import DataError
from famus_hf.review.journal import DecidedMeanwhile, Journal

DATA = "0123456789abcdef"


def decision(index, label):
    return Decision("train", index, f"{index}.png", "coat", "shirt", label)


def test_a_decision_is_on_the_disk_at_once_and_can_be_changed_and_taken_back(tmp_path):
    path = tmp_path / "new" / "decisions.csv"
    journal = Journal(path, DATA)
    assert len(journal.read()) == 0 and not path.exists()
    assert journal.record(("train", 1), decision(1, "shirt"), None) == 1
    assert journal.record(("train", 2), decision(2, "coat"), None) == 2
    assert [own.reviewed_label for own in read_decisions(path)] == ["shirt", "coat"]
    assert journal.record(("train", 1), decision(1, "hat"), "shirt") == 2
    assert [own.index for own in read_decisions(path)] == [2, 1], "the last decision comes last"
    assert journal.record(("train", 2), None, "coat") == 1
    assert [own.index for own in Journal(path, DATA).read()] == [1]


def test_who_decides_on_what_another_has_decided_meanwhile_is_told_and_changes_nothing(tmp_path):
    one, other = (Journal(tmp_path / "decisions.csv", DATA) for _ in range(2))
    one.record(("train", 1), decision(1, "shirt"), None)
    before = (tmp_path / "decisions.csv").read_bytes()
    with pytest.raises(
        DecidedMeanwhile, match=r"another reviewer has made 1.png 'shirt' meanwhile, which stays"
    ) as told:
        other.record(("train", 1), decision(1, "hat"), None)
    assert told.value.present == "shirt" and (tmp_path / "decisions.csv").read_bytes() == before
    other.record(("train", 1), decision(1, "hat"), "shirt")
    with pytest.raises(DecidedMeanwhile, match="made train 2 undecided"):
        one.record(("train", 2), None, "coat")


def test_two_reviewers_at_once_lose_nothing(tmp_path):
    def review(first):
        journal = Journal(tmp_path / "decisions.csv", DATA)
        for index in range(first, 40, 2):
            journal.record(("train", index), decision(index, "shirt"), None)

    threads = [threading.Thread(target=review, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(own.index for own in read_decisions(tmp_path / "decisions.csv")) == list(range(40))


def test_a_damaged_file_or_one_on_other_data_stays_as_it_is(tmp_path):
    path = tmp_path / "decisions.csv"
    Journal(path, DATA).record(("train", 1), decision(1, "shirt"), None)
    whole = path.read_bytes()
    with pytest.raises(DataError, match="is on other data, or these have changed since: name another file"):
        Journal(path, DATA[::-1])
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="cut off"):
        Journal(path, DATA)
    assert path.read_bytes() == whole[:-9]
