"""The memory of what a Trainer's network believes: its size, and how it lives on in checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Subset

from famus_hf.core.beliefs import DECAY, EARLY, TRAINED, RunningBeliefs
from famus_hf.storage.run_folder import BELIEFS
from famus_hf.storage.saved_state import check_state, is_tensor, stored_tensors
from famus_hf.trainer.batches_mixin import BatchesMixin
from famus_hf.trainer.checkpointing import CheckpointingMixin
from famus_hf.trainer.meta_set_schedule import MetaSetSchedule

LEARNERS_DECAY = 0.8  # of beliefs that training looks at: labels are learned by heart later with it than with DECAY
EARLY_SHARE, EARLY_EPOCHS = 0.25, 7  # first part of training, and at least; chosen on digits and Fashion-MNIST
TRUSTED_SEEN = 1000  # trusted examples that are looked at after each epoch, at most


class BeliefsCheckpointsMixin(BatchesMixin, CheckpointingMixin):
    """Makes beliefs, saves and loads them.

    Attributes:
        beliefs: None before the first batch, and where none are kept.
        schedule: Tells when an epoch is over.
    """

    schedule: MetaSetSchedule
    beliefs: RunningBeliefs | None = None
    _needs_beliefs = False

    def _new_beliefs(self, classes: int) -> RunningBeliefs:
        trusted = len(self._trusted_sample) if self.has_trusted else 0
        begun = self.schedule.epoch(self.state)
        decay = self.args.belief_decay
        if decay is None:
            decay = LEARNERS_DECAY if self._needs_beliefs else DECAY
        trained, count = len(self._trusted_in_training), len(self.train_dataset)
        return RunningBeliefs(count, classes, trusted, self.args.device, decay, begun, trained, self.judges_by_early)

    @property
    def judges_by_early(self) -> bool:
        """Whether labels are judged by what was believed in the first part of training.

        That is so with posterior targets, which wrong labels hardly get past, and without trusted examples, where
        nothing tells when labels began to be learned by heart.
        """
        by_posterior = self.meta_learner is not None and self.meta_learner.has_posteriors
        return self.args.label_report and (not self.has_trusted or (by_posterior and bool(self._trusted_in_training)))

    @property
    def _is_early(self) -> bool:
        """Whether the training is in its first part: seven epochs, or a quarter of a longer one."""
        least = EARLY_EPOCHS * self.schedule.steps_per_epoch
        return self.state.global_step < max(EARLY_SHARE * self.state.max_steps, least)

    @property
    def _trusted_sample(self) -> Any:
        rows = sorted(set(range(len(self.meta_dataset))).difference(self._trusted_in_training))
        if len(rows) > TRUSTED_SEEN:
            rows = [rows[place] for place in np.linspace(0, len(rows) - 1, TRUSTED_SEEN).round().astype(int)]
        return self.meta_dataset if len(rows) == len(self.meta_dataset) else Subset(self.meta_dataset, rows)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.beliefs is not None:
            self.beliefs.gather(self.processes)
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.beliefs is not None and self.args.should_save:
            state = self.beliefs.state_dict()
            if self.logit_shift is not None:
                state["logit_shift"] = self.logit_shift
            tensors = {name: value.cpu().contiguous() for name, value in state.items()}
            save_file(tensors, Path(output_dir) / BELIEFS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.keeps_beliefs:
            self._load_beliefs(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = Path(str(self.state.best_model_checkpoint))
        if self._needs_beliefs and (best / BELIEFS).is_file():  # by which the best meta-learner is to be asked
            self._load_beliefs(str(best))

    def _load_beliefs(self, checkpoint: str) -> None:
        path = Path(checkpoint) / BELIEFS
        if not path.is_file() or self.other_data_than(checkpoint):
            self.keeps_beliefs = self._needs_beliefs  # anew; for the report, what was believed at first is lost
            return
        state = stored_tensors(path, f"{BELIEFS} of checkpoint {checkpoint!r}")
        sums = state.get("sums")
        if sums is None or len(sums) == len(self.train_dataset):
            self.beliefs = self.checked_beliefs(state, checkpoint)
            if "logit_shift" in state:
                self.logit_shift = state["logit_shift"].to(self.args.device)
        else:  # of other data, which the checkpoint does not tell
            self.keeps_beliefs = self._needs_beliefs

    def checked_beliefs(self, state: dict[str, Tensor], checkpoint: str) -> RunningBeliefs:
        """Return the beliefs of a file. Raise LoadError where they can't be of these examples."""
        sums = state.get("sums")
        beliefs = self._new_beliefs(sums.shape[1] if sums is not None and sums.dim() == 2 else 0)
        (examples, classes), trusted, trained = beliefs.sums.shape, len(beliefs.trusted_sums), len(beliefs.trained.sums)
        whole, float32 = torch.int64, torch.float32
        is_flag = is_tensor((), whole, 0, 1)

        def of_running(count: int, prefix: str = "") -> dict[str, Any]:
            return {
                f"{prefix}sums": is_tensor((count, classes), float32, 0, 1),
                f"{prefix}visits": is_tensor((count,), whole, 0),
                f"{prefix}labels": is_tensor((count,), whole, -1, classes - 1),
                **({f"{prefix}losses": is_tensor((count,), float32)} if "losses" in state else {}),
            }

        fields = {
            **of_running(examples),
            **(of_running(trained, TRAINED) if f"{TRAINED}sums" in state else {}),
            **(of_running(examples + trained, EARLY) if f"{EARLY}sums" in state else {}),
            **({"begun": is_tensor((), whole, 0), "is_shown": is_flag} if "losses" in state else {}),
            **({"logit_shift": is_tensor((classes,), float32)} if "logit_shift" in state else {}),
            "trusted_sums": is_tensor((trusted, classes), float32, 0, 1),
            "epoch": is_tensor((), whole, 0),
            "is_pending": is_flag,
            "best": is_tensor((), float32, 0, 1),
        }
        if "honest" in state:
            fields |= {
                "honest": is_tensor((examples, classes), float32, 0, 1.001),
                "honest_trusted": is_tensor((trusted, classes), float32, 0, 1.001),
                "honest_trusted_labels": is_tensor((trusted,), whole, 0, classes - 1),
                "honest_epoch": is_tensor((), whole, 1),
            }
        what = f"{BELIEFS} of checkpoint {checkpoint!r}"
        check_state(what, state, {name: (check, f"{name} of other data") for name, check in fields.items()})
        beliefs.load_state_dict(state)
        return beliefs
