"""Decoupling (Malach, Shalev-Shwartz, NIPS 2017, arXiv:1706.02613)."""

from torch import Tensor

from famus_hf.core.pair_methods.base import PairBatch, PairMethod

FEWEST = 0.1  # share of a batch that a step counts for at least, or one example alone would make a whole step


class Decoupling(PairMethod):
    """Both networks learn from the examples on which they disagree, u_i = 1: Σ_i u_i ℓ_i / max(0.1 n, Σ_i u_i).

    When to learn is decoupled from how: the longer they have learned the less a wrong label alone can move them.
    """

    about = (
        "both learned, once they had seen all examples in a warm-up, from those on which they disagreed "
        "([Decoupling](https://huggingface.co/papers/1706.02613))"
    )
    has_warm_up = True

    def weights(self, batch: PairBatch, losses: Tensor) -> Tensor:
        first, second = (logits.argmax(1) for logits in batch.logits)
        disagree = (first != second).to(losses)
        return (disagree / disagree.sum().clamp_min(FEWEST * len(disagree))).expand_as(losses)
