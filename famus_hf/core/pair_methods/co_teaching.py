"""Co-teaching (Han et al., NeurIPS 2018, arXiv:1804.06872)."""

from torch import Tensor

from famus_hf.core.pair_methods.base import PairBatch, PairMethod, smallest


class CoTeaching(PairMethod):
    """Each network learns from the (1 − r) n examples with the smallest losses of the other one: Σ_i ℓ_i / (1 − r) n.

    r is the share of wrong labels, reached linearly from 0 within the first epochs. What a network takes for right by
    mistake its peer, which makes other mistakes, may still find large.
    """

    about = (
        "each learned, in every step, from those examples that the other one found easiest, about as many as are "
        "rightly labelled ([Co-teaching](https://huggingface.co/papers/1804.06872))"
    )
    forgets = True

    def weights(self, batch: PairBatch, losses: Tensor) -> Tensor:
        return smallest(losses, batch.forget_rate).flip(0)
