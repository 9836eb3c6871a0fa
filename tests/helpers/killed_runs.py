"""Trains in forked children, kills them, resumes until the end and compares; one process imports everything once.

A run is killed at random moments, and in the middle of the calls that write, sync, rename and remove files. Then two
processes train together. `main` prints one line of JSON: how many kills there were and where. It raises and
says why as soon as something is wrong.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import safetensors.torch
import torch
import transformers.modeling_utils
from transformers.trainer_utils import get_last_checkpoint

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments
from famus_hf.hub import load as hub
from famus_hf.hub import meta_net_files as meta_net
from famus_hf.storage.checkpoints import by_age
from tests.helpers import two_network_runs, two_processes
from tests.helpers.forks import ended_by, forked
from tests.helpers.models import build_model
from tests.helpers.pseudo_clean_runs import Learnable
from tests.helpers.trainers import make_trainer, state_of

KILLS_OF_A_RUN = 7
RUNS = {  # epochs have five steps, with accumulation three; pseudo-clean sets are chosen at steps 4, 8, …
    "accumulation": {"max_steps": 10, "gradient_accumulation_steps": 2, "save_total_limit": 2},
    "given meta set": {"max_steps": 12, "meta_optim": "adam", "meta_interval": 2},
    "one checkpoint": {"max_steps": 12, "save_total_limit": 1},
    "pseudo-clean": {"num_train_epochs": 4, "gradient_accumulation_steps": 2, "plain_warmup_epochs": 1},
    "two networks": {"max_steps": 12, "plain_warmup_epochs": 0.5, "division_history": 2},
}


def trainer_of(name, folder):
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.1, **RUNS[name]}
    if name == "two networks":
        return two_network_runs.make(folder, "batch norm", torch.float32, **settings)
    if name != "pseudo-clean":
        return make_trainer(folder, **settings)
    args = FaMUSTrainingArguments(
        str(folder), per_device_train_batch_size=8, logging_steps=4, seed=5, disable_tqdm=True, use_cpu=True,
        report_to="none", meta_learner="mw-net", **settings,
    )  # fmt: skip
    return FaMUSTrainer(build_model("batch norm"), args, train_dataset=Learnable())


def train(name, folder, resume):
    trainer = trainer_of(name, folder)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    state = two_network_runs.learned(trainer) if name == "two networks" else state_of(trainer)
    torch.save(state, folder / "final.pt")


# ---- Where a process kills itself ----


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)
    die()


def half_removed(folder):
    for path in sorted(Path(folder).rglob("*"))[::2]:
        if path.is_file():
            path.unlink()
    die()


PLACES = {  # module, function, and what is done at the call
    "torch.save": (torch, "save", lambda call, state, path: (call(state, path), cut(path))),
    "weights": (transformers.modeling_utils, "safe_save_file", lambda call, *a, **k: (call(*a, **k), cut(a[1]))),
    "meta_net": (meta_net, "save_file", lambda call, *a, **k: (call(*a, **k), cut(a[1]))),
    "text": (Path, "write_text", lambda call, path, *a, **k: (call(path, *a, **k), cut(path))),
    "fsync": (os, "fsync", die),
    "before rename": (os, "rename", die),
    "after rename": (os, "rename", lambda call, *a: (call(*a), die())),
    "before replace": (os, "replace", die),
    "after replace": (os, "replace", lambda call, *a: (call(*a), die())),
    "removal": (shutil, "rmtree", lambda call, path, *a, **k: Path(path).exists() and half_removed(path)),
}


def die_at(place, count):
    """From here on this process dies at its count-th call of a function."""
    module, name, act = PLACES[place]
    call, calls = getattr(module, name), 0

    def replacement(*arguments, **keywords):
        nonlocal calls
        calls += 1
        return act(call, *arguments, **keywords) if calls >= count else call(*arguments, **keywords)

    setattr(module, name, replacement)


def train_until(place, count, *arguments):
    if place is not None:
        die_at(place, count)
    train(*arguments)


# ---- What must hold after every kill ----


def check_folder(folder, had_one):
    """Whatever is called a checkpoint is whole: every file loads, without looking at sizes that were written down."""
    found = list(folder.glob("checkpoint-*"))
    assert found or not had_one, "there was a checkpoint, and now there is none"
    for checkpoint in found:
        files = {path.name: path for path in checkpoint.rglob("*") if path.is_file()}
        assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "meta_state.pt", "model.safetensors"} <= files.keys()
        for path in files.values():
            if path.suffix in (".pt", ".pth", ".bin"):
                torch.load(path, weights_only=False)
            elif path.suffix == ".safetensors":
                safetensors.torch.load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
        state = json.loads(files["trainer_state.json"].read_text())
        assert state["global_step"] == int(checkpoint.name.split("-")[1]), checkpoint
    if (folder / "config.json").is_file():
        hub.load_famus(folder)
    return bool(found)


def check_same(name, folder, expected):
    found, wanted = torch.load(folder / "final.pt"), torch.load(expected / "final.pt")
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert torch.equal(found[key], wanted[key]), (name, key)
    assert not list(folder.rglob(".unfinished")) and not list(folder.glob("checkpoint-0*")), "something was left"


def killed_run(name, folder, generator, places, kills):
    """One run with up to `kills` kills on its way to the end. Returns where it was killed."""
    killed, had_one, anew = [], False, False
    while True:
        place = places.pop() if places and len(killed) < kills else None
        resume = None if anew or not by_age(folder) else True
        child = forked(train_until, place, generator.randint(1, 8), name, folder, resume)
        if place is None and len(killed) < kills:
            time.sleep(generator.uniform(0.2, 1.2))
            os.kill(child, signal.SIGKILL)
        if ended_by(child) == 0:
            return killed
        killed.append(place or "random moment")
        had_one = check_folder(folder, had_one)
        anew = generator.random() < 0.15  # a second run into the same folder, over the first one's checkpoints


def main(folder, kills, seed):
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    root, generator, killed, places, runs = Path(folder), random.Random(seed), [], [], 0
    while len(killed) < kills:
        if not places:  # as many random moments as there are places
            places = [*PLACES, *[None] * len(PLACES)]
            generator.shuffle(places)
        name = list(RUNS)[runs % len(RUNS)]
        whole, folder = root / name, root / f"{name} {runs}"
        if not whole.exists():
            ended_by(forked(train, name, whole, None))
        killed += killed_run(name, folder, generator, places, min(KILLS_OF_A_RUN, kills - len(killed)))
        assert Path(get_last_checkpoint(folder)).name == Path(get_last_checkpoint(whole)).name
        check_same(name, folder, whole)
        shutil.rmtree(folder)
        runs += 1
    two_processes.main(root / "two")
    print(json.dumps({"kills": len(killed), "places": sorted(set(killed)), "runs": runs}))
