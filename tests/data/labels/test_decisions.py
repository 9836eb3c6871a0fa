"""decisions.csv: what is written comes back, and what can't be true is refused in one sentence."""

import csv
import io

import pytest

from famus_hf.data.labels.decisions import (
    Decision,
    Decisions,
    as_csv,
    check_decisions,
    in_one_line,
    read_decisions,
    write_decisions,
)
from famus_hf.errors import DataError

DATA = "0123456789abcdef"


def decisions(*labels):
    made = [Decision("train", 7 * n, f"a/{n}.png", "coat", "shirt", label) for n, label in enumerate(labels)]
    return Decisions(DATA, {own.key: own for own in made})


def read(tmp_path, text):
    path = tmp_path / "decisions.csv"
    path.write_bytes(text.encode())
    return read_decisions(path)


def test_decisions_come_back_in_their_order_and_no_cell_is_a_formula(tmp_path):
    nasty = ["=1+1", "'=x", "-1", 'say "no", or\tyes', "ä 衣", "@", "'"]
    made = [Decision("test", 10 - n, name, name, "", name) for n, name in enumerate(nasty)]
    whole = Decisions(DATA, {own.key: own for own in made})
    write_decisions(tmp_path / "new" / "decisions.csv", whole)
    assert read_decisions(tmp_path / "new" / "decisions.csv") == whole
    cells = [cell for row in csv.reader(io.StringIO(as_csv(whole))) for cell in row]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)


def test_a_spreadsheet_may_reorder_columns_and_add_its_own(tmp_path):
    text = f"data,note,label,reviewed_label,index,split\r\n{DATA},x,coat,shirt,3,train\r\n"
    assert list(read(tmp_path, "\ufeff" + text)) == [Decision("train", 3, "", "coat", "", "shirt")]


def test_a_file_that_was_cut_off_is_refused_wherever_that_is_not_between_two_rows(tmp_path):
    whole = decisions("shirt", 'a "quoted", one', "coat")
    text = as_csv(whole)
    first = text.index("\n") + 1
    ends = {n for n in range(first, len(text) + 1) if text[:n].endswith((DATA, f"{DATA}\n")) or n == first}
    for end in range(first, len(text) + 1):
        if end in ends:
            assert list(read(tmp_path, text[:end])) == list(whole)[: text[:end].count(DATA)]
        else:
            with pytest.raises(DataError, match="as if it was cut off: take a whole copy, or delete its last row"):
                read(tmp_path, text[:end])


HEAD = "split,index,label,reviewed_label,data\n"


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "has no row, and needs the columns split, index"),
        ("file,label\na,b\n", "has file, label, and needs the columns"),
        (f"{HEAD}train,x,a,b,{DATA}\n", "1 rows of .* have no number as index"),
        (f"{HEAD}train,1,a,b,{DATA}\ntrain,1,a,a,{DATA}\n", "decides twice on example 1 of train"),
        (f"{HEAD}train,1,a,b,{DATA}\ntrain,2,a,a,{DATA[::-1]}\n", "decisions on 2 data sets"),
        (f"{HEAD}train,1,a,b,{DATA}\ntrain,2\ntrain,3,a,a,{DATA}\n", "1 of 3 rows of .* are not whole .row 2"),
        ("\x00", "and needs the columns"),
    ],
)
def test_what_is_no_file_of_decisions_is_refused(tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence):
        read(tmp_path, text)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\xff")
    for name in ("gone.csv", "binary.csv"):
        with pytest.raises(DataError, match=f"{name}' can't be read"):
            read_decisions(tmp_path / name)


def test_decisions_on_other_data_and_on_no_classes_are_refused():
    check_decisions(decisions("shirt"), DATA, {"train": 1}, ["coat", "shirt"])
    for fingerprint, size in ((DATA[::-1], 9), (DATA, 0)):
        with pytest.raises(DataError, match="not on these data, or the data have changed since"):
            check_decisions(decisions("shirt"), fingerprint, {"train": size}, ["coat", "shirt"])
    with pytest.raises(DataError, match=r"1 labels of the decisions are no classes of the data \('hat'\), which have"):
        check_decisions(decisions("hat", "coat"), DATA, {"train": 8}, ["coat", "shirt"])


def test_a_long_text_is_cut_and_in_one_line():
    assert in_one_line("a\nb  c") == "a b c" and len(in_one_line("word " * 99)) == 200
