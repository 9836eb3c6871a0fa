"""The meta gradient of a network whose parameters FSDP2 has sharded over the processes (torch only).

Such parameters can be neither replaced nor differentiated by `autograd.grad`: FSDP's hooks bring them together for a
forward or a backward pass of the whole module, and for nothing else. So Virtual-Train and Meta-Train are done here with
whole passes alone, and with changes of the shards in place that are taken back bit for bit:

1. forward and backward pass of the training batch at w → z and g = ∇_w J;
2. the same of the meta batch at ŵ = w − α·P·g → v = ∂L_c/∂ŵ;
3. two forward passes of the training batch at w ± εd, d = −α·P·v on the layers that are on → ż = (∂z/∂w)·d;
4. the gradient by θ of ⟨∂J/∂z (z; θ), ż⟩ on the logits of all processes, in each of them the same.

Together they cost as much as eight forward passes, and layers that are off save nothing. An ordinary module, in one
process or replicated in several, can be used in the same way.

`sharded_meta_gradient` is for a training loop of your own. In FaMUSTrainer, where accelerate has engaged FSDP2,
`ShardedStages` puts these passes into the one Meta-Train of `meta_train`. Tests run both in two CPU processes over
gloo; neither has been run on GPUs yet.

Symbols as in `meta_train`. Each process holds its own n rows of the training batch and m of the meta batch; N and M
count those of all processes, whose J and L_c are meant.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from famus_hf.core.autodiff.forward_pass import (
    cloned_buffers,
    get_random_state,
    model_logits,
    preserve_rng_state,
    split_inputs,
)
from famus_hf.core.autodiff.training_pass import Clock, TrainingPass, central_difference, norm_of, restored, untimed
from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.layers import parameters_by_layer, select_layers
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner
from famus_hf.core.meta_train import MetaTrain, gradient_of_slope
from famus_hf.core.non_finite import LOGITS, NotFiniteError, all_finite
from famus_hf.core.parallel.dtensor import abandon_passes, own_part, reshard
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.three_stages import ThreeStages, VirtualTrain
from famus_hf.errors import SettingsError

LOW_PRECISION = (torch.float16, torch.bfloat16)


def sharded_meta_gradient(
    model: nn.Module,
    meta_learner: MetaLearner,
    train_inputs: Mapping[str, Any],
    meta_inputs: Mapping[str, Any],
    *,
    learning_rate: float,
    layers: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Return `famus_hf.meta_gradient`, by whole passes, so that it works with `torch.distributed.fsdp.fully_shard`.

    All processes call it together, each with its own rows of both batches. Weights, buffers, `.grad` and random state
    stay as they were, also where a pass raises; the model's own train or eval mode is used. The meta-learner, the same
    in all processes, gets `begin_step`. Gradients must not be waiting for their reduction
    (`set_requires_gradient_sync(False)`).

    Args:
        model: Any classifier whose output has `.logits` of shape (n, C): the module that `fully_shard` was called on
            last, or an ordinary one, the same in all processes.
        meta_learner: Ψ, for example `MWNet()`.
        train_inputs: A training batch as a Trainer passes it, `labels` of shape (n,) included.
        meta_inputs: A meta batch likewise, `labels` of shape (m,).
        learning_rate: α of the virtual step.
        layers: Paths in `model.named_modules()` of modules that directly own trainable parameters (`""` is the root);
            None means all.

    Returns:
        The gradient by name in `meta_learner.named_parameters()`, the same in every process and within 1 % of the
        exact one (but in float32, through a ReLU network's lowest layer alone, its kinks cost some per cent, seldom
        tens); of those that have none, what they learn of the batch, as in `famus_hf.meta_gradient`, of shape (N,), in
        order of the processes.

    Raises:
        SettingsError: An unknown layer; layers that compute in less than float32, in whose rounding differences drown;
            a model in `FullyShardedDataParallel`; gradients that are not reduced.
    """
    on = parameters_by_layer(model) if layers is None else select_layers(model, layers)
    inputs, labels, _ = split_inputs(train_inputs)
    meta_batch, meta_labels, _ = split_inputs(meta_inputs)
    with without_trace(model, labels.device):
        step = VirtualStep({name: learning_rate for name, _ in _trainable(model)})
        training_pass = sharded_training_pass(model, inputs, labels, with_graph=meta_learner.has_virtual_step)
        batch = LabelledBatch.of(training_pass, cross_entropy)
        meta_learner.begin_step(batch.logits)
        if not on:
            return meta_learner.outcome({name: torch.zeros_like(t) for name, t in meta_learner.theta().items()})
        gradient = {}
        if meta_learner.has_virtual_step:
            loss = meta_learner.training_loss(batch)
            gradient = training_pass.virtual_gradient(loss, step.learning_rates)
        names = [name for tensors in on.values() for name in tensors]
        _, validation = training_pass.validation_gradient(gradient, step, meta_batch, meta_labels, names, cross_entropy)
        moving = step.relative() if meta_learner.only_ratios_count else step
        direction = {name: moving.displacement(name, validation[name]) for name in names}
        tangent = training_pass.gathered(training_pass.logit_tangent(direction, "finite"))
    return meta_learner.outcome(gradient_of_slope(meta_learner, batch, tangent))


