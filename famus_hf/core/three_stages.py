"""ThreeStageTrainer: Virtual-Train, Meta-Train and Actual-Train on one batch, in a Trainer of transformers."""

from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn

from famus_hf.core import fsdp as sharded
from famus_hf.core.autodiff.example_scaling import ScaledGradients
from famus_hf.core.autodiff.forward_mode import ForwardRecord
from famus_hf.core.autodiff.forward_pass import (
    cloned_buffers,
    differentiable_attention,
    get_random_state,
    model_logits,
    split_inputs,
)
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.meta_learners import PerExampleLoss
from famus_hf.core.meta_train import Passes
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.non_finite import NonFiniteGuard, all_finite
from famus_hf.core.parallel.dtensor import abandon_passes
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.virtual_train import names_with_own_memory, virtual_gradient, virtual_step_of
from famus_hf.reporting.averages import MeanMetrics
from famus_hf.reporting.diagnostics.callback import Diagnostics
from famus_hf.trainer.checkpointing import ClassifierTrainer


class ThreeStageTrainer(ClassifierTrainer):
    """One step on one batch, for any number of processes and any precision; where batches come from is left open.

    Attributes:
        processes: That share each batch.
        base_loss: ℓ.
        faults: What is done about numbers that are not finite.
        diagnostics: What is recorded of single steps.
    """

    processes: Processes
    base_loss: PerExampleLoss
    faults: NonFiniteGuard
    diagnostics: Diagnostics
    _averages: MeanMetrics

    def _next_meta_batch(self, meta: MetaUpdate) -> dict[str, Any]:
        """This process's part of the meta batch of `meta.steps`, on the device."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """What the present step trains: the model, or one of several networks that it is made of."""
        return self.model

    def _attention_of_checkpoints(self) -> Any:
        """A checkpointed layer runs again in the backward pass, and must take the same attention kernel there."""
        return differentiable_attention() if self.args.gradient_checkpointing else nullcontext()

    def _is_meta_step(self, meta: MetaUpdate) -> bool:
        return self.state.global_step % self.args.meta_interval == 0

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is on: for the training batch's forward pass and its backward passes."""
        return self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO

    def _plain_step(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        buffers = cloned_buffers(self.network)
        loss = super().training_step(model, batch)
        what = "the loss or its gradient"
        return loss if self._is_sound(loss, what) else self._leave_out(buffers, what)

    def _three_stages(
        self, meta: MetaUpdate, model: nn.Module, batch: dict[str, Any], clean_labels: Tensor | None
    ) -> Tensor:
        buffers = cloned_buffers(self.network)
        is_meta_step = self._is_meta_step(meta)
        on_shards = is_meta_step and self.is_fsdp_enabled
        if on_shards and not self._virtual_and_meta_train_on_shards(meta, batch):
            return self._leave_out(buffers, "the network's logits", is_fault=True)
        training_pass = self._forward(meta, model, batch, is_meta_step and not on_shards)
        if not all_finite([training_pass.all_logits]):
            return self._leave_out(buffers, "the network's logits", is_fault=True)
        self.faults.none("the network's logits")
        if not on_shards:
            meta.meta_learner.begin_step(training_pass.all_logits)
        learned = meta.copy_of_learned() if is_meta_step and training_pass.loss_scale != 1 else None
        loss = None
        if is_meta_step and not on_shards:
            virtual_loss, gradient = self._virtual_train(meta, training_pass)  # Eq. (3)
            if self.args.reuse_virtual_gradient:
                self._record_weights(meta, training_pass, clean_labels)
                loss = virtual_loss
            self._meta_train(meta, training_pass, gradient)  # Eq. (4), (6)–(12)
            if loss is not None:
                self._add_gradient(gradient, training_pass.loss_scale)
            del gradient
        if loss is None:
            loss = self._actual_train(meta, model, training_pass, clean_labels)  # Eq. (5)
        if self._is_sound(loss, "the gradient"):
            return loss.detach()
        if learned is not None:
            meta.take_back(learned)  # a step that the loss scaling leaves out is no step of θ either
        return self._leave_out(buffers, "the gradient")

    def _virtual_and_meta_train_on_shards(self, meta: MetaUpdate, batch: dict[str, Any]) -> bool:
        """Virtual- and Meta-Train before the forward pass of Actual-Train, whose graph would not outlive theirs.

        That pass draws what the one in here draws. Returns whether the logits were finite; else nothing was done.
        """
        inputs, labels, _ = split_inputs(batch)
        with sharded.without_trace(self.network, labels.device):
            with meta.clock("forward"):
                with_graph = bool(meta.virtual_names(self.network))
                training_pass = sharded.sharded_training_pass(self.network, inputs, labels, with_graph)
            if not all_finite([training_pass.all_logits]):
                return False
            meta.meta_learner.begin_step(training_pass.all_logits)
            _, gradient = self._virtual_train(meta, training_pass)
            self._meta_train(meta, training_pass, gradient)
        return True

    def _is_sound(self, loss: Tensor, what: str) -> bool:
        """Whether it and all gradients are finite, in all processes; else the gradients are emptied."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        if self.processes.all_true(all_finite([loss, *gradients])):
            self.faults.none(what)
            return True
        self.network.zero_grad()  # with it go the micro-batches accumulated before
        return False

    def _leave_out(self, buffers: dict[str, Tensor], what: str, is_fault: bool = False) -> Tensor:
        """Leaves the network as it was before this batch, running statistics included.

        With fp16 a gradient that is not finite is no fault, but how the GradScaler finds its scale.
        """
        abandon_passes(self.network)
        with torch.no_grad():
            for name, buffer in self.network.named_buffers():
                buffer.copy_(buffers[name])
            if self.accelerator.scaler is not None:  # which must see this step, to leave it out and to scale less
                for parameter in self.network.parameters():
                    parameter.grad = torch.full_like(parameter, torch.inf) if parameter.requires_grad else None
        if is_fault or self.accelerator.scaler is None:
            self.faults.found(what, self.state.global_step)
        return torch.zeros((), device=self.args.device)

    def _forward(self, meta: MetaUpdate, model: nn.Module, inputs: dict[str, Any], is_meta_step: bool) -> TrainingPass:
        """The training batch's only forward pass at w, shared by Virtual-Train and Actual-Train."""
        batch, labels, _ = split_inputs(inputs)
        random_state = get_random_state(labels.device)
        if labels.min() < 0:
            raise ValueError(f"a training batch holds the label {int(labels.min())}: every example needs a class")
        exact = is_meta_step and self.args.derivative != "finite"
        record = ForwardRecord()
        with (
            meta.clock("forward"),
            self.compute_loss_context_manager(),
            differentiable_attention() if exact else nullcontext(),
            record if is_meta_step and not self.compiles else nullcontext(),
        ):
            logits = model_logits(model, batch)
        return TrainingPass(
            self.network,
            batch,
            labels,
            logits,
            random_state,
            record,
            processes=self.processes,
            loss_scale=self._loss_scale(),
        )

    def _loss_scale(self) -> float:
        """What fp16's GradScaler multiplies losses by; 1 without it."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.scale(torch.ones((), device=self.args.device)))

    def _virtual_train(self, meta: MetaUpdate, training_pass: TrainingPass) -> tuple[Tensor, dict[str, Tensor]]:
        """J(w, θ) and ∇_w J(w, θ) over the global batch, of which ŵ is formed where it is used.

        Where the meta-learner has no virtual step, the sampler alone may need a gradient: that of the mean loss, by the
        candidate layers.
        """
        parameters = {name: self.network.get_parameter(name) for name in meta.virtual_names(self.network)}
        if meta.meta_learner.has_virtual_step:
            loss = self._training_loss(meta, training_pass)
        else:
            loss = self.base_loss(training_pass.all_logits, training_pass.all_labels).mean()
        if not parameters:
            return loss, {}
        with meta.clock("virtual backward"):
            if isinstance(training_pass, sharded.ShardedPass):
                return loss, sharded.virtual_gradient(training_pass, loss)
            if self.args.scale_example_gradients:
                weights = self.processes.own(self._example_weights(meta, training_pass))
                training_pass.scaled = ScaledGradients(
                    loss, weights, parameters, training_pass.record, training_pass.loss_scale
                )
                gradient = training_pass.scaled.first
            else:
                gradient = virtual_gradient(loss, parameters, training_pass.loss_scale)
            return loss, self.processes.summed(gradient)

    def _meta_train(self, meta: MetaUpdate, training_pass: TrainingPass, gradient: dict[str, Tensor]) -> None:
        """One step of θ and of the layer sampler on a meta batch at ŵ."""
        with meta.clock("meta data"):
            batch, labels, _ = split_inputs(self._next_meta_batch(meta))
        step = virtual_step_of(self.network, self.optimizer, self.args.virtual_step or "optimizer", gradient.keys())
        keep_gradient = self.args.reuse_virtual_gradient
        passes = sharded.PASSES if isinstance(training_pass, sharded.ShardedPass) else Passes()
        self.diagnostics.measure_meta_gradient(meta, training_pass, gradient, step, passes)
        found = meta.step(training_pass, self.base_loss, batch, labels, gradient, step, keep_gradient, passes)
        if found.is_finite:
            self.faults.none("the meta gradient")
        elif self.accelerator.scaler is None:
            self.faults.found("the meta gradient", self.state.global_step)
        self._averages.add("mean_active_layers", torch.tensor(float(sum(found.switched_on))))
        if found.meta_loss is not None:
            self._averages.add("meta_loss", found.meta_loss)

    def _actual_train(
        self, meta: MetaUpdate, model: nn.Module, training_pass: TrainingPass, clean_labels: Tensor | None
    ) -> Tensor:
        """Backward of J(w, θ') on the graph of the shared forward pass; the Trainer's optimizer does the step."""
        loss = self._training_loss(meta, training_pass)
        self._record_weights(meta, training_pass, clean_labels)
        if training_pass.scaled is not None:
            weights = self.processes.own(self._example_weights(meta, training_pass))
            if self.processes.all_true(training_pass.scaled.can_scale_to(weights)):
                with meta.clock("actual products"):
                    gradient = training_pass.scaled.scaled_to(weights)
                    self._add_gradient(self.processes.summed(gradient), training_pass.loss_scale)
                return loss
        with meta.clock("actual backward"):
            # DDP takes the mean over the processes, of which each has the gradient by its own logits alone.
            share = self.processes.count / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss * share)
        meta.meta_learner.zero_grad()  # J depends on θ too, but θ moves in Meta-Train alone
        return loss

    def _add_gradient(self, gradient: dict[str, Tensor], loss_scale: float) -> None:
        """What the backward of Actual-Train would have done, with a gradient that is known."""
        factor = loss_scale / self.current_gradient_accumulation_steps
        own = names_with_own_memory(gradient)
        for name, value in gradient.items():
            parameter = self.network.get_parameter(name)
            share = value if factor == 1 and name in own else value * factor
            parameter.grad = share if parameter.grad is None else parameter.grad.add_(share)

    def _average_gradients(self) -> None:
        """What DDP would have done after the last of the accumulated micro-batches."""
        gradients = {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}
        for name, total in self.processes.summed(gradients).items():
            gradients[name].copy_(total / self.processes.count)

    def _training_loss(self, meta: MetaUpdate, training_pass: TrainingPass) -> Tensor:
        return meta.meta_learner.training_loss(training_pass.all_logits, training_pass.all_labels, self.base_loss)

    @torch.no_grad()
    def _example_weights(self, meta: MetaUpdate, training_pass: TrainingPass) -> Any:
        """V̂ of the global batch, shape (k·n,), or None where the meta-learner has no such weights."""
        losses = self.base_loss(training_pass.all_logits, training_pass.all_labels)
        return meta.meta_learner.example_weights(losses)

    @torch.no_grad()
    def _record_weights(self, meta: MetaUpdate, training_pass: TrainingPass, clean_labels: Tensor | None) -> None:
        if clean_labels is None:
            return
        weights = self._example_weights(meta, training_pass)
        if weights is None:
            return
        relative = self.processes.own(weights * len(weights))  # 1 is what plain training gives every example
        labels = training_pass.labels
        wrong = (labels if labels.dim() == 1 else labels.argmax(1)) != clean_labels.to(labels.device)
        for name, group in (("mean_weight_clean", relative[~wrong]), ("mean_weight_noisy", relative[wrong])):
            if len(group):
                self._averages.add(name, group.mean())
