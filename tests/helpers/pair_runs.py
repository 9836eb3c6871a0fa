"""Trainers of two tiny networks that choose examples for each other, and all that they hold afterwards."""

import torch

from famus_hf import PairTrainer
from tests.helpers.models import TwoModels, build_model
from tests.helpers.trainers import make_args
from tests.helpers.two_network_runs import Learnable

RUNS = {
    "estimated": {"pair_method": "co-teaching", "plain_warmup_epochs": 1, "max_steps": 15},
    "co-teaching": {"pair_method": "co-teaching", "noise_rate": 0.3},
    "jocor": {"pair_method": "jocor", "noise_rate": 0.3, "jocor_agreement": 0.8},
    "decoupling": {"pair_method": "decoupling", "plain_warmup_epochs": 0.5},
    "incv": {
        "pair_method": "incv",
        "cross_validation_rounds": 2,
        "cross_validation_epochs": 2,
        "cross_validation_drop": 0.3,
    },
    "accumulation": {"pair_method": "jocor", "noise_rate": 0.3, "gradient_accumulation_steps": 2, "max_steps": 7},
}


def make(folder, kind="called group norm", dtype=torch.float64, train=None, keywords=None, processes=1, **changes):
    """A trainer with a global batch of 16 of 96 examples, 30 % of them labelled wrongly: 6 steps an epoch."""
    torch.manual_seed(1)
    settings = {
        "per_device_train_batch_size": 16 // processes, "max_steps": 10, "forget_ramp_epochs": 1,
        "learning_rate": 0.05, "meta_learner": None,
    }  # fmt: skip
    if changes.get("pair_method") == "decoupling":
        del settings["forget_ramp_epochs"]
    model = TwoModels(build_model(kind, dtype, seed=1), build_model(kind, dtype, seed=2))
    args = make_args(folder, **{**settings, **changes})
    return PairTrainer(model, args, train_dataset=train or Learnable(dtype=dtype), **(keywords or {}))


def learned(trainer):
    """Everything that moves, by name."""
    estimate = torch.tensor(-1.0 if trainer.estimate is None else trainer.estimate, dtype=torch.float64)
    selected = torch.zeros(1) if trainer.selection is None else torch.from_numpy(trainer.selection.selected)
    return {
        "estimate": estimate,
        "selected": selected,
        **{name: value.clone() for name, value in trainer.model.state_dict().items()},
    }


def run(folder, name, processes):
    trainer = make(folder, processes=processes, **RUNS[name])
    assert trainer.args.world_size == processes
    trainer.train()
    return learned(trainer)
