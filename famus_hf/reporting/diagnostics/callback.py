"""Diagnostics of a run: where its time goes, how good its meta gradient is, what it trusts, which layers it picks.

Each is a flag of FaMUSTrainingArguments, a number K of steps; 0, the default, is off and costs nothing. Scalars join
the run's next log entry, histograms and heat maps go to trackers that know such, and the first process writes the
tables of `famus_hf.storage.diagnostic_tables`, which has their columns, with each checkpoint and at the end of each
epoch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.meta_learners.base import PerExampleLoss
from famus_hf.core.meta_learners.registry import raw_weights
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.three_stages import ThreeStages, VirtualTrain
from famus_hf.data.inputs.augmentation import SAMPLE_STREAM, make_generator
from famus_hf.data.per_example import PerExample
from famus_hf.reporting.diagnostics.mean_metrics import MeanMetrics
from famus_hf.reporting.diagnostics.meta_gradient import comparison, meta_gradients, statistics
from famus_hf.reporting.diagnostics.stage_times import StageTimes
from famus_hf.reporting.diagnostics.trackers import Tracker, at_work, log_histogram, log_picture
from famus_hf.reporting.diagnostics.training_time import TrainingTime
from famus_hf.reporting.diagnostics.weights import groups_of, weight_rows
from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.runs import PICTURES
from famus_hf.storage.diagnostic_tables import SCHEMAS, Tables
from famus_hf.storage.run_folder import DIAGNOSTICS
from famus_hf.storage.saved_state import is_dict, is_list, is_whole
from famus_hf.training_args import FaMUSTrainingArguments

WEIGHED = 1000  # training examples, the same ones in each record of weights
TO_TRACKERS = {"layers": "layers", "weight_curves": "weights"}  # picture → table


def is_due(every: int, step: int, interval: int = 1) -> bool:
    """Return whether a step is the first of those at an interval since a multiple of `every`; with 0 none is."""
    return every > 0 and step // every > max(0, step - interval) // every


# transformers saves a callback's state under the name of its class: another name would not find that of older runs.
class Diagnostics(TrainerCallback, ExportableState):
    """What a trainer's log_* flags ask for; see above. All processes take part.

    Args:
        args: The flags.
        processes: That train together.
        train_dataset: Of which `log_weights` looks at some examples.
        networks: Returns what is trained with a meta-learner, by its name in records.
        redrawn_meta_batch: Name of a network, number of a draw → a meta batch beside those of the steps.
        evaluate: Network, data set, loss → what the network makes of each example.
        callbacks: Returns the trainer's, the trackers among them.
        metrics: Of the run's next log entry.
        training_time: Which stands still while something is looked at.

    Attributes:
        every: Table → K.
        tables: What was recorded.
        counted: Network → meta steps, then how often each layer was on, at the last record of layers.
    """

    def __init__(
        self,
        args: FaMUSTrainingArguments,
        processes: Processes,
        train_dataset: Any,
        *,
        networks: Callable[[], Mapping[str, ThreeStages]],
        redrawn_meta_batch: Callable[[str, int], Any],
        evaluate: Callable[[nn.Module, Any, PerExampleLoss], PerExample],
        callbacks: Callable[[], Sequence[TrainerCallback]],
        metrics: MeanMetrics,
        training_time: TrainingTime,
    ):
        self.args, self.processes, self.train_dataset = args, processes, train_dataset
        self.networks, self.redrawn_meta_batch, self.evaluate = networks, redrawn_meta_batch, evaluate
        self.callbacks, self.metrics, self.training_time = callbacks, metrics, training_time
        self.every = {name: int(getattr(args, f"log_{name}")) for name in SCHEMAS}
        schemas = {name: SCHEMAS[name] for name, every in self.every.items() if every}
        self.tables = Tables(Path(str(args.output_dir)) / DIAGNOSTICS, schemas)
        self.times = StageTimes(args.device)
        self.counted: dict[str, list[int]] = {}
        self._last: dict[str, int] = {}  # record → step of the last one in this training
        self._state = TrainerState()  # of the training, once there is one

    @property
    def is_on(self) -> bool:
        return any(self.every.values())

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"counted": self.counted}}

    # ---- Hooks of the training step ----

    def loading(self) -> AbstractContextManager[None]:
        """Begin a step; the body loads its data, which is timed."""
        if not self.every["stage_times"]:
            return nullcontext()
        self.times.begin(is_due(self.every["stage_times"], self._coming_step, self.args.meta_interval))
        return self.times.clock("data")

    def timed(self, meta: MetaUpdate) -> AbstractContextManager[None]:
        """Take the times of a network's three stages in the body, if this step is measured."""
        return self.times.of(self._name(meta), meta) if self.times.is_measuring else nullcontext()

    def measure_meta_gradient(self, stages: ThreeStages, train: TrainingPass, virtual: VirtualTrain) -> None:
        """Measure it before a meta step, which then finds everything as if nothing had been measured.

        Args:
            stages: Of the network.
            train: The training batch's forward pass, whose graph is kept.
            virtual: What Virtual-Train found.
        """
        if not is_due(self.every["meta_gradient"], self._coming_step, self.args.meta_interval):
            return
        meta, network = stages.meta, self._name(stages.meta)
        record = f"meta_gradient {network}"
        if self._last.get(record) == self._coming_step:  # of an earlier one of the accumulated micro-batches
            return
        self._last[record] = self._coming_step
        with self.training_time.stopped(), meta.clock("diagnostics"), preserve_rng_state(train.labels.device):
            with torch.no_grad():
                gates = meta.gates(virtual.gradient, train.processes).tolist()
            on = [layer for layer, gate in zip(meta.candidates, gates, strict=True) if gate > 0]
            layers = meta.layers if meta.virtual_scope == "all" else meta.candidates
            batches = (self.redrawn_meta_batch(network, draw) for draw in range(self.args.meta_gradient_draws))
            sampled, exact = meta_gradients(
                train, meta.meta_learner, stages.base_loss, batches, virtual.gradient, virtual.step, on, layers,
                meta.objective.derivative,
            )  # fmt: skip
        self._record_meta_gradient(network, {"sampled": sampled, "exact": exact}, [len(on), len(layers)])

    @contextmanager
    def changing_layers(self) -> Iterator[None]:
        """Record the layers before the body, after which there are others, and count these from then on."""
        if self.every["layers"] and fits(self.counted, self._counts()):
            self._record_layers()
        yield
        self.counted = self._counts()

    # ---- Hooks of the Trainer's loop ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._state = state
        resumed = state.global_step > 0
        if state.is_world_process_zero:
            self.tables.begin(state.global_step if resumed else None)
        present = self._counts()
        if not (resumed and fits(self.counted, present)):
            self.counted = present
        self._last = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.times.start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.times.start_of_optimizer()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self.times.end_of_optimizer()

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        self._record_stage_times(self.times.end())
        is_last = state.global_step >= state.max_steps
        if is_due(self.every["layers"], state.global_step):
            self._record_layers()
        if is_due(self.every["weights"], state.global_step) or (self.every["weights"] and is_last):
            with self.training_time.stopped():
                self._record_weights()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        with self.training_time.stopped():
            if self.every["weights"] and control.should_training_stop:  # early, perhaps
                self._record_weights()
            self.write()
            self._log_pictures(keywords.get("model"))

    def write(self) -> None:
        """Write the tables, in the first process."""
        if self.processes.rank == 0:
            self.tables.write()

    def records(self, log: list[dict[str, Any]], network: Any) -> RunRecords:
        """Return what pictures of the run as it stands are made from; in the first process.

        Args:
            log: The entries of the Trainer's log.
            network: Whose configuration has the names of the classes, if it has one.
        """
        tables = {name: table for name, every in self.every.items() if every and len(table := self.tables.read(name))}
        names = getattr(getattr(network, "config", None), "id2label", None) or {}
        frames = {name: table.to_pandas() for name, table in tables.items()}
        return RunRecords("this model", log, {}, frames, [names[number] for number in sorted(names)])

    def _log_pictures(self, network: Any) -> None:
        """Send heat map and curves so far to the trackers that show pictures."""
        if not any(self._trackers()):
            return
        records = self.records(self._state.log_history, network)
        for picture, table in TO_TRACKERS.items():
            figure = PICTURES[picture][0]({"": [records]}) if table in records.tables else None
            if figure is not None:
                log_picture(self._trackers(), picture, figure, self._state.global_step)

    def _trackers(self) -> Iterator[Tracker]:
        """Return the trackers at work; none except in the first process."""
        return at_work(self.callbacks() if self.processes.rank == 0 else ())

    # ---- Records ----

    @property
    def _coming_step(self) -> int:
        """The step that is being taken, as the Trainer will count it."""
        return int(self._state.global_step) + 1

    def _name(self, meta: MetaUpdate) -> str:
        return next(name for name, stages in self.networks().items() if stages.meta is meta)

    def _add(self, table: str, step: int, network: str, rows: list[dict[str, Any]]) -> None:
        if self.processes.rank == 0:
            self.tables.add(table, [{"step": step, "network": network, **row} for row in rows])

    def _log(self, network: str, values: dict[str, float]) -> None:
        """Add values to the run's next log entry; those that are not finite are left out."""
        for name, value in values.items():
            if math.isfinite(value):
                key = f"{network}_{name}" if network else name
                self.metrics.add(key, torch.tensor(value, dtype=torch.float64))

    def _record_stage_times(self, times: dict[str, dict[str, float]]) -> None:
        for network, stages in times.items():
            rows = [{"stage": stage, "seconds": seconds} for stage, seconds in stages.items()]
            self._add("stage_times", int(self._state.global_step), network, rows)
            self._log(network, {f"seconds_{stage.replace(' ', '_')}": seconds for stage, seconds in stages.items()})

    def _record_meta_gradient(self, network: str, gradients: dict[str, Tensor], layers: list[int]) -> None:
        compared = comparison(gradients["sampled"], gradients["exact"])
        rows: list[dict[str, Any]] = []
        for (kind, draws), count in zip(gradients.items(), layers, strict=True):
            common: dict[str, Any] = {"kind": kind, "layers": count}
            rows += [
                {**common, "draw": draw, "norm": gradient.norm().item(), "total": gradient.sum().item()}
                for draw, gradient in enumerate(draws)
            ]
            over_draws = statistics(draws)
            rows.append({**common, **over_draws, **(compared if kind == "sampled" else {})})
            self._log(network, {f"meta_gradient_{name}_{kind}": over_draws[name] for name in ("norm", "variance")})
        self._add("meta_gradient", self._coming_step, network, rows)
        self._log(network, {f"meta_gradient_{name}": value for name, value in compared.items()})

    def _record_weights(self) -> None:
        step = int(self._state.global_step)
        if self._last.get("weights") == step:
            return
        self._last["weights"] = step
        order = torch.randperm(len(self.train_dataset), generator=make_generator(self.args.seed, SAMPLE_STREAM))
        sample = Subset(self.train_dataset, order[:WEIGHED].sort().values.tolist())
        for network, stages in self.networks().items():
            if stages.meta.steps > 0:  # in the warm-up nothing is learned yet
                self._record_weights_of(network, stages, sample, step)

    def _record_weights_of(self, network: str, stages: ThreeStages, sample: Any, step: int) -> None:
        def weigh(losses: np.ndarray) -> np.ndarray:
            weights = raw_weights(stages.meta.meta_learner, losses)
            assert weights is not None  # `check_diagnostics` has seen to it
            return weights

        with preserve_rng_state(self.args.device):
            examples = self.evaluate(stages.network, sample, stages.base_loss)
        weights = weigh(examples.losses)
        rows = weight_rows(examples.losses, weights, examples.labels, examples.correct, weigh)
        names = ("kind", "x", "value")
        self._add("weights", step, network, [dict(zip(names, row, strict=True)) for row in rows])
        for kind, chosen in groups_of(examples.correct, len(weights)).items():
            if chosen.any():
                self._log(network, {f"raw_weight_{kind}": float(weights[chosen].mean())})
                prefix = f"{network}/" if network else ""
                log_histogram(self._trackers(), f"{prefix}raw_weights_{kind}", weights[chosen], step)

    def _record_layers(self) -> None:
        before, self.counted = self.counted, self._counts()
        for network, stages in self.networks().items():
            steps, *times = (now - then for now, then in zip(self.counted[network], before[network], strict=True))
            if steps == 0:
                continue
            cost = stages.meta.measured_cost
            rows = [
                {"layer": layer.name, "share_on": on / steps, "mean_cost": cost}
                for layer, on in zip(stages.meta.candidates, times, strict=True)
            ]
            self._add("layers", int(self._state.global_step), network, rows)
            self._log(network, {} if cost is None else {"mean_meta_cost": cost})

    def _counts(self) -> dict[str, list[int]]:
        return {name: [stages.meta.steps, *stages.meta.times_on] for name, stages in self.networks().items()}


def fits(counted: Any, present: dict[str, list[int]]) -> bool:
    """Return whether what a checkpoint brought back can have come before the present counts."""
    return is_dict(is_list(is_whole()), set(present))(counted) and all(
        len(counted[name]) == len(now) and all(then <= count for then, count in zip(counted[name], now, strict=True))
        for name, now in present.items()
    )
