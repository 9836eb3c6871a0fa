"""The tables of a run's diagnostics, `<output_dir>/diagnostics/<table>.parquet`; each is whole or not there.

One table for each flag. Steps are counted as in the Trainer's logs; `network` is empty, or `model_a` and `model_b`
where there are two.

`log_stage_times` → stage_times.parquet (Figure 1b): step, network, stage, seconds; all micro-batches of the step
together. Stages of a network, as this implementation has them:

| stage | |
|---|---|
| forward | of Virtual-Train and Actual-Train, which share it |
| virtual backward, actual backward | their backward passes |
| actual products | instead of the latter, with `scale_example_gradients` |
| sampler | gates, and the step of η |
| meta data | loading of the meta batch |
| validation forward | of Meta-Train |
| validation backward, derivative | Meta-Train's backward step |
| data | with two networks: their batch, drawn, guessed and mixed |
| diagnostics | `log_meta_gradient` itself, where it falls on the same step |

and with an empty `network` also of all together: data (loading of the training batches), optimizer, and step, which is
everything after the loading, other things included. With `meta_interval` the step with a meta step is measured. Under
FSDP2 the passes at ŵ are not taken apart, and are in the rest of the step.

`log_meta_gradient` → meta_gradient.parquet (Figures 1c and 4): for `meta_gradient_draws` re-drawn meta batches, at the
same w and θ and with the gates of that step, the gradient of L_c by θ through the layers that are on and through all
that Virtual-Train moves; Eq. (10) and (11) are left out. Columns: step, network, draw, kind (`sampled` or `exact`),
norm, total (sum of the coordinates), layers (how many it went through). In a row whose draw is null these are of the
mean over the draws, and it has variance (unbiased, summed over the coordinates), norm_mean and norm_variance (of the
draws' norms); where kind is `sampled` also bias (‖E[sampled] − E[exact]‖ / ‖E[exact]‖) and cosine (of the two means).
For a band: norm_mean ± √norm_variance, or mean and standard deviation of total over the draws.

`log_weights` → weights.parquet (Figure 5): step, network, kind, x, value. Kinds `clean` and `wrong`, or `unknown` where
right labels are not known: a histogram of raw weights V, x the left edge of a bin, value its count; 40 bins of equal
width between the smallest and the largest weight of the step. `curve`: V as a function of a loss, x. `class`: mean V of
a given label, x. The examples are the same `WEIGHED` ones throughout, drawn from the training set and examined in
evaluation mode, so that steps and runs can be compared example by example, and a resumed run records what a whole one
does; the losses of training batches would be free, but of other examples and other w in each step.

`log_layers` → layers.parquet: step, network, layer (candidates in order), share_on (of the meta steps since the last
record), mean_cost (with a `meta_budget`: what the gates' choice took so far, in plain steps; else null).
"""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from famus_hf.errors import SaveError
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import DIAGNOSTICS

logger = logging.getLogger("famus_hf")

BY_STEP = [("step", pa.int64()), ("network", pa.string())]
MEASURES = ("norm", "total", "variance", "norm_mean", "norm_variance", "bias", "cosine")
SCHEMAS = {  # of the table of each flag
    "stage_times": pa.schema([*BY_STEP, ("stage", pa.string()), ("seconds", pa.float64())]),
    "meta_gradient": pa.schema(
        [*BY_STEP, ("draw", pa.int32()), ("kind", pa.string()), ("layers", pa.int32())]
        + [(name, pa.float64()) for name in MEASURES]
    ),
    "weights": pa.schema([*BY_STEP, ("kind", pa.string()), ("x", pa.float64()), ("value", pa.float64())]),
    "layers": pa.schema(
        [*BY_STEP, ("layer", pa.string()), ("share_on", pa.float64()), ("mean_cost", pa.float64())]
    ),
}  # fmt: skip


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
        """Begin the tables of a training.

        Args:
            step: The one that it goes on from: what was recorded later is dropped. None: it starts anew, and the files
                of an earlier run are removed.
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
        """Add rows, each a dict by column; a column that is left out is null."""
        self._rows[name] += rows
        self._changed.add(name)

    def read(self, name: str) -> pa.Table:
        """Return all rows so far."""
        if self._rows[name]:
            added = pa.Table.from_pylist(self._rows[name], schema=self.schemas[name])
            self._written[name] = pa.concat_tables([self._written[name], added]).combine_chunks()
            self._rows[name] = []
        return self._written[name]

    def write(self) -> None:
        """Write what has changed; a file that can't be written is left as it was, and tried again the next time."""
        for name in sorted(self._changed):
            table = self.read(name)
            try:
                with atomic_write(self.folder / f"{name}.parquet") as path:
                    pq.write_table(table, path)
                self._changed.discard(name)
            except SaveError as error:
                logger.warning("%s", error)


def remove_tables(folder: Path) -> None:
    """Remove those of an earlier run in the same output folder, which would be taken for the next one's."""
    for path in (folder / DIAGNOSTICS / f"{name}.parquet" for name in SCHEMAS):
        if path.is_file():
            path.unlink()
