"""Posterior targets: a label is right with probability V, else it comes from a transition (torch only).

`P(label y | x) = V p_y + (1 − V) Σ_{k≠y} p_k T_ky`, with V = Ψ(what is known of the example) and T learned from trusted
examples. V ≡ 1 is plain training, a constant V forward correction, and T alone MLC.
"""

from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.losses import as_targets, at_least_float32
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_learners.label_noise import (
    FULL_CLASSES,
    SMALLEST,
    LabelNoise,
    features_of_beliefs,
    log_likelihood,
)
from famus_hf.core.validation import check_choice, check_number, check_whole

FEATURES = 6
LIKELIEST_STAYS, LEAST_STAYS = 0.98, 0.3  # of what V starts at
RANK = 8  # of what is learned about transitions between more classes


class PosteriorTargets(LabelNoise):
    """The target of an example is the posterior of its class, by belief, label, V and T.

    With q the belief, `t(k) ∝ (1 − V) q_k T_ky` for k ≠ y and `t(y) ∝ V q_y`; a trusted example's is its label. Both
    start as counted: V at T_yy, and the learned part of T at 0.

    Args:
        num_labels: C.
        form: `"posterior"`: J = (1/n) Σ ℓ(z_i, t_i). `"likelihood"`: J = −(1/n) Σ log P(y_i | x_i) by the present
            prediction in place of the belief, cross-entropy whatever ℓ is.
        hidden_size: Width of Ψ's hidden layer.
        transition_rate: How many times β the learning rate of transitions is.
        source: Of the T that is learned from, as in `LabelNoise`.
    """

    default_learning_rate = 3e-3
    has_posteriors = True

    def __init__(
        self,
        num_labels: int,
        form: str = "posterior",
        hidden_size: int = 100,
        transition_rate: float = 1.0,
        source: str = "calibrated",
    ):
        super().__init__(num_labels, source)
        check_choice("form", form, ("posterior", "likelihood"))
        check_whole("hidden_size", hidden_size, 1)
        check_number("transition_rate", transition_rate)
        self.form, self.hidden_size, self.transition_rate = form, hidden_size, transition_rate
        self.hidden = nn.Linear(FEATURES, hidden_size)
        self.output = nn.Linear(hidden_size, 1)
        with torch.no_grad():
            self.output.weight.mul_(0.01)
            self.output.bias.zero_()
        if num_labels <= FULL_CLASSES:
            self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))
        else:  # their product starts at 0, too
            self.transitions = nn.Parameter(torch.zeros(num_labels, RANK))
            self.transitions_to = nn.Parameter(torch.randn(RANK, num_labels))

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "form": self.form,
            "hidden_size": self.hidden_size,
            "transition_rate": self.transition_rate,
        }

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        network = [*self.hidden.parameters(), *self.output.parameters()]
        transitions = [value for name, value in self.named_parameters() if name.startswith("transitions")]
        return [
            {"params": network, "lr": learning_rate},
            {"params": transitions, "lr": learning_rate * self.transition_rate},
        ]

    def wrong_transitions(self) -> Tensor:
        """Return T_ky of k ≠ y, where a label is wrong: shape (C, C), rows sum to 1, 0 on the diagonal."""
        learned = self.transitions if self.num_labels <= FULL_CLASSES else self.transitions @ self.transitions_to
        scores = self.goes.clamp_min(SMALLEST).log() + learned
        none = torch.eye(self.num_labels, dtype=torch.bool, device=scores.device)
        return scores.masked_fill(none, -torch.inf).softmax(1)

    def label_posteriors(self, beliefs: Tensor, labels: Tensor, losses: Tensor) -> Tensor | None:
        """Return the posterior t of each example, shape (N, C); t_y is the probability that its label is right."""
        if not self.is_counted:
            return None
        targets = as_targets(labels, beliefs)
        right, wrong = self._evidence(beliefs, targets, losses)
        return _divided(beliefs.clamp_min(SMALLEST) * (right + wrong))

    def corrected_loss(self, batch: LabelledBatch) -> Tensor:
        logits = at_least_float32(batch.logits)
        targets = as_targets(batch.labels, logits)
        assert batch.beliefs is not None
        beliefs = batch.beliefs.to(logits)
        right, wrong = self._evidence(beliefs, targets, batch.losses_of_labels.to(logits))
        if self.form == "likelihood":
            evidence = batch.by_trust(targets, right + wrong)
            return log_likelihood(logits, batch.mixed(evidence)).neg().mean()
        posteriors = _divided(beliefs.clamp_min(SMALLEST) * (right + wrong))
        return batch.per_example_loss(logits, batch.mixed(batch.by_trust(targets, posteriors))).mean()

    def _evidence(self, beliefs: Tensor, targets: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return V s_k, and (1 − V) Σ_y T_ky s_y: how likely the label is from each true class; both (n, C)."""
        beliefs = beliefs.clamp_min(SMALLEST)
        wrong = targets @ self.wrong_transitions().to(beliefs).T  # (n, C)
        of_label = (beliefs * targets).sum(1)
        stays = (targets * self.stays.to(beliefs)).sum(1).clamp(LEAST_STAYS, LIKELIEST_STAYS)
        features = torch.stack(
            [
                *features_of_beliefs(losses, beliefs, targets),
                (beliefs * wrong).sum(1).clamp_min(SMALLEST).log(),
                (of_label * stays).log(),
            ],
            1,
        ).detach()
        hidden = torch.relu(self.hidden(features.to(self.hidden.weight)))
        v = torch.sigmoid(stays.logit() + self.output(hidden)[:, 0].to(beliefs))[:, None]
        return v * targets, (1 - v) * wrong


def _divided(values: Tensor) -> Tensor:
    return values / values.sum(1, keepdim=True)
