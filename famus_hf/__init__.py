"""FaMUS: training classifiers on noisy labels with Hugging Face transformers."""

from famus_hf.core.fsdp import sharded_meta_gradient
from famus_hf.core.layer_samplers import AllLayers, BlockSampler, LayerSampler, LearnedSampler, RandomLayers
from famus_hf.core.losses import ClassBalancedLoss, CrossEntropyLoss, FocalLoss, LDAMLoss
from famus_hf.core.meta_learners import L2R, MLC, MetaLearner, MWNet
from famus_hf.core.meta_train import meta_gradient
from famus_hf.data import load_noisy_dataset
from famus_hf.data.labels.noise import corrupt_labels
from famus_hf.hub.load import load_famus
from famus_hf.hub.meta_net_files import register_layer_sampler, register_meta_learner
from famus_hf.models import build_backbone
from famus_hf.models.two_networks import TwoNetworksForImageClassification
from famus_hf.models.wide_resnet import WideResNetConfig, WideResNetForImageClassification
from famus_hf.trainer.trainer import FaMUSTrainer
from famus_hf.training_args import FaMUSTrainingArguments
from famus_hf.two_networks.trainer import TwoNetworkTrainer

__version__ = "0.1.0"

__all__ = [
    "L2R",
    "MLC",
    "AllLayers",
    "BlockSampler",
    "ClassBalancedLoss",
    "CrossEntropyLoss",
    "FaMUSTrainer",
    "FaMUSTrainingArguments",
    "FocalLoss",
    "LDAMLoss",
    "LayerSampler",
    "LearnedSampler",
    "MWNet",
    "MetaLearner",
    "RandomLayers",
    "TwoNetworkTrainer",
    "TwoNetworksForImageClassification",
    "WideResNetConfig",
    "WideResNetForImageClassification",
    "build_backbone",
    "corrupt_labels",
    "load_famus",
    "load_noisy_dataset",
    "meta_gradient",
    "register_layer_sampler",
    "register_meta_learner",
    "sharded_meta_gradient",
]
