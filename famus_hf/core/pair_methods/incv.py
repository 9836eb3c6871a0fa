"""Co-teaching on what iterative noisy cross-validation selects (Chen et al., ICML 2019, arXiv:1905.05040)."""

from torch import Tensor

from famus_hf.core.cross_validation import wrong_share_of_selected
from famus_hf.core.pair_methods.base import PairBatch, smallest
from famus_hf.core.pair_methods.co_teaching import CoTeaching


class INCV(CoTeaching):
    """Co-teaching that leaves out as many as are wrong among selected labels, when r of all labels are.

    The selection is the trainer's, see `famus_hf.core.cross_validation`.
    """

    about = (
        "each learned, in every step, from those examples that the other one found easiest. All of them had been "
        "selected before, as their labels were predicted by networks that had not seen them ([iterative noisy "
        "cross-validation](https://huggingface.co/papers/1905.05040))"
    )
    cross_validates = True

    def weights(self, batch: PairBatch, losses: Tensor) -> Tensor:
        wrong = wrong_share_of_selected(batch.forget_rate, batch.logits[0].shape[1])
        return smallest(losses, wrong).flip(0)
