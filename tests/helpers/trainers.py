"""Trainers of one tiny network on random examples, and all that they hold afterwards."""

import torch
from transformers import default_data_collator

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone
from famus_hf.core.meta_learners.d2l import D2L
from famus_hf.metrics import compute_accuracy
from tests.helpers.datasets import IMAGE_CLASSES, pictures, texts
from tests.helpers.models import CLASSES, build_batch, build_model, build_text_model, build_tokenizer


class Examples(torch.utils.data.Dataset):
    """Small random images that already are model inputs, with a record column each."""

    def __init__(self, size, first_index=0, seed=0, dtype=torch.float32):
        self.batch = build_batch("batch norm", size, dtype=dtype, seed=seed)
        self.first_index = first_index

    def __len__(self):
        return len(self.batch["labels"])

    def __getitem__(self, row):
        label = int(self.batch["labels"][row])
        return {
            "pixel_values": self.batch["pixel_values"][row],
            "labels": label,
            "index": self.first_index + row,
            "clean_label": (label + (row % 3 == 0)) % CLASSES,
        }


def turning_d2l():
    """A D2L to which any epoch stands out, so that it turns after the first that is not plain."""
    learner = D2L()
    learner._stands_out = lambda dimension: True
    return learner


def make_args(folder, **changes):
    settings = {
        "per_device_train_batch_size": 8, "max_steps": 6, "logging_steps": 2, "save_strategy": "no", "seed": 5,
        "disable_tqdm": True, "use_cpu": True, "report_to": "none", "meta_learner": "mw-net",
    }  # fmt: skip
    if changes.get("meta_learner") not in (
        "l2r",
        "l2b",
        "jamal",
        "forward",
        "m-correction",
        "mentornet",
        "mentormix",
        "d2l",
        "lccn",
    ):  # which have no parameters
        settings |= {"meta_learning_rate": 0.05, "meta_optim": "sgd"}
    return FaMUSTrainingArguments(str(folder), **{**settings, **changes})


def make_trainer(folder, kind="batch norm", dtype=torch.float32, keywords=None, **changes):
    return FaMUSTrainer(
        build_model(kind, dtype),
        make_args(folder, **changes),
        train_dataset=Examples(40, dtype=dtype),
        eval_dataset=Examples(19, 2000, seed=7, dtype=dtype),
        meta_dataset=Examples(11, 1000, seed=8, dtype=dtype),
        compute_metrics=compute_accuracy,
        **(keywords or {}),
    )


class RecordingCollator:
    """Keeps the batches of the training set and of the meta set apart, in order."""

    def __init__(self):
        self.train, self.meta, self.rows = [], [], []

    def __call__(self, examples):
        batch = default_data_collator(examples)
        is_meta = 1000 <= examples[0]["index"] < 2000
        (self.meta if is_meta else self.train).append({name: batch[name] for name in ("pixel_values", "labels")})
        if not is_meta:
            self.rows.append(batch["index"])
        return batch


def state_of(trainer):
    """Everything that must come back after a resume: w, θ, η and all optimizers, flat by name."""
    tensors = {f"w.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    tensors |= {f"theta.{name}": tensor for name, tensor in trainer.meta.meta_learner.state_dict().items()}
    tensors |= {f"eta.{name}": tensor for name, tensor in trainer.meta.layer_sampler.state_dict().items()}
    optimizers = {
        "w": trainer.optimizer, "theta": trainer.meta.learner_optimizer, "eta": trainer.meta.sampler_optimizer
    }  # fmt: skip
    for owner, optimizer in optimizers.items():
        for place, state in ({} if optimizer is None else optimizer.state_dict()["state"]).items():
            values = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
            tensors |= {f"{owner}.state.{place}.{name}": value for name, value in values.items()}
    return tensors


def learned(trainer):
    """Everything that moves, by name."""
    parts = {"w": trainer.model, "theta": trainer.meta_learner, "eta": trainer.layer_sampler}
    return {f"{part}.{name}": t.clone() for part, module in parts.items() for name, t in module.state_dict().items()}


def make_image_trainer(folder, model=None, callbacks=(), processing_class=None, **changes):
    settings = {
        "per_device_train_batch_size": 8, "max_steps": 6, "save_strategy": "no", "seed": 5, "disable_tqdm": True,
        "use_cpu": True, "report_to": "none", "augmentation": "pad-crop", "layer_sampler": "all",
        "meta_learner": "mw-net",
    }  # fmt: skip
    torch.manual_seed(1)
    return FaMUSTrainer(
        model or build_backbone("tiny", IMAGE_CLASSES),
        FaMUSTrainingArguments(str(folder), **{**settings, **changes}),
        train_dataset=pictures(48, 0),
        meta_dataset=pictures(24, 1),
        eval_dataset=pictures(9, 2),
        processing_class=processing_class,
        callbacks=list(callbacks),
    )


def make_text_trainer(folder, model=None, size=40, processing_class=None, **settings):
    return FaMUSTrainer(
        build_text_model() if model is None else model,
        make_args(folder, **settings),
        train_dataset=texts(size),
        eval_dataset=texts(20, 2, 2000),
        meta_dataset=texts(12, 1, 1000),
        processing_class=processing_class or build_tokenizer(),
        compute_metrics=compute_accuracy,
    )
