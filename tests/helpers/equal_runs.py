"""Training runs of two processes, which test_processes.py repeats in one."""

import os

import pyarrow.parquet as pq
import torch

from famus_hf import MLC, FaMUSTrainer, LearnedSampler, MWNet
from famus_hf.core.meta_learners.corrections import ForwardCorrection
from famus_hf.core.meta_learners.lccn import LCCN
from famus_hf.core.meta_learners.m_correction import MCorrection
from famus_hf.core.meta_learners.mentor_mix import MentorMix
from famus_hf.core.meta_learners.mentor_net import MentorNet
from famus_hf.core.meta_learners.posterior import PosteriorTargets
from famus_hf.storage.diagnostic_tables import MEASURES
from tests.helpers import bilateral_runs, pair_runs, two_network_runs
from tests.helpers.datasets import texts
from tests.helpers.models import build_audio_model, build_model, build_text_model, build_tokenizer
from tests.helpers.trainers import Examples, learned, make_args, turning_d2l

STEPS = 12  # more than two epochs of five
GLOBAL_BATCH = 8
LEARNED = {"layer_sampler": "learned", "sampler_learning_rate": 0.01}
POSTERIOR = {"meta_learner": "posterior", "layer_sampler": "all", "meta_learning_rate": 0.01}
CASES = {
    "MW-Net": {"layer_sampler": "all"},
    "MW-Net, weights not divided by their sum": {"layer_sampler": "all", "weight_normalization": "mean"},
    "FaMUS": LEARNED,
    "L2R": {"meta_learner": "l2r", "layer_sampler": "all"},
    "FaMUS on L2R": {"meta_learner": "l2r", **LEARNED},
    "MLC": {"meta_learner": "mlc", "layer_sampler": "all"},
    "reverse": {"layer_sampler": "all", "candidate_layers": "3", "derivative": "reverse"},
    "finite": {"layer_sampler": "all", "derivative": "finite"},
    "reused gradient": {"layer_sampler": "all", "reuse_virtual_gradient": True, "meta_interval": 2},
    "scaled gradients": {"layer_sampler": "all", "scale_example_gradients": True},
    "virtual scope": {"layer_sampler": "all", "virtual_scope": "candidates", "candidate_layers": "3"},
    "AdamW": {"layer_sampler": "all", "optim": "adamw_torch", "learning_rate": 1e-3},
    "accumulation": {**LEARNED, "gradient_accumulation_steps": 2},
    "accumulation, reused gradient": {
        "layer_sampler": "all", "gradient_accumulation_steps": 2, "reuse_virtual_gradient": True
    },
    "accumulation, scaled gradients": {
        "layer_sampler": "all", "gradient_accumulation_steps": 2, "scale_example_gradients": True
    },
    "pseudo-clean": {"layer_sampler": "all", "meta_set": "pseudo-clean", "plain_warmup_epochs": 1},
    "small meta batch": {"layer_sampler": "all", "meta_batch_size": 6},
    "eleven meta examples for two": {"layer_sampler": "all", "meta_batch_size": 16},
    "posterior": {**POSTERIOR, "meta_interval": 2},
    "posterior, likelihood of labels": {**POSTERIOR, "posterior_form": "likelihood", "transition_counts": "each-epoch"},
    "posterior, trusted in training": {**POSTERIOR, "train_on_trusted": True},
    "posterior, elr": {**POSTERIOR, "train_on_trusted": True, "elr_weight": 2.0},
    "posterior, accumulation": {**POSTERIOR, "gradient_accumulation_steps": 2, "max_steps": 9},
    "posterior, pseudo-clean": {**POSTERIOR, "meta_set": "pseudo-clean"},
    "forward": {"meta_learner": "forward", "layer_sampler": "all", "plain_warmup_epochs": 1.4},
    "M-correction": {"meta_learner": "m-correction", "layer_sampler": "all", "plain_warmup_epochs": 1.4},
    "MentorNet": {"meta_learner": "mentornet", "layer_sampler": "all"},
    "MentorMix": {"meta_learner": "mentormix", "layer_sampler": "all", "plain_warmup_epochs": 0},
    "D2L": {"meta_learner": "d2l", "layer_sampler": "all", "plain_warmup_epochs": 1, "max_steps": 17},
    "LCCN": {"meta_learner": "lccn", "layer_sampler": "all", "plain_warmup_epochs": 1.4, "max_steps": 17},
    "averaged weights": {"layer_sampler": "all", "ema_decay": 0.9},
    "weighted examples": {"layer_sampler": "all", "sample_weight_column": "w"},
    "weighted examples, accumulation": {
        **POSTERIOR, "gradient_accumulation_steps": 2, "max_steps": 9, "sample_weight_column": "w"
    },
    "bad examples": {"layer_sampler": "all"},
    "bad examples, accumulation": {**LEARNED, "gradient_accumulation_steps": 2},
}  # fmt: skip
RESUMED = ("FaMUS", "accumulation", "pseudo-clean", "averaged weights",
           "posterior, trusted in training")  # fmt: skip
