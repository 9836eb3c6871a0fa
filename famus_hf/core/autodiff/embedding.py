"""How an embedding moves its output: not by rows whose gradient its backward leaves out or divides (torch only).

Of a table with `padding_idx` the row of that index gets no gradient by a look-up, and with `scale_grad_by_freq` that of
an index is divided by how often it is looked up. Where the table is used elsewhere too, as a tied output layer is, a
direction moves that row all the same, and the derivative of the *values* would then not be the one of the backward.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def embedding_of_duals(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Return F.embedding of a dual table, whose tangent is what its backward lets through."""
    table, tangent = forward_ad.unpack_dual(weight)
    value = F.embedding(input, table, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if tangent is None:
        return value
    moved = F.embedding(input, tangent)
    share = _share(input, len(weight), padding_idx, scale_grad_by_freq)
    return forward_ad.make_dual(value, moved if share is None else moved * share.to(moved))


class FixedRows(TorchFunctionMode):
    """Has embeddings, while it is entered, look up of a moved table only as much of the move as their backward sees.

    Args:
        originals: id of a moved table → its values before.
    """

    def __init__(self, originals: Mapping[int, Tensor]):
        super().__init__()
        self._originals = originals

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func is F.embedding:
            return self._embedding(*args, **keywords)
        return func(*args, **keywords)

    def _embedding(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        value = F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        original, share = self._originals.get(id(weight)), _share(input, len(weight), padding_idx, scale_grad_by_freq)
        if original is None or share is None:
            return value
        return torch.lerp(F.embedding(input, original), value, share.to(value))


def _share(input: Tensor, num_rows: int, padding_idx: int | None, scale_grad_by_freq: bool) -> Tensor | None:
    """Return the share of each look-up's gradient that reaches the table, shape (…, 1); None where that is all."""
    if padding_idx is None and not scale_grad_by_freq:
        return None
    share = torch.ones_like(input, dtype=torch.get_default_dtype())
    if scale_grad_by_freq:
        share = torch.bincount(input.flatten(), minlength=num_rows)[input].double().reciprocal()
    if padding_idx is not None:
        share = share.masked_fill(input == padding_idx % num_rows, 0)
    return share.unsqueeze(-1)
