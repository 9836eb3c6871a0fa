"""Trainings of two CPU processes whose network accelerate shards with FSDP2, for test_fsdp_training.py."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from equal_runs import make
from torch.distributed.tensor import DTensor

from famus_hf.shards import whole

STEPS = 10
FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "30",
}  # fmt: skip
CASES = {
    f"{optimizer}, {sampler}, {dtype}": {"layer_sampler": sampler, "dtype": dtype, **settings}
    for optimizer, settings in {
        "SGD": {},
        "AdamW": {"optim": "adamw_torch", "learning_rate": 1e-3},
    }.items()
    for sampler in ("all", "learned")
    for dtype in ("float64", "float32")
}  # fmt: skip


def let_accelerate_engage(rank, environment=FSDP):
    """What `accelerate launch --use_fsdp` sets, and the one thing that keeps accelerate 1.15 from FSDP on CPUs.

    AcceleratorState looks at the environment only where the processes are not MULTI_CPU. Said to be of another kind
    after gloo and the CPU were chosen, everything that follows is accelerate's and transformers' own FSDP2.
    """
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", **environment
    )  # fmt: skip
    start = PartialState.__init__

    def init(self, *arguments, **keywords):
        start(self, *arguments, **keywords)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def learned(trainer):
    parts = {"w": trainer.model, "theta": trainer.meta_learner, "eta": trainer.layer_sampler}
    found = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    return {name: whole(tensor).detach().clone() for name, tensor in found.items()}


def run(folder, settings, processes):
    trainer = make(folder, "", {"derivative": "finite", "max_steps": STEPS, **settings}, processes)
    trainer.train()
    assert all(isinstance(p, DTensor) == (processes == 2) for p in trainer.model.parameters())
    return {**learned(trainer), "times_on": torch.tensor(trainer.meta.times_on)}


def work(rank, folder):
    let_accelerate_engage(rank)
    return {name: run(f"{folder}/{name}", settings, 2) for name, settings in CASES.items()}
