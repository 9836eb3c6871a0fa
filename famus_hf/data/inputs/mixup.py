"""Mixup: each image of a batch is mixed with another (Zhang et al., ICLR 2018, arXiv:1710.09412; torch and numpy)."""

import numpy as np
import torch
from torch import Tensor


def draw_mixture(count: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the partner of each example, and the example's own share, at least one half; both of shape (n,).

    Args:
        count: n.
        alpha: α of Beta(α, α), of which every example draws its share.
        generator: On the CPU.
    """
    partner = torch.randperm(count, generator=generator)
    drawn = np.random.default_rng(generator.initial_seed()).beta(alpha, alpha, count)
    return partner, torch.from_numpy(np.maximum(drawn, 1 - drawn)).float()


def mixed(images: Tensor, mixture: tuple[Tensor, Tensor]) -> Tensor:
    """Return share · image + (1 − share) · its partner. images: Shape (n, …)."""
    partner, share = (values.to(images.device) for values in mixture)
    share = share.to(images).view(-1, *[1] * (images.dim() - 1))
    return share * images + (1 - share) * images[partner]
