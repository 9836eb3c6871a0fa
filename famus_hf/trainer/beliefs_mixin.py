"""What a Trainer's network believes of its training examples before it learns them, for the label report."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Subset

from famus_hf.core.autodiff.forward_pass import logits_of, preserve_rng_state
from famus_hf.core.beliefs import RunningBeliefs
from famus_hf.core.losses import cross_entropy
from famus_hf.data.inputs.model_inputs import ModelInputs
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.per_example import ExampleEvaluator
from famus_hf.errors import LoadError
from famus_hf.storage.run_folder import BELIEFS
from famus_hf.storage.saved_state import check_state, is_tensor
from famus_hf.trainer.checkpointing import CheckpointingMixin
from famus_hf.trainer.meta_set_schedule import MetaSetSchedule

TRUSTED_SEEN = 1000  # trusted examples that are looked at after each epoch, at most
MEMORY_LIMIT = 2**30  # bytes of running predictions; of larger sets none are kept

NO_TRUSTED = "there are no trusted examples, by which to tell wrong labels from mistakes of the network (--num_meta)"
NOT_SEEN = "what the network believed before it learned from these labels is not known"
BY_HEART = (
    "from the first epochs on the network was surer of the training examples than of the trusted ones, which it never "
    "learned from, or wrong on a quarter of these: it has learned labels by heart, or too little"
)


class BeliefsMixin(CheckpointingMixin):
    """Keeps running predictions where there are trusted examples to compare them with.

    Attributes:
        beliefs: None before the first batch, and where none are kept.
        schedule: Tells when an epoch is over.
        evaluate_examples: Network, data set, loss → what the network makes of each example.
    """

    schedule: MetaSetSchedule
    evaluate_examples: ExampleEvaluator
    beliefs: RunningBeliefs | None = None
    _keeps_beliefs = False
    _batch_index: Tensor | None = None  # numbers of the examples whose plain step is being taken

    def begin_beliefs(self) -> None:
        """Begin a training: nothing is believed yet."""
        train = self.train_dataset
        index = train.records.get("index") if isinstance(train, ModelInputs) else None
        self.beliefs = None
        self._keeps_beliefs = (
            self.args.label_report and self._has_trusted and index is not None and len(set(index)) == len(index)
        )
        if self._keeps_beliefs:
            self._sorted_index, self._rows = torch.tensor(index, device=self.args.device).sort()

    @property
    def _has_trusted(self) -> bool:
        return self.meta_dataset is not None and not isinstance(self.meta_dataset, PseudoCleanSet)

    @property
    def doubt(self) -> str:
        """Why the labels of the training set can't be judged; empty where they can."""
        if not self._has_trusted:
            return NO_TRUSTED
        if self.beliefs is None:
            return NOT_SEEN
        return BY_HEART if self.beliefs.honest is None else ""

    # ---- In training ----

    def note_beliefs(self, index: Tensor | None, logits: Tensor, labels: Tensor) -> None:
        """Take in what the network predicts before it learns from a batch.

        Args:
            index: Numbers of the examples, shape (n,).
            logits: Shape (n, C).
            labels: Shape (n,), or (n, C) of soft targets.
        """
        if not self._keeps_beliefs or index is None:
            return
        if self.beliefs is None:
            count, classes = len(self._rows), logits.shape[1]
            if 4 * count * classes > MEMORY_LIMIT:
                self._keeps_beliefs = False
                return
            self.beliefs = RunningBeliefs(count, classes, len(self._trusted_sample), self.args.device)
        rows = self._rows[torch.searchsorted(self._sorted_index, index.to(self._rows.device))]
        scale = self.evaluate_examples.logit_scale(self.model)
        given = labels if labels.dim() == 1 else labels.argmax(1)
        self.beliefs.update(rows, (scale * logits.detach().float()).softmax(1).to(rows.device), given.to(rows.device))

    def close_epoch_of_beliefs(self, is_over: bool) -> None:
        """Look at the trusted examples if an epoch is over and they have not been looked at since. All call it.

        Args:
            is_over: Whether the training is, and with it its last epoch.
        """
        beliefs = self.beliefs
        if beliefs is None or not beliefs.is_pending:
            return
        if is_over or self.schedule.epoch(self.state) > beliefs.epoch:
            with preserve_rng_state(self.args.device):
                examples = self.evaluate_examples(
                    self.model, self._trusted_sample, cross_entropy, with_probabilities=True
                )
            beliefs.gather(self.processes)
            beliefs.observe(torch.from_numpy(examples.probabilities), torch.from_numpy(examples.labels))

    @property
    def _trusted_sample(self) -> Any:
        count = len(self.meta_dataset)
        if count <= TRUSTED_SEEN:
            return self.meta_dataset
        return Subset(self.meta_dataset, np.linspace(0, count - 1, TRUSTED_SEEN).round().astype(int).tolist())

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        index, self._batch_index = self._batch_index, None
        if index is None or not (model.training and self._keeps_beliefs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs[self.label_name]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.note_beliefs(index, logits_of(outputs), labels)
        return (loss, outputs) if return_outputs else loss

    # ---- Checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.beliefs is not None:
            self.beliefs.gather(self.processes)
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.beliefs is not None and self.args.should_save:
            tensors = {name: value.cpu().contiguous() for name, value in self.beliefs.state_dict().items()}
            save_file(tensors, Path(output_dir) / BELIEFS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._keeps_beliefs:
            return
        path = Path(checkpoint) / BELIEFS
        self._keeps_beliefs = path.is_file() and not self.other_data_than(checkpoint)
        if not self._keeps_beliefs:  # it has none, as one of an earlier version: what was believed at first is lost
            return
        try:
            state = load_file(path, device="cpu")
        except (SafetensorError, OSError) as error:
            raise LoadError(f"{BELIEFS} of checkpoint {checkpoint!r} can't be read: {error}") from error
        sums = state.get("sums")
        if sums is None or len(sums) == len(self._rows):
            self.beliefs = self.checked_beliefs(state, checkpoint)
        else:  # of other data, which the checkpoint does not tell
            self._keeps_beliefs = False

    def checked_beliefs(self, state: dict[str, Tensor], checkpoint: str) -> RunningBeliefs:
        """Return the beliefs of a file. Raise LoadError where they can't be of these examples."""
        examples, trusted = len(self._rows), len(self._trusted_sample)
        sums = state.get("sums")
        classes = sums.shape[1] if sums is not None and sums.dim() == 2 else 0
        whole, float32 = torch.int64, torch.float32
        fields = {
            "sums": is_tensor((examples, classes), float32, 0, 1),
            "visits": is_tensor((examples,), whole, 0),
            "labels": is_tensor((examples,), whole, -1, classes - 1),
            "trusted_sums": is_tensor((trusted, classes), float32, 0, 1),
            "epoch": is_tensor((), whole, 0),
            "is_pending": is_tensor((), whole, 0, 1),
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
        beliefs = RunningBeliefs(examples, classes, trusted, self.args.device)
        beliefs.load_state_dict(state)
        return beliefs
