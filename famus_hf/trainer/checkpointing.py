"""ClassifierTrainer: what transformers' Trainer needs around the training step to train classifiers well."""

import logging
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SchedulerType, has_length
from transformers.training_args import OptimizerNames

from famus_hf.core.parallel.dtensor import class_of, is_sharded, load_whole, reshard
from famus_hf.core.parallel.processes import Processes
from famus_hf.data.inputs.convert import as_model_inputs
from famus_hf.errors import SaveError, reason_of
from famus_hf.hub.push import is_hub_id
from famus_hf.hub.safe_backbone import read_network
from famus_hf.reporting.training_time import TrainingTime
from famus_hf.storage import checkpoints
from famus_hf.storage.atomic import UNFINISHED, WRITE_ERRORS, atomic_write, atomic_write_model, save_error
from famus_hf.storage.diagnostic_tables import remove_tables
from famus_hf.trainer.hub_mixin import HubTrainer
from famus_hf.training_args import FaMUSTrainingArguments

MTIME_LAG = 0.01  # seconds by which the time of a new file may lag behind the clock

logger = logging.getLogger("famus_hf")


def step_decay(milestones: list[int], step: int) -> float:
    """Factor of the learning rate at a step: a tenth for each milestone that is reached."""
    return 0.1 ** bisect_right(milestones, step)


