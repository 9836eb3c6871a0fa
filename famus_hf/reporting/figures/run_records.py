"""What pictures and pages of a run are made from: its folder's logs, results and diagnostics. JSON and parquet only."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from famus_hf.errors import LoadError, reason_of
from famus_hf.storage.diagnostic_tables import SCHEMAS
from famus_hf.storage.run_folder import CONFIG, DIAGNOSTICS, RESULTS, TRAINER_STATE

OF_TEST_SET = ("", "test_")  # what an evaluation's figures are called; with several evaluation sets one is `test`


@dataclass(frozen=True)
class RunRecords:
    """The records of one run.

    Attributes:
        name: Of its method.
        log: Entries of the Trainer's log, each with a step.
        results: What all_results.json holds.
        tables: Name → table, see `famus_hf.storage.diagnostic_tables`; empty ones are left out.
        class_names: In the order of the classes; empty where they are not known.
        has_ended: Whether the run came to its end.
    """

    name: str
    log: list[dict[str, Any]]
    results: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    has_ended: bool = True

    def series(self, name: str) -> dict[int, float]:
        """Return step → value, of log entries that have it as a finite number; of several of a step the last."""
        values = {int(entry["step"]): entry[name] for entry in self.log if name in entry and "step" in entry}
        return {step: float(value) for step, value in values.items() if _is_number(value)}

    def on_test_set(self, name: str) -> dict[int, float]:
        """Return step → accuracy or another figure of the first evaluation there on the test set, in order of steps.

        After the last step comes one of the weights that are saved, which may be those of another step.
        """
        values: dict[int, float] = {}
        for entry in self.log:
            for key in (f"eval_{prefix}{name}" for prefix in OF_TEST_SET):
                if "step" in entry and _is_number(entry.get(key)):
                    values.setdefault(int(entry["step"]), float(entry[key]))
        return dict(sorted(values.items()))

    @property
    def last_accuracy(self) -> float | None:
        """Accuracy on the test set of the weights that are saved, else of the last evaluation; None without any."""
        saved = self.results.get("eval_accuracy") if self.has_ended else None  # else of an earlier run there
        return (
            float(saved)
            if saved is not None and _is_number(saved)
            else list(self.on_test_set("accuracy").values() or [None])[-1]
        )

    @property
    def are_labels_known(self) -> bool:
        """Whether accuracies are by test labels that count as right."""
        return self.results.get("test_labels_known") is not False

    def table(self, name: str) -> pd.DataFrame:
        """Return a table; one without rows where it was not recorded."""
        return self.tables.get(name, SCHEMAS[name].empty_table().to_pandas())


def to_average(runs: Sequence[RunRecords]) -> Sequence[RunRecords]:
    """Return the runs of a method that came to their ends; where none did, all of them."""
    return [run for run in runs if run.has_ended] or runs


def read_run(folder: str | Path, name: str | None = None) -> RunRecords:
    """Return the records in a run's output folder; of a run that has not ended what its checkpoints have.

    Args:
        folder: `output_dir` of the run.
        name: Default: of the method, as all_results.json has it, else of the folder.

    Raises:
        LoadError: There are none, or they are damaged. One sentence says what.
    """
    folder = Path(folder)
    (state, has_ended), results = _newest_state(folder), _read_json(folder / RESULTS)
    tables = read_tables(folder / DIAGNOSTICS)
    log = [entry for entry in state.get("log_history") or [] if isinstance(entry, dict)]
    if not log and not tables:
        raise LoadError(
            f"{str(folder)!r} holds no records of a run (neither {TRAINER_STATE} nor {DIAGNOSTICS}/): give the "
            "--output_dir of one"
        )
    names = _read_json(folder / CONFIG).get("id2label") or {}
    ordered = [str(names[key]) for key in sorted(names, key=int)] if all(map(str.isdecimal, names)) else []
    name = name or str(results.get("method") or folder.resolve().name)
    return RunRecords(name, log, results, tables, ordered, has_ended)


def read_tables(folder: Path, names: Sequence[str] = tuple(SCHEMAS)) -> dict[str, pd.DataFrame]:
    """Return the tables of a folder of diagnostics that are there and have rows."""
    tables = {name: _read_table(name, folder / f"{name}.parquet") for name in names}
    return {name: table for name, table in tables.items() if table is not None and len(table)}


def _read_table(name: str, path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise LoadError(f"{str(path)!r} can't be read: {reason_of(error)}") from error
    if not table.schema.equals(SCHEMAS[name]):
        raise LoadError(f"{str(path)!r} has the columns {', '.join(table.column_names)}: it is no table of {name}")
    return table.to_pandas()


def _newest_state(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the Trainer's state, of the folder itself or of a checkpoint in it, and whether it is that of an end."""
    own = folder / TRAINER_STATE
    paths = [path for path in (*folder.glob(f"checkpoint-*/{TRAINER_STATE}"), own) if path.is_file()]
    if not paths:
        return {}, (folder / RESULTS).is_file()
    newest = max(reversed(paths), key=lambda path: path.stat().st_mtime)
    state = _read_json(newest)
    done, planned = (state.get(name) for name in ("global_step", "max_steps"))
    is_whole = isinstance(done, int) and isinstance(planned, int) and 0 < planned <= done
    return state, newest == own or is_whole


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file, or an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise LoadError(f"{str(path)!r} can't be read: {reason_of(error)}") from error
    if not isinstance(content, dict):
        raise LoadError(f"{str(path)!r} holds a {type(content).__name__} and no object")
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