OTHERS = ("text", "audio")
# Both processes hold the same, but not what one process does: rounding and batch norm's statistics are of a share.
OF_SHARES = {
    "bf16": {"layer_sampler": "all", "bf16": True},
    "averaged batch norm": {"layer_sampler": "all", "ema_decay": 0.9, "kind": "batch norm"},
}


class SomeBadExamples(Examples):
    """One image in ten is not a number."""

    def __getitem__(self, row):
        example = super().__getitem__(row)
        return {**example, "pixel_values": example["pixel_values"] / (0 if row % 10 == 3 else 1)}


class WeightedExamples(Examples):
    """One in four counts nothing, the others from 1 to 3."""

    def __getitem__(self, row):
        return {**super().__getitem__(row), "w": row % 4}


def make(folder, name, settings, processes):
    """The trainer of a case: a global batch of 8, whatever the number of processes."""
    torch.manual_seed(3)
    settings = dict(settings)
    learner = {
        "mlc": lambda: MLC(4), "l2r": lambda: None, "forward": lambda: ForwardCorrection(4),
        "m-correction": MCorrection, "mentornet": lambda: MentorNet(0.6), "mentormix": MentorMix, "d2l": turning_d2l,
        "lccn": lambda: LCCN(4, 40),
        "posterior": lambda: PosteriorTargets(4, settings.get("posterior_form", "posterior")),
    }.get(settings.get("meta_learner"), lambda: MWNet(
        weight_normalization=settings.get("weight_normalization", "sum")))()  # fmt: skip
    network = settings.pop("kind", "called group norm")
    dtype = getattr(torch, settings.pop("dtype", "float32" if settings.get("bf16") else "float64"))
    sampler = LearnedSampler().to(dtype) if settings["layer_sampler"] == "learned" else None
    settings["meta_batch_size"] = settings.get("meta_batch_size", GLOBAL_BATCH) // processes
    untaught = settings.get("meta_learner") in ("forward", "m-correction", "mentornet", "mentormix", "d2l", "lccn")
    without_meta = untaught or settings.get("meta_set") == "pseudo-clean"
    kind = {"bad": SomeBadExamples, "weighted": WeightedExamples}.get(name.partition(" ")[0], Examples)
    args = make_args(
        folder,
        per_device_train_batch_size=GLOBAL_BATCH // processes,
        **{"max_steps": STEPS, "nan_policy": "skip", **settings},
    )
    return FaMUSTrainer(
        build_model(network, dtype),
        args,
        train_dataset=kind(40, dtype=dtype),
        meta_dataset=None if without_meta else Examples(11, 1000, seed=8, dtype=dtype),
        meta_learner=None if learner is None else learner.to(dtype),
        layer_sampler=sampler,
    )


def make_other(folder, name, processes):
    """A trainer of texts, whose batches are padded by each process to its own longest, or of features of recordings."""
    size = GLOBAL_BATCH // processes
    # A learned sampler looks at standardised gradients, and those by biases of keys are rounding error alone: of the
    # second network 4e-9 of its η differ.
    settings = {"text": {"optim": "adamw_torch", "learning_rate": 1e-3, **LEARNED},
                "audio": {"learning_rate": 0.01, "layer_sampler": "all"}}  # fmt: skip
    args = make_args(
        folder, per_device_train_batch_size=size, meta_batch_size=size, max_steps=6, **settings[name]
    )  # fmt: skip
    sampler = LearnedSampler().double() if name == "text" else None
    keywords = {"meta_learner": MWNet().double(), "layer_sampler": sampler}
    if name == "text":
        model = build_text_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
        data = {"train_dataset": texts(40), "meta_dataset": texts(12, 1, 1000), "processing_class": build_tokenizer()}
        return FaMUSTrainer(model, args, **data, **keywords)
    features = [
        [
            {"input_values": example["pixel_values"].flatten()[:128].reshape(32, 4).repeat(1, 4), "index": first + row,
             "labels": example["labels"] % 3}
            for row, example in enumerate(Examples(size, seed=seed, dtype=torch.float64))
        ]
        for size, seed, first in ((40, 5, 0), (11, 8, 1000))
    ]  # fmt: skip
    model = build_audio_model("ast", num_labels=3).double()
    return FaMUSTrainer(model, args, train_dataset=features[0], meta_dataset=features[1], **keywords)


