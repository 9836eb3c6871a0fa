"""What learns in Meta-Train, with optimizers and counters: the meta-learner θ and the layer sampler η (torch only)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.budget import Budget, LayerCosts
from famus_hf.core.layer_samplers import (
    LayerSampler,
    LearnedSampler,
    pooled_gradients,
    sparsity_gradient,
    step_generator,
)
from famus_hf.core.layers import Layer, parameters_of
from famus_hf.core.meta_learners.base import MetaLearner, PerExampleLoss
from famus_hf.core.meta_train import MetaObjective, MetaTrain, meta_train
from famus_hf.core.parallel.processes import Processes
from famus_hf.core.timer import NO_TIMER, Timer
from famus_hf.core.virtual_train import StepSizes
from famus_hf.errors import SettingsError

SAMPLER_MOMENTUM = 0.9
CALIBRATION_STEPS = 50  # of a budget, and then after twice as many each time
SLOPE_DECAY = 0.95  # of the running mean size of the gates' slopes


class MetaUpdate:
    """Meta-learner and layer sampler of a run, and how they move.

    Attributes:
        meta_learner, layer_sampler: Ψ and Γ.
        layers: All layers of the network in order of their first call.
        candidates: Those that have a gate.
        steps: Meta steps so far; meta batch and gates of a step are functions of (seed, steps).
        times_on: In how many of these steps each candidate layer was on, of length L.
        times_before: The same of layers that were candidates and have been frozen, by name.
        budget: What the gates may cost, instead of Eq. (10); None without one.
        spent: What these steps cost by the budget's measure before calibration.
        clock: Takes the time of the parts of a step.
        step_sizes: Of the network's optimizer, where Virtual-Train needs them.

    Args:
        meta_learner: Ψ.
        layer_sampler: Γ, not yet built.
        layers: From `find_layers`.
        num_candidates: Top N layers that may be on; None means all.
        objective: Eq. (12).
        learning_rate: β; None means the meta-learner's own default.
        optimizer: Of θ: `"sgd"` or `"adam"`; None means the meta-learner's own default.
        follows_schedule: Whether β changes as α does in the network's own schedule. Paper: not. Default: with Adam,
            which takes the size of the gradient away, so that θ would walk at full speed while α is all but 0.
        sampler_learning_rate: δ; SGD, momentum 0.9.
        relative_slopes: Divide the gates' effects on L_c by their running mean size. Paper: not, so that they shrink
            with α and with the loss, and Eq. (10), which treats all layers alike, decides nearly alone.
        virtual_scope: `"all"`: Virtual-Train moves all layers, as in the paper; `"candidates"`: only those that may be
            on, and ŵ = w elsewhere.
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
        learning_rate: float | None = None,
        optimizer: str | None = None,
        follows_schedule: bool | None = None,
        sampler_learning_rate: float = 0.1,
        relative_slopes: bool = False,
        virtual_scope: str = "all",
        seed: int = 0,
        device: torch.device | None = None,
    ):
        self.layers = list(layers)
        self.num_candidates = num_candidates
        self.candidates = self._top_layers()
        self._blocks = {layer.name: layer.block for layer in self.layers}  # the first is 1 whatever is frozen later
        layer_sampler.build(self.candidates)
        if isinstance(layer_sampler, LearnedSampler):
            layer_sampler.budget = None  # of an earlier run
        self.meta_learner = meta_learner.to(device)
        self.layer_sampler = layer_sampler.to(device)
        if not meta_learner.has_virtual_step:  # Eq. (11) pulls on θ alone
            objective = replace(objective, gradient_match_weight=0.0)
        self.objective = objective
        self.seed = seed
        optimizer = optimizer or meta_learner.default_optimizer
        self.learning_rate = meta_learner.default_learning_rate if learning_rate is None else learning_rate
        groups = meta_learner.parameter_groups(self.learning_rate)
        self.learner_optimizer = _make_optimizer(groups, optimizer, meta_learner.momentum)
        self.follows_schedule = optimizer == "adam" if follows_schedule is None else follows_schedule
        sampler = list(self.layer_sampler.parameters())
        groups = [{"params": sampler, "lr": sampler_learning_rate}] if sampler else []
        self.sampler_optimizer = _make_optimizer(groups, "sgd", SAMPLER_MOMENTUM)
        self.steps = 0
        self.times_on = [0] * len(self.candidates)
        self.times_before: dict[str, int] = {}
        self.relative_slopes = relative_slopes
        self.virtual_scope = virtual_scope
        self.slope_size = torch.zeros((), device=device)  # running mean of |slope| over the gates that were on
        self.budget: Budget | None = None
        self.spent = 0.0
        self.clock = NO_TIMER
        self.step_sizes = StepSizes()

    def _top_layers(self) -> list[Layer]:
        return self.layers if self.num_candidates is None else self.layers[-self.num_candidates :]

    def follow(self, layers: Sequence[Layer]) -> bool:
        """Have the layers be these from now on, as others are frozen than before. Return whether candidates are others.

        Gates of layers that stay keep what they have learned. A budget has the costs of the earlier candidates until
        `set_costs` is called.

        Args:
            layers: From `find_layers`.
        """
        if not layers:
            raise SettingsError("all parameters of the network are frozen: leave some that can learn")
        self.layers = [replace(layer, block=self._blocks.get(layer.name)) for layer in layers]
        before, self.candidates = self.candidates, self._top_layers()
        if self.candidates == before:
            return False
        times = self.times_before | {layer.name: on for layer, on in zip(before, self.times_on, strict=True)}
        self.times_on = [times.pop(layer.name, 0) for layer in self.candidates]
        self.times_before = times
        device = self.slope_size.device
        with preserve_rng_state(device):
            torch.manual_seed(step_generator(self.seed, self.steps).initial_seed())
            self.layer_sampler.rebuild(self.candidates, self.sampler_optimizer)
        self.layer_sampler.to(device)
        return True

    def set_costs(self, costs: LayerCosts) -> None:
        """Tell the budget what the candidate layers cost."""
        assert self.budget is not None
        scale = self.budget.scale
        self.set_budget(Budget(self.budget.share, costs), self.clock)
        self.budget.scale = min(scale, self.budget.share / costs.cheapest)

    def set_budget(self, budget: Budget, clock: Timer) -> None:
        """Replace Eq. (10) by the budget, and have the clock measure what it really takes."""
        if not isinstance(self.layer_sampler, LearnedSampler):
            raise SettingsError(
                f"a budget needs a LearnedSampler: {type(self.layer_sampler).__name__} chooses by itself"
            )
        self.budget, self.clock = budget, clock
        self.layer_sampler.budget = budget

    @property
    def mean_active_layers(self) -> float:
        """Layers that were on, averaged over all steps so far."""
        return (sum(self.times_on) + sum(self.times_before.values())) / max(self.steps, 1)

    @property
    def share_of_steps_on(self) -> dict[str, float]:
        """Candidate layer → share of the steps so far in which it was on."""
        return {
            layer.name: times / max(self.steps, 1) for layer, times in zip(self.candidates, self.times_on, strict=True)
        }

    def virtual_names(self, network: nn.Module) -> list[str]:
        """Return the parameters by which Virtual-Train differentiates: all, or those of the candidates, or none."""
        has_step = self.meta_learner.has_virtual_step
        if has_step and self.virtual_scope == "all":
            return [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        return parameters_of(self.candidates) if has_step or self.layer_sampler.needs_gradients else []

    def gates(self, gradient: Mapping[str, Tensor], processes: Processes) -> Tensor:
        """Return r of the present step, (L,), 0 or 1: a function of η, g and (seed, steps), the same in all processes.

        Args:
            gradient: g by parameter name.
            processes: That train together.
        """
        pooled = pooled_gradients(self.candidates, gradient) if self.layer_sampler.needs_gradients else {}
        gates: Tensor = self.layer_sampler(pooled, step_generator(self.seed, self.steps))
        agreed = processes.first(gates)  # as processes may differ in the last bit of g, and then in a gate
        return gates + (agreed - gates.detach())

    def step(
        self,
        training_pass: TrainingPass,
        per_example_loss: PerExampleLoss,
        meta_inputs: Mapping[str, Any],
        meta_labels: Tensor,
        gradient: Mapping[str, Tensor],
        virtual_step: VirtualStep,
        keep_gradient: bool = True,
    ) -> MetaTrain:
        """Take one Meta-Train step: move θ and η, unless its gradient is not finite. Arguments: see `meta_train`."""
        with self.clock("sampler"):
            gates = self.gates(gradient, training_pass.processes)
        outcome = meta_train(
            training_pass,
            self.meta_learner,
            per_example_loss,
            meta_inputs,
            meta_labels,
            gradient,
            virtual_step,
            self.candidates,
            gates,
            self.layers[-1],
            self.objective,
            self.clock,
            keep_gradient,
        )
        if outcome.is_finite:
            if outcome.learner_gradient:
                self.meta_learner.move(outcome.learner_gradient, self.learner_optimizer)
            if self.sampler_optimizer is not None:
                with self.clock("sampler"):
                    gates.backward(self._scaled(outcome.gate_slopes) + self._sparsity_gradient(gates))
                    self.sampler_optimizer.step()
                    self.sampler_optimizer.zero_grad()
        self.steps += 1
        self.times_on = [times + on for times, on in zip(self.times_on, outcome.switched_on, strict=True)]
        if self.budget is not None:
            self.spent += self.budget.costs.cost(outcome.switched_on)
            rounds, rest = divmod(self.steps, CALIBRATION_STEPS)
            if rest == 0 and rounds & (rounds - 1) == 0:  # after 50, 100, 200, 400, … steps
                measured = training_pass.processes.first_object(self.measured_cost or 0.0)
                self.budget.calibrate(measured * self.steps, self.spent)
        return outcome

    @property
    def measured_cost(self) -> float | None:
        """Seconds that the gates' choice took in a meta step, in plain steps, where there is a budget."""
        return self.in_plain_steps("validation backward", "derivative")

    def in_plain_steps(self, *parts: str) -> float | None:
        """Return the seconds of these parts in a meta step, in plain steps; None where no time is taken."""
        seconds = self.clock.seconds
        backward = "actual backward" if "actual backward" in seconds else "virtual backward"
        if self.steps == 0 or not seconds.get(backward):
            return None
        spent = sum(seconds.get(part, 0.0) for part in parts) / self.steps
        return spent / (self.clock.mean("forward") + self.clock.mean(backward))

    def copy_of_learned(self) -> list[dict[str, Any]]:
        """Return copies of θ, η and their optimizers' states, for `take_back`."""
        # A state_dict holds the tensors themselves, which the step changes in place.
        return copy.deepcopy([*(part.state_dict() for part in self._learning_parts()), {"slopes": self.slope_size}])

    def take_back(self, learned: Sequence[dict[str, Any]]) -> None:
        """Make θ, η and their optimizers again what they were when they were copied."""
        *states, others = learned
        for part, state in zip(self._learning_parts(), states, strict=True):
            part.load_state_dict(state)
        self.slope_size = others["slopes"]

    def _learning_parts(self) -> list[Any]:
        parts = [self.meta_learner, self.layer_sampler, self.learner_optimizer, self.sampler_optimizer]
        return [part for part in parts if part is not None]

    def _scaled(self, slopes: Tensor) -> Tensor:
        if not self.relative_slopes:
            return slopes
        on = (slopes != 0).sum()
        if on == 0:
            return slopes
        size = slopes.abs().sum() / on
        decay = SLOPE_DECAY if self.slope_size > 0 else 0.0
        self.slope_size = decay * self.slope_size + (1 - decay) * size.to(self.slope_size)
        return slopes / self.slope_size.clamp_min(torch.finfo(torch.float32).tiny).to(slopes)

    def _sparsity_gradient(self, gates: Tensor) -> Tensor:
        weight = self.objective.sparsity_weight if self.budget is None else 0.0  # the budget is kept without Eq. (10)
        return sparsity_gradient(gates, expected_layers=self.objective.expected_layers, sparsity_weight=weight)

    def follow_rate(self, optimizer: Any) -> None:
        """Give β the share of its first value that α has in the network's optimizer, where it follows the schedule."""
        if self.learner_optimizer is None or not self.follows_schedule:
            return
        group = optimizer.param_groups[0]
        first = group.get("initial_lr", group["lr"])
        share = float(group["lr"]) / float(first) if first else 1.0  # None: of an optimizer that finds its own rate
        for own in self.learner_optimizer.param_groups:
            own["lr"] = own.setdefault("initial_lr", own["lr"]) * share

    def state_dict(self) -> dict[str, Any]:
        """Return optimizers and counters; the parameters themselves are in `meta_net/`."""
        sizes = self.step_sizes.state_dict()
        return {
            **({"step_sizes": sizes} if sizes else {}),
            **({"times_before": self.times_before} if self.times_before else {}),
            "learner_optimizer": self.learner_optimizer and self.learner_optimizer.state_dict(),
            "sampler_optimizer": self.sampler_optimizer and self.sampler_optimizer.state_dict(),
            "steps": self.steps,
            "times_on": self.times_on,
            "slope_size": self.slope_size,
            "costs": self.budget and asdict(self.budget.costs),
            "scale": self.budget and self.budget.scale,
            "spent": self.spent,
            "seconds": self.clock.seconds,
            "times": self.clock.times,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave. A state that somebody else may have written must be checked before."""
        for name in ("learner_optimizer", "sampler_optimizer"):
            optimizer = getattr(self, name)
            if optimizer is not None:
                optimizer.load_state_dict(state[name])
        self.steps = state["steps"]
        self.times_on = state["times_on"]
        self.times_before = dict(state.get("times_before", {}))
        self.slope_size = state["slope_size"].to(self.slope_size.device)
        if self.budget is not None and state["costs"] is not None:  # as measured at the start of the run
            self.set_budget(Budget(self.budget.share, LayerCosts(**state["costs"])), self.clock)
            self.budget.scale = state["scale"]
            self.clock.seconds.update(state["seconds"])
            self.clock.times.update(state["times"])
        self.spent = state["spent"]
        self.step_sizes.load_state_dict(state.get("step_sizes", {}))


def _make_optimizer(groups: list[dict[str, Any]], name: str, momentum: float) -> torch.optim.Optimizer | None:
    """Return the optimizer of groups of parameters; None where there are none."""
    if not groups:
        return None
    return torch.optim.Adam(groups) if name == "adam" else torch.optim.SGD(groups, momentum=momentum)
