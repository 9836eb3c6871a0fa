"""Decisions and mended data on the Hub, and back."""

import csv
import io

import pytest

from famus_hf.data.labels.decisions import read_decisions, write_decisions
from tests.helpers.reviews import decisions_of, photos_and_run


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    _, run, splits = photos_and_run(tmp_path_factory.mktemp("decisions"))
    write_decisions(run / "decisions.csv", decisions_of(splits, 6))
    return run


def test_a_copy_and_its_decisions_are_pushed_edited_there_and_read_back(hub, client, case, tmp_path):
    argv = [str(case), str(case / "decisions.csv"), "--out", str(tmp_path / "one"), "--push_to_hub", "user/mended"]
    client.done("relabel", argv=argv)
    files = hub.files["user/mended-decisions"]
    assert files["decisions.csv"] == (case / "decisions.csv").read_bytes()
    assert [name for name in hub.files["user/mended"] if name.endswith(".parquet")]
    rows = list(csv.DictReader(io.StringIO(files["decisions.csv"].decode())))
    edited = next(row for row in rows if row["reviewed_label"] != "ant")
    text = files["decisions.csv"].decode()
    line = next(line for line in text.splitlines() if line.startswith(f"train,{edited['index']},"))
    start, data = line.rsplit(",", 2)[0], edited["data"]
    files["decisions.csv"] = text.replace(line, f"{start},ant,{data}").encode()
    argv = [str(case), "--from", "user/mended-decisions", "--out", str(tmp_path / "two")]
    client.done("relabel", argv=argv)
    new = {own.example.split("/")[-1]: own for own in read_decisions(tmp_path / "two" / ".review" / "decisions.csv")}
    assert new[edited["example"].split("/")[-1]].reviewed_label == "ant" and len(new) == 6


def test_a_repository_without_decisions_is_refused_and_a_failed_push_says_where_the_copy_is(
    hub, client, case, tmp_path
):
    argv = [str(case), "--from", "user/nothing-here", "--out", str(tmp_path / "none")]
    answer = client.call("relabel", argv=argv)
    assert (
        "no decisions.csv can be had from 'user/nothing-here' on the Hub: there is no such repository" in answer.printed
    )
    assert not (tmp_path / "none").exists()
    hub.faults.append(["POST", "/api/repos/create", 403, 9])
    argv = [str(case), str(case / "decisions.csv"), "--out", str(tmp_path / "out"), "--push_to_hub", "user/forbidden"]
    answer = client.call("relabel", argv=argv)
    hub.faults.clear()
    assert "out', and its push failed: the token may not do that (403)" in answer.printed
    assert (tmp_path / "out" / "metadata.csv").is_file()
