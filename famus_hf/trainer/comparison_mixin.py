"""ComparisonMixin: for a Trainer that goes on from checkpoints of its own data alone, and says what else is other."""

import logging
from pathlib import Path
from typing import Any

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.parallel.processes import Processes
from famus_hf.errors import LoadError
from famus_hf.storage import checkpoints
from famus_hf.trainer import trained_on
from famus_hf.trainer.learning_mixin import LearningMixin

logger = logging.getLogger("famus_hf")


class ComparisonMixin(LearningMixin):
    """Compares data and settings with those that a checkpoint was trained on."""

    train_dataset: Any
    meta_dataset: Any
    _trained_on: dict[str, Any]  # what `trained_on.json` will hold

    def other_data_than(self, checkpoint: str | Path) -> str:
        """Return in words in what the data differ from those of a checkpoint; empty where nothing is known to.

        All processes call it.

        Raises:
            LoadError: The checkpoint can't be compared.
        """
        saved = Processes.present().of_first(lambda: trained_on.read(Path(checkpoint)))
        return "" if saved is None else trained_on.other_data(saved, self._describe())

    def _describe(self) -> dict[str, Any]:
        """Return on which data this run trains, and by which settings."""
        with preserve_rng_state(self.args.device):  # as examples may draw
            is_learned_from = self.stages is not None or self.args.train_on_trusted
            meta = {"meta": self.meta_dataset} if is_learned_from else {}
            return trained_on.describe({"train": self.train_dataset, **meta}, self.args)

    def _compare_with(self, checkpoint: str) -> None:
        """Refuse a checkpoint of other data, unless they are allowed; say which settings are other ones."""
        saved = Processes.present().of_first(lambda: trained_on.read(Path(checkpoint)))
        if saved is None:
            whose = "transformers' own Trainer" if self._is_of_other_trainer(checkpoint) else "an earlier version"
            self._warn("%s is of %s: whether data and settings are the same is not known", checkpoint, whose)
            return
        data, settings = (
            compare(saved, self._trained_on) for compare in (trained_on.other_data, trained_on.other_settings)
        )
        if data and not self.args.allow_other_data:
            raise LoadError(
                f"the data differ from those of checkpoint {checkpoint!r} in {data}: give the same, or set "
                "allow_other_data=True to go on with these"
            )
        if data:
            self._warn("going on from %s with data that differ in %s", checkpoint, data)
        if settings:
            self._warn("going on from %s with other settings: %s", checkpoint, settings)

    def _is_of_other_trainer(self, checkpoint: str) -> bool:
        return Processes.present().of_first(lambda: checkpoints.is_foreign(checkpoint))

    def _warn(self, message: str, *values: object) -> None:
        if self.is_world_process_zero():
            logger.warning(message, *values)
