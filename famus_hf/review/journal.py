"""The decisions of a review as they are made: each is on the disk before the next, whoever else decides meanwhile."""

from pathlib import Path

from filelock import FileLock, Timeout

from famus_hf.data.labels.decisions import Decision, Decisions, Key, read_decisions, write_decisions
from famus_hf.errors import DataError, SaveError

WAIT = 10  # seconds for somebody else to finish writing


class DecidedMeanwhile(DataError):
    """Another reviewer has decided on the example since it was shown.

    Args:
        example: By which it is known.
        present: What was decided; None where a decision was taken back.
    """

    def __init__(self, example: str, present: str | None):
        now = "undecided" if present is None else repr(present)
        super().__init__(f"another reviewer has made {example} {now} meanwhile, which stays: decide again if it is not")
        self.present = present


class Journal:
    """A file of decisions that several reviewers, in one process or in many, may write to at once.

    Each change reads the file, compares it with what the reviewer saw, and writes it whole, under a lock.

    Args:
        path: Of the file; it is made by the first decision.
        data: Fingerprint of the data set.

    Raises:
        DataError: The file is there, and damaged or on other data.
    """

    def __init__(self, path: Path, data: str):
        self.path, self.data = path, data
        self.read()

    def read(self) -> Decisions:
        """Return what has been decided. Raise DataError on a file that is damaged or on other data."""
        if not self.path.is_file():
            return Decisions(self.data)
        decisions = read_decisions(self.path)
        if decisions.data not in ("", self.data):
            raise DataError(
                f"decisions file {str(self.path)!r} is on other data, or these have changed since: name another file "
                "with --decisions, and this one stays as it is"
            )
        return Decisions(self.data, decisions.by_key)

    def record(self, key: Key, decision: Decision | None, before: str | None) -> int:
        """Write a decision, or take it back, and return how many there are.

        Args:
            key: Of the example.
            decision: None takes the present one back.
            before: The label that the reviewer saw as decided; None where there was none.

        Raises:
            DecidedMeanwhile: The file has another one by now.
            DataError: The file is damaged or on other data.
            SaveError: It can't be written.
        """
        lock = self.path.with_name(f".{self.path.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=WAIT):
                decisions = self.read()
                present = decisions.by_key.pop(key, None)  # a decision that is made anew becomes the last one
                label = None if present is None else present.reviewed_label
                if label != before:
                    raise DecidedMeanwhile(f"{key[0]} {key[1]}" if present is None else present.example, label)
                if decision is not None:
                    decisions.by_key[key] = decision
                write_decisions(self.path, decisions)
                return len(decisions)
        except Timeout as error:
            raise SaveError(f"{self.path.name!r} has been locked by another process for {WAIT} s: try again") from error
