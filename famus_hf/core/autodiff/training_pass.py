"""The derivative of a training batch's logits along a direction in weight space: ż = (∂z/∂w)·d (torch only).

It is all that the meta gradient needs from the network besides ordinary gradients. Three ways to get the same numbers:

| way | how | good when |
|---|---|---|
| forward | dual tensors on the layers of the direction, see `forward_mode` | many layers, or low ones |
| reverse | vector-Jacobian product, differentiated by its vector; reuses the retained graph | layers near the top |
| finite | central difference of two forward passes | kernels without either derivative |

Reverse is the derivative of what the network's backward does, and so what is meant wherever that differs from the
derivative of its values: straight-through estimators, rounding, hooks. `agreement` measures who agrees with it.

Forward and finite repeat the training pass: from the buffers that it began with, with its random numbers, and with
gradients enabled as then, though without a graph.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from famus_hf.core.autodiff.embedding import FixedRows
from famus_hf.core.autodiff.example_scaling import ScaledGradients
from famus_hf.core.autodiff.forward_mode import ForwardRecord, TangentRules
from famus_hf.core.autodiff.forward_pass import (
    RandomState,
    cloned_buffers,
    differentiable_attention,
    get_random_state,
    model_logits,
    preserve_rng_state,
    uncompiled,
    with_tensors,
    without_scale,
)
from famus_hf.core.autodiff.virtual_weights import VirtualStep, virtual_parameters
from famus_hf.core.parallel.processes import Processes

CUT = "torch::autograd::Error"  # the node that stands behind a once_differentiable backward
Derivative = Literal["auto", "forward", "reverse", "finite"]
DERIVATIVES = get_args(Derivative)
LOSS, USED = " loss", " used"  # no parameter's names
Clock = Callable[[str], AbstractContextManager[None]]  # `with clock(part): …` takes the time of the part

# Above this share of the forward pass, forward mode costs less than reverse twice. Measured on one CPU core, WRN-28-4
# (batch 16, 32×32 images) and WRN-10-1 (batch 100, 16×16): the two cross at 0.27 to 0.3.
REVERSE_SHARE = 0.28


def untimed(part: str) -> AbstractContextManager[None]:
    """Return a context that measures nothing."""
    return nullcontext()


@dataclass
class TrainingPass:
    """One forward pass of the training batch at w, whose graph is kept until the step ends.

    Attributes:
        model: The network itself, not a wrapper around it.
        inputs: Keyword arguments of its forward, without labels.
        labels: Shape (n,).
        logits: Shape (n, C), with graph.
        random_state: The generators' state before the pass, so that another pass draws the same dropout masks.
        buffers: By name, as they were before the pass, whose state a training forward may move; None: as they are.
        record: What forward mode need not compute again; may be empty.
        scaled: With `scale_example_gradients`, what Virtual-Train leaves for Actual-Train.
        processes: That share the global batch; inputs, labels and logits are of this one.
        loss_scale: What losses are multiplied by before a backward pass in fp16, whose smallest number is 6e-8.
        beliefs: What the network believed of the global batch until now, shape (k·n, C), where somebody remembers.
        is_trusted: Whose label is known to be right, shape (k·n,); None: nobody's.
        logit_shift: What is added to logits in training losses, shape (C,) (logit adjustment); None: nothing.
        mixture: Partner of each example in mixup and the example's own share, both of shape (k·n,).
        label_losses: With mixup: ℓ of the examples themselves, shape (k·n,).
        elr_targets: Of the examples themselves in early-learning regularization, shape (k·n, C).
        sample_weights: How much each example counts, shape (k·n,), mean 1 over the data set; None: all alike.
        rows: Of the examples in the training set, shape (k·n,), where the meta-learner needs them.
        unused: Parameters that no process's pass has used, known after `virtual_gradient`; theirs is zero.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    labels: Tensor
    logits: Tensor
    random_state: RandomState
    buffers: Mapping[str, Tensor] | None = None
    record: ForwardRecord = field(default_factory=ForwardRecord)
    scaled: ScaledGradients | None = None
    processes: Processes = field(default_factory=Processes)
    loss_scale: float = 1.0
    unused: Set[str] = frozenset()
    beliefs: Tensor | None = None
    is_trusted: Tensor | None = None
    logit_shift: Tensor | None = None
    mixture: tuple[Tensor, Tensor] | None = None
    label_losses: Tensor | None = None
    elr_targets: Tensor | None = None
    sample_weights: Tensor | None = None
    rows: Tensor | None = None

    @cached_property
    def all_logits(self) -> Tensor:
        """Logits of the global batch, shape (k·n, C), with the graph of this process's rows."""
        return self.processes.gathered_with_graph(self.logits)

    @cached_property
    def all_labels(self) -> Tensor:
        """Labels of the global batch, shape (k·n,) or (k·n, C)."""
        return self.processes.gathered(self.labels)

    def gathered(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in the order of `all_logits`, detached. (n, …) → (k·n, …)"""
        return self.processes.gathered(rows)

    def describe_as(self, other: "TrainingPass") -> None:
        """Take what another pass of the same rows tells of its examples, beside inputs and labels."""
        self.beliefs, self.is_trusted, self.label_losses = other.beliefs, other.is_trusted, other.label_losses
        self.logit_shift, self.mixture, self.elr_targets = other.logit_shift, other.mixture, other.elr_targets
        self.sample_weights, self.rows = other.sample_weights, other.rows

    def virtual_gradient(self, loss: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Return g = ∇_w J(w, θ) of Eq. (3) over the global batch, by name. The graph is kept for Actual-Train.

        Args:
            loss: J, a scalar with the graph back to `all_logits`.
            names: Parameters by which J is differentiated.
        """
        parameters = {name: self.model.get_parameter(name) for name in names}
        inputs = list(parameters.values())
        found = torch.autograd.grad(loss * self.loss_scale, inputs, retain_graph=True, allow_unused=True)
        gradients = {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
        }
        uses = [float(gradient is not None) for gradient in found]
        gradients = without_scale(gradients, self.loss_scale)
        if self.processes.count > 1:
            gradients = self.processes.summed({**gradients, USED: loss.new_tensor(uses)})
            uses = gradients.pop(USED).tolist()
        self.unused = {name for name, use in zip(parameters, uses, strict=True) if not use}
        return gradients

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
        """Return L_c, a detached scalar, and v = ∂L_c/∂ŵ of Eq. (4), over the whole meta batch. Leave no trace.

        Args:
            gradient: g by name; parameters without one stay at w.
            step: α and P.
            inputs: This process's rows of the meta batch, as keyword arguments of the model.
            labels: Shape (m,).
            names: Parameters of the layers that are on; v is formed for them alone.
            meta_loss: Logits (m, C), labels → (m,); L_c is its mean.
            reusable: Names in g whose memory may become ŵ.
            clock: Takes the time of the `"validation forward"` and of the `"validation backward"`.
        """
        model = self.model
        virtual = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        if gradient:
            virtual |= virtual_parameters({name: virtual[name] for name in gradient}, gradient, step, reusable)
        leaves = {name: virtual[name].detach().requires_grad_() for name in names}

        def loss_and_gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
            with clock("validation forward"):
                loss = meta_loss(model_logits(model, inputs), labels).mean()
            if not loss.requires_grad:  # the forward pass uses none of these parameters
                return loss, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
            with clock("validation backward"):
                gradients = torch.autograd.grad(loss * self.loss_scale, list(leaves.values()), materialize_grads=True)
                return loss.detach(), without_scale(dict(zip(leaves, gradients, strict=True)), self.loss_scale)

        with preserve_rng_state(labels.device), torch.enable_grad(), uncompiled():
            tensors = {**virtual, **leaves, **cloned_buffers(model)}
            loss, gradients = with_tensors(model, tensors, loss_and_gradients)
        means = self.processes.mean({**gradients, LOSS: loss}, len(labels))
        return means.pop(LOSS), means

    def logit_tangent(self, direction: Mapping[str, Tensor], derivative: str) -> Tensor:
        """Return ż = (∂z/∂w)·d of this process's logits, shape (n, C), detached.

        Args:
            direction: d, parameter name → tensor of that parameter's shape; parameters left out count as zero.
            derivative: `"forward"`, `"reverse"` or `"finite"`.
        """
        way = {"forward": _forward_tangent, "reverse": _reverse_tangent, "finite": _finite_tangent}[derivative]
        if self.loss_scale == 1:
            return way(self, direction)
        # A derivative is linear: in fp16 that of a vector of length 1 to 2 is taken, so that little of it is too small.
        norm = torch.stack([tangent.norm() for tangent in direction.values()]).norm()
        size = torch.where(norm > 0, torch.exp2(torch.log2(norm).floor()), 1)
        return size * way(self, {name: tangent / size for name, tangent in direction.items()})


def training_pass_without_trace(model: nn.Module, inputs: Mapping[str, Any], labels: Tensor) -> TrainingPass:
    """Run a training pass outside of a Trainer: buffers stay as they are, generators move on as in any pass."""
    random_state = get_random_state(labels.device)
    with uncompiled(), ForwardRecord() as record:
        logits = model_logits(model, inputs, cloned_buffers(model))
    return TrainingPass(model, inputs, labels, logits, random_state, record=record)


def _repeated_logits(training_pass: TrainingPass, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a pass that repeats the training pass with the given weights, all of them, by name."""
    model, before = training_pass.model, training_pass.buffers
    buffers = cloned_buffers(model) if before is None else {name: value.clone() for name, value in before.items()}
    with (
        torch.enable_grad(),  # a forward may ask; no weight has a graph
        preserve_rng_state(training_pass.logits.device, training_pass.random_state),
        uncompiled(),
    ):
        return model_logits(model, training_pass.inputs, {**weights, **buffers})


def _forward_tangent(training_pass: TrainingPass, direction: Mapping[str, Tensor]) -> Tensor:
    parameters = dict(training_pass.model.named_parameters())
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    with differentiable_attention(), forward_ad.dual_level():
        weights |= {name: forward_ad.make_dual(weights[name], tangent) for name, tangent in direction.items()}
        originals = {id(weight): parameters[name] for name, weight in weights.items()}
        with TangentRules(training_pass.record, originals) as rules:
            logits = _repeated_logits(training_pass, weights)
        if rules.has_strayed:
            with TangentRules():
                logits = _repeated_logits(training_pass, weights)
        tangent = forward_ad.unpack_dual(logits).tangent
    return torch.zeros_like(training_pass.logits) if tangent is None else tangent.detach()


def _reverse_tangent(training_pass: TrainingPass, direction: Mapping[str, Tensor]) -> Tensor:
    logits = training_pass.logits
    starts, tangents = _starts_of_reverse(training_pass, direction)
    # The vector-Jacobian product is linear in `cotangent`, so its derivative does not depend on the value chosen here.
    cotangent = torch.ones_like(logits, requires_grad=True)
    products = torch.autograd.grad(logits, starts, cotangent, create_graph=True, retain_graph=True, allow_unused=True)
    _refuse_cut_graphs(products)
    used = [
        (product, tangent)
        for product, tangent in zip(products, tangents, strict=True)
        if product is not None and product.requires_grad
    ]
    if not used:
        return torch.zeros_like(logits)
    (tangent,) = torch.autograd.grad([p for p, _ in used], cotangent, [t for _, t in used], allow_unused=True)
    return torch.zeros_like(logits) if tangent is None else tangent.detach()


def _refuse_cut_graphs(products: Sequence[Tensor | None]) -> None:
    """Raise RuntimeError where a backward is `once_differentiable`.

    Its result is cut off from the cotangent, and torch would leave that part out without a word.
    """
    waiting: list[Any] = [product.grad_fn for product in products if product is not None]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == CUT:
            raise RuntimeError("an operation of the network is once_differentiable: its backward has no derivative")
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]


def _starts_of_reverse(training_pass: TrainingPass, direction: Mapping[str, Tensor]) -> tuple[list[Any], list[Tensor]]:
    """Return places in the graph (outputs of layers, else parameters) and how far the direction moves each of them."""
    parameters = {name: training_pass.model.get_parameter(name) for name in direction}
    starts: list[Any] = []
    tangents: list[Tensor] = []
    for call, names in training_pass.record.captured(parameters).items():
        output = call.moved_output({id(parameters[name]): direction[name] for name in names})
        if output is not None:
            starts.append(call.edge)
            tangents.append(output)
            for name in names:
                del parameters[name]
    return [*starts, *parameters.values()], [*tangents, *(direction[name] for name in parameters)]


def _finite_tangent(training_pass: TrainingPass, direction: Mapping[str, Tensor]) -> Tensor:
    model = training_pass.model
    tangents = list(direction.values())
    norm = norm_of(tangents)
    if norm == 0:
        return torch.zeros_like(training_pass.logits)

    # `.data` leaves the version counters alone: the retained graph of the training pass stays valid.
    moved = {name: model.get_parameter(name).data for name in direction}
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()} | moved

    def logits(originals: Sequence[Tensor]) -> Tensor:
        with FixedRows({id(weight): original for weight, original in zip(moved.values(), originals, strict=True)}):
            return _repeated_logits(training_pass, weights).detach()

    return central_difference(list(moved.values()), tangents, norm, logits)


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all their values, a scalar."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))


def central_difference(
    weights: Sequence[Tensor], tangents: Sequence[Tensor], norm: Tensor, logits: Callable[[Sequence[Tensor]], Tensor]
) -> Tensor:
    """Return ż = (∂z/∂w)·d, shape (n, C), from the logits at w + εd and w − εd.

    Args:
        weights: w, changed in place, and restored bit for bit whatever happens in between.
        tangents: d, of the same shapes.
        norm: ‖d‖, greater than 0; where w is spread over processes, the same in all of them.
        logits: A forward pass at the weights as they are, z of shape (n, C); it is given w.
    """
    # Small enough to cross few kinks of a ReLU network, large enough to stay clear of rounding. Measured in float32 on
    # wide ResNets with batch norm (nine of them), ViT and BERT: at a power of 0.4 the former are off by up to 4 %, at
    # 0.5, where rounding depends on the CPU's kernels, by up to 1.1 %, at 0.48 by 0.3 %.
    step = float(torch.finfo(norm.dtype).eps ** 0.48 / norm)
    shifted = []
    with restored(weights) as originals, torch.no_grad():
        for sign in (1, -1):
            for weight, original, tangent in zip(weights, originals, tangents, strict=True):
                torch.add(original, tangent, alpha=sign * step, out=weight)
            shifted.append(logits(originals))
    return (shifted[0] - shifted[1]) / (2 * step)


@contextmanager
def restored(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Give the body copies of the weights; restore them after it, bit for bit."""
    originals = [weight.clone() for weight in weights]
    try:
        yield originals
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(original)
