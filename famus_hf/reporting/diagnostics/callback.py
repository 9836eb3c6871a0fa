"""Diagnostics of a run: where its time goes, how good its meta gradient is, what it trusts, which layers it picks.

Each is a flag of FaMUSTrainingArguments, a number K of steps; 0, the default, is off and costs nothing. Scalars join
the run's next log entry, histograms and heat maps go to trackers that know such, and the first process writes the
tables of `famus_hf.storage.diagnostic_tables`, which has their columns, with each checkpoint and
at the end of each epoch.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.meta_learners import raw_weights
from famus_hf.core.meta_train import Passes
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.virtual_train import VirtualStep
from famus_hf.data.inputs.augmentation import SAMPLE_STREAM, make_generator
from famus_hf.data.per_example import evaluate_examples
from famus_hf.reporting.diagnostics.meta_gradient import comparison, meta_gradients, statistics
from famus_hf.reporting.diagnostics.stage_times import StageTimes
from famus_hf.reporting.diagnostics.trackers import at_work, log_histogram, log_picture
from famus_hf.reporting.diagnostics.weights import groups_of, weight_rows
from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.runs import PICTURES
from famus_hf.storage.diagnostic_tables import FOLDER, SCHEMAS, Tables

if TYPE_CHECKING:
    from famus_hf.trainer.trainer import FaMUSTrainer

WEIGHED = 1000
TO_TRACKERS = {"layers": "layers", "weight_curves": "weights"}  # picture → table


def is_due(every: int, step: int, interval: int = 1) -> bool:
    """Whether a step is the first of those that come at an interval since a multiple of `every`; never with 0."""
    return every > 0 and step // every > max(0, step - interval) // every


class Diagnostics(TrainerCallback, ExportableState):
    """What a trainer's log_* flags ask for; see above. All processes take part.

    Attributes:
        every: Table → K.
        tables: What was recorded.
        counted: Network → meta steps, then how often each layer was on, at the last record of layers.
    """

    def __init__(self, trainer: "FaMUSTrainer"):
        self.trainer = trainer
        self.every = {name: int(getattr(trainer.args, f"log_{name}")) for name in SCHEMAS}
        schemas = {name: SCHEMAS[name] for name, every in self.every.items() if every}
        self.tables = Tables(Path(str(trainer.args.output_dir)) / FOLDER, schemas)
        self.times = StageTimes(trainer.args.device)
        self.counted: dict[str, list[int]] = {}
        self._last: dict[str, int] = {}  # record → step of the last one in this training

    @property
    def is_on(self) -> bool:
        return any(self.every.values())

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"counted": self.counted}}

    # ---- Hooks of the training step ----

    def loading(self) -> AbstractContextManager[None]:
        """A step begins: takes the time of the loading of its data in the body."""
        if not self.every["stage_times"]:
            return nullcontext()
        self.times.begin(is_due(self.every["stage_times"], self._coming_step, self.trainer.args.meta_interval))
        return self.times.clock("data")

    def timed(self, meta: MetaUpdate) -> AbstractContextManager[None]:
        """Takes the times of a network's three stages in the body, if this step is measured."""
        return self.times.of(self._name(meta), meta) if self.times.is_measuring else nullcontext()

    def measure_meta_gradient(
        self,
        meta: MetaUpdate,
        training_pass: TrainingPass,
        gradient: dict[str, Tensor],
        step: VirtualStep,
        passes: Passes,
    ) -> None:
        """Before a meta step, which finds everything as if this had not been. Arguments: see `meta_gradients`."""
        if not is_due(self.every["meta_gradient"], self._coming_step, self.trainer.args.meta_interval):
            return
        network = self._name(meta)
        record = f"meta_gradient {network}"
        if self._last.get(record) == self._coming_step:  # of an earlier one of the accumulated micro-batches
            return
        self._last[record] = self._coming_step
        with (
            self.trainer.training_time.stopped(),
            meta.clock("diagnostics"),
            preserve_rng_state(training_pass.labels.device),
        ):
            with torch.no_grad():
                gates = meta.gates(gradient, training_pass.processes).tolist()
            on = [layer for layer, gate in zip(meta.candidates, gates, strict=True) if gate > 0]
            layers = meta.layers if meta.virtual_scope == "all" else meta.candidates
            draws = range(self.trainer.args.meta_gradient_draws)
            batches = (self.trainer._redrawn_meta_batch(meta, draw) for draw in draws)
            derivative = meta.objective.derivative
            sampled, exact = meta_gradients(
                training_pass, meta.meta_learner, self.trainer.base_loss, batches, gradient, step, on, layers,
                derivative, passes,
            )  # fmt: skip
        self._record_meta_gradient(network, {"sampled": sampled, "exact": exact}, [len(on), len(layers)])

    # ---- Hooks of the Trainer's loop ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        resumed = self.trainer.is_resumed
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
            with self.trainer.training_time.stopped():
                self._record_weights()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        with self.trainer.training_time.stopped():
            if self.every["weights"] and control.should_training_stop:  # early, perhaps
                self._record_weights()
            self.write()
            self._log_pictures()

    def write(self) -> None:
        """The tables, by the first process."""
        if self.trainer.is_world_process_zero():
            self.tables.write()

    def records(self) -> RunRecords:
        """What pictures of the run as it stands are made from; in the first process."""
        tables = {name: table for name, every in self.every.items() if every and len(table := self.tables.read(name))}
        model: Any = self.trainer.model
        names = getattr(getattr(model, "config", None), "id2label", None) or {}
        frames = {name: table.to_pandas() for name, table in tables.items()}
        log = self.trainer.state.log_history
        return RunRecords("this model", log, {}, frames, [names[number] for number in sorted(names)])

    def _log_pictures(self) -> None:
        """Heat map and curves so far, to the trackers that show pictures."""
        if not any(at_work(self.trainer)):
            return
        records = self.records()
        for picture, table in TO_TRACKERS.items():
            figure = PICTURES[picture][0]({"": [records]}) if table in records.tables else None
            if figure is not None:
                log_picture(self.trainer, picture, figure)

    # ---- Records ----

    @property
    def _coming_step(self) -> int:
        """That is being taken, as the Trainer will count it."""
        return int(self.trainer.state.global_step) + 1

    def _name(self, meta: MetaUpdate) -> str:
        return next(name for name, (_, own) in self.trainer.networks.items() if own is meta)

    def _add(self, table: str, step: int, network: str, rows: list[dict[str, Any]]) -> None:
        if self.trainer.is_world_process_zero():
            self.tables.add(table, [{"step": step, "network": network, **row} for row in rows])

    def _log(self, network: str, values: dict[str, float]) -> None:
        """Into the run's next log entry."""
        for name, value in values.items():
            if math.isfinite(value):
                own = f"{network}_{name}" if network else name
                self.trainer._averages.add(own, torch.tensor(value, dtype=torch.float64))

    def _record_stage_times(self, found: dict[str, dict[str, float]]) -> None:
        for network, stages in found.items():
            rows = [{"stage": stage, "seconds": seconds} for stage, seconds in stages.items()]
            self._add("stage_times", int(self.trainer.state.global_step), network, rows)
            self._log(network, {f"seconds_{stage.replace(' ', '_')}": seconds for stage, seconds in stages.items()})

    def _record_meta_gradient(self, network: str, gradients: dict[str, Tensor], layers: list[int]) -> None:
        compared = comparison(gradients["sampled"], gradients["exact"])
        rows: list[dict[str, Any]] = []
        for (kind, draws), count in zip(gradients.items(), layers, strict=True):
            own: dict[str, Any] = {"kind": kind, "layers": count}
            rows += [
                {**own, "draw": draw, "norm": value.norm().item(), "total": value.sum().item()}
                for draw, value in enumerate(draws)
            ]
            whole = statistics(draws)
            rows.append({**own, **whole, **(compared if kind == "sampled" else {})})
            self._log(network, {f"meta_gradient_{name}_{kind}": whole[name] for name in ("norm", "variance")})
        self._add("meta_gradient", self._coming_step, network, rows)
        self._log(network, {f"meta_gradient_{name}": value for name, value in compared.items()})

    def _record_weights(self) -> None:
        trainer = self.trainer
        step = int(trainer.state.global_step)
        if self._last.get("weights") == step:
            return
        self._last["weights"] = step
        order = torch.randperm(len(trainer.train_dataset), generator=make_generator(trainer.args.seed, SAMPLE_STREAM))
        sample = Subset(trainer.train_dataset, order[:WEIGHED].sort().values.tolist())
        for network, (model, meta) in trainer.networks.items():
            if meta.steps == 0:  # in the warm-up nothing is learned yet
                continue
            self._record_weights_of(network, model, meta, sample)

    def _record_weights_of(self, network: str, model: nn.Module, meta: MetaUpdate, sample: Any) -> None:
        def weigh(losses: np.ndarray) -> np.ndarray:
            found = raw_weights(meta.meta_learner, losses)
            assert found is not None  # `check_diagnostics` has seen to it
            return found

        with preserve_rng_state(self.trainer.args.device):
            found = evaluate_examples(self.trainer, sample, self.trainer.base_loss, model=model)
        weights = weigh(found.losses)
        rows = weight_rows(found.losses, weights, found.labels, found.correct, weigh)
        names = ("kind", "x", "value")
        step = int(self.trainer.state.global_step)
        self._add("weights", step, network, [dict(zip(names, row, strict=True)) for row in rows])
        for kind, chosen in groups_of(found.correct, len(weights)).items():
            if chosen.any():
                self._log(network, {f"raw_weight_{kind}": float(weights[chosen].mean())})
                prefix = f"{network}/" if network else ""
                log_histogram(self.trainer, f"{prefix}raw_weights_{kind}", weights[chosen])

    def _record_layers(self) -> None:
        before, self.counted = self.counted, self._counts()
        for network, (_, meta) in self.trainer.networks.items():
            steps, *times = (now - then for now, then in zip(self.counted[network], before[network], strict=True))
            if steps == 0:
                continue
            cost = meta.measured_cost
            rows = [
                {"layer": layer.name, "share_on": on / steps, "mean_cost": cost}
                for layer, on in zip(meta.candidates, times, strict=True)
            ]
            self._add("layers", int(self.trainer.state.global_step), network, rows)
            self._log(network, {} if cost is None else {"mean_meta_cost": cost})

    def _counts(self) -> dict[str, list[int]]:
        return {name: [meta.steps, *meta.times_on] for name, (_, meta) in self.trainer.networks.items()}


def fits(counted: Any, present: dict[str, list[int]]) -> bool:
    """Whether what a checkpoint brought back can have come before the present counts."""
    return (
        isinstance(counted, dict)
        and counted.keys() == present.keys()
        and all(isinstance(counted[name], list) and len(counted[name]) == len(own) for name, own in present.items())
        and all(
            type(then) is int and 0 <= then <= now
            for name, own in present.items()
            for then, now in zip(counted[name], own, strict=True)
        )
    )
