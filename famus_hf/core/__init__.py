"""The paper: what one FaMUS step computes. Imports torch, numpy, scipy and the standard library only."""

from famus_hf.core.fsdp import sharded_meta_gradient
from famus_hf.core.layer_samplers import AllLayers, BlockSampler, LayerSampler, LearnedSampler, RandomLayers
from famus_hf.core.losses import ClassBalancedLoss, CrossEntropyLoss, FocalLoss, LDAMLoss
from famus_hf.core.meta_learners import L2R, MLC, MetaLearner, MWNet
from famus_hf.core.meta_train import meta_gradient

__all__ = [
    "L2R",
    "MLC",
    "AllLayers",
    "BlockSampler",
    "ClassBalancedLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "LDAMLoss",
    "LayerSampler",
    "LearnedSampler",
    "MWNet",
    "MetaLearner",
    "RandomLayers",
    "meta_gradient",
    "sharded_meta_gradient",
]
