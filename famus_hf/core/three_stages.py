"""Virtual-Train, Meta-Train and Actual-Train of one network on one batch, for any number of processes (torch only).

Where batches come from, and what is logged, is left to the caller:

    train = stages.forward(model, batch, is_meta_step=True)
    virtual = stages.virtual_train(train, optimizer)               # Eq. (3)
    outcome = stages.meta_train(train, virtual, meta_batch)        # Eq. (4), (6)–(12)
    loss = stages.actual_train(train, virtual)                     # Eq. (5); then the optimizer steps

Symbols as in `meta_train`; k processes share the batches, each with its own n rows.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.example_scaling import ScaledGradients
from famus_hf.core.autodiff.forward_mode import ForwardRecord
from famus_hf.core.autodiff.forward_pass import (
    cloned_buffers,
    differentiable_attention,
    get_random_state,
    model_logits,
    split_inputs,
    uncompiled,
)
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.autodiff.virtual_weights import VirtualStep, names_with_own_memory
from famus_hf.core.meta_learners.base import LabelledBatch, PerExampleLoss
from famus_hf.core.meta_train import MetaTrain
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.non_finite import LOGITS, NotFiniteError, all_finite
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.virtual_train import virtual_step_of
from famus_hf.errors import DataError


@dataclass(frozen=True)
class Precision:
    """The numbers that passes compute in.

    Attributes:
        autocast: Returns a context for forward passes.
        loss_scale: Returns what fp16's GradScaler multiplies losses by; 1 without it.
        backward: The backward pass of Actual-Train, scaled by that number.
    """

    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    loss_scale: Callable[[], float] = lambda: 1.0
    backward: Callable[[Tensor], Any] = Tensor.backward


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken; the defaults are the paper's.

    Attributes:
        virtual_step: `"sgd"` or `"optimizer"`, see `virtual_step_of`.
        reuse_virtual_gradient: Take Virtual-Train's gradient for the actual step too.
        scale_example_gradients: Go back through the activations once for both, see `ScaledGradients`.
        can_be_left_out: Whether a step that proves not finite is to leave θ and η where they were.
        elr_weight: λ of early-learning regularization, see `early_learning_losses`; 0: none.
        logit_scale: Of the logits in the softmax of its targets.
    """

    virtual_step: str = "sgd"
    reuse_virtual_gradient: bool = False
    scale_example_gradients: bool = False
    can_be_left_out: bool = False
    elr_weight: float = 0.0
    logit_scale: float = 1.0


@dataclass
class VirtualTrain:
    """What Virtual-Train found, of which ŵ = w − α·P·g is formed where it is used.

    Attributes:
        loss: J(w, θ), a scalar with its graph.
        gradient: g = ∇_w J over the global batch, by name; emptied once nobody needs it.
        step: α and P.
        weights: With `reuse_virtual_gradient`, V̂ of the global batch before θ moves, where there is such a thing.
    """

    loss: Tensor
    gradient: dict[str, Tensor]
    step: VirtualStep
    weights: Tensor | None = None


def trained_parameters(network: nn.Module) -> tuple[bool, ...]:
    """Return of each parameter, in their order, whether it is trained."""
    return tuple(parameter.requires_grad for parameter in network.parameters())


