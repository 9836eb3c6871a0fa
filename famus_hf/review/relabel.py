"""From decisions to a mended copy of the data, with what was decided and what undoes it beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, DatasetDict

from famus_hf.data.fingerprint import fingerprint_of_splits
from famus_hf.data.labels.decisions import Decision, Decisions, Key, write_decisions
from famus_hf.data.load import load_splits
from famus_hf.data.media.examples import file_names
from famus_hf.data.media.modalities import TEXT, modality_of_source
from famus_hf.errors import DataError, SettingsError, first_few
from famus_hf.review.mended import NewLabels, whole_folder, write_mended
from famus_hf.review.origin import Origin, origin_of
from famus_hf.review.suspects import examples_in
from famus_hf.storage.run_folder import DECISIONS

BESIDE = ".review"  # folder within a mended copy, hidden, so that nobody takes its tables for data
UNDO = "undo.csv"


@dataclass(frozen=True)
class Suggestions:
    """Suggested labels that are taken without a review.

    Attributes:
        decisions: As if somebody had taken each suggestion.
        expected_wrong: How many of them are expected to be wrong: the sum of 1 − p.
    """

    decisions: list[Decision]
    expected_wrong: float


def suggestions_above(report: Dataset, threshold: float, reviewed: Mapping[Key, Decision]) -> Suggestions:
    """Return the suggestions of a label report whose probability is at least the threshold, where nobody has reviewed.

    Raises:
        SettingsError: The threshold is no probability, or the report knows none.
    """
    if not 0 < threshold <= 1:
        raise SettingsError(f"--auto {threshold:g} is no probability: choose one above 0, as 0.99, and at most 1")
    rows = examples_in(report)
    if all(row.suggestion_probability is None for row in rows):
        raise SettingsError(
            "the label report has no probabilities of suggestions, which --auto goes by: review the suspects, or train "
            "with trusted examples"
        )
    chosen = [
        (row.decided(row.suggested_label), row.suggestion_probability)
        for row in rows
        if row.suggestion_probability is not None
        and row.suggestion_probability >= threshold
        and row.suggested_label not in ("", row.label)
        and row.key not in reviewed
    ]
    return Suggestions([decision for decision, _ in chosen], sum(1 - chance for _, chance in chosen))


@dataclass(frozen=True)
class Mended:
    """What a mended copy came to.

    Attributes:
        folder: Of the copy.
        examples: How many it has.
        changed: Of these, how many have another label than before.
        reviewed: How many were reviewed.
        decisions: File of the decisions as they are on the copy.
        undo: Likewise of those that give the labels back that were changed.
    """

    folder: Path
    examples: int
    changed: int
    reviewed: int
    decisions: Path
    undo: Path


def relabel(
    source: Mapping[str, str | None], splits: DatasetDict, decisions: Decisions, taken: Sequence[Decision], out: Path
) -> Mended:
    """Write a copy of a data set with the labels that were decided on.

    Args:
        source: Arguments of `load_splits`.
        splits: What that gives.
        decisions: Of a reviewer, checked.
        taken: Suggestions that are taken without a review.
        out: Folder of the copy.

    Raises:
        DataError: The decisions are on other labels than those of the data, or files are gone.
        SettingsError: There is something at `out`.
        SaveError: It can't be written; nothing is left of it.
    """
    check_given(splits, [*decisions, *taken])
    origin = origin_of(source)
    labels = _new_labels(origin, [*decisions, *taken], set(decisions.by_key))
    with whole_folder(out, origin.folder) as folder:
        rows = write_mended(origin, labels, folder)
        copy = _Copy(source, origin, folder, rows)
        reviewed = [copy.settled(own) for own in decisions]
        undoing = [copy.undoing(own) for own in [*decisions, *taken] if own.label != own.reviewed_label]
        for name, kept in ((DECISIONS, reviewed), (UNDO, undoing)):
            write_decisions(folder / BESIDE / name, Decisions(copy.data, {own.key: own for own in kept}))
    examples = sum(map(len, origin.splits.values()))
    return Mended(out, examples, len(undoing), len(decisions), out / BESIDE / DECISIONS, out / BESIDE / UNDO)


def check_given(splits: DatasetDict, decisions: Sequence[Decision]) -> None:
    """Raise DataError where labels that decisions were made on are not those of the data."""
    names = {split: dataset.features["label"].names for split, dataset in splits.items()}
    labels = {split: dataset["label"][:] for split, dataset in splits.items()}
    other = [own.example for own in decisions if names[own.split][labels[own.split][own.index]] != own.label]
    if other:
        raise DataError(
            f"{len(other)} of {len(decisions)} labels that were decided on are not those of the data "
            f"({first_few(other)}): where the run drew wrong labels (--noise) there are none in the data to mend"
        )


def _new_labels(origin: Origin, decisions: Sequence[Decision], reviewed: set[Key]) -> dict[str, NewLabels]:
    """Return own split → its labels as they are to be."""
    given = {split: origin.names(split) for split in origin.splits}
    new = {split: NewLabels(own, list(own), [False] * len(own)) for split, own in given.items()}
    for decision in decisions:
        split, row = origin.places[decision.key]
        new[split].labels[row] = decision.reviewed_label
        new[split].reviewed[row] = decision.key in reviewed
    return new


class _Copy:
    """Where the examples of a data set are in its mended copy.

    Args:
        source: Arguments of `load_splits` for the original.
        origin: The original.
        folder: Of the copy.
        rows: Own split → row of each example in the copy.
    """

    def __init__(self, source: Mapping[str, str | None], origin: Origin, folder: Path, rows: Mapping[str, list[int]]):
        here = {name: column for name, column in source.items() if name.endswith("_column_name")}
        here |= {"label_column_name": origin.label, "name": str(folder)}
        self.origin, self.rows, self.splits = origin, rows, load_splits(True, **here)
        self.data = fingerprint_of_splits(self.splits)
        self.key_at = {place: key for key, place in origin_of(here).places.items()}
        column = modality_of_source(self.splits["train"].features).column
        self.files = {
            split: None if column == TEXT.column else file_names(dataset, column)
            for split, dataset in self.splits.items()
        }

    def _moved(self, decision: Decision) -> Decision:
        split, row = self.origin.places[decision.key]
        split, index = self.key_at[split, self.rows[split][row]]
        files = self.files[split]
        example = decision.example if files is None else files[index] or decision.example
        return replace(decision, split=split, index=index, example=example)

    def settled(self, decision: Decision) -> Decision:
        """Return the decision on the copy, where the label is right by now."""
        return replace(self._moved(decision), label=decision.reviewed_label)

    def undoing(self, decision: Decision) -> Decision:
        """Return the decision on the copy that gives the original label back."""
        moved, before = self._moved(decision), decision.label
        return replace(moved, label=decision.reviewed_label, suggested_label=before, reviewed_label=before)
