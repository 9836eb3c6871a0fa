"""Checkpoints: whole or not there, whatever happens while they are written; which of them a run goes on from."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers.modeling_utils
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from famus_hf import load_famus
from famus_hf.cli import run as run_famus
from famus_hf.errors import SaveError
from famus_hf.hub import meta_net_files as meta_net
from famus_hf.storage import checkpoints
from famus_hf.storage.checkpoints import fault_of, to_resume_from
from tests.cli.test_run import SCRIPT, SMALL
from tests.helpers.models import build_model
from tests.trainer.test_trainer import Examples, make_trainer, state_of

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    return run(tmp_path_factory.mktemp("whole"))


# ---- Killed ----


def killed_runs(folder, kills, seed):
    command = [sys.executable, "-m", "tests.helpers.killed_runs", str(folder), str(kills), str(seed)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_runs_that_are_killed_and_resumed_end_bit_identical(tmp_path):
    """A few kills of one process and one of two; a disk that is full for one of the two ends both."""
    assert killed_runs(tmp_path, 4, 0)["kills"] == 4


@pytest.mark.slow
def test_fifty_kills_in_every_kind_of_run_and_of_write(tmp_path):
    found = killed_runs(tmp_path, 50, 1)
    assert found["kills"] == 50 and found["runs"] >= 4 and len(found["places"]) >= 8


def test_at_every_rename_there_is_a_whole_checkpoint(tmp_path, monkeypatch):
    """Also where a second run writes over the only one that the first has left."""
    run(tmp_path, save_total_limit=1)
    seen = []

    def watched(*arguments, call=os.rename):
        for act in (lambda: None, lambda: call(*arguments)):
            act()
            last = get_last_checkpoint(tmp_path)  # what anyone finds, ourselves aside
            assert last is not None and fault_of(Path(last)) is None
            seen.append(Path(last).name)

    monkeypatch.setattr(os, "rename", watched)
    run(tmp_path, save_total_limit=1, save_steps=STEPS)
    assert seen[:3] == ["checkpoint-6", "checkpoint-06", "checkpoint-06"] and names(tmp_path) == ["checkpoint-6"]
    run(tmp_path, save_total_limit=1)
    assert names(tmp_path) == ["checkpoint-6"]


def test_leftovers_of_a_killed_run_are_removed_at_the_next_start(tmp_path, whole):
    run(tmp_path)
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / ".unfinished" / "checkpoint-7")
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-03")
    os.rename(tmp_path / "checkpoint-4", tmp_path / "checkpoint-04")  # killed between two renames
    for step in (5, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    for newest in (True, get_last_checkpoint(tmp_path)):
        assert_same(whole, run(tmp_path, newest, save_strategy="no"))
        assert names(tmp_path) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
        assert not (tmp_path / ".unfinished").exists()


def test_a_run_that_has_ended_is_left_as_it_is(tmp_path, whole):
    """transformers would train on to the end of the epoch, of which this run has done a part."""
    assert STEPS % 5 != 0
    for step in (STEPS - 1, STEPS):
        resumed = run(tmp_path, str(Path(whole.args.output_dir) / f"checkpoint-{step}"))
        assert resumed.state.global_step == STEPS
        assert_same(whole, resumed)


def test_early_stopping_comes_back_as_it_was_and_more_patience_goes_on(tmp_path):
    def stopping(patience, resume=None):
        return run(
            tmp_path, resume, max_steps=30, eval_strategy="steps", eval_steps=1, learning_rate=0.0,
            metric_for_best_model="accuracy", keywords={"callbacks": [EarlyStoppingCallback(patience)]},
        ).state.global_step  # fmt: skip

    assert stopping(3) == 4
    assert stopping(3, str(tmp_path / "checkpoint-2")) == 4, "one of three chances was gone"
    assert stopping(3, str(tmp_path / "checkpoint-4")) == 4, "it had stopped"
    assert stopping(5, str(tmp_path / "checkpoint-4")) == 6


def test_a_callback_that_is_new_after_a_resume_is_saved_too(tmp_path):
    run(tmp_path, max_steps=2)
    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "accuracy"}
    run(tmp_path, True, max_steps=4, keywords={"callbacks": [EarlyStoppingCallback(9)]}, **settings)
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["EarlyStoppingCallback"]["args"]["early_stopping_patience"] == 9


def test_a_checkpoint_has_all_that_transformers_saves(tmp_path, whole):
    args = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    Trainer(build_model("batch norm", torch.float32), args, train_dataset=Examples(40)).train()
    theirs = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    ours = {path.name for path in (Path(whole.args.output_dir) / "checkpoint-2").iterdir()}
    assert ours - theirs == {"meta_net", "meta_state.pt", "checkpoint_files.json"} and theirs <= ours
    state = json.loads((Path(whole.args.output_dir) / "checkpoint-2" / "trainer_state.json").read_text())
    assert state.keys() == json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text()).keys()


# ---- Disk full ----


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


@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_ends_the_run_in_one_sentence_and_older_checkpoints_stay(tmp_path, monkeypatch, write, whole):
    with monkeypatch.context() as patch, pytest.raises(SaveError) as error:
        run(tmp_path, keywords={"callbacks": [FullAfter(3, patch, WRITES[write])]})
    assert_one_sentence(str(error.value), "'checkpoint-3' could not be saved in", "MB are free there", "resume_from")
    if write != "optimizer":
        assert "No space left on device" in str(error.value)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert not (tmp_path / ".unfinished").exists()
    assert to_resume_from(True, tmp_path) == str(tmp_path / "checkpoint-2")
    if write == "rename":
        assert_same(whole, run(tmp_path, True))


@pytest.mark.parametrize("write", ["weights", "meta_net", "optimizer", "sync"])
def test_a_full_disk_at_the_end_leaves_the_earlier_model(tmp_path, monkeypatch, write, whole):
    whole.save_model(str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = make_trainer(tmp_path, max_steps=1)
    other.train()
    with monkeypatch.context() as patch, pytest.raises(SaveError) as error:
        patch.setattr(*WRITES[write])
        other.save_model()
    assert_one_sentence(str(error.value), "'model' could not be saved in")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_line_says_that_files_can_t_grow_and_exits(tmp_path):
    """A limit of the system on the size of files, as real as a full disk and possible everywhere."""
    flags = [*SMALL, "--max_train_samples", "100", "--per_device_train_batch_size", "20", "--output_dir", str(tmp_path)]
    run_famus.main([*flags, "--num_train_epochs", "1"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("checkpoint-*/*") if path.is_file()}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, str(SCRIPT), *flags, "--resume_from_checkpoint", "true"]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=300)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("run_famus.py: error: 'checkpoint-")
    assert_one_sentence(last, "could not be saved")
    assert before and {path: path.read_bytes() for path in tmp_path.rglob("checkpoint-*/*") if path.is_file()} == before
    assert not (tmp_path / ".unfinished").exists()


# ---- Damaged ----


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_file_is_named_with_the_checkpoint_to_use_instead(tmp_path, damage):
    run(tmp_path, max_steps=2)
    newest = tmp_path / "checkpoint-2"
    files = sorted(path.relative_to(newest).as_posix() for path in newest.rglob("*") if path.is_file())
    assert len(files) >= 11
    for name in files:
        copy = tmp_path / "checkpoint-3"
        shutil.copytree(newest, copy)
        damage(copy / name)
        with pytest.raises(ValueError) as error:
            make_trainer(tmp_path).train(resume_from_checkpoint=str(copy))
        assert_one_sentence(str(error.value), "is damaged", name, f"resume from {str(newest)!r} instead")
        shutil.rmtree(copy)


def test_the_newest_whole_one_leads_to_the_same_end(tmp_path, whole, caplog):
    run(tmp_path)
    cut(tmp_path / "checkpoint-6" / "optimizer.pt")
    (tmp_path / "checkpoint-5" / "meta_net" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert_same(whole, run(tmp_path, True))
    for step, file in ((6, "optimizer.pt has"), (5, "meta_net/model.safetensors is missing")):
        assert f"checkpoint-{step} is damaged ({file}" in caplog.text
    assert [fault_of(tmp_path / f"checkpoint-{step}") for step in (5, 6)] == [None, None], "written anew"


def test_where_none_is_whole_that_is_said(tmp_path):
    with pytest.raises(ValueError, match="found no checkpoint"):
        run(tmp_path, True)
    with pytest.raises(ValueError, match="checkpoint-9' does not exist: there is no whole one"):
        run(tmp_path, str(tmp_path / "checkpoint-9"))
    run(tmp_path, max_steps=1)
    cut(tmp_path / "checkpoint-1" / "scheduler.pt")
    with pytest.raises(ValueError) as error:
        run(tmp_path, True)
    assert_one_sentence(str(error.value), "scheduler.pt has", "there is no whole one in", "start anew")


def test_the_command_line_refuses_a_damaged_checkpoint_before_training(tmp_path, capsys, whole):
    shutil.copytree(Path(whole.args.output_dir) / "checkpoint-1", tmp_path / "checkpoint-1")
    cut(tmp_path / "checkpoint-1" / "model.safetensors")
    for wanted in (str(tmp_path / "checkpoint-1"), "true"):
        with pytest.raises(SystemExit) as end:
            run_famus.main([*SMALL, "--output_dir", str(tmp_path), "--resume_from_checkpoint", wanted])
        assert end.value.code == 2
        assert_one_sentence(capsys.readouterr().err.strip().splitlines()[-1], "model.safetensors has", "is damaged")


# ---- What is kept ----


@pytest.mark.parametrize("meta_learner", ["mw-net", "none"])
def test_checkpoints_without_optimizers_are_not_resumed(tmp_path, meta_learner):
    run(tmp_path, max_steps=2, save_only_model=True, meta_learner=meta_learner)
    for wanted in (True, str(tmp_path / "checkpoint-1")):
        with pytest.raises(ValueError) as error:
            run(tmp_path, wanted, meta_learner=meta_learner)
        assert_one_sentence(str(error.value), "was saved with save_only_model")
    model, meta_learner, *_ = load_famus(tmp_path / "checkpoint-2")
    assert model is not None


def test_a_second_run_into_one_folder_goes_on_from_its_own_checkpoints(tmp_path, caplog):
    first = run(tmp_path)
    second = run(tmp_path, max_steps=3, seed=6)
    assert "holds checkpoints of an earlier run" in caplog.text
    assert names(tmp_path) == [f"checkpoint-{step}" for step in range(1, 7)]
    assert to_resume_from(True, tmp_path) == str(tmp_path / "checkpoint-3"), "the highest number is the first run's"
    assert checkpoints.run_of(tmp_path / "checkpoint-6") == first._run != second._run
    for step in (1, 2, 3):
        cut(tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"checkpoint-3' is damaged \(optimizer.pt"):
        to_resume_from(True, tmp_path)  # the other run's would lead elsewhere
    run(tmp_path, max_steps=3, seed=6, save_total_limit=1)
    assert names(tmp_path) == ["checkpoint-3"], "those of earlier runs go first, whatever their number"


class Best(TrainerCallback):
    """Makes one step the best."""

    def __init__(self, step):
        self.step = step

    def on_evaluate(self, args, state, control, metrics, **keywords):
        metrics["eval_order"] = abs(state.global_step - self.step)


def best_run(folder, step, resume=None, **changes):
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "order", "greater_is_better": False,
        "load_best_model_at_end": True, "save_total_limit": 1, **changes,
    }  # fmt: skip
    return run(folder, resume, keywords={"callbacks": [Best(step)]}, **settings)


def test_the_best_checkpoint_is_named_by_its_final_path_and_comes_back_after_a_resume(tmp_path):
    trainer = best_run(tmp_path / "whole", 2)
    best = tmp_path / "whole" / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best) and names(tmp_path / "whole") == ["checkpoint-2"]
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    best_run(tmp_path / "parts", 2, max_steps=4)
    (tmp_path / "parts").rename(tmp_path / "moved")
    resumed = best_run(tmp_path / "moved", 2, True)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-2")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_the_best_checkpoint_is_never_an_earlier_run_s(tmp_path):
    """The second run evaluates more often than it saves; at its best step only the first run has a checkpoint."""
    run(tmp_path, max_steps=3)
    second = best_run(tmp_path, 3, max_steps=4, save_steps=2, seed=6, save_total_limit=None)
    assert second.state.best_global_step == 3
    assert second.state.best_model_checkpoint in (None, str(tmp_path / "checkpoint-2"))


# ---- The output folder ----


def test_a_mixture_of_two_models_never_loads(tmp_path, monkeypatch, whole):
    """At each rename the folder holds the one model, the other one, or none."""
    whole.save_model(str(tmp_path))
    other = make_trainer(tmp_path, max_steps=1)
    other.train()
    seen = []

    def watched(*arguments, call=os.replace):
        for act in (lambda: None, lambda: call(*arguments)):
            act()
            try:
                model, meta_learner, *_ = load_famus(tmp_path)
            except ValueError as error:
                assert "has no config.json" in str(error)
                seen.append(None)
                continue
            which = [
                all(torch.equal(tensor, part.state_dict()[name]) for name, tensor in found.state_dict().items())
                for found, part in ((model, other.model), (meta_learner, other.meta_learner))
            ]
            assert which in ([True, True], [False, False])
            seen.append(which[0])

    monkeypatch.setattr(os, "replace", watched)
    other.save_model()
    assert seen[0] is False and seen[-1] is True and None in seen


def test_nothing_of_an_earlier_model_stays_and_all_else_does(tmp_path, whole):
    whole.save_model(str(tmp_path))
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("of an earlier model")
    (tmp_path / "model_notes.txt").write_text("mine")
    plain = make_trainer(tmp_path, meta_learner="none", max_steps=1)
    plain.train()
    plain.save_model()
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "model.safetensors", "training_args.bin", "wide_resnet.py", "model_notes.txt"
    }  # fmt: skip
    assert load_famus(tmp_path)[1] is None
