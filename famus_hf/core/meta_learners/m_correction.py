"""M-correction: labels are mixed with the network's own classes by how likely losses make them wrong (torch only)."""

import torch
from torch import Tensor
from torch.distributions import Beta

from famus_hf.core.losses import as_targets, at_least_float32
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner

SMALLEST = 1e-12  # of a belief, so that its logarithm exists
INNER = 1e-3  # distance of losses to 0 and 1, where densities of Beta distributions have poles
CERTAIN = 1e-4  # distance of probabilities to 0 and 1
PERCENTILES = (0.05, 0.95)  # of losses, taken for the least and the largest
ITERATIONS = 10  # of expectation and maximization, as its authors have it


class MCorrection(MetaLearner):
    """Dynamic hard bootstrapping (Arazo et al., ICML 2019, arXiv:1904.11238), the paper's "M-correction".

    In each epoch after the plain part a mixture of two Beta distributions is fitted to the losses of all training
    examples; B is the chance that a loss is of the component with the larger mean. Then
    `J = (1/n) Σ_i ℓ(z_i, (1 − B_i) y_i + B_i ŷ_i) + Σ_c (1/C) log((1/C) / p̄_c)`, with ŷ the class that is believed
    likeliest and p̄ the mean prediction of the batch, which keeps it from giving up classes. Its authors train with
    mixup all along, α = 32. A trusted example's target is its label.

    Departure: losses and ŷ are by running predictions, from before the network learned from an example, where its
    authors take a pass over the training set and the present prediction.

    Attributes:
        bounds: Losses that are taken for 0 and 1, shape (2,).
        shapes: α and β of the component of smaller losses, then of the other one, shape (2, 2).
        shares: Of the components, shape (2,); all 0 before anything was fitted.
    """

    has_meta_step = False
    needs_beliefs = True
    takes_probabilities = True
    observes_each_epoch = True
    plain_share = 0.35
    bounds: Tensor
    shapes: Tensor
    shares: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.tensor([0.0, 1.0]))
        self.register_buffer("shapes", torch.ones(2, 2))
        self.register_buffer("shares", torch.zeros(2))

    @torch.no_grad()
    def observe_beliefs(self, beliefs: Tensor, labels: Tensor, trusted: tuple[Tensor, Tensor] | None = None) -> None:
        losses = -beliefs.gather(1, labels[:, None])[:, 0].clamp_min(SMALLEST).log()
        bounds = losses.float().quantile(torch.tensor(PERCENTILES, device=losses.device))
        if bounds[1] > bounds[0]:  # else all are alike, and nothing can be told
            self.bounds.copy_(bounds)
            shapes, shares = fit_beta_mixture(self._scaled(losses))
            self.shapes.copy_(shapes)
            self.shares.copy_(shares)

    def wrong_probabilities(self, losses: Tensor) -> Tensor:
        """Return B, shape (n,), from losses of shape (n,); 0 before anything was fitted."""
        if not self.shares.any():
            return torch.zeros_like(losses)
        joint = _log_joint(self._scaled(losses), self.shapes.to(losses), self.shares.to(losses))
        return joint.softmax(0)[1].clamp(CERTAIN, 1 - CERTAIN)

    def _scaled(self, losses: Tensor) -> Tensor:
        low, high = self.bounds.to(losses)
        return ((losses - low) / (high - low)).clamp(INNER, 1 - INNER)

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J, a scalar."""
        if not self.shares.any():
            return batch.losses.mean()
        logits = at_least_float32(batch.logits)
        assert batch.beliefs is not None
        targets, beliefs = as_targets(batch.labels, logits), batch.beliefs.to(logits)
        of_label = (beliefs * targets).sum(1).clamp_min(SMALLEST)
        wrong = self.wrong_probabilities(-of_label.log())[:, None]
        own = as_targets(beliefs.argmax(1), logits)
        mixed = batch.mixed(batch.by_trust(targets, (1 - wrong) * targets + wrong * own))
        mean, count = logits.softmax(1).mean(0), logits.shape[1]
        evenness = -(mean.clamp_min(SMALLEST) * count).log().mean()
        return batch.per_example_loss(logits, mixed).mean() + evenness


def fit_beta_mixture(values: Tensor, iterations: int = ITERATIONS) -> tuple[Tensor, Tensor]:
    """Return α and β of two Beta distributions, shape (2, 2), and their shares, shape (2,), the smaller mean first.

    By expectation and maximization, shapes by weighted moments, from values below and above their mean on: from two
    wide distributions, as the authors start, both components can end as one.

    Args:
        values: In (0, 1), shape (N,).
        iterations: Of both steps.
    """
    values = values.double()
    above = (values > values.mean()).to(values)
    weights = torch.stack([1 - above, above])  # (2, N)
    for _ in range(iterations):
        totals = weights.sum(1).clamp_min(SMALLEST)
        means = (weights @ values) / totals
        variances = ((weights * (values - means[:, None]) ** 2).sum(1) / totals).clamp_min(SMALLEST)
        first = (means * (means * (1 - means) / variances - 1)).clamp_min(INNER)
        shapes = torch.stack([first, (first * (1 - means) / means).clamp_min(INNER)], 1)
        shares = totals / totals.sum()
        weights = _log_joint(values, shapes, shares).softmax(0)
    order = (shapes[:, 0] / shapes.sum(1)).argsort()
    return shapes[order], shares[order]


def _log_joint(values: Tensor, shapes: Tensor, shares: Tensor) -> Tensor:
    """Return log P(component, value), shape (2, n)."""
    densities = Beta(shapes[:, 0, None], shapes[:, 1, None], validate_args=False).log_prob(values)
    return densities + shares.clamp_min(SMALLEST).log()[:, None]