class ClassifierTrainer(HubTrainer):
    """A Trainer with the paper's schedule, whole evaluation sets and exact checkpoints.

    The training step, and what belongs to the method, is `FaMUSTrainer`'s.
    """

    args: FaMUSTrainingArguments
    model: nn.Module
    _is_resumed = False

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.training_time = TrainingTime()
        self.add_callback(self.training_time)

    # ---- Logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.training_time.seconds is not None:
            logs["train_seconds"] = round(self.training_time.seconds, 3)
        super().log(logs, start_time)

    # ---- Optimizer and schedule ----

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """With SGD all parameters decay, as in the paper's recipes; otherwise transformers' rule."""
        if OptimizerNames(self.args.optim) == OptimizerNames.SGD:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        constant = SchedulerType(self.args.lr_scheduler_type) == SchedulerType.CONSTANT
        if self.lr_scheduler is None and constant and self.args.lr_milestones:
            steps = [round(m * num_training_steps) if m < 1 else round(m) for m in self.args.lr_milestones]
            target: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(target, partial(step_decay, sorted(steps)))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- Evaluation ----

    def _get_dataloader(self, dataset: Any, *arguments: Any, **keywords: Any) -> DataLoader:
        """transformers drops the last batch of evaluation sets too, and so would judge on a part of the test set."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and keywords.get("is_training", False)
        try:
            return super()._get_dataloader(dataset, *arguments, **keywords)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(self, eval_dataset: Any = None, *arguments: Any, **keywords: Any) -> dict[str, float]:
        with self.training_time.stopped():
            return super().evaluate(as_model_inputs(eval_dataset, self.processing_class), *arguments, **keywords)

    def predict(self, test_dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        return super().predict(as_model_inputs(test_dataset, self.processing_class), *arguments, **keywords)

    # ---- Checkpoints ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **keywords: Any) -> Any:
        """As Trainer's; True resumes from the newest whole checkpoint in `output_dir`, `user/name` from the Hub's.

        Raises:
            ValueError: The checkpoint is damaged, or there is none.
            SaveError: A checkpoint can't be written.
        """
        output_dir = Path(str(self.args.output_dir))
        if self.args.should_save:
            checkpoints.settle(output_dir)
        self.accelerator.wait_for_everyone()
        if is_hub_id(resume_from_checkpoint):
            resume_from_checkpoint = self.fetch_checkpoint(str(resume_from_checkpoint))
        checkpoint = checkpoints.to_resume_from(resume_from_checkpoint, output_dir)
        self._started = time.time() - MTIME_LAG
        self._is_resumed = checkpoint is not None
        self.training_time.earlier = 0.0
        if checkpoint is None and self.args.should_save:
            remove_tables(output_dir)
        self._run = uuid4().hex if checkpoint is None else checkpoints.run_of(checkpoint)
        if checkpoint is None and checkpoints.by_age(output_dir):
            logger.warning("%s holds checkpoints of an earlier run: save_total_limit removes those first", output_dir)
        reshard(self.model)  # of an earlier training, as accelerate finds the optimizer's parameters by their memory
        return super().train(checkpoint, *arguments, **keywords)

    @property
    def is_resumed(self) -> bool:
        """Whether the training went on from a checkpoint."""
        return self._is_resumed

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Epochs that are done, and batches of the next one.

        transformers 5.23 takes a stream for a single epoch of `max_steps` when it resumes, and so skips batches of the
        first epoch where it should skip some of a later one, which is shuffled differently.
        """
        found = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, checkpoint, trial)
        if checkpoint is None or has_length(self.train_dataset) or self.args.ignore_data_skip:
            return found
        saved = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        epochs, share = divmod(float(saved.epoch or 0), 1)
        return int(epochs), round(share * saved.max_steps * self.args.gradient_accumulation_steps)

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        """transformers 5.23 trains on where a run is resumed that had ended within an epoch, or stopped early."""
        if self._is_resumed and (self.state.global_step >= self.state.max_steps or self._has_stopped_early):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*arguments, **keywords)

    @property
    def _has_stopped_early(self) -> bool:
        return any(
            isinstance(callback, EarlyStoppingCallback)
            and callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
        )

    def _load_callback_state(self) -> None:
        """What callbacks have counted comes back; transformers 5.23 puts back their settings too, whatever is asked."""
        if not self.args.restore_callback_states_from_checkpoint:
            return
        saved: Any = self.state.stateful_callbacks
        for name, states in saved.items():
            callbacks = [callback for callback in self.callback_handler.callbacks if type(callback).__name__ == name]
            for callback, state in zip(callbacks, states if isinstance(states, list) else [states], strict=False):
                for attribute, value in state["attributes"].items():
                    setattr(callback, attribute, value)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.training_time.stopped():
            self._save_whole_checkpoint(trial)

    def _save_whole_checkpoint(self, trial: Any) -> None:
        """Everything goes into a folder beside, which becomes `checkpoint-N` once it is whole; then older ones go.

        transformers 5.23 writes into `checkpoint-N` itself, and its barrier in the middle would wait for ever for a
        process whose disk is full.
        """
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_dir = Path(self._get_output_dir(trial))
        checkpoint = run_dir / f"checkpoint-{self.state.global_step}"
        self._note_best_checkpoint(checkpoint)
        for part in (self._empty_folder, self._write_checkpoint, self._publish_checkpoint):
            self._on_every_process(part, run_dir / UNFINISHED / checkpoint.name, checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            best = {Path(self.state.best_model_checkpoint)} if self.state.best_model_checkpoint else set()
            checkpoints.rotate(run_dir, self.args.save_total_limit, keep={checkpoint} | best)
            shutil.rmtree(run_dir / UNFINISHED, ignore_errors=True)

    def _on_every_process(self, part: Callable[[Path, Path], None], written: Path, checkpoint: Path) -> None:
        """A part of saving; where it fails on one process, all end with that one's error. Waits for all."""
        cause, sentence = None, None
        try:
            part(written, checkpoint)
        except WRITE_ERRORS as error:
            cause, sentence = error, str(save_error(checkpoint, error))
        sentences = [found for found in gather_object([sentence]) if found is not None]
        if sentences:
            shutil.rmtree(written.parent, ignore_errors=True)
            raise SaveError(sentences[0]) from cause

    def _empty_folder(self, written: Path, checkpoint: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)
            written.mkdir(parents=True)

    def _write_checkpoint(self, written: Path, checkpoint: Path) -> None:
        super().save_model(str(written), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(written))
            self._save_scaler(str(written))
            self._save_rng_state(str(written))
        if self.args.should_save:
            callbacks = [*self.callback_handler.callbacks, self.control]
            exported: Any = [callback for callback in callbacks if isinstance(callback, ExportableState)]
            self.state.stateful_callbacks = TrainerState(stateful_callbacks=exported).stateful_callbacks
            self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _publish_checkpoint(self, written: Path, checkpoint: Path) -> None:
        if self.args.should_save:
            checkpoints.write_manifest(written, self._run, resumable=not self.args.save_only_model)
            checkpoints.publish(written, checkpoint)

    def _note_best_checkpoint(self, checkpoint: Path) -> None:
        """transformers 5.23 also takes a `checkpoint-N` for the best one that an earlier run left in the folder."""
        best = checkpoint.with_name(f"checkpoint-{self.state.best_global_step}")
        if best == checkpoint or (best.is_dir() and checkpoints.run_of(best) == self._run):
            self.state.best_model_checkpoint = str(best)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; the files take the place of an earlier model's when all are written.

        Raises:
            SaveError: They can't be written.
        """
        folder = output_dir or str(self.args.output_dir)
        with atomic_write_model(folder) if self.args.should_save else nullcontext(folder) as beside:
            super().save_model(str(beside), _internal_call=True)
            if self.args.should_save:
                self._save_beside_model(Path(beside))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_beside_model(self, folder: Path) -> None:
        """Writes what a saved model has beside its own files, and a checkpoint does without."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """transformers 5.23 pickles the arguments with all tokens in clear text, into training_args.bin."""
        tokens = {name: value for name, value in vars(self.args).items() if name.endswith("_token")}
        try:
            for name in tokens:
                setattr(self.args, name, None)
            super()._save(output_dir, state_dict)
        finally:
            for name, value in tokens.items():
                setattr(self.args, name, value)

    def save_state(self) -> None:
        if self.is_world_process_zero():
            with atomic_write(Path(str(self.args.output_dir)) / TRAINER_STATE_NAME) as path:
                self.state.save_to_json(str(path))

    def _load_network(self, network: PreTrainedModel, checkpoint: str) -> None:
        """Reads the weights as `from_pretrained` does.

        transformers 5.23 saves some networks (ViT among them) under names that only `from_pretrained` translates back;
        its own Trainer leaves those weights as they are, with a warning. Weights that are missing, of other shapes or
        not finite are refused.
        """
        if not (Path(checkpoint) / "config.json").is_file():
            raise ValueError(f"{checkpoint!r} holds no checkpoint (it has no config.json)")
        sharded = is_sharded(network)
        state, problem = {}, None
        if not sharded or self.is_world_process_zero():
            try:
                state = read_network(class_of(network), checkpoint, network.config).state_dict()
            except Exception as error:  # transformers raises anything on a damaged file
                problem = reason_of(error)
        if sharded:
            problem = Processes.present().first_object(problem)
        if problem is not None:
            raise ValueError(f"checkpoint {checkpoint!r} can't be loaded: {problem}")
        if sharded:
            load_whole(network, state)
        else:
            network.load_state_dict(state)
