"""Trainings of two CPU processes whose network accelerate shards with FSDP2, for test_fsdp_training.py."""

import copy
import os
from contextlib import contextmanager

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from famus_hf import load_famus
from famus_hf.core.parallel.dtensor import whole
from famus_hf.models.wide_resnet import WideResNetForImageClassification
from tests.helpers import trainers
from tests.helpers.equal_runs import CASES as ALL_CASES
from tests.helpers.equal_runs import make
from tests.helpers.models import build_model
from tests.helpers.trainers import make_trainer

STEPS = 6  # more than an epoch of five
LAUNCHED = {  # what `accelerate launch --use_fsdp --fsdp_version 2 …` sets
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "30",
}  # fmt: skip
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3}
BY_ARGUMENTS = {"fsdp": True, "fsdp_config": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 30}}
CASES = {
    "SGD, all layers, float64": {"layer_sampler": "all"},
    "SGD, learned sampler, float32": {"layer_sampler": "learned", "dtype": "float32"},
    "AdamW, all layers, float32": {"layer_sampler": "all", "dtype": "float32", **ADAMW},
    "AdamW, learned sampler, float64": {"layer_sampler": "learned", **ADAMW},
    "L2R": {**ALL_CASES["L2R"], "max_steps": 4},
    "accumulation": {**ALL_CASES["accumulation"], "max_steps": 4},
    "posterior": {**ALL_CASES["posterior, trusted in training"], "max_steps": 9},
    "posterior, elr": {**ALL_CASES["posterior, elr"], "max_steps": 9},
    "pseudo-clean": {**ALL_CASES["pseudo-clean"], "max_steps": 8},
    "bad examples, accumulation": {**ALL_CASES["bad examples, accumulation"], "max_steps": 4},
}
BLOCKS = {  # how blocks are found, of networks that have some
    "vit": {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "ViTLayer"},
    "batch norm": {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"},
}
REFUSED = {
    "version 1": ({"FSDP_VERSION": "1"}, {}),
    "sharded files": ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {}),
    "offload": ({"FSDP_OFFLOAD_PARAMS": "true"}, {}),
    "checkpointing": ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}),
    "forward": ({}, {"derivative": "forward"}),
    "reverse": ({}, {"derivative": "reverse"}),
    "reused": ({}, {"reuse_virtual_gradient": True}),
    "scaled": ({}, {"scale_example_gradients": True}),
    "scope": ({}, {"virtual_scope": "candidates"}),
    "budget": ({}, {"meta_budget": 0.5}),
    "bf16": ({}, {"bf16": True}),
    "half": ({}, {"dtype": torch.bfloat16}),
    "compile": ({}, {"torch_compile": True}),
    "transformers' checkpointing": ({}, {"gradient_checkpointing": True}),
    "two ways of sharding": (
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"},
        {},
    ),
    "LoRA": ({}, {"adapters": True}),
    "no embeddings": ({}, {"without": "get_input_embeddings"}),
    "beliefs of mixed images": ({}, {"meta_learner": "posterior", "mixup_alpha": 1.0, "meta_optim": None}),
}


def let_accelerate_engage(rank):
    """As if launched with FSDP, past the one thing that keeps accelerate 1.15 from it on CPUs.

    AcceleratorState looks at FSDP only where the processes are not MULTI_CPU. Once gloo and the CPU are chosen, they
    are said to be of another kind; all that follows is accelerate's and transformers' own FSDP2.
    """
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", **LAUNCHED)
    start = PartialState.__init__

    def init(self, *arguments, **keywords):
        start(self, *arguments, **keywords)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def learned(trainer):
    """Everything that moves, by name, whole."""
    parts = {"w": trainer.model, "theta": trainer.meta_learner, "eta": trainer.layer_sampler}
    found = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    return {name: whole(tensor).detach().clone() for name, tensor in found.items()}


@contextmanager
def environment(**variables):
    os.environ.update(variables)
    yield
    for name in variables:
        del os.environ[name]
    os.environ.update(LAUNCHED)


def run(folder, name, settings, processes):
    """Everything that moves, at the start and at the end of a run, and what was counted."""
    settings = {"max_steps": STEPS, "derivative": "finite", **settings}
    if processes == 2 and name.startswith("AdamW"):
        settings |= copy.deepcopy(BY_ARGUMENTS)
    trainer = make(folder, name, settings, processes)
    start = learned(trainer)
    trainer.train()
    assert all(isinstance(parameter, DTensor) == (processes == 2) for parameter in trainer.model.parameters())
    counts = {"times_on": torch.tensor(trainer.meta.times_on), "left_out": torch.tensor(trainer.guard.count)}
    return {"start": start, "end": learned(trainer), "counts": counts}


def resumed(folder, kind):
    """A run, the same from its middle, what the saved model holds, and the names of all files and sharded modules."""
    settings = {"per_device_train_batch_size": 4, "max_steps": 2, "save_strategy": "steps", "save_steps": 1, **ADAMW}
    trainers = []
    with environment(**BLOCKS.get(kind, {})):
        for checkpoint in (None, str(folder / "checkpoint-1")):
            torch.manual_seed(3)
            trainers.append(make_trainer(folder, kind, layer_sampler="learned", **settings))
            trainers[-1].train(resume_from_checkpoint=checkpoint)
    trainers[0].save_model()
    found = {"whole": learned(trainers[0]), "again": learned(trainers[1])}
    found["accuracy"] = torch.tensor([trainer.evaluate()["eval_accuracy"] for trainer in trainers])
    found["files"] = sorted(path.name for path in (folder / "checkpoint-2").iterdir())
    if kind in BLOCKS:
        model, meta_learner, layer_sampler, _ = load_famus(folder)
        parts = {"w": model, "theta": meta_learner, "eta": layer_sampler}
        found["loaded"] = {
            f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()
        }
    if kind == "batch norm":
        trainers[1].train()
        found["twice"] = learned(trainers[1])
    found["sharded"] = [name for name, module in trainers[0].model.named_modules() if isinstance(module, FSDPModule)]
    return found


def refusal(folder, variables, settings):
    settings = dict(settings)
    with environment(**variables), pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as error:
        if "without" in settings:
            patch.delattr(WideResNetForImageClassification, settings.pop("without"))
        if settings.pop("adapters", False):
            config = LoraConfig(target_modules=["classifier"])
            patch.setattr(trainers, "build_model", lambda *given: get_peft_model(build_model(*given), config))
        make_trainer(folder, "batch norm", **settings)
    return str(error.value)


def work(rank, folder):
    let_accelerate_engage(rank)
    return {
        "cases": {name: run(folder / name, name, settings, 2) for name, settings in CASES.items()},
        "resumed": {kind: resumed(folder / kind, kind) for kind in ("vit", "batch norm", "called group norm")},
        "refused": {name: refusal(folder / "unused", *asked) for name, asked in REFUSED.items()},
    }
