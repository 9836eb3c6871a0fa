"""Runs with a checkpoint after each step, disks that are full, and files that are cut short."""

import errno
import os
from pathlib import Path

import torch
import transformers.modeling_utils
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerState

from famus_hf.hub import meta_net_files as meta_net
from tests.helpers.trainers import make_trainer, state_of

STEPS = 6  # an epoch has five


def run(folder, resume=None, **changes):
    """Trains with a checkpoint after each step."""
    trainer = make_trainer(folder, **{"save_strategy": "steps", "save_steps": 1, "max_steps": STEPS, **changes})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def names(folder):
    return sorted(path.name for path in Path(folder).glob("checkpoint*"))


def assert_same(one, other):
    one, other = state_of(one), state_of(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_one_sentence(text, *parts):
    assert "\n" not in text and ". " not in text and len(text) < 600, text
    for part in parts:
        assert part in text, text


def full(*arguments, **keywords):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_torch(*arguments, **keywords):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 320 vs 214")


def full_for_safetensors(*arguments, **keywords):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


WRITES = {
    "optimizer": (torch, "save", full_for_torch),
    "weights": (transformers.modeling_utils, "safe_save_file", full_for_safetensors),
    "meta_net": (meta_net, "save_file", full_for_safetensors),
    "state": (TrainerState, "save_to_json", full),
    "list of files": (Path, "write_text", full),
    "sync": (os, "fsync", full),
    "rename": (os, "rename", full),
    "folder": (Path, "mkdir", full),
}


class FullAfter(TrainerCallback):
    """From the end of a step on, a function fails as on a full disk."""

    def __init__(self, step, monkeypatch, write):
        self.step, self.monkeypatch, self.write = step, monkeypatch, write

    def on_step_end(self, args, state, control, **keywords):
        if state.global_step == self.step:
            self.monkeypatch.setattr(*self.write)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)