def run_other(folder, name, processes):
    torch.manual_seed(3)
    trainer = make_other(folder, name, processes)
    assert trainer.args.world_size == processes
    trainer.train()
    return learned(trainer)


def run(folder, name, settings, processes):
    trainer = make(folder, name, settings, processes)
    assert trainer.args.world_size == processes
    trainer.train()
    beliefs = {}
    if trainer.beliefs is not None:
        trainer.beliefs.gather(trainer.processes)
        beliefs = {f"beliefs.{key}": getattr(trainer.beliefs, key) for key in ("sums", "visits", "labels", "losses")}
    return {**learned(trainer), **beliefs, "times_on": torch.tensor(trainer.meta.times_on)}


def resumed(folder, settings, processes):
    """The states of a run, and of one that was stopped after three steps and resumed."""
    settings = {**settings, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = make(folder / "whole", "MW-Net", settings, processes)
    whole.train()
    again = make(folder / "whole", "MW-Net", settings, processes)
    again.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-3"))
    return learned(whole), learned(again)


def reported(folder, processes):
    """The label report of an odd number of examples, by a network that has learned for three steps."""
    trainer = make(folder, "MW-Net", {**CASES["MW-Net"], "max_steps": 3}, processes)
    trainer.train()
    report = trainer.save_label_report(Examples(41, seed=5, dtype=torch.float64))
    assert not trainer.is_world_process_zero() or (folder / "label_report.parquet").is_file()
    return {name: torch.tensor(report[name][:]) for name in ("index", "label", "loss", "weight", "clean_probability")}


def diagnosed(folder, processes):
    """What the first process wrote into the tables of its diagnostics, seconds left out; flat by column."""
    flags = {"log_stage_times": 2, "log_meta_gradient": 2, "log_weights": 2, "log_layers": 2, "meta_gradient_draws": 3}
    trainer = make(folder, "FaMUS", {**LEARNED, **flags, "max_steps": 4}, processes)
    trainer.train()
    columns = {"meta_gradient": MEASURES, "weights": ("x", "value"), "layers": ("share_on",), "stage_times": ("step",)}
    found = {}
    for name, own in columns.items() if trainer.is_world_process_zero() else ():
        table = pq.read_table(folder / "diagnostics" / f"{name}.parquet").to_pandas()
        found |= {f"{name}.{column}": torch.tensor(table[column].to_numpy()).nan_to_num() for column in own}
    return found


def work(rank, folder):
    """All cases in one of two processes: what was learned, resumed runs, a report, the files of a checkpoint."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    found = {name: run(folder / "runs" / name, name, own, 2) for name, own in {**CASES, **OF_SHARES}.items()}
    again = {name: resumed(folder / "resumed" / name, CASES[name], 2) for name in RESUMED}
    networks = {name: two_network_runs.run(folder / "networks" / name, name, 2) for name in two_network_runs.RUNS}
    pairs = {name: pair_runs.run(folder / "pairs" / name, name, 2) for name in pair_runs.RUNS}
    branches = {name: bilateral_runs.run(folder / "branches" / name, name, 2) for name in bilateral_runs.RUNS}
    files = sorted(path.name for path in (folder / "resumed" / "FaMUS" / "whole" / "checkpoint-6").iterdir())
    return {
        "runs": found, "networks": networks, "pairs": pairs, "branches": branches, "resumed": again, "files": files,
        "report": reported(folder / "report", 2), "diagnosed": diagnosed(folder / "diagnosed", 2),
        "others": {name: run_other(folder / name, name, 2) for name in OTHERS},
    }  # fmt: skip
