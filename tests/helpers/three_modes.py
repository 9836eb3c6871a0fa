"""One toy classifier under transformers' Trainer and under ours, plainly and with MW-Net and the learned sampler."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    GradientCheckpointingLayer,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments

MODES = ("control", "plain", "meta")
OURS = ("plain", "meta")
VOCABULARY, CLASSES, LENGTH = 16, 3, 5
TRAIN, EVAL, META = 0, 1000, 2000  # the first index of each set
SHARED = {
    "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 3, "learning_rate": 0.05,
    "weight_decay": 0.0, "optim": "sgd", "optim_args": "momentum=0.0", "max_grad_norm": 0.0, "logging_steps": 1,
    "lr_scheduler_type": "constant", "save_strategy": "no", "seed": 5, "data_seed": 5, "use_cpu": True,
    "disable_tqdm": True, "report_to": "none", "dataloader_drop_last": False,
}  # fmt: skip
OF_OURS = {"plain": {"meta_learner": "none"}, "meta": {"meta_learner": "mw-net", "layer_sampler": "learned"}}


class ToyConfig(PreTrainedConfig):
    model_type = "toy"

    def __init__(self, width=8, num_labels=CLASSES, **settings):
        super().__init__(num_labels=num_labels, **settings)
        self.width = width


class ToyLayer(GradientCheckpointingLayer):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden):
        return torch.tanh(self.linear(hidden))


class ToyClassifier(PreTrainedModel):
    """Mean embedding, a layer, a classifier; notes in which numbers and in batches of which size it has computed."""

    config_class = ToyConfig
    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(VOCABULARY, config.width)
        self.hidden = ToyLayer(config.width)
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.dtypes, self.largest_batch = set(), 10**6
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, labels=None):
        if self.training and len(input_ids) > self.largest_batch:
            raise RuntimeError("CUDA out of memory.")
        logits = self.classifier(self.hidden(self.embedding(input_ids).mean(1)))
        self.dtypes.add(logits.dtype)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def make_toy(**settings):
    torch.manual_seed(0)
    return ToyClassifier(ToyConfig(**settings))


def examples(size, first):
    """Words that tell their class, and records."""
    generator = torch.Generator().manual_seed(first)
    labels = torch.arange(size) % CLASSES
    words = torch.randint(VOCABULARY, (size, LENGTH), generator=generator)
    words[:, 0] = labels
    return [
        {"input_ids": words[row], "labels": int(labels[row]), "index": first + row, "clean_label": int(labels[row])}
        for row in range(size)
    ]


class NotingCollator:
    """Notes the rows of each batch of the training set and of the evaluation set; records go no further."""

    def __init__(self):
        self.train, self.eval = [], []

    def __call__(self, rows):
        index = [int(row["index"]) for row in rows]
        if index[0] < META:
            (self.train if index[0] < EVAL else self.eval).append(index)
        return default_data_collator([{name: row[name] for name in ("input_ids", "labels")} for row in rows])


class NotingCallback(TrainerCallback):
    """Notes the events of a run, and the arguments that callbacks are given at its start."""

    def __init__(self):
        self.events, self.args = [], None

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def note(args, state, control, **keywords):
            self.events.append(name)
            self.args = args if name == "on_train_begin" else self.args
            return control

        return note


@dataclass
class Run:
    """A trainer and what was seen of its training.

    Attributes:
        trainer: After it.
        mode: One of MODES.
        folder: Of the run.
        collator: The batches, those that were looked at before training left out.
        noted: The events.
        result: What `act` has returned.
    """

    trainer: Any
    mode: str
    folder: Path
    collator: NotingCollator
    noted: NotingCallback
    result: Any = None
    before: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def log(self):
        return [entry for entry in self.trainer.state.log_history if "loss" in entry]

    @property
    def rates(self):
        return [entry["learning_rate"] for entry in self.log]

    @property
    def evals(self):
        return [entry for entry in self.trainer.state.log_history if "eval_loss" in entry]

    @property
    def groups(self):
        """Groups of the network's optimizer."""
        return self.trainer.optimizer.param_groups

    @property
    def way(self):
        """How far the weights went."""
        now = self.trainer.model.state_dict()
        return sum(((now[name] - start) ** 2).sum() for name, start in self.before.items()).sqrt().item()

    @property
    def weights(self):
        return torch.cat([parameter.detach().flatten() for parameter in self.trainer.model.parameters()])


def make_args(mode, folder, **settings):
    settings = {"output_dir": str(folder), **SHARED, **settings}
    if mode == "control":
        return TrainingArguments(**{"remove_unused_columns": False, **settings})
    return FaMUSTrainingArguments(**{"lr_milestones": [], **OF_OURS[mode], **settings})


def make(mode, folder, settings=None, **keywords):
    """Return a Run whose trainer has not trained yet."""
    collator, noted = NotingCollator(), NotingCallback()
    data = {"train_dataset": examples(16, TRAIN), "eval_dataset": examples(6, EVAL), "data_collator": collator}
    model = {} if "model_init" in keywords else {"model": make_toy()}
    callbacks = [noted, *keywords.pop("callbacks", [])]
    if mode != "control":
        data["meta_dataset"] = examples(8, META)
    kind = keywords.pop("kind", Trainer if mode == "control" else FaMUSTrainer)
    args = make_args(mode, folder, **(settings or {}))
    trainer = kind(args=args, callbacks=callbacks, **{**data, **model, **keywords})
    collator.train.clear()
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    return Run(trainer, mode, Path(folder), collator, noted, before=start)


def run(mode, folder, settings=None, act=None, **keywords):
    """Return a Run after its training; `act` is then called with the trainer."""
    made = make(mode, folder, settings, **keywords)
    made.trainer.train()
    made.result = None if act is None else act(made.trainer)
    return made
