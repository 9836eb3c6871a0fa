"""A Trainer whose network is judged, saved and pushed by an average of its weights, while it trains on with its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from famus_hf.core.weight_average import WeightAverage, put_into, weights_of
from famus_hf.errors import SettingsError
from famus_hf.storage.model_folder import adapted_network
from famus_hf.storage.run_folder import RAW_WEIGHTS
from famus_hf.storage.saved_state import Check, check_state, is_tensor, stored_tensors
from famus_hf.trainer.beliefs_mixin import BeliefsMixin
from famus_hf.trainer.classifier_mixin import ClassifierMixin
from famus_hf.trainer.features_mixin import FeaturesMixin

RAW, AVERAGED, STEPS = "raw.", "averaged.", "steps"  # what the names in RAW_WEIGHTS begin with, and how many steps


class AfterOptimizerStep(TrainerCallback):
    """Calls a function after each step of the optimizer, before anybody evaluates or saves."""

    def __init__(self, act: Callable[[], None]):
        self.act = act

    def on_optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        self.act()


class AveragingMixin(FeaturesMixin, BeliefsMixin, ClassifierMixin):
    """Keeps an average of the network's weights where `ema_decay` asks for it.

    In training the network holds its own weights, and the average in each evaluation and save. At the end of the
    training it takes the average for good. `model.safetensors` of a checkpoint holds the average, `RAW_WEIGHTS` beside
    it what the training goes on from.

    Attributes:
        weight_average: None outside of a training, and where none is kept.
    """

    weight_average: WeightAverage | None = None

    # ---- In training ----

    def _prepare_for_training(self, *arguments: Any, **keywords: Any) -> Any:
        self.weight_average = None  # of a training that was broken off
        for callback in list(self.callback_handler.callbacks):
            if isinstance(callback, AfterOptimizerStep):
                self.remove_callback(callback)
        prepared = super()._prepare_for_training(*arguments, **keywords)
        if self.args.ema_decay is not None:
            self._check_weights_are_own()
            self.weight_average = self.weight_average or self._new_average()
            self.add_callback(AfterOptimizerStep(self._take_in_weights))
        return prepared

    def _new_average(self) -> WeightAverage:
        return WeightAverage(self.model, self.args.ema_decay or 0.0, self.processes)

    def _check_weights_are_own(self) -> None:
        optimizer: Any = self.optimizer
        if any("train_mode" in group for group in optimizer.param_groups):
            raise SettingsError(
                "ema_decay does not go with a schedule-free optimizer, which averages weights itself: leave it out"
            )

    def _take_in_weights(self) -> None:
        if self.weight_average is not None and not self.accelerator.optimizer_step_was_skipped:
            self.weight_average.update()

    def _finalize_training(self, *arguments: Any, **keywords: Any) -> Any:
        if self.weight_average is not None:
            if not self.args.load_best_model_at_end:  # as `label_report` does later, when the weights are gone
                self.close_epoch_of_beliefs(is_over=True)
            self.weight_average.take_place()
            self.weight_average = None
        return super()._finalize_training(*arguments, **keywords)

    # ---- Where the average counts ----

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if self.weight_average is None:
            yield
            return
        with self.weight_average.in_place():
            yield

    @contextmanager
    def _judged_weights(self) -> Iterator[None]:
        with super()._judged_weights(), self._averaged_weights():
            yield

    def evaluation_loop(self, *arguments: Any, **keywords: Any) -> EvalLoopOutput:
        with self._averaged_weights():
            return super().evaluation_loop(*arguments, **keywords)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self._averaged_weights():
            super().save_model(output_dir, _internal_call)

    def close_epoch_of_beliefs(self, is_over: bool) -> None:
        """Look at the trusted examples with the network's own weights, by which it predicts training examples too."""
        with self.own_weights():
            super().close_epoch_of_beliefs(is_over)

    @contextmanager
    def own_weights(self) -> Iterator[None]:
        average, self.weight_average = self.weight_average, None
        try:
            yield
        finally:
            self.weight_average = average

    # ---- Checkpoints ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.weight_average is not None and self.args.should_save:
            save_file(self._raw_state(self.weight_average), Path(output_dir) / RAW_WEIGHTS)

    def _raw_state(self, average: WeightAverage) -> dict[str, Tensor]:
        """Return what the model's own files do not hold: weights that differ from their average, rounded averages."""
        state = {STEPS: torch.tensor(average.steps)}
        is_adapted = adapted_network(self.model) is not None  # whose files leave out the network's running statistics
        averages = average.tensors()
        for name, tensor in weights_of(self.model).items():
            averaged, raw = averages[name], tensor.detach()
            is_other = not torch.equal(averaged.to(raw.dtype), raw)
            if is_other:
                state[RAW + name] = raw.cpu().contiguous()
            if averaged.dtype != raw.dtype or (is_adapted and is_other):
                state[AVERAGED + name] = averaged.cpu().contiguous()
        return state

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "") / RAW_WEIGHTS
        if checkpoint is None or not path.is_file():
            return
        what = f"{RAW_WEIGHTS} of checkpoint {checkpoint!r}"
        state = stored_tensors(path, what)
        self._check_raw_state(what, state)
        if self.args.ema_decay is not None:
            self.weight_average = self._new_average()
            self.weight_average.restore(int(state[STEPS]), _named(AVERAGED, state))
        put_into(self.model, _named(RAW, state))

    def _check_raw_state(self, what: str, state: dict[str, Tensor]) -> None:
        """Raise LoadError on a file of another network."""
        fields: dict[str, tuple[Check, str]] = {STEPS: (is_tensor((), torch.int64, 0), "no number of steps")}
        for name, tensor in weights_of(self.model).items():
            for kind in (RAW, AVERAGED):
                if kind + name in state:
                    dtype = tensor.dtype if kind == RAW else None
                    fields[kind + name] = (is_tensor(tuple(tensor.shape), dtype), f"another {name} than the network")
        check_state(what, state, fields)


def _named(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(kind): tensor for name, tensor in state.items() if name.startswith(kind)}
