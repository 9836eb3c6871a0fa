"""LCCN: each example has a latent class, drawn anew whenever it comes by, and labels come from these (torch only)."""

from typing import Any

import torch
from torch import Tensor

from famus_hf.core.layer_samplers import step_generator
from famus_hf.core.losses import as_targets, at_least_float32
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_learners.label_noise import SMALLEST, LabelNoise
from famus_hf.core.validation import Above, check_bound, check_number, check_whole

UNKNOWN = -1  # the latent class of an example that has not come by


class LCCN(LabelNoise):
    """Latent class-conditional noise by dynamic label regression (Yao et al., AAAI 2019, arXiv:1903.02152).

    Whenever example i comes by, its latent class z_i is drawn from
    `P(z) ∝ p_iz (α + N_{z y_i}) / Σ_k (α + N_zk)`, p_i the network's present prediction and N_zy the number of other
    examples with latent class z and given label y; then `J = (1/n) Σ_i ℓ_i` by the labels z_i. So transitions follow
    the whole data set, and one batch changes them little. Examples of a batch are drawn by the same counts. A trusted
    example's class is its label.

    Paper: transitions of the network that learned plainly stand in for the counts during a number of first steps; here
    they do so at the first draw of each example.

    Args:
        num_labels: C.
        num_examples: M, of the training set.
        prior: α of the Dirichlet distribution of each row of the transitions.

    Attributes:
        latent: z, shape (M,); −1 of an example that has not come by.
        counts: N_zy, shape (C, C).
        seed: Of the draws.
        draws: Batches drawn so far.
    """

    has_meta_step = False
    needs_rows = True
    latent: Tensor
    counts: Tensor
    seed: Tensor
    draws: Tensor

    def __init__(self, num_labels: int, num_examples: int, prior: float = 1.0):
        super().__init__(num_labels, "counts")
        check_whole("num_examples", num_examples, 1)
        check_number("prior", prior)
        check_bound("prior", prior, Above(0))
        self.num_examples, self.prior = num_examples, prior
        self.register_buffer("latent", torch.full((num_examples,), UNKNOWN))
        self.register_buffer("counts", torch.zeros(num_labels, num_labels, dtype=torch.int64))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def config(self) -> dict[str, Any]:
        return {"num_labels": self.num_labels, "num_examples": self.num_examples, "prior": self.prior}

    def observe_beliefs(self, beliefs: Tensor, labels: Tensor, trusted: tuple[Tensor, Tensor] | None = None) -> None:
        """Count transitions, and forget latent classes, which a checkpoint may have of other data."""
        super().observe_beliefs(beliefs, labels, trusted)
        self.latent.fill_(UNKNOWN)
        self.counts.zero_()

    def evidence(self, targets: Tensor) -> Tensor:
        """Return P(given label | latent class) by present counts; before there are any, by those of the plain part."""
        if not self.counts.any():
            return super().evidence(targets)
        counts = self.counts.to(targets) + self.prior
        return targets @ (counts / counts.sum(1, keepdim=True)).T

    def label_posteriors(self, beliefs: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
        """Return q_z times `evidence`, rows divided by their sums, shape (N, C)."""
        joint = beliefs.clamp_min(SMALLEST) * self.evidence(as_targets(labels, beliefs)).clamp_min(SMALLEST)
        return joint / joint.sum(1, keepdim=True)

    def corrected_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J, a scalar, by latent classes that are drawn now."""
        logits = at_least_float32(batch.logits)
        given = batch.labels if batch.labels.dim() == 1 else batch.labels.argmax(1)
        assert batch.rows is not None
        drawn = self.draw(batch.rows, logits.detach().softmax(1), given)
        return batch.per_example_loss(logits, batch.by_trust(given, drawn)).mean()

    @torch.no_grad()
    def draw(self, rows: Tensor, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Draw latent classes, and remember those of training examples. Return them, shape (n,).

        Args:
            rows: Shape (n,), from M on of trusted examples, of which nothing is remembered.
            probabilities: p, shape (n, C).
            labels: y, shape (n,).
        """
        chances = probabilities * self._evidence_of_others(rows, as_targets(labels, probabilities))
        generator = step_generator(int(self.seed), int(self.draws))
        points = torch.rand(len(rows), 1, generator=generator, dtype=torch.float64).to(chances)
        sums = chances.cumsum(1)
        drawn = (sums <= points * sums[:, -1:]).sum(1).clamp(max=self.num_labels - 1)
        self.draws += 1
        self._remember(rows, drawn, labels)
        return drawn

    def _evidence_of_others(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Return P(given label | latent class) by the counts of all examples but the one itself, (n, C)."""
        counts = self.counts.to(targets)
        known = self._latent_of(rows)
        itself = as_targets(known.clamp(min=0), targets) * (known >= 0)[:, None]  # (n, C), over latent classes
        of_label = targets @ counts.T - itself + self.prior
        totals = counts.sum(1) - itself + self.num_labels * self.prior
        return torch.where((known >= 0)[:, None], of_label / totals, super().evidence(targets))

    def _latent_of(self, rows: Tensor) -> Tensor:
        own = rows < self.num_examples
        latent = self.latent[rows.where(own, 0)].clamp(UNKNOWN, self.num_labels - 1)  # a file may hold anything
        return latent.where(own, UNKNOWN)

    def _remember(self, rows: Tensor, drawn: Tensor, labels: Tensor) -> None:
        """Move examples from their earlier to their new latent classes; of one that is there twice the last counts."""
        own = rows < self.num_examples
        rows, drawn, labels = rows[own], drawn[own], labels[own]
        rows, place = rows.unique(return_inverse=True)
        last = torch.zeros_like(rows).scatter_reduce(0, place, torch.arange(len(place), device=rows.device), "amax")
        drawn, labels, earlier = drawn[last], labels[last], self._latent_of(rows)
        known = earlier >= 0
        self.counts.index_put_((earlier[known], labels[known]), torch.full_like(labels[known], -1), accumulate=True)
        self.counts.index_put_((drawn, labels), torch.ones_like(labels), accumulate=True)
        self.latent[rows] = drawn
