"""What a Trainer shows a meta-learner once an epoch: features of its network, which may then go back an epoch."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Subset

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.losses import cross_entropy
from famus_hf.core.weight_average import put_into, weights_of
from famus_hf.data.per_example import ExampleEvaluator
from famus_hf.reporting.diagnostics.mean_metrics import MeanMetrics
from famus_hf.storage.run_folder import EARLIER_WEIGHTS
from famus_hf.storage.saved_state import check_state, is_tensor, stored_tensors
from famus_hf.trainer.checkpointing import CheckpointingMixin
from famus_hf.trainer.meta_set_schedule import MetaSetSchedule

FEATURES_STREAM = 21  # of random numbers


class FeaturesMixin(CheckpointingMixin):
    """Shows features where the meta-learner wants them (`observed_features`), and keeps the weights after an epoch.

    Attributes:
        metrics: Means for the log.
        schedule: Tells when an epoch is over.
        evaluate_examples: Network, data set, loss → what the network makes of each example.
    """

    train_dataset: Any
    metrics: MeanMetrics
    schedule: MetaSetSchedule
    evaluate_examples: ExampleEvaluator
    _earlier_weights: dict[str, Tensor] | None = None  # after the last epoch, while the meta-learner may go back
    _shown_at: int | None = None  # step before which features were shown last

    def own_weights(self) -> AbstractContextManager[None]:
        """Return a context in which evaluations are of the network's own weights."""
        raise NotImplementedError

    def begin_features(self) -> None:
        """Begin a training: no epoch is over yet."""
        self._earlier_weights, self._shown_at = None, None

    def show_features(self) -> None:
        """Have the meta-learner look at features, where an epoch is over, and go back if it says so. All call it."""
        learner, step, every = self.meta_learner, self.state.global_step, self.schedule.steps_per_epoch
        if learner is None or not learner.observed_features or step == 0 or step % every or step == self._shown_at:
            return
        self._shown_at = step
        is_plain = step <= self.schedule.warmup_steps(self.state.max_steps)
        features = self._features(learner.observed_features, step // every)
        if learner.observe_features(features, step / self.state.max_steps, is_plain) and self._earlier_weights:
            put_into(self.model, self._earlier_weights)
        for name, value in learner.notes().items():
            self.metrics.add(name, torch.tensor(value))
        self._earlier_weights = None
        if learner.may_go_back:
            self._earlier_weights = {name: tensor.detach().clone() for name, tensor in weights_of(self.model).items()}

    def _features(self, count: int, epoch: int) -> Tensor:
        """Return those of so many training examples, other ones after each epoch, shape (n, D)."""
        order = np.random.default_rng((self.args.seed, FEATURES_STREAM, epoch)).permutation(len(self.train_dataset))
        chosen = Subset(self.train_dataset, order[:count].tolist())
        with preserve_rng_state(self.args.device), self.own_weights():
            examples = self.evaluate_examples(self.model, chosen, cross_entropy, with_features=True)
        return torch.from_numpy(examples.features)

    # ---- Checkpoints ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._earlier_weights is not None and self.args.should_save:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self._earlier_weights.items()}
            save_file(tensors, Path(output_dir) / EARLIER_WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "") / EARLIER_WEIGHTS
        if checkpoint is None or self.meta_learner is None or not self.meta_learner.may_go_back or not path.is_file():
            return
        what, own = f"{EARLIER_WEIGHTS} of checkpoint {checkpoint!r}", weights_of(self.model)
        state = stored_tensors(path, what)
        check_state(what, state, {
            name: (is_tensor(tuple(tensor.shape), tensor.dtype), f"another {name} than the network")
            for name, tensor in own.items()
        })  # fmt: skip
        self._earlier_weights = {name: tensor.to(own[name]) for name, tensor in state.items()}
