"""Trainers of two tiny networks, and all that they hold afterwards."""

import torch
from torch.nn.functional import one_hot

from famus_hf import LearnedSampler, MWNet
from famus_hf.two_networks.trainer import TwoNetworkTrainer
from tests.helpers.models import CLASSES, TwoModels, build_batch, build_model
from tests.helpers.trainers import make_args

PLAIN = {"meta_learner": "none"}


EXACT = {"layer_sampler": "all"}


class Learnable(torch.utils.data.Dataset):
    """Random images whose label can be learned, 30 % of the labels wrong."""

    def __init__(self, size=96, dtype=torch.float32, wrong=0.3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = build_batch("batch norm", size, dtype=dtype, seed=3)["pixel_values"]
        self.clean = torch.arange(size) % CLASSES
        self.images += 2 * one_hot(self.clean, CLASSES)[:, :3, None, None].to(dtype)
        is_wrong = torch.rand(size, generator=generator) < wrong
        self.labels = torch.where(is_wrong, (self.clean + 1) % CLASSES, self.clean)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.images[row], "labels": int(self.labels[row]), "index": row,
                "clean_label": int(self.clean[row])}  # fmt: skip


def make(folder, kind="called group norm", dtype=torch.float64, train=None, keywords=None, processes=1, **changes):
    """A trainer of two networks with a global batch of 8 labelled and 8 unlabelled examples: 6 steps an epoch."""
    torch.manual_seed(1)
    settings = {
        "per_device_train_batch_size": 8 // processes, "meta_batch_size": 8 // processes, "max_steps": 15,
        "plain_warmup_epochs": 1, "ramp_up_epochs": 1, "unlabelled_weight": 2.0, "learning_rate": 0.05,
        "unlabelled_share": "half", "calibrate_division": False,
    }  # fmt: skip
    keywords = dict(keywords or {})
    if changes.get("meta_learner") != "none" and "meta_learner" not in keywords:
        keywords["meta_learner"] = MWNet().to(dtype)
        if changes.get("layer_sampler", "learned") == "learned":
            keywords["layer_sampler"] = LearnedSampler().to(dtype)
    model = TwoModels(build_model(kind, dtype, seed=1), build_model(kind, dtype, seed=2))
    args = make_args(folder, **{**settings, **changes})
    return TwoNetworkTrainer(model, args, train_dataset=train or Learnable(dtype=dtype), **keywords)


def learned(trainer):
    """Everything that moves, by name."""
    parts = {"w": trainer.model}
    for peer in trainer.peers:
        division = peer.division.state_dict()
        tensors = {name: value for name, value in division.items() if isinstance(value, torch.Tensor)}
        parts |= {f"{peer.name}.theta": peer.meta.meta_learner, f"{peer.name}.eta": peer.meta.layer_sampler}
        parts[f"{peer.name}.division"] = tensors
    found = {}
    for part, own in parts.items():
        tensors = own if isinstance(own, dict) else own.state_dict()
        found |= {f"{part}.{name}": tensor.clone() for name, tensor in tensors.items()}
    return found


def assert_equal(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


RUNS = {
    "DivideMix": PLAIN,
    "MW-Net": EXACT,
    "FaMUS, crops": {"augmentation": "pad-crop"},
    "by the division": {"augmentation": "pad-crop", "unlabelled_share": "division", "calibrate_division": True},
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": 9},
    "history": {**PLAIN, "division_history": 3, "augmentation": "pad-crop"},
    "fast": {"preset": "fast", "max_steps": 9},
    "confident warm-up": {**PLAIN, "warmup_confidence_penalty": True, "max_steps": 8},
}


def run(folder, name, processes):
    trainer = make(folder, processes=processes, keywords=None, **RUNS[name])
    assert trainer.args.world_size == processes
    trainer.train()
    return learned(trainer)