class ThreeStages:
    """The paper's step for one network and the meta-learner that belongs to it.

    Args:
        network: Itself, not a wrapper around it.
        meta: Ψ and Γ, and how they move.
        base_loss: ℓ.
        processes: That share each batch.
        precision: Of the passes.
        settings: How a step is taken.

    Attributes:
        trained: `trained_parameters` when the meta-learner was told the layers.
    """

    def __init__(
        self,
        network: nn.Module,
        meta: MetaUpdate,
        base_loss: PerExampleLoss,
        *,
        processes: Processes | None = None,
        precision: Precision | None = None,
        settings: StepSettings | None = None,
    ):
        self.network, self.meta, self.base_loss = network, meta, base_loss
        self.processes = processes or Processes()
        self.precision = precision or Precision()
        self.settings = settings or StepSettings()
        self.trained = trained_parameters(network)
        self._learned: list[dict[str, Any]] | None = None  # θ and η before this step, where it may be taken back
        self._open = ExitStack()  # what lasts from one stage to another

    def watch(self, optimizer: Any) -> None:
        """Learn how long the optimizer's steps are, where Virtual-Train needs that. Called before training."""
        self.meta.step_sizes.watch(self.network, optimizer, self.settings.virtual_step)

    # ---- The shared forward pass ----

    def forward(self, model: nn.Module, batch: Mapping[str, Any], is_meta_step: bool) -> TrainingPass:
        """Return the batch's only forward pass at w, which Virtual-Train and Actual-Train share.

        Args:
            model: The network, or a wrapper around it (DDP) whose forward pass must be the one that is called.
            batch: This process's rows as a Trainer passes them, `labels` included.
            is_meta_step: Whether the other two stages follow, or Actual-Train alone.

        Raises:
            NotFiniteError: The logits are not finite in every process.
            DataError: A label is negative.
        """
        self._learned = None
        train = self._forward(model, batch, is_meta_step)
        self._begin(train)
        return train

    def _forward(self, model: nn.Module, batch: Mapping[str, Any], is_meta_step: bool) -> TrainingPass:
        inputs, labels, _ = split_inputs(batch)
        random_state = get_random_state(labels.device)
        if labels.min() < 0:  # cross_entropy leaves out −100, its ignore_index, without a word
            raise DataError(f"a training batch holds the label {int(labels.min())}: every example needs a class")
        exact = is_meta_step and self.meta.objective.derivative != "finite"
        record = ForwardRecord()
        buffers = cloned_buffers(self.network) if is_meta_step else None
        with (
            self.meta.clock("forward"),
            self.precision.autocast(),
            differentiable_attention() if exact else nullcontext(),
            uncompiled() if is_meta_step else nullcontext(),
            record if is_meta_step else nullcontext(),
        ):
            logits = model_logits(model, inputs)
        return TrainingPass(
            self.network,
            inputs,
            labels,
            logits,
            random_state,
            buffers,
            record,
            processes=self.processes,
            loss_scale=self.precision.loss_scale(),
        )

    def _begin(self, train: TrainingPass) -> None:
        if not all_finite([train.all_logits]):
            raise NotFiniteError(LOGITS)
        self.meta.meta_learner.begin_step(train.all_logits)

    # ---- The stages ----

    def virtual_train(self, train: TrainingPass, optimizer: Any, keep_weights: bool = False) -> VirtualTrain:
        """Return what Virtual-Train, Eq. (3), finds: J(w, θ) and ∇_w J(w, θ) over the global batch.

        Where the meta-learner has no virtual step, the sampler alone may need a gradient: that of the mean loss, by the
        candidate layers.

        Args:
            train: Of `forward`.
            optimizer: Of the network, as it stands before its coming step.
            keep_weights: Whether the weights of a reused gradient are asked for afterwards.
        """
        self.meta.follow_rate(optimizer)
        names = self.meta.virtual_names(self.network)
        if self.meta.meta_learner.has_virtual_step:
            loss = self.training_loss(train)
        else:
            loss = LabelledBatch.of(train, self.base_loss).losses.mean()
        gradient: dict[str, Tensor] = {}
        if names:
            with self.meta.clock("virtual backward"):
                gradient = self._virtual_gradient(train, loss, names)
        kind, sizes = self.settings.virtual_step, self.meta.step_sizes
        step = virtual_step_of(self.network, optimizer, kind, gradient.keys(), sizes)
        keep_weights = keep_weights and self.settings.reuse_virtual_gradient
        weights = self.example_weights(train) if keep_weights else None
        return VirtualTrain(loss, gradient, step, weights)

    def _virtual_gradient(self, train: TrainingPass, loss: Tensor, names: list[str]) -> dict[str, Tensor]:
        if not self.settings.scale_example_gradients:
            return train.virtual_gradient(loss, names)
        parameters = {name: self.network.get_parameter(name) for name in names}
        # Of a network whose path varies, a layer may be called once in one step and twice in the next.
        if not self.processes.all_true(train.record.captures(parameters)):
            return train.virtual_gradient(loss, names)
        weights = self.processes.own(self.example_weights(train))
        train.scaled = ScaledGradients(loss, weights, parameters, train.record, train.loss_scale)
        return self.processes.summed(train.scaled.first)

    def meta_train(self, train: TrainingPass, virtual: VirtualTrain, meta_batch: Mapping[str, Any]) -> MetaTrain:
        """Take the step of Meta-Train, Eq. (4) and (6)–(12), of θ and of the layer sampler, on a meta batch at ŵ.

        Args:
            train: Of `forward`.
            virtual: Of `virtual_train`.
            meta_batch: This process's rows of it, `labels` included.
        """
        if train.loss_scale != 1 or self.settings.can_be_left_out:  # which then is no step of θ either
            self._learned = self.meta.copy_of_learned()
        inputs, labels, _ = split_inputs(meta_batch)
        keep = self.settings.reuse_virtual_gradient
        outcome = self.meta.step(train, self.base_loss, inputs, labels, virtual.gradient, virtual.step, keep)
        if not keep:
            virtual.gradient.clear()
        return outcome

    def actual_train(self, train: TrainingPass, virtual: VirtualTrain | None, accumulated: int = 1) -> Tensor:
        """Add Actual-Train's ∇_w J(w, θ'), Eq. (5), to `.grad`, on the graph of the shared forward pass. Return J.

        Args:
            train: Of `forward`.
            virtual: Of `virtual_train`; None where this is no meta step.
            accumulated: How many batches make one step of the optimizer.
        """
        if virtual is not None and self.settings.reuse_virtual_gradient:
            used = {name: value for name, value in virtual.gradient.items() if name not in train.unused}
            self._add_gradient(used, train.loss_scale, accumulated)
            return virtual.loss.detach()
        loss = self.training_loss(train)
        if train.scaled is not None:
            weights = self.processes.own(self.example_weights(train))
            if self.processes.all_true(train.scaled.can_scale_to(weights)):
                with self.meta.clock("actual products"):
                    gradient = self.processes.summed(train.scaled.scaled_to(weights))
                    self._add_gradient(gradient, train.loss_scale, accumulated)
                return loss.detach()
        with self.meta.clock("actual backward"):
            # DDP takes the mean over the processes, of which each has the gradient by its own logits alone.
            self.precision.backward(loss * (self.processes.count / accumulated))
        self.meta.meta_learner.zero_grad()  # J depends on θ too, but θ moves in Meta-Train alone
        return loss.detach()

    def __enter__(self) -> "ThreeStages":
        """Begin a step, at whose end what was opened for it is closed, whatever is raised."""
        self._open, self._learned = ExitStack(), None
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def take_back(self) -> None:
        """Make θ and η again what they were before this step, which proved not finite."""
        if self._learned is not None:
            self.meta.take_back(self._learned)

    # ---- Parts of the stages ----

    def training_loss(self, train: TrainingPass) -> Tensor:
        """Return J(w, θ) of the global batch, a scalar.

        Early-learning regularization is a part of it: it moves ŵ, and adds nothing to ∂/∂θ ∇_w J, as θ is not in it.
        Where the meta-learner has no virtual step, ŵ = w all the same.
        """
        batch = LabelledBatch.of(train, self.base_loss)
        loss = self.meta.meta_learner.training_loss(batch)
        weight = self.settings.elr_weight
        return loss + weight * batch.early_learning_losses(self.settings.logit_scale).mean() if weight else loss

    @torch.no_grad()
    def example_weights(self, train: TrainingPass) -> Any:
        """Return V̂ of the global batch by θ as it is, shape (k·n,), or None where there are no such weights."""
        losses = LabelledBatch.of(train, self.base_loss).losses
        return self.meta.meta_learner.example_weights(losses)

    def _add_gradient(self, gradient: Mapping[str, Tensor], loss_scale: float, accumulated: int) -> None:
        """Do what the backward of Actual-Train would have done, with a gradient that is known."""
        factor = loss_scale / accumulated
        reusable = names_with_own_memory(gradient)
        for name, value in gradient.items():
            parameter = self.network.get_parameter(name)
            share = value if factor == 1 and name in reusable else value * factor
            parameter.grad = share if parameter.grad is None else parameter.grad.add_(share)
