"""MentorMix: a mentor says who is mixed with whom, and judges the mixed examples again (torch only)."""

import torch
from torch import Tensor

from famus_hf.core.meta_learners.mentor_net import MentorNet, below


class MentorMix(MentorNet):
    """MentorMix (Jiang et al., ICML 2020, arXiv:1911.09781), with MentorNet's threshold for a mentor.

    A pass of the examples as they are gives their losses ℓ and v_i = 1[ℓ_i < m]. Each is mixed with a partner that is
    drawn by softmax(v), itself perhaps; its own share is max(λ, 1 − λ) where v_i = 1 and min(λ, 1 − λ) elsewhere, λ of
    Beta(α, α). Of the mixed examples J = (1/n) Σ_i 1[ℓ̃_i < m̃] ℓ̃_i. Running quantiles m of ℓ and m̃ of ℓ̃ are apart. In
    the plain part, where the authors set v = 1, examples are mixed by chance alone.

    Args:
        quantile: Of the losses of a batch, in (0, 1); the authors have 0.5 on CIFAR-100 with 40 % of noise.
        decay: Of m and m̃, likewise.

    Attributes:
        threshold: m̃, a scalar; infinite before the first step.
        unmixed_threshold: m, likewise.
    """

    mixes_by_losses = True
    mixup_alpha = 8.0  # the authors', on CIFAR-100 with 40 % of noise
    plain_epochs = 10.0  # likewise
    unmixed_threshold: Tensor

    def __init__(self, quantile: float = 0.5, decay: float = 0.5):
        super().__init__(quantile, decay)
        self.register_buffer("unmixed_threshold", torch.tensor(torch.inf))

    def raw_weights(self, losses: Tensor) -> Tensor:
        return below(self.unmixed_threshold, losses)

    def mixture(self, losses: Tensor, shares: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.follow(self.unmixed_threshold, losses)
        v = self.raw_weights(losses).cpu()
        partner = torch.multinomial(v.softmax(0), len(v), replacement=True, generator=generator)
        return partner, torch.where(v > 0.5, shares, 1 - shares)
