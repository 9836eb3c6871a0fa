"""Meta-learners by name, and their weights by losses alone (torch only)."""

import numpy as np
import torch

from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_learners.corrections import BackwardCorrection, ForwardCorrection
from famus_hf.core.meta_learners.d2l import D2L
from famus_hf.core.meta_learners.jamal import ClassBalancedResidual
from famus_hf.core.meta_learners.l2b import L2B
from famus_hf.core.meta_learners.l2r import L2R
from famus_hf.core.meta_learners.lccn import LCCN
from famus_hf.core.meta_learners.m_correction import MCorrection
from famus_hf.core.meta_learners.mentor_mix import MentorMix
from famus_hf.core.meta_learners.mentor_net import MentorNet
from famus_hf.core.meta_learners.mlc import MLC
from famus_hf.core.meta_learners.mw_net import MWNet
from famus_hf.core.meta_learners.posterior import PosteriorTargets
from famus_hf.core.meta_learners.soft import SoftTargets

CORRECTIONS = {"forward": ForwardCorrection, "backward": BackwardCorrection}
META_LEARNERS: dict[str, type[MetaLearner]] = {
    "mw-net": MWNet,
    "l2r": L2R,
    "mlc": MLC,
    "posterior": PosteriorTargets,
    **CORRECTIONS,
    "soft": SoftTargets,
    "l2b": L2B,
    "jamal": ClassBalancedResidual,
    "m-correction": MCorrection,
    "mentornet": MentorNet,
    "mentormix": MentorMix,
    "d2l": D2L,
    "lccn": LCCN,
}
WITH_TRANSITIONS = ("posterior", *CORRECTIONS)


def raw_weights(meta_learner: MetaLearner | None, losses: np.ndarray) -> np.ndarray | None:
    """Return V by losses alone, both of shape (n,); None where there are no such weights."""
    if meta_learner is None:
        return None
    device = next((parameter.device for parameter in meta_learner.parameters()), torch.device("cpu"))
    with torch.no_grad():
        weights = meta_learner.raw_weights(torch.as_tensor(losses, dtype=torch.float32, device=device))
    return None if weights is None else weights.float().cpu().numpy()


def register_meta_learner(kind: type[MetaLearner]) -> type[MetaLearner]:
    """Make `load_famus` know a meta-learner of your own, by its class name; also a decorator of the class.

    Its `config()` must give the arguments of its constructor. Nothing of it is taken from the folder that is loaded but
    these arguments and tensors. The constructor must therefore be safe with any JSON as arguments; the tensors that it
    makes may have at most four times the size of its tensor file and 16 MiB.
    """
    META_LEARNERS[kind.__name__] = kind
    return kind
