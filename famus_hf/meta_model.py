"""What learns in Meta-Train, with optimizers and counters: the meta-learner θ and the layer sampler η (torch only)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.derivatives import TrainingPass
from famus_hf.layer_sampler import LayerSampler, pooled_gradients, step_generator
from famus_hf.layers import Layer
from famus_hf.meta_learners import MetaLearner, PerExampleLoss
from famus_hf.stages import MetaObjective, MetaTrain, meta_train

MOMENTUM = 0.9  # of both SGD optimizers


class MetaModel:
    """Meta-learner and layer sampler of a run, and how they move.

    Attributes:
        meta_learner, layer_sampler: Ψ and Γ.
        layers: All layers of the network in order of their first call.
        candidates: Those that have a gate.
        steps: Meta steps so far; meta batch and gates of a step are functions of (seed, steps).
        active_layers: Layers that were on, summed over these steps.

    Args:
        meta_learner: Ψ.
        layer_sampler: Γ, not yet built.
        layers: From `find_layers`.
        num_candidates: Top N layers that may be on; None means all.
        objective: Eq. (12).
        learning_rate: β.
        optimizer: Of θ: `"sgd"` (momentum 0.9) or `"adam"`.
        sampler_learning_rate: δ; SGD, momentum 0.9.
        seed: Of the gates' noise.
        device: Where everything lives.
    """

    def __init__(
        self,
        meta_learner: MetaLearner,
        layer_sampler: LayerSampler,
        layers: Sequence[Layer],
        *,
        num_candidates: int | None = None,
        objective: MetaObjective,
        learning_rate: float = 1e-3,
        optimizer: str = "sgd",
        sampler_learning_rate: float = 0.1,
        seed: int = 0,
        device: torch.device | None = None,
    ):
        self.layers = list(layers)
        self.candidates = self.layers if num_candidates is None else self.layers[-num_candidates:]
        layer_sampler.build(self.candidates)
        self.meta_learner = meta_learner.to(device)
        self.layer_sampler = layer_sampler.to(device)
        self.objective = objective
        self.seed = seed
        self.learner_optimizer = _make_optimizer(self.meta_learner, optimizer, learning_rate)
        self.sampler_optimizer = _make_optimizer(self.layer_sampler, "sgd", sampler_learning_rate)
        self.steps = 0
        self.active_layers = 0

    @property
    def mean_active_layers(self) -> float:
        """Layers that were on, averaged over all steps so far."""
        return self.active_layers / max(self.steps, 1)

    def step(
        self,
        training_pass: TrainingPass,
        per_example_loss: PerExampleLoss,
        meta_inputs: Mapping[str, Any],
        meta_labels: Tensor,
        gradient: Mapping[str, Tensor],
        learning_rate: float,
    ) -> MetaTrain:
        """One Meta-Train step: moves θ and η. Arguments as in `stages.meta_train`."""
        pooled = pooled_gradients(self.candidates, gradient) if self.layer_sampler.needs_gradients else {}
        gates = self.layer_sampler(pooled, step_generator(self.seed, self.steps))
        found = meta_train(
            training_pass,
            self.meta_learner,
            per_example_loss,
            meta_inputs,
            meta_labels,
            gradient,
            learning_rate,
            self.candidates,
            gates,
            self.layers[-1],
            self.objective,
        )
        if self.learner_optimizer is not None and found.learner_gradient:
            for name, parameter in self.meta_learner.named_parameters():
                parameter.grad = found.learner_gradient[name]
            self.learner_optimizer.step()
            self.learner_optimizer.zero_grad()
        if self.sampler_optimizer is not None:
            gates.backward(found.gate_gradient)
            self.sampler_optimizer.step()
            self.sampler_optimizer.zero_grad()
        self.steps += 1
        self.active_layers += found.active_layers
        return found

    def state_dict(self) -> dict[str, Any]:
        """Optimizers and counters; the parameters themselves are in `meta_net/`."""
        return {
            "learner_optimizer": self.learner_optimizer and self.learner_optimizer.state_dict(),
            "sampler_optimizer": self.sampler_optimizer and self.sampler_optimizer.state_dict(),
            "steps": self.steps,
            "active_layers": self.active_layers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for name in ("learner_optimizer", "sampler_optimizer"):
            optimizer = getattr(self, name)
            if optimizer is not None:
                optimizer.load_state_dict(state[name])
        self.steps = state["steps"]
        self.active_layers = state["active_layers"]


def _make_optimizer(module: nn.Module, name: str, learning_rate: float) -> torch.optim.Optimizer | None:
    """None for a module without parameters."""
    parameters = list(module.parameters())
    if not parameters:
        return None
    if name == "adam":
        return torch.optim.Adam(parameters, learning_rate)
    return torch.optim.SGD(parameters, learning_rate, momentum=MOMENTUM)
