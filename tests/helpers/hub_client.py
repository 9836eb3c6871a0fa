"""A process that talks to a loopback Hub and does what it is told, so that one start serves many tests.

    with HubClient(hub, home) as client:
        answer = client.call("train", folder="out", repo="user/name")

An answer has `result`, `error` (class and message of what was raised, or None), `printed` (standard output and error),
`output` (standard output alone) and `log` (warnings of famus_hf). The functions below run in that process.
"""

import contextlib
import gc
import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
OWN = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}


class HubClient:
    def __init__(self, hub, home):
        self.home = home
        environment = {**os.environ, **OWN, **hub.environment(home)}
        command = [sys.executable, "-m", "tests.helpers.hub_client"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def call(self, function, **keywords):
        self.process.stdin.write(json.dumps([function, keywords], default=str) + "\n")
        self.process.stdin.flush()
        return SimpleNamespace(**json.loads(self.process.stdout.readline()))

    def done(self, function, **keywords):
        """The answer to a call that must not fail."""
        answer = self.call(function, **keywords)
        assert answer.error is None, (answer.error, answer.printed[-3000:])
        return answer


# ---- In the client ----


def pushing_trainer(folder, repo, callbacks=(), **changes):
    from tests.helpers.trainers import make_trainer

    settings = {
        "push_to_hub": True, "hub_model_id": repo, "hub_strategy": "checkpoint", "save_strategy": "steps",
        "save_steps": 3, "learning_rate": 0.1, "meta_optim": "adam",
    }  # fmt: skip
    return make_trainer(folder, keywords={"callbacks": list(callbacks)}, **{**settings, **changes})


def callback_at(stop_at, strange=False):
    """Stops after a step, as if the machine were lost; gives the schedule something that is no plain value."""
    from transformers import TrainerCallback

    class Change(TrainerCallback):
        def on_train_begin(self, args, state, control, lr_scheduler=None, **keywords):
            if strange:
                lr_scheduler.folder = Path()

        def on_step_end(self, args, state, control, **keywords):
            if state.global_step == stop_at:
                control.should_training_stop = True

    return Change()


def make(folder, repo, **changes):
    pushing_trainer(folder, repo, **changes)


def train(folder, repo, resume=None, stop_at=None, push=False, strange=False, **changes):
    """Trains, and leaves all that has been learned in final.pt; a strange schedule's state is no plain value."""
    import torch

    from tests.helpers.trainers import state_of

    trainer = pushing_trainer(folder, repo, [callback_at(stop_at, strange)], **changes)
    trainer.train(resume_from_checkpoint=resume)
    torch.save(state_of(trainer), Path(folder) / "final.pt")
    if push == "later":
        trainer.push_to_hub(blocking=False).result()
    elif isinstance(push, dict):
        trainer.push_to_hub(**push)
    elif push:
        trainer.push_to_hub(dataset_name="random images")
    return trainer.state.global_step


def fetch(folder, repo, **changes):
    return pushing_trainer(folder, repo, **changes).fetch_checkpoint(repo)


def train_in_two(folder, repo, resume=None, stop_at=None):
    """The same by two processes; each leaves final-RANK.pt."""
    from tests.helpers.forks import ended_by, forked

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for child in [forked(one_of_two, rank, port, folder, repo, resume, stop_at) for rank in (0, 1)]:
        ended_by(child)


def one_of_two(rank, port, folder, repo, resume, stop_at):
    import torch

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    trainer = pushing_trainer(folder, repo, [callback_at(stop_at)], meta_learner="none")
    assert trainer.args.world_size == 2
    trainer.train(resume_from_checkpoint=resume)
    torch.save(trainer.model.state_dict(), Path(folder) / f"final-{rank}.pt")


def push_folder(folder, repo):
    from famus_hf.hub import load as hub
    from famus_hf.hub import push as pushes

    files = {name: Path(folder) / name for name in hub.files_to_push(folder)}
    pushes.push_files(files, pushes.prepare_repository(repo, token=None, private=None, revision=None), message="push")


def load(repo, token=None, environment=(), **keywords):
    from famus_hf import load_famus

    with variables(environment):
        return [type(part).__name__ for part in load_famus(repo, token=token, **keywords)]


def execute(code, environment=()):
    """As a user's own script."""
    with variables(environment):
        exec(code, {"__name__": "__main__"})


@contextlib.contextmanager
def variables(environment):
    """Of the environment, until the end of a call."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_famus(*, argv):
    from famus_hf.cli import run as script

    script.main(argv)


def release(*, argv):
    """Its proofs run in this process: tests/scripts/test_release.py has the clean ones."""
    import release as script

    from tests.helpers.command_line import in_this_process

    script.in_clean_process = in_this_process
    script.main(argv)


def push_dataset(*, argv):
    from famus_hf.cli import push_dataset as script

    script.main(argv)


def label_report(*, argv):
    from famus_hf.cli import label_report as script

    script.main(argv)


def relabel(*, argv):
    from famus_hf.cli import relabel as script

    script.main(argv)


class Records(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


class Output(io.StringIO):
    """Keeps what is written and passes it on."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def write(self, text):
        self.other.write(text)
        return super().write(text)


def answer_to(function, keywords):
    records, printed, result, error = Records(), io.StringIO(), None, None
    output = Output(printed)
    logging.getLogger("famus_hf").addHandler(records)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(printed):
            result = globals()[function](**keywords)
    except (Exception, SystemExit) as raised:
        error = f"{type(raised).__name__}: {raised}"
    finally:
        logging.getLogger("famus_hf").removeHandler(records)
    found = {"printed": printed.getvalue(), "output": output.getvalue(), "log": records.messages}
    return {"result": result, "error": error, **found}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    import huggingface_hub.utils._http as of_the_client
    import torch

    from famus_hf.hub import push as pushes

    torch.set_num_threads(1)
    pushes.FIRST_PAUSE = 0.01
    of_the_client.time = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: time.sleep(seconds / 100)})
    gc.freeze()
    for line in sys.stdin:
        answers.write(json.dumps(answer_to(*json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
