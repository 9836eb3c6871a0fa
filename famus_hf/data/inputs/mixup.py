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
    return torch.randperm(count, generator=generator), draw_shares(count, alpha, generator)


def draw_shares(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Return max(λ, 1 − λ) of each example, λ of Beta(α, α), shape (n,). Arguments: see `draw_mixture`."""
    drawn = np.random.default_rng(generator.initial_seed()).beta(alpha, alpha, count)
    return torch.from_numpy(np.maximum(drawn, 1 - drawn)).float()


def mixed(images: Tensor, mixture: tuple[Tensor, Tensor], others: Tensor | None = None) -> Tensor:
    """Return share · image + (1 − share) · its partner.

    Args:
        images: Shape (n, …).
        mixture: Partners and own shares, both of shape (n,).
        others: That partners are of, shape (N, …); None: the same images.
    """
    partner, share = (values.to(images.device) for values in mixture)
    share = share.to(images).view(-1, *[1] * (images.dim() - 1))
    return share * images + (1 - share) * (images if others is None else others)[partner]
