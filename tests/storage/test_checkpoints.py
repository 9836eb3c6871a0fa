"""Checkpoints are whole or not there, damaged ones are named, and a run goes on from the newest of its own."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from famus_hf.cli import run as run_famus
from famus_hf.storage import checkpoints
from famus_hf.storage.checkpoints import fault_of, to_resume_from
from tests.helpers.checkpointed_runs import STEPS, assert_one_sentence, assert_same, cut, names, run
from tests.helpers.command_line import SMALL
from tests.helpers.models import build_model
from tests.helpers.trainers import Examples, make_trainer


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


def test_leftovers_of_a_killed_run_are_removed_at_the_next_start(tmp_path, uninterrupted_run):
    run(tmp_path)
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / ".unfinished" / "checkpoint-7")
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-03")
    os.rename(tmp_path / "checkpoint-4", tmp_path / "checkpoint-04")  # killed between two renames
    for step in (5, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    for newest in (True, get_last_checkpoint(tmp_path)):
        assert_same(uninterrupted_run, run(tmp_path, newest, save_strategy="no"))
        assert names(tmp_path) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
        assert not (tmp_path / ".unfinished").exists()


def test_a_checkpoint_has_all_that_transformers_saves(tmp_path, uninterrupted_run):
    args = TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    Trainer(build_model("batch norm", torch.float32), args, train_dataset=Examples(40)).train()
    theirs = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    ours = {path.name for path in (Path(uninterrupted_run.args.output_dir) / "checkpoint-2").iterdir()}
    assert ours - theirs == {"meta_net", "meta_state.pt", "checkpoint_files.json", "trained_on.json"} and theirs <= ours
    state = json.loads((Path(uninterrupted_run.args.output_dir) / "checkpoint-2" / "trainer_state.json").read_text())
    assert state.keys() == json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text()).keys()


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


def test_the_newest_whole_one_leads_to_the_same_end(tmp_path, uninterrupted_run, caplog):
    run(tmp_path)
    cut(tmp_path / "checkpoint-6" / "optimizer.pt")
    (tmp_path / "checkpoint-5" / "meta_net" / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert_same(uninterrupted_run, run(tmp_path, True))
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


def test_the_command_line_refuses_a_damaged_checkpoint_before_training(tmp_path, capsys, uninterrupted_run):
    shutil.copytree(Path(uninterrupted_run.args.output_dir) / "checkpoint-1", tmp_path / "checkpoint-1")
    cut(tmp_path / "checkpoint-1" / "model.safetensors")
    for wanted in (str(tmp_path / "checkpoint-1"), "true"):
        with pytest.raises(SystemExit) as end:
            run_famus.main([*SMALL, "--output_dir", str(tmp_path), "--resume_from_checkpoint", wanted])
        assert end.value.code == 2
        assert_one_sentence(capsys.readouterr().err.strip().splitlines()[-1], "model.safetensors has", "is damaged")


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
