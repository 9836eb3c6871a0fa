"""The cost of a set of layers in Meta-Train, in plain steps (forward and backward), and gates that keep to a budget.

The gates decide the validation backward and the directional derivative. Both run down to the lowest layer that is on,
and take a little more for each other layer that is on. `layer_costs` measures them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerCosts:
    """cost(S) = alone of the dearest layer in S, which is as a rule the lowest, + Σ of the others' own costs.

    Attributes:
        alone: Cost of each candidate layer being the only one on, in order of the layers; shape (L,).
        beside: Own cost of each layer where a dearer one is on: way of the derivative → shape (L,).
        ways: Way of the derivative (`"forward"`, …) where each layer is the dearest.
        always: Whether the last layer is evaluated even where it is off (Eq. 11).
    """

    alone: list[float]
    beside: dict[str, list[float]]
    ways: list[str]
    always: bool = False

    @property
    def cheapest(self) -> float:
        """Of all sets that hold a layer."""
        return self.alone[-1] if self.always else min(self.alone)

    def cost(self, on: Sequence[bool]) -> float:
        """Of the set of layers that are on. on: shape (L,)."""
        return float(self.expected(np.array([on], dtype=np.float64))[0])

    def expected(self, probabilities: np.ndarray) -> np.ndarray:
        """Expected cost of independent gates. probabilities: of being on, shape (k, L). Returns shape (k,)."""
        p = probabilities.copy()
        if self.always:
            p[:, -1] = 1.0
        alone, ways = np.array(self.alone), np.array(self.ways)
        order = np.argsort(-alone, kind="stable")
        p, alone, ways = p[:, order], alone[order], ways[order]
        none_dearer = np.cumprod(1 - p, axis=1)
        dearest = p * np.concatenate([np.ones((len(p), 1)), none_dearer[:, :-1]], axis=1)
        total = dearest @ alone
        for way, own in self.beside.items():
            others = p * np.array(own)[order]
            cheaper = np.cumsum(others[:, ::-1], axis=1)[:, ::-1] - others
            total += (dearest * (ways == way) * cheaper).sum(1)
        return total


class Budget:
    """What the gates may cost on average, as a share of a plain step's forward and backward.

    In each step all log-odds are shifted by −μ·cost_l, with the μ for which the gates' expected cost is the budget;
    what the sampler has learned decides how it is spent. So the budget is kept from the first step on. (A penalty
    λ1·(Σ_l r_l·cost_l − budget)² in place of Eq. (10) does not keep a small one: its gradient by the gate of a low
    layer is so large that gates saturate at random and stay.)

    Attributes:
        share: The budget.
        costs: Of the candidate layers.
        scale: How much dearer than that they turn out to be in training.

    Raises:
        ValueError: The budget does not pay for the cheapest layer.
    """

    def __init__(self, share: float, costs: LayerCosts):
        if share < costs.cheapest:
            raise ValueError(
                f"meta_budget={share:g} is below the cheapest layer's cost of {costs.cheapest:.3f} plain steps: "
                f"choose at least {math.ceil(1000 * costs.cheapest) / 1000:g}"
            )
        self.share = share
        self.costs = costs
        self.scale = 1.0

    def calibrate(self, measured: float, predicted: float) -> None:
        """Learns from what the steps so far really took and what the costs say they should have taken."""
        if predicted > 0 and measured > 0:
            self.scale = min(measured / predicted, self.share / self.costs.cheapest)

    def shift(self, log_odds: Tensor) -> Tensor:
        """−μ·cost_l, shape (L,). log_odds: of each layer being on, shape (L,)."""
        own = log_odds.detach().double().cpu().numpy()
        direction = -np.array(self.costs.alone) / max(self.costs.alone)
        low, high = -1e3 / self.share, 1e3 / self.share  # of μ, in units of the dearest layer
        for _ in range(8):  # the expected cost falls with μ; each round narrows it down 32 times
            grid = np.linspace(low, high, 33)
            logits = np.clip(own + grid[:, None] * direction, -500, 500)
            affordable = self.costs.expected(1 / (1 + np.exp(-logits))) <= self.share / self.scale
            first = int(affordable.argmax()) if affordable.any() else 32
            low, high = grid[max(first - 1, 0)], grid[first]
        return torch.as_tensor(high * direction).to(log_odds)