class ShardedPass(TrainingPass):
    """A pass of this process's training rows, of which there may be more or less than in other processes."""

    @cached_property
    def all_logits(self) -> Tensor:
        """Logits of the global batch, (N, C); a leaf, as FSDP takes what goes back to `logits` for its one backward."""
        return self.processes.gathered_unevenly(self.logits).requires_grad_(self.logits.requires_grad)

    @cached_property
    def all_labels(self) -> Tensor:
        return self.processes.gathered_unevenly(self.labels)

    def gathered(self, rows: Tensor) -> Tensor:
        return self.processes.gathered_unevenly(rows)

    def virtual_gradient(self, loss: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return g of all parameters, sharded as they are; the graph, of the whole module, is used up.

        θ gets no `.grad`.
        """
        (by_logits,) = torch.autograd.grad(loss, self.all_logits)
        cotangent = self.processes.own_of(by_logits, self.logits)
        return _gradient_of_sum(self.model, (self.logits * cotangent).sum())

    def validation_gradient(
        self,
        gradient: Mapping[str, Tensor],
        step: VirtualStep,
        inputs: Mapping[str, Any],
        labels: Tensor,
        names: Iterable[str],
        meta_loss: Callable[[Tensor, Tensor], Tensor],
        *,
        reusable: Set[str] = frozenset(),
        clock: Clock = untimed,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_c and v of all layers, sharded as the parameters are; the network is at w before and after."""
        weights = _shards_of(self.model, gradient)
        count = _summed(torch.tensor(float(len(labels)), device=labels.device))
        with restored(weights) as originals, preserve_rng_state(labels.device):
            for weight, original, (name, value) in zip(weights, originals, gradient.items(), strict=True):
                torch.add(original, _shard(step.displacement(name, value)), out=weight)
            losses = meta_loss(model_logits(self.model, inputs, cloned_buffers(self.model)), labels)
            loss = losses.sum() / count.to(losses)
            validation = _gradient_of_sum(self.model, loss)
        return _summed(loss.detach()), validation

    def logit_tangent(self, direction: Mapping[str, Tensor], derivative: str) -> Tensor:
        """Return ż of this process's rows, shape (n, C), by a central difference whatever is asked; w is restored."""

        def logits(originals: Sequence[Tensor]) -> Tensor:
            with preserve_rng_state(self.logits.device, self.random_state):
                z = model_logits(self.model, self.inputs, cloned_buffers(self.model))
            reshard(self.model)
            return z

        tangents = [_shard(tangent) for tangent in direction.values()]
        # Replicated shards count several times: this only sets the length of the step.
        norm = _summed(norm_of(tangents) ** 2).sqrt()
        if norm == 0:
            return torch.zeros_like(self.logits)
        return central_difference(_shards_of(self.model, direction), tangents, norm, logits)


def sharded_training_pass(
    model: nn.Module, inputs: Mapping[str, Any], labels: Tensor, with_graph: bool = True
) -> ShardedPass:
    """Run a pass of this process's training rows that leaves buffers as they are; the generators move on.

    Raises:
        SettingsError: A layer computes in less than float32.
    """
    random_state = get_random_state(labels.device)
    with torch.set_grad_enabled(with_graph), _full_precision(model):
        logits = model_logits(model, inputs, cloned_buffers(model))
    if not with_graph:
        reshard(model)  # what FSDP gathers without gradients gets none in the next pass either
    return ShardedPass(model, inputs, labels, logits, random_state, processes=Processes.present(labels.device))


class ShardedStages(ThreeStages):
    """The paper's step for a network that accelerate has sharded.

    Virtual- and Meta-Train come before the forward pass of Actual-Train, whose graph would not outlive theirs; that
    pass draws what theirs has drawn.
    """

    def forward(self, model: nn.Module, batch: Mapping[str, Any], is_meta_step: bool) -> TrainingPass:
        if not is_meta_step:
            return super().forward(model, batch, is_meta_step)
        self._learned = None
        self._batch = (model, batch)
        inputs, labels, _ = split_inputs(batch)
        self._open.enter_context(without_trace(self.network, labels.device))
        with self.meta.clock("forward"):
            with_graph = bool(self.meta.virtual_names(self.network))
            train = sharded_training_pass(self.network, inputs, labels, with_graph)
        self._begin(train)
        return train

    def meta_train(self, train: TrainingPass, virtual: VirtualTrain, meta_batch: Mapping[str, Any]) -> MetaTrain:
        outcome = super().meta_train(train, virtual, meta_batch)
        self._open.close()
        return outcome

    def actual_train(self, train: TrainingPass, virtual: VirtualTrain | None, accumulated: int = 1) -> Tensor:
        if virtual is not None:
            described, train = train, self._forward(*self._batch, is_meta_step=False)
            train.describe_as(described)
            if not all_finite([train.all_logits]):
                raise NotFiniteError(LOGITS)
        return super().actual_train(train, None, accumulated)


@contextmanager
def without_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Empty `.grad` for the body; put `.grad`, generators and FSDP back after it, whatever it raised.

    Raises:
        SettingsError: The model is in `FullyShardedDataParallel`, whose parameters are flattened.
    """
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise SettingsError(
            "the model is wrapped in FullyShardedDataParallel: shard it with fully_shard (FSDP2) instead"
        )
    reshard(model)  # else FSDP would go on with what it has gathered after the shards have changed
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with preserve_rng_state(device), torch.enable_grad():
            yield
    except BaseException:
        abandon_passes(model)  # else FSDP goes on with the weights that it gathered for the broken pass
        raise
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _gradient_of_sum(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return ∇_w of the sum of all processes' losses, by parameter name."""
    (loss * Processes.present().count).backward()  # type: ignore[no-untyped-call]  # FSDP takes the mean over the processes
    reshard(model)
    parameters = _trainable(model)
    if all(parameter.grad is None for _, parameter in parameters):
        raise SettingsError(
            "no parameter got a gradient, as with set_requires_gradient_sync(False) or an output that FSDP can't look "
            "into: the meta gradient needs gradients that are reduced in each backward pass, and FSDP a network that "
            "returns a tensor, tuple, dict or ModelOutput"
        )
    gradients = {}
    for name, parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
        if not isinstance(parameter, DTensor):  # in DDP that is the mean of equal ones
            gradient = _summed(gradient) / Processes.present().count
        gradients[name] = gradient
    return gradients


@contextmanager
def _full_precision(model: nn.Module) -> Iterator[None]:
    """Raise SettingsError in the body's forward pass where a layer computes in less than float32."""

    def check(module: nn.Module, arguments: Any) -> None:
        parameters = module.parameters(recurse=False)  # under FSDP gathered by now, and cast
        if any(p.dtype in LOW_PRECISION or torch.is_autocast_enabled(p.device.type) for p in parameters):
            raise SettingsError(
                f"a {type(module).__name__} computes in half precision, in whose rounding the finite differences of "
                "sharded parameters drown: use float32"
            )

    handles = [module.register_forward_pre_hook(check) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summed(tensor: Tensor) -> Tensor:
    return Processes.present().summed({"": tensor})[""]


# ---- Shards ----


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _shard(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor: its memory, with a version counter of its own."""
    return own_part(tensor).data


def _shards_of(model: nn.Module, names: Iterable[str]) -> list[Tensor]:
    return [_shard(model.get_parameter(name)) for name in names]
