"""Tables that grow while a run goes on, each a parquet file that is whole or not there."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from famus_hf.whole_files import SaveError, written_beside

logger = logging.getLogger("famus_hf")


class Tables:
    """Rows by step, kept in memory and written now and then.

    Args:
        folder: Of the files `<name>.parquet`; made with the first of them.
        schemas: Name → columns, an integer `step` among them.
    """

    def __init__(self, folder: Path, schemas: dict[str, pa.Schema]):
        self.folder, self.schemas = folder, schemas
        self._written: dict[str, pa.Table] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._changed: set[str] = set()

    def begin(self, step: int | None) -> None:
        """A training begins.

        Args:
            step: That it goes on from: what was recorded later is dropped. None: it starts anew, and the files of an
                earlier run go.
        """
        self._written = {name: schema.empty_table() for name, schema in self.schemas.items()}
        self._rows = {name: [] for name in self.schemas}
        self._changed = set()
        for name in self.schemas:
            path = self.folder / f"{name}.parquet"
            if path.is_file() and step is None:
                path.unlink()
            elif path.is_file():
                self._written[name] = self._read(name, path, int(step or 0))

    def _read(self, name: str, path: Path, step: int) -> pa.Table:
        try:
            table = pq.read_table(path, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s can't be read (%s): it begins anew at step %d", path, error, step)
            return self.schemas[name].empty_table()
        if not table.schema.equals(self.schemas[name]):
            logger.warning("%s has other columns: it begins anew at step %d", path, step)
            return self.schemas[name].empty_table()
        kept = table.filter(pc.less_equal(table["step"], step))
        if len(kept) < len(table):
            self._changed.add(name)
        return kept

    def add(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Rows by column; a column that is left out is null."""
        self._rows[name] += rows
        self._changed.add(name)

    def read(self, name: str) -> pa.Table:
        """All rows so far."""
        if self._rows[name]:
            new = pa.Table.from_pylist(self._rows[name], schema=self.schemas[name])
            self._written[name] = pa.concat_tables([self._written[name], new]).combine_chunks()
            self._rows[name] = []
        return self._written[name]

    def write(self) -> None:
        """Writes what has changed; a file that can't be written is left as it was, and tried again the next time."""
        for name in sorted(self._changed):
            table = self.read(name)
            try:
                with written_beside(self.folder / f"{name}.parquet") as path:
                    pq.write_table(table, path)
                self._changed.discard(name)
            except SaveError as error:
                logger.warning("%s", error)
