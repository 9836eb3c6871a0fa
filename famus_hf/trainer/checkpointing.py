"""Checkpoints that are whole or not there, with all that learns, and from which a run goes on exactly."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import has_length

from famus_hf.core.layer_samplers import LayerSampler
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.parallel.dtensor import as_written, class_of, is_sharded, load_whole, reshard
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.three_stages import ThreeStages
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.errors import LoadError, SaveError, reason_of
from famus_hf.hub.meta_net_files import load_into, save_meta_net
from famus_hf.hub.push import is_hub_id
from famus_hf.hub.safe_backbone import read_network
from famus_hf.storage import checkpoints
from famus_hf.storage.atomic import WRITE_ERRORS, atomic_write, save_error
from famus_hf.storage.diagnostic_tables import remove_tables
from famus_hf.storage.meta_state import check_meta_state, read_meta_state
from famus_hf.storage.model_folder import adapted_network, atomic_write_model, save_base_config
from famus_hf.storage.run_folder import CARD, CONFIG, META_STATE, TRAINER_STATE, UNFINISHED
from famus_hf.trainer import trained_on
from famus_hf.trainer.comparison_mixin import ComparisonMixin
from famus_hf.trainer.hub_mixin import HubMixin
from famus_hf.trainer.learning_mixin import LearningMixin

MTIME_LAG = 0.01  # seconds by which the time of a new file may lag behind the clock

logger = logging.getLogger("famus_hf")


class CheckpointingMixin(ComparisonMixin, HubMixin, LearningMixin):
    """Checkpoints of a Trainer that are whole or not there, and from which a run goes on exactly.

    Beside the model's files each has the meta-net, `meta_state.pt`, `trained_on.json` and the diagnostics' tables.
    """

    _is_resumed = False
    _is_foreign = False  # whether it went on from a checkpoint of transformers' own Trainer
    _unfinished: Path | None = None  # the checkpoint that is being written

    # ---- Checkpoints ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; True resumes from the newest whole checkpoint in `output_dir`, `user/name` from the one on the Hub.

        Raises:
            LoadError: The checkpoint is damaged or of other data, or there is none.
            HubError: Likewise, of one on the Hub.
            SaveError: A checkpoint can't be written.
        """
        output_dir = Path(str(self.args.output_dir))
        if self.args.should_save:
            checkpoints.settle(output_dir)
        self.accelerator.wait_for_everyone()
        if is_hub_id(resume_from_checkpoint):
            resume_from_checkpoint = self.fetch_checkpoint(str(resume_from_checkpoint))
        checkpoint = checkpoints.to_resume_from(resume_from_checkpoint, output_dir)
        self._trained_on = self._describe()
        if checkpoint is not None:
            with _reading(TRAINER_STATE, checkpoint):
                TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE))
            self._compare_with(checkpoint)
        self._is_foreign = checkpoint is not None and self._is_of_other_trainer(checkpoint)
        if self._is_foreign and self.stages is not None:
            self._warn("%s holds no meta-learner: that and the layer sampler start afresh", checkpoint)
        self._started = time.time() - MTIME_LAG
        self._is_resumed = checkpoint is not None
        self.training_time.earlier = 0.0
        if checkpoint is None and self.args.should_save:
            remove_tables(output_dir)
        is_own = checkpoint is not None and not self._is_foreign
        self._run = checkpoints.run_of(str(checkpoint)) if is_own else uuid4().hex
        if checkpoint is None and checkpoints.by_age(output_dir):
            logger.warning("%s holds checkpoints of an earlier run: save_total_limit removes those first", output_dir)
        if self.model is not None:  # else it was dropped between two trials of a search
            # Of an earlier training, as accelerate finds the optimizer's parameters by their memory.
            reshard(self.model)
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    @property
    def is_resumed(self) -> bool:
        """Whether the training went on from a checkpoint."""
        return self._is_resumed

    def take_weights_of(self, checkpoint: str) -> None:
        """Take what has learned from a checkpoint, as `train` does when it goes on from there. All processes call it.

        Raises:
            LoadError: It does not fit.
        """
        self._load_from_checkpoint(checkpoint)
        self._load_meta_state(checkpoint)

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Return the epochs that are done, and the batches of the next one.

        transformers 5.23 takes a stream for a single epoch of `max_steps` when it resumes, and so skips batches of the
        first epoch where it should skip some of a later one, which is shuffled differently.
        """
        with _reading(TRAINER_STATE, checkpoint):
            progress = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, checkpoint, trial)
        if checkpoint is None or has_length(self.train_dataset) or self.args.ignore_data_skip:
            return progress
        saved = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE))
        epochs, share = divmod(float(saved.epoch or 0), 1)
        return int(epochs), round(share * saved.max_steps * self.args.gradient_accumulation_steps)

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        """Stop where a resumed run had ended within an epoch, or stopped early; transformers 5.23 would train on."""
        if self._is_resumed and (self.state.global_step >= self.state.max_steps or self._has_stopped_early):
            self.control.should_training_stop = True
        else:
            self.begin_epoch()
            super()._run_epoch(*arguments, **keywords)

    def begin_epoch(self) -> None:
        """Do what is due before the batches of an epoch are drawn. All processes call it."""

    @property
    def _has_stopped_early(self) -> bool:
        return any(
            isinstance(callback, EarlyStoppingCallback)
            and callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
        )

    def _load_callback_state(self) -> None:
        """Put back what callbacks have counted; transformers 5.23 puts back their settings too, whatever is asked."""
        if not self.args.restore_callback_states_from_checkpoint:
            return
        saved: Any = self.state.stateful_callbacks
        present = {type(callback).__name__ for callback in [*self.callback_handler.callbacks, self.control]}
        lost = [name for name in saved if name not in present]
        if lost:  # in transformers' words
            self._warn(
                "Checkpoint included callbacks not included in current configuration. Ignoring. (%s)", ", ".join(lost)
            )
        for name, states in saved.items():
            callbacks = [callback for callback in self.callback_handler.callbacks if type(callback).__name__ == name]
            for callback, state in zip(callbacks, states if isinstance(states, list) else [states], strict=False):
                for attribute, value in state["attributes"].items():
                    setattr(callback, attribute, value)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.training_time.stopped():
            self._save_whole_checkpoint(trial)

    def _save_whole_checkpoint(self, trial: Any) -> None:
        """Write everything into a folder beside, which becomes `checkpoint-N` once it is whole; then remove older ones.

        transformers 5.23 writes into `checkpoint-N` itself, and its barrier in the middle would wait for ever for a
        process whose disk is full.
        """
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_dir = Path(self._get_output_dir(trial))
        checkpoint = run_dir / f"checkpoint-{self.state.global_step}"
        self._note_best_checkpoint(checkpoint)
        for action in (self._empty_folder, self._write_checkpoint, self._publish_checkpoint):
            self._on_every_process(action, run_dir / UNFINISHED / checkpoint.name, checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            best = {Path(self.state.best_model_checkpoint)} if self.state.best_model_checkpoint else set()
            checkpoints.rotate(run_dir, self.args.save_total_limit, keep={checkpoint} | best)
            shutil.rmtree(run_dir / UNFINISHED, ignore_errors=True)

    def _on_every_process(self, action: Callable[[Path, Path], None], written: Path, checkpoint: Path) -> None:
        """Take one action of saving, and wait for all; where it fails on one process, all end with that one's error."""
        cause, sentence = None, None
        try:
            action(written, checkpoint)
        except WRITE_ERRORS as error:
            cause, sentence = error, str(save_error(checkpoint, error))
        sentences = [failure for failure in gather_object([sentence]) if failure is not None]
        if sentences:
            shutil.rmtree(written.parent, ignore_errors=True)
            raise SaveError(sentences[0]) from cause

    def _empty_folder(self, written: Path, checkpoint: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)
            written.mkdir(parents=True)

    def _write_checkpoint(self, written: Path, checkpoint: Path) -> None:
        self._unfinished = written
        try:
            self.save_model(str(written), _internal_call=True)
        finally:
            self._unfinished = None
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(written))
            self._save_scaler(str(written))
            self._save_rng_state(str(written))
        if self.args.should_save:
            callbacks = [*self.callback_handler.callbacks, self.control]
            exported: Any = [callback for callback in callbacks if isinstance(callback, ExportableState)]
            self.state.stateful_callbacks = TrainerState(stateful_callbacks=exported).stateful_callbacks
            self.state.save_to_json(str(written / TRAINER_STATE))
            trained_on.write(written, {**self._trained_on, "frozen": self._frozen})

    def _publish_checkpoint(self, written: Path, checkpoint: Path) -> None:
        if self.args.should_save:
            checkpoints.write_manifest(written, self._run, resumable=not self.args.save_only_model)
            checkpoints.publish(written, checkpoint)

    def _note_best_checkpoint(self, checkpoint: Path) -> None:
        """Note the best one if it is of this run; transformers 5.23 also takes one that an earlier run left there."""
        best = checkpoint.with_name(f"checkpoint-{self.state.best_global_step}")
        if best == checkpoint or (best.is_dir() and checkpoints.run_of(best) == self._run):
            self.state.best_model_checkpoint = str(best)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as Trainer does; the files take the place of an earlier model's when all are written.

        Raises:
            SaveError: They can't be written.
        """
        folder = output_dir or str(self.args.output_dir)
        if self._unfinished is not None and Path(folder) == self._unfinished:  # it becomes visible as a whole anyway
            return super().save_model(folder, _internal_call=True)
        with atomic_write_model(folder) if self.args.should_save else nullcontext(folder) as beside:
            super().save_model(str(beside), _internal_call=True)
            if self.args.should_save:
                self._save_beside_model(Path(beside))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_beside_model(self, folder: Path) -> None:
        """Write what a saved model has beside its own files, and a checkpoint does without."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save without tokens: transformers 5.23 pickles the arguments with them in clear text (training_args.bin)."""
        tokens = {name: value for name, value in vars(self.args).items() if name.endswith("_token")}
        try:
            for name in tokens:
                setattr(self.args, name, None)
            with as_written(self.model):
                super()._save(output_dir, state_dict)
        finally:
            for name, value in tokens.items():
                setattr(self.args, name, value)
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            if adapted_network(self.model) is not None:
                save_base_config(folder, self.model)
                (folder / CARD).unlink(missing_ok=True)  # PEFT's own, with the base's folder
            self._save_meta_net(folder)

    def save_state(self) -> None:
        if self.is_world_process_zero():
            with atomic_write(Path(str(self.args.output_dir)) / TRAINER_STATE) as path:
                self.state.save_to_json(str(path))

    def _load_network(self, network: PreTrainedModel, checkpoint: str) -> None:
        """Read the weights as `from_pretrained` does.

        transformers 5.23 saves some networks (ViT among them) under names that only `from_pretrained` translates back;
        its own Trainer leaves those weights as they are, with a warning. Weights that are missing, of other shapes or
        not finite are refused.
        """
        if not (Path(checkpoint) / CONFIG).is_file():
            raise LoadError(f"{checkpoint!r} holds no checkpoint (it has no config.json)")
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
            raise LoadError(f"checkpoint {checkpoint!r} can't be loaded: {problem}")
        if sharded:
            load_whole(network, state)
        else:
            network.load_state_dict(state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, PreTrainedModel):
            self._load_network(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_meta_net_of(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if isinstance(self.model, PreTrainedModel):
            self._load_network(self.model, best)
        else:
            super()._load_best_model()
        self._load_meta_net_of(best)

    def _load_meta_net_of(self, checkpoint: str) -> None:
        if not self._is_of_other_trainer(checkpoint):
            self._load_meta_net(checkpoint)

    # ---- What learns beside the network ----

    def _save_meta_net(self, folder: Path) -> None:
        learner, sampler = (None, None) if self.stages is None else _learner_and_sampler(self.stages)
        save_meta_net(folder, learner, sampler)

    def _load_meta_net(self, checkpoint: str) -> None:
        if self.stages is not None:
            self._follow_frozen_of(checkpoint)
            load_into(checkpoint, *_learner_and_sampler(self.stages))

    def _follow_frozen_of(self, checkpoint: str) -> None:
        """Have the meta-learner know the layers that were trained when a checkpoint was saved.

        The network stays as it is: what the first step finds frozen then is followed there.
        """
        saved = trained_on.read(Path(checkpoint))
        if saved is None or "frozen" not in saved or set(saved["frozen"]) == set(self._frozen):
            return
        flags = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        try:
            for network, stages in self.networks.items():
                for name, parameter in stages.network.named_parameters():
                    is_frozen = f"{network}.{name}".removeprefix(".") in saved["frozen"]
                    parameter.requires_grad_(not is_frozen and parameter.is_floating_point())
                self._find_layers_again(stages)
        finally:
            for parameter, is_trained in flags.items():
                parameter.requires_grad_(is_trained)

    @property
    def _frozen(self) -> list[str]:
        """Names of the parameters that the meta-learners take for frozen."""
        return [
            f"{network}.{name}".removeprefix(".")
            for network, stages in self.networks.items()
            for (name, _), is_trained in zip(stages.network.named_parameters(), stages.trained, strict=True)
            if not is_trained
        ]

    def _find_layers_again(self, stages: ThreeStages) -> None:
        raise NotImplementedError

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.diagnostics.write()
        state = self._meta_state()
        if self.args.should_save and state is not None:
            torch.save(state, Path(output_dir) / META_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not self.is_deepspeed_enabled:
            self._check_optimizers_are_in(Path(checkpoint))
        optimizer: Any = self.optimizer
        groups = [set(group) - {"initial_lr"} for group in optimizer.param_groups]  # which a schedule adds
        with _reading("optimizer.pt or scheduler.pt", checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            missing = [
                name for own, read in zip(groups, optimizer.param_groups, strict=True) for name in own - set(read)
            ]
            if missing:  # torch takes another optimizer's state, and fails at the next step
                raise LoadError(f"it is of another optimizer, without {missing[0]}: set optim to the one of that run")
        self._load_meta_state(checkpoint)

    def _check_optimizers_are_in(self, checkpoint: Path) -> None:
        """Raise LoadError where files lack without which transformers 5.23 silently starts an optimizer anew."""
        for name in ("optimizer", "scheduler"):
            if not list(checkpoint.glob(f"{name}*")):
                raise LoadError(f"checkpoint {str(checkpoint)!r} has no {name}.pt: it was saved without optimizers")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading("the random state", checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_meta_state(self, checkpoint: str) -> None:
        if self._meta_state() is None or self._is_of_other_trainer(checkpoint):
            return
        path = Path(checkpoint) / META_STATE
        if not path.is_file():
            raise LoadError(f"checkpoint {checkpoint!r} has no {META_STATE}: it was saved without optimizers")
        try:
            self._take_meta_state(read_meta_state(path))
        except ValueError as error:
            raise LoadError(f"{META_STATE} of checkpoint {checkpoint!r} does not fit: {error}") from error

    def _meta_state(self) -> dict[str, Any] | None:
        """Return what `_take_meta_state` takes back; None in plain training."""
        if self.stages is None:
            return None
        state = self.stages.meta.state_dict()
        if isinstance(self.meta_dataset, PseudoCleanSet):
            state["pseudo_clean"] = self.meta_dataset.state_dict()
        return state

    def _take_meta_state(self, state: dict[str, Any]) -> None:
        """Take a state back. Raise LoadError where it is of another run, before anything is changed."""
        assert self.stages is not None
        is_pseudo_clean = isinstance(self.meta_dataset, PseudoCleanSet)
        if is_pseudo_clean and "pseudo_clean" not in state:
            raise LoadError("it is of a run with a given meta set: give the same")
        take_checked(self.stages.meta, state)
        if is_pseudo_clean:
            self.meta_dataset.load_state_dict(state["pseudo_clean"])


@contextmanager
def _reading(name: str, checkpoint: str | None) -> Iterator[None]:
    """Have whatever the body raises over a file of a checkpoint name the file."""
    try:
        yield
    except Exception as error:  # torch.load raises anything on a damaged file
        if checkpoint is None:
            raise
        raise LoadError(f"{name} of checkpoint {checkpoint!r} does not fit: {reason_of(error)}") from error


def take_checked(meta: MetaUpdate, state: dict[str, Any]) -> None:
    """Give a state to what it is of. Raise LoadError where it can't be, before anything is changed."""
    optimizers = {"learner_optimizer": meta.learner_optimizer, "sampler_optimizer": meta.sampler_optimizer}
    check_meta_state(state, meta.state_dict(), optimizers, len(meta.candidates))
    meta.load_state_dict(state)


def _learner_and_sampler(stages: ThreeStages) -> tuple[MetaLearner, LayerSampler]:
    return stages.meta.meta_learner, stages.meta.layer_sampler
