"""Two forked processes train one network together (DDP on the CPU), while disks fill up and processes are killed.

tests/helpers/killed_runs.py runs `main(folder)`
"""

import os
import signal
import socket
from pathlib import Path

import torch

from famus_hf.errors import SaveError
from famus_hf.storage.checkpoints import fault_of
from tests.helpers.forks import forked
from tests.helpers.trainers import make_trainer

SETTINGS = {"meta_learner": "none", "max_steps": 5, "save_strategy": "steps", "save_steps": 1}


def train(rank, port, folder, change, resume):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    trainer = make_trainer(folder, **SETTINGS)
    assert trainer.args.world_size == 2
    if change is not None:
        change(trainer, rank)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except SaveError as error:
        Path(f"{folder}.{rank}").write_text(str(error))
        return
    torch.save(trainer.model.state_dict(), f"{folder}.{rank}.pt")


def together(folder, change=None, resume=None, killed=False):
    """Both processes; where one of them is killed, the other must not wait for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [forked(train, rank, port, folder, change, resume) for rank in (0, 1)]
    signal.alarm(60)
    for child in children:
        status = os.waitpid(child, 0)[1]
        assert killed or status == 0, f"a process ended with {status}"


def at_step(trainer, step, act):
    """Does something instead of writing random states at a step."""
    write = trainer._save_rng_state
    trainer._save_rng_state = lambda folder: act() if trainer.state.global_step == step else write(folder)


def disk_full_for_one(trainer, rank):
    def full():
        raise OSError(28, "No space left on device")

    if rank == 1:
        at_step(trainer, 3, full)


def kill_one(trainer, rank):
    if rank == 0:
        at_step(trainer, 4, lambda: os.kill(os.getpid(), signal.SIGKILL))


def main(root):
    root.mkdir()
    whole, folder = root / "whole", root / "parts"
    together(whole)
    together(folder, disk_full_for_one)
    sentences = {Path(f"{folder}.{rank}").read_text() for rank in (0, 1)}
    assert len(sentences) == 1 and "'checkpoint-3' could not be saved" in sentences.pop()
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    together(folder, kill_one, resume=True, killed=True)
    together(folder, resume=True)
    assert not (folder / ".unfinished").exists()
    for step in range(1, 6):
        checkpoint = folder / f"checkpoint-{step}"
        assert fault_of(checkpoint) is None
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}
    for rank in (0, 1):
        found, expected = torch.load(f"{folder}.{rank}.pt"), torch.load(f"{whole}.{rank}.pt")
        assert all(torch.equal(found[name], expected[name]) for name in expected)
