"""Whether a meta-learner helps: how much of what a network learns from is right, with it and without (torch only).

Asked of trusted examples that the network never learned from, given labels that are as often wrong, and in the same
way, as those of the training set. No second training is needed, and nothing is selected by it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from famus_hf.core.meta_learners.base import MetaLearner

DRAWS = 10  # of labels for each trusted example


@dataclass(frozen=True)
class TrainingSignal:
    """Shares in [0, 1].

    Attributes:
        of_labels: Of labels like those of the training set, that are right: all that plain training has.
        of_targets: Of what the meta-learner makes of them: the mass of its targets on the right class, or the weight of
            right labels.
        examples: Trusted ones that were asked.
    """

    of_labels: float
    of_targets: float
    examples: int

    @property
    def in_words(self) -> str:
        """One sentence."""
        shares = f"{100 * self.of_targets:.1f} % of what the network learned from was right"
        without = f"{100 * self.of_labels:.1f} % of the labels"
        verdict = "helped" if self.of_targets >= self.of_labels else "did not help"
        return (
            f"the meta-learner {verdict}: {shares}, and {without} would have been without it "
            f"(estimated on {self.examples} trusted examples that it never learned from)"
        )


@torch.no_grad()
def training_signal(
    learner: MetaLearner, beliefs: Tensor, true_labels: Tensor, transitions: Tensor, seed: int
) -> TrainingSignal | None:
    """Return how much of what is learned from is right; None of a meta-learner that can't be asked of single examples.

    Args:
        learner: Ψ.
        beliefs: Of trusted examples, shape (m, C).
        true_labels: Theirs, shape (m,).
        transitions: P(given label | true class) in the training set, shape (C, C), rows sum to 1.
        seed: Of the labels that are drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = transitions.cpu().float()[true_labels.cpu()]
    drawn = torch.multinomial(rows, DRAWS, replacement=True, generator=generator).T.reshape(-1)  # (draws · m,)
    given, true = drawn.to(beliefs.device), true_labels.repeat(DRAWS).to(beliefs.device)
    believed = beliefs.repeat(DRAWS, 1)
    losses = -believed.gather(1, given[:, None])[:, 0].clamp_min(1e-12).log()
    right = (given == true).float()
    targets = learner.label_posteriors(believed, given, losses)
    if targets is not None:
        share = targets.gather(1, true[:, None]).mean()
    else:
        weights = learner.raw_weights(losses)
        if weights is None or weights.sum() == 0:
            return None
        share = (weights * right).sum() / weights.sum()
    return TrainingSignal(float(right.mean()), float(share), len(beliefs))
