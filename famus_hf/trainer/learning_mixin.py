"""What learns in a Trainer: the three stages of each network, and the parts of Meta-Train."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from famus_hf.core.layer_samplers import LayerSampler
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.three_stages import ThreeStages
from famus_hf.reporting.diagnostics.callback import Diagnostics
from famus_hf.reporting.diagnostics.training_time import TrainingTime
from famus_hf.training_args import FaMUSTrainingArguments

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object


class LearningMixin(Base):
    """What the other mixins, and the step, find beside a Trainer's own attributes.

    Attributes:
        stages: The three stages of a step; None in plain training. Of two networks, those of the first.
        processes: That train together.
        diagnostics: What is recorded of single steps.
        training_time: Seconds that were spent in training.
        logit_shift: What is added to logits in training losses, shape (C,); None without logit adjustment.
        mixture: How the present batch is mixed: partners and own shares, both (n,); None without mixup.
        batch_weights: How much each example of the present batch counts, shape (n,); None: all alike.
    """

    args: FaMUSTrainingArguments
    model: nn.Module
    stages: ThreeStages | None = None
    processes: Processes
    diagnostics: Diagnostics
    training_time: TrainingTime
    logit_shift: Tensor | None = None
    mixture: tuple[Tensor, Tensor] | None = None
    batch_weights: Tensor | None = None
    _given: tuple[MetaLearner | None, LayerSampler | None] = (None, None)  # to the constructor

    @property
    def label_name(self) -> str:
        """What the network calls the labels."""
        return "labels" if self.args.label_names is None else self.args.label_names[0]

    def weighted(self, losses: Tensor) -> Tensor:
        """Return the losses of a training batch, each as much as its example counts; shape (n,)."""
        return losses if self.batch_weights is None else self.batch_weights.to(losses) * losses

    @property
    def meta(self) -> MetaUpdate | None:
        """Meta-learner and layer sampler with their optimizers, or None in plain training."""
        return None if self.stages is None else self.stages.meta

    @property
    def meta_learner(self) -> MetaLearner | None:
        """Ψ, or None in plain training."""
        return self._given[0] if self.meta is None else self.meta.meta_learner

    @property
    def layer_sampler(self) -> LayerSampler | None:
        """Γ, or None in plain training."""
        return None if self.meta is None else self.meta.layer_sampler

    @property
    def networks(self) -> Mapping[str, ThreeStages]:
        """What is trained with a meta-learner, by its name in records: one network, without a name, or none."""
        return {} if self.stages is None else {"": self.stages}
