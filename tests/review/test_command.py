"""`famus-hf review` on the command line; tests/review/test_browser.py drives its page."""

import json
import re

import numpy as np
import pytest
from scipy.io import wavfile

from famus_hf.cli import main as command
from famus_hf.data.labels.decisions import Decisions, write_decisions
from famus_hf.data.load import load_splits
from famus_hf.reporting.label_report import read_report
from famus_hf.review.page import Examples, Review, static_page
from famus_hf.review.suspects import Suspect, examples_in
from famus_hf.storage.run_folder import REPORT_FILE
from tests.helpers.datasets import write_texts
from tests.helpers.reviews import decisions_of, photos_and_run


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return photos_and_run(tmp_path_factory.mktemp("command"))


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        command.main(["review", *map(str, argv)])
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and error.startswith("famus-hf review: error: ")
    return error


def test_the_static_page_holds_examples_and_earlier_decisions_and_no_name_is_markup(case, tmp_path, capsys):
    _, run, splits = case
    decisions = decisions_of(splits, 2)
    write_decisions(tmp_path / "decisions.csv", decisions)
    page = run / "review.html"
    flags = [str(run), "--static", "--random", "2", "--decisions", str(tmp_path / "decisions.csv")]
    command.main(["review", *flags])
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    content = json.loads(re.search(r'id="content">(.*?)</script>', text, re.DOTALL)[1])
    assert content["decided"] == [[n, own.reviewed_label] for n, own in enumerate(decisions)]
    assert content["classes"] == ["ant", "bee", "cow"] and content["token"] is None
    assert all(own["media"].startswith("data:image/png;base64,") for own in content["examples"])
    assert [own["drawn"] for own in content["examples"]][-2:] == [True, True]
    assert "default-src &#39;none&#39;; script-src &#39;sha256-" in text


def test_a_page_and_the_console_say_how_many_suspects_are_left_out(case, tmp_path, capsys):
    run, page = case[1], tmp_path / "page.html"
    every = sum(own.clean_probability < 0.5 for own in examples_in(read_report(run / REPORT_FILE)))
    for most, note in (("1", f"{every - 1} more suspects are not shown: --most says how many are"), ("100", None)):
        command.main(["review", str(run), "--static", str(page), "--most", most])
        for text in (page.read_text(), capsys.readouterr().out):
            assert ("more suspects" in text) == (note is not None) and (note or "") in text


@pytest.mark.parametrize("kind", ["text", "audio"])
def test_texts_and_recordings_are_on_the_page(tmp_path, kind):
    if kind == "text":
        splits = load_splits(name=str(write_texts(tmp_path / "data", pairs=True)))
    else:
        for n in range(6):
            (tmp_path / "data" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
            wavfile.write(tmp_path / "data" / "ab"[n % 2] / f"{n}.wav", 8000, np.full(80, n, dtype=np.int16))
        splits = load_splits(name=str(tmp_path / "data"))
    row = splits["train"][0]
    suspect = Suspect("train", 0, "x", "a", "b", None, None, "")
    page = static_page(Review("r", ["a", "b"], [suspect], Examples(splits), "0" * 16), Decisions("0" * 16))
    (shown,) = json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL)[1])["examples"]
    if kind == "text":
        assert shown["texts"] == [row["text"], row["text_pair"]] and shown["media"] is None
    else:
        assert shown["media"].startswith("data:audio/wav;base64,UklGR") and shown["texts"] == []


def test_refusals_are_one_sentence(case, tmp_path, capsys):
    data, run, splits = case
    assert "has no label_report.parquet: give the output folder of a run" in refused(capsys, data)
    assert "examples of the label report are not these in the data" in refused(capsys, run, "--dataset_name", "digits")
    write_decisions(tmp_path / "cut.csv", decisions_of(splits, 3))
    (tmp_path / "cut.csv").write_text((tmp_path / "cut.csv").read_text()[:-5])
    assert "as if it was cut off" in refused(capsys, run, "--decisions", tmp_path / "cut.csv")
    other = decisions_of(splits, 3)
    other.data = other.data[::-1]
    write_decisions(tmp_path / "other.csv", other)
    assert "is on other data, or these have changed since" in refused(
        capsys, run, "--decisions", tmp_path / "other.csv"
    )
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "label_report.parquet").write_bytes(b"PAR1 no")
    assert "can't be read" in refused(capsys, tmp_path / "damaged", "--dataset_name", data)
