"""Which examples are reviewed, and in which order: where a look most probably changes a label first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from famus_hf.data.labels.decisions import Decision, Key, in_one_line
from famus_hf.data.media.examples import SHORTENED, texts_or_files
from famus_hf.data.media.modalities import TEXT, modality_of_source
from famus_hf.errors import DataError, first_few
from famus_hf.reporting.label_report import TEXT_COLUMNS, names_of, suggestion_column


@dataclass(frozen=True)
class Suspect:
    """An example to review; labels are names of classes.

    Attributes:
        split: That it is of.
        index: Its row in that.
        example: Its file, or the beginning of its text; else its number.
        label: As it was given.
        suggested_label: Empty where there is none.
        suggestion_probability: That the suggestion is right, where that is known.
        clean_probability: That the given label is right, where that is known.
        reason: Of the suggestion, in words.
        drawn: Whether it was drawn at random and is not suspect.
    """

    split: str
    index: int
    example: str
    label: str
    suggested_label: str
    suggestion_probability: float | None
    clean_probability: float | None
    reason: str
    drawn: bool = False

    @property
    def key(self) -> Key:
        """Return by which the example is known."""
        return self.split, self.index

    def decided(self, reviewed_label: str) -> Decision:
        """Return the decision that this is its label."""
        return Decision(self.split, self.index, self.example, self.label, self.suggested_label, reviewed_label)


def suspects_of(report: Dataset, most: int, at_random: int = 0, seed: int = 0) -> list[Suspect]:
    """Return what is reviewed, as `suspects_and_left_out` chooses it."""
    return suspects_and_left_out(report, most, at_random, seed)[0]


def suspects_and_left_out(report: Dataset, most: int, at_random: int, seed: int) -> tuple[list[Suspect], int]:
    """Return the examples whose labels are suspect, the most probably wrong first, and others drawn at random behind.

    Also how many further suspects there are. Suspect is a label that is more likely wrong than right; where the report
    could not tell that, each that is not the suggested one.

    Args:
        report: Of a run, sorted.
        most: How many suspects at most.
        at_random: How many of all the others are drawn.
        seed: Of the draw.
    """
    rows = examples_in(report)
    every = [row for row in rows if _is_suspect(row)]
    suspect = every[:most]
    known = {row.key for row in suspect}
    others = [row for row in rows if row.key not in known]
    drawn = np.random.default_rng(seed).permutation(len(others))[:at_random]
    shown = suspect + [Suspect(**{**vars(others[place]), "drawn": True}) for place in drawn]
    return shown, len(every) - len(suspect)


def _is_suspect(row: Suspect) -> bool:
    chance = row.clean_probability
    return row.suggested_label not in ("", row.label) if chance is None else chance < 0.5


def examples_in(report: Dataset) -> list[Suspect]:
    """Return all rows of a label report; of an earlier one the predicted label is the suggestion."""
    suggestion = suggestion_column(report)
    names = {column: names_of(report, column) for column in ("label", suggestion)}
    return [
        Suspect(
            row.get("split") or "train",
            row["index"],
            _known_as(row),
            names["label"][place] or "",
            names[suggestion][place] or "",
            row.get("suggestion_probability"),
            row.get("clean_probability"),
            row.get("reason") or "",
        )
        for place, row in enumerate(report)
    ]


def _known_as(row: Mapping[str, Any]) -> str:
    text = " / ".join(row[name] for name in TEXT_COLUMNS if row.get(name))
    return in_one_line(row.get("file") or text or f"example {row['index']}")


def check_report(report: Dataset, splits: DatasetDict) -> None:
    """Raise DataError where a label report is not on these data as they are now.

    Args:
        report: Of a run, whose labels may be ones that it drew.
        splits: Of `load_splits`.
    """
    is_text = modality_of_source(splits["train"].features) is TEXT
    clean = names_of(report, "clean_label") if "clean_label" in report.features else None
    rows = examples_in(report)
    wrong = []
    for split in dict.fromkeys(row.split for row in rows):
        places = [place for place, row in enumerate(rows) if row.split == split]
        wrong += _rows_of_others(report, rows, places, splits.get(split), is_text, clean)
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(rows)} examples of the label report are not these in the data any more "
            f"({first_few(rows[place].example for place in wrong)}): put files back that are gone, name the data of "
            "the run with --dataset_name, or train on these once more"
        )


def _rows_of_others(
    report: Dataset,
    rows: Sequence[Suspect],
    places: Sequence[int],
    dataset: Dataset | None,
    is_text: bool,
    clean: Sequence[str | None] | None,
) -> list[int]:
    """Return the places of rows that are not these examples of a split."""
    if dataset is None:
        return list(places)
    labels, known = names_of(dataset, "label"), texts_or_files(dataset)
    written = report["text" if is_text else "file"][:] if _tells_examples(report) else None
    wrong = []
    for place in places:
        row = rows[place]
        is_there = row.index < len(labels) and labels[row.index] in (row.label, clean[place] if clean else row.label)
        if is_there and known is not None and written is not None:
            is_there = _is_same(known[row.index], written[place], is_text)
        wrong += [] if is_there else [place]
    return wrong


def _tells_examples(report: Dataset) -> bool:
    return "text" in report.features or "file" in report.features


def _is_same(known: str | None, written: str | None, is_text: bool) -> bool:
    """Return whether a text begins with, or a path ends with, what the report has of it."""
    known, written = known or "", written or ""
    if is_text:
        return known == written or (written.endswith(SHORTENED) and known.startswith(written.removesuffix(SHORTENED)))
    return f"/{known}".endswith(f"/{written}") or f"/{written}".endswith(f"/{known}")
