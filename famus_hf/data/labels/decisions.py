"""Decisions on labels: what a reviewer says of which example, in a CSV file that spreadsheets and the Hub can edit.

Each row has a decision, in the order in which they were made. `index` is the row in the split as `load_noisy_dataset`
numbers it, `example` the file or the beginning of the text, `data` the fingerprint of the data set, the same in each
row: it comes last, so that a file that was cut off shows.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from famus_hf.data.media.examples import beginning_of
from famus_hf.errors import DataError, first_few, reason_of
from famus_hf.storage.atomic import atomic_write

FINGERPRINT = re.compile(r"[0-9a-f]{16}")
MAX_BYTES = 2**28
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one
QUOTED = ("'", *FORMULA)  # beginnings that get an apostrophe in front, which reading takes away

Key = tuple[str, int]  # split and index of an example


@dataclass(frozen=True)
class Decision:
    """What was decided on one example; labels are names of classes.

    Attributes:
        split: That it is of.
        index: Its row in that.
        example: By which a reader knows it: its file, or the beginning of its text.
        label: As it was given.
        suggested_label: Empty where nothing was suggested.
        reviewed_label: As it should be; the given one where that is right.
    """

    split: str
    index: int
    example: str
    label: str
    suggested_label: str
    reviewed_label: str

    @property
    def key(self) -> Key:
        """Return by which the example is known."""
        return self.split, self.index


COLUMNS = (*(own.name for own in fields(Decision)), "data")
NEEDED = ("split", "index", "label", "reviewed_label", "data")  # the others are for readers


@dataclass
class Decisions:
    """All decisions on one data set.

    Attributes:
        data: Its fingerprint, of `fingerprint_of_splits`.
        by_key: In the order in which they were made.
    """

    data: str
    by_key: dict[Key, Decision] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.by_key.values())

    def __len__(self) -> int:
        return len(self.by_key)

    def of_split(self, split: str) -> list[Decision]:
        """Return those on examples of this split."""
        return [decision for decision in self if decision.split == split]


def in_one_line(text: str) -> str:
    """Return the beginning of a text without line breaks."""
    return beginning_of(" ".join(text.split()))


# ---- Written ----


def as_csv(decisions: Decisions) -> str:
    """Return the file's content. No cell is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([*map(_cell, astuple(decision)), decisions.data] for decision in decisions)
    return text.getvalue()


def _cell(value: str | int) -> str:
    text = str(value)
    return f"'{text}" if text.startswith(QUOTED) else text


def write_decisions(path: Path, decisions: Decisions) -> None:
    """Write the file, whole or not at all. Raise SaveError where it can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as beside:
        beside.write_text(as_csv(decisions), encoding="utf-8", newline="")


# ---- Read ----


def read_decisions(path: Path) -> Decisions:
    """Read what `write_decisions` wrote, perhaps edited since.

    Raises:
        DataError: There is no such file, it was cut off, lacks columns, or contradicts itself.
    """
    what = f"decisions file {str(path)!r}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{what} has {path.stat().st_size} bytes, and at most {MAX_BYTES} are read")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what} can't be read: {reason_of(error)}") from error
    rows = list(_rows(text, what))
    if not rows or not set(NEEDED) <= set(rows[0]):
        has = ", ".join(rows[0]) if rows else "no row"
        raise DataError(f"{what} has {has}, and needs the columns {', '.join(NEEDED)}: take one of famus-hf review")
    return _checked([dict(zip(rows[0], row, strict=True)) for row in _whole_rows(rows, what)], what)


def _rows(text: str, what: str) -> Iterator[list[str]]:
    """Yield the cells of each row that is not empty."""
    try:
        yield from filter(None, csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise _cut_off(what, f"can't be read as CSV to its end ({reason_of(error)})") from error


def _whole_rows(rows: list[list[str]], what: str) -> list[list[str]]:
    """Return the rows below the first. Raise DataError on one that is too short or long, or ends within a cell."""
    width, place = len(rows[0]), rows[0].index("data")
    wrong = [n for n, row in enumerate(rows[1:], 1) if len(row) != width or not FINGERPRINT.fullmatch(row[place])]
    if wrong == [len(rows) - 1]:
        raise _cut_off(what, f"ends within row {wrong[0]}")
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(rows) - 1} rows of {what} are not whole (row {first_few(wrong)}): each needs its "
            f"{width} cells, the last of them as famus-hf review wrote it"
        )
    return rows[1:]


def _cut_off(what: str, how: str) -> DataError:
    return DataError(f"{what} {how}, as if it was cut off: take a whole copy, or delete its last row to go without it")


def _checked(rows: Sequence[Mapping[str, str]], what: str) -> Decisions:
    """Return the rows as decisions. Raise DataError on rows that contradict each other or are on no example."""
    data = sorted({row["data"] for row in rows})
    if len(data) > 1:
        raise DataError(f"{what} has decisions on {len(data)} data sets: give those on one")
    wrong = [n for n, row in enumerate(rows, 1) if not re.fullmatch(r"\d{1,15}", row["index"])]
    if wrong:
        raise DataError(f"{len(wrong)} rows of {what} have no number as index (row {first_few(wrong)}): correct them")
    decisions = Decisions(data[0] if data else "")
    for row in rows:
        words = {name: _content(row.get(name, "")) for name in COLUMNS if name not in ("index", "data")}
        decision = Decision(index=int(row["index"]), **words)
        if decision.key in decisions.by_key:
            raise DataError(f"{what} decides twice on example {decision.index} of {decision.split}: leave one row")
        decisions.by_key[decision.key] = decision
    return decisions


def _content(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(QUOTED) else cell


# ---- Compared with the data ----


def check_decisions(
    decisions: Decisions, fingerprint: str, sizes: Mapping[str, int], class_names: Sequence[str]
) -> None:
    """Raise DataError on decisions on other data, and on labels that are no classes of theirs.

    Args:
        decisions: All of a file.
        fingerprint: Of the data.
        sizes: Split → number of examples.
        class_names: Of the data.
    """
    outside = [own for own in decisions if own.index >= sizes.get(own.split, 0)]
    if outside or (len(decisions) and decisions.data != fingerprint):
        raise DataError(
            f"the decisions are not on these data, or the data have changed since (their fingerprint is "
            f"{decisions.data}, that of the data {fingerprint}): name the data that were reviewed with --dataset_name"
        )
    strange = sorted({own.reviewed_label for own in decisions} - set(class_names))
    if strange:
        raise DataError(
            f"{len(strange)} labels of the decisions are no classes of the data "
            f"({first_few(repr(name[:40]) for name in strange)}), which have {first_few(class_names, 10)}: correct them"
        )
