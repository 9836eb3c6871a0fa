"""What tests of the layer sampler and of its budget start from."""

import pytest
import torch

from famus_hf.core.autodiff.forward_pass import cloned_buffers, get_random_state, model_logits, split_inputs
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.layers import find_layers
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_learners.mw_net import MWNet
from tests.helpers.models import build_batch, build_model


@pytest.fixture
def setting():
    """A batch-norm net, its layers, and one training pass at w in float64."""
    torch.manual_seed(0)
    model, meta_learner = build_model("batch norm"), MWNet().double()
    train, meta = build_batch("batch norm", 6, seed=1), build_batch("batch norm", 5, seed=2)
    inputs, labels, _ = split_inputs(train)
    layers = find_layers(model, inputs)
    logits = model_logits(model, inputs, cloned_buffers(model))
    training_pass = TrainingPass(model, inputs, labels, logits, get_random_state(labels.device))
    loss = meta_learner.training_loss(LabelledBatch(logits, labels, cross_entropy))
    gradient = training_pass.virtual_gradient(loss, dict(model.named_parameters()))
    return model, meta_learner, train, meta, layers, training_pass, gradient
