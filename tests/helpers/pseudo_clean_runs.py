"""Trainers that choose a pseudo-clean meta set, and a record of what they choose."""

import torch
from transformers import TrainerCallback

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments
from tests.helpers.models import CLASSES, build_batch, build_model


class Learnable(torch.utils.data.Dataset):
    """Random images whose label can be learned, 30 % of the labels wrong."""

    def __init__(self, size=64):
        self.batch = build_batch("batch norm", size, seed=3)
        generator = torch.Generator().manual_seed(0)
        self.clean = torch.arange(size) % CLASSES
        self.batch["pixel_values"] += 2 * self.clean[:, None, None, None].float()
        wrong = torch.rand(size, generator=generator) < 0.3
        self.labels = torch.where(wrong, (self.clean + 1) % CLASSES, self.clean)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.batch["pixel_values"][row], "labels": int(self.labels[row]), "index": row,
                "clean_label": int(self.clean[row])}  # fmt: skip


class Recorder(TrainerCallback):
    """The pseudo-clean rows at the end of each step."""

    def __init__(self):
        self.rows = []

    def on_step_end(self, args, state, control, **keywords):
        self.rows.append(tuple(self.trainer.meta_dataset.rows))


def make_trainer(folder, *callbacks, **changes):
    settings = {
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 20, "num_train_epochs": 4, "logging_steps": 4,
        "save_strategy": "no", "seed": 5, "disable_tqdm": True, "use_cpu": True, "report_to": "none",
        "meta_learner": "mw-net",
    }  # fmt: skip
    recorder = Recorder()
    recorder.trainer = FaMUSTrainer(
        build_model("batch norm"),
        FaMUSTrainingArguments(str(folder), **{**settings, **changes}),
        train_dataset=Learnable(),
        callbacks=[recorder, *callbacks],
    )
    return recorder.trainer, recorder
