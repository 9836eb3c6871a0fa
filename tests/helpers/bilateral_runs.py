"""Trainers of a tiny network with two branches on a long tail, and all that they hold afterwards."""

import torch
from datasets import Dataset
from torch import nn

from famus_hf import BilateralBranchForImageClassification, BilateralBranchTrainer
from tests.helpers.models import CLASSES, build_model
from tests.helpers.trainers import make_args

SIZES = (40, 16, 8, 4)  # of the classes
RUNS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": 10},
    "focal": {"base_loss": "focal"},
}


def long_tail(dtype=torch.float64):
    """Images whose class can be learned."""
    labels = [label for label, size in enumerate(SIZES) for _ in range(size)]
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(len(labels), 3, 8, 8, generator=generator, dtype=torch.float64)
    images += 3 * torch.nn.functional.one_hot(torch.tensor(labels), CLASSES)[:, :3, None, None]
    columns = {"pixel_values": images.tolist(), "labels": labels, "index": list(range(len(labels)))}
    return Dataset.from_dict(columns).with_transform(lambda batch: _as_tensors(batch, dtype))


def _as_tensors(batch, dtype):
    made = {} if "pixel_values" not in batch else {
        "pixel_values": [torch.tensor(image, dtype=dtype) for image in batch["pixel_values"]]
    }  # fmt: skip
    return {**batch, **made}


def network(norm, dtype):
    """With batch norm, or with group norm, so that a batch may be shared out among processes."""
    net = build_model("batch norm", dtype)
    for name, module in [*net.named_modules()] if norm == "group norm" else ():
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.GroupNorm(2, module.num_features, dtype=dtype))
    return net


def make(folder, norm="group norm", dtype=torch.float64, processes=1, train=None, model=None, keywords=None, **changes):
    """A trainer with a global batch of 8 of 68 examples: 8 steps an epoch."""
    torch.manual_seed(1)
    settings = {"per_device_train_batch_size": 8 // processes, "max_steps": 20, "meta_learner": "none",
                "meta_learning_rate": None, "meta_optim": None, "learning_rate": 0.05}  # fmt: skip
    model = BilateralBranchForImageClassification.of(network(norm, dtype)) if model is None else model
    args = make_args(folder, **{**settings, **changes})
    train = long_tail(dtype) if train is None else train
    return BilateralBranchTrainer(model, args, train_dataset=train, **(keywords or {}))


def learned(trainer):
    """Everything that moves, by name."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def run(folder, name, processes):
    trainer = make(folder, processes=processes, **RUNS[name])
    assert trainer.args.world_size == processes
    trainer.train()
    return learned(trainer)
