"""Soft targets: between the given label and what the network believes, by how much a label is trusted (torch only)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from famus_hf.core.losses import as_targets, at_least_float32
from famus_hf.core.meta_learners.base import LabelledBatch, MetaLearner
from famus_hf.core.meta_learners.label_noise import features_of_beliefs
from famus_hf.core.validation import check_choice, check_whole

FEATURES = {"loss": 1, "beliefs": 4}  # of `features_of_beliefs`, the first so many
FIRST_BIAS = 2.94  # V = 0.95: all but plain training


class SoftTargets(MetaLearner):
    """Soft targets, as in CMW-Net-SL (Shu et al., TPAMI 2023, arXiv:2202.05613) and MSLC (AAAI 2021).

    `J = (1/n) Σ_i [V_i ℓ(z_i, y_i) + (1 − V_i) ℓ(z_i, q_i)]` with V = Ψ(features) and q the belief, taken as
    ℓ(z_i, V_i y_i + (1 − V_i) q_i), which is the same for a loss that is linear in its target, as cross-entropy. V → 0
    replaces a label, and not its example. A trusted example's target is its label.

    Args:
        features: What Ψ sees: `"loss"`, or `"beliefs"`, that is loss, −log q_y, max q and the entropy of q.
        class_groups: Of each class its group, as from `class_groups`; each group has an output of Ψ. None: one for all.
        hidden_size: Width of Ψ's hidden layer.
    """

    needs_beliefs = True
    takes_probabilities = True
    plain_share = 0.25
    groups: Tensor | None

    def __init__(self, features: str = "loss", class_groups: Sequence[int] | None = None, hidden_size: int = 100):
        super().__init__()
        check_choice("features", features, tuple(FEATURES))
        check_whole("hidden_size", hidden_size, 1)
        for group in class_groups or ():
            check_whole("class_groups", group, 0)
        self.features, self.hidden_size = features, hidden_size
        self.class_groups = list(class_groups) if class_groups else None
        groups = None
        if self.class_groups is not None:
            self.num_labels, groups = len(self.class_groups), torch.tensor(self.class_groups)
        self.register_buffer("groups", groups, persistent=False)
        self.hidden = nn.Linear(FEATURES[features], hidden_size)
        self.output = nn.Linear(hidden_size, 1 + max(self.class_groups or [0]))
        with torch.no_grad():
            self.output.weight.mul_(0.01)
            self.output.bias.fill_(FIRST_BIAS)

    def config(self) -> dict[str, Any]:
        return {"features": self.features, "class_groups": self.class_groups, "hidden_size": self.hidden_size}

    def forward(self, features: Tensor) -> Tensor:
        """Return V in (0, 1) by each group's output, shape (n, groups). features: Shape (n, 1) or (n, 4)."""
        hidden = torch.relu(self.hidden(features.detach().to(self.hidden.weight)))
        return torch.sigmoid(self.output(hidden))

    def raw_weights(self, losses: Tensor) -> Tensor | None:
        return self(losses[:, None])[:, 0] if self.features == "loss" and self.groups is None else None

    def label_posteriors(self, beliefs: Tensor, labels: Tensor, losses: Tensor) -> Tensor:
        """Return the targets V y + (1 − V) q, shape (N, C)."""
        targets = as_targets(labels, beliefs)
        features = torch.stack(features_of_beliefs(losses, beliefs, targets)[: FEATURES[self.features]], 1)
        v = self(features).to(beliefs)
        if self.groups is not None:
            v = v.gather(1, self.groups[targets.argmax(1)][:, None])
        return v * targets + (1 - v) * beliefs

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J, a scalar."""
        logits = at_least_float32(batch.logits)
        assert batch.beliefs is not None
        targets = self.label_posteriors(batch.beliefs.to(logits), batch.labels, batch.losses_of_labels.to(logits))
        targets = batch.by_trust(as_targets(batch.labels, logits), targets)
        return batch.per_example_loss(logits, batch.mixed(targets)).mean()


def class_groups(class_counts: Sequence[int], count: int) -> list[int]:
    """Return of each class its group, of at most so many, by k-means of the logarithms of counts (as in CMW-Net).

    Args:
        class_counts: Training examples of each class, C of them.
        count: K; fewer groups where fewer counts differ.
    """
    logarithms = np.log(np.maximum(class_counts, 1))
    distinct = np.unique(logarithms)
    centres = np.quantile(distinct, np.linspace(0, 1, min(count, len(distinct))), method="nearest")
    groups: list[int] = kmeans2(logarithms[:, None], centres[:, None], iter=50, minit="matrix")[1].tolist()
    return groups
