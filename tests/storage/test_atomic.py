"""Files are whole or not there: a disk that fills up, and a model that is written over another one."""

import os
import sys

import pytest
import torch

from famus_hf import load_famus
from famus_hf.cli import run as run_famus
from famus_hf.errors import SaveError
from famus_hf.storage.checkpoints import to_resume_from
from tests.helpers import clean_process
from tests.helpers.checkpointed_runs import WRITES, FullAfter, assert_one_sentence, assert_same, names, run
from tests.helpers.command_line import SCRIPT, SMALL
from tests.helpers.trainers import make_trainer


@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_ends_the_run_in_one_sentence_and_older_checkpoints_stay(
    tmp_path, monkeypatch, write, uninterrupted_run
):
    with monkeypatch.context() as patch, pytest.raises(SaveError) as error:
        run(tmp_path, keywords={"callbacks": [FullAfter(3, patch, WRITES[write])]})
    assert_one_sentence(str(error.value), "'checkpoint-3' could not be saved in", "MB are free there", "resume_from")
    if write != "optimizer":
        assert "No space left on device" in str(error.value)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert not (tmp_path / ".unfinished").exists()
    assert to_resume_from(True, tmp_path) == str(tmp_path / "checkpoint-2")
    if write == "rename":
        assert_same(uninterrupted_run, run(tmp_path, True))


@pytest.mark.parametrize("write", ["weights", "meta_net", "optimizer", "sync"])
def test_a_full_disk_at_the_end_leaves_the_earlier_model(tmp_path, monkeypatch, write, uninterrupted_run):
    uninterrupted_run.save_model(str(tmp_path))
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

    command = [sys.executable, str(SCRIPT), *flags, "--resume_from_checkpoint", "true"]
    result = clean_process.run(command, max_file_size=20_000)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("run_famus.py: error: 'checkpoint-")
    assert_one_sentence(last, "could not be saved")
    assert before and {path: path.read_bytes() for path in tmp_path.rglob("checkpoint-*/*") if path.is_file()} == before
    assert not (tmp_path / ".unfinished").exists()


def test_a_mixture_of_two_models_never_loads(tmp_path, monkeypatch, uninterrupted_run):
    """At each rename the folder holds the one model, the other one, or none."""
    uninterrupted_run.save_model(str(tmp_path))
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


def test_nothing_of_an_earlier_model_stays_and_all_else_does(tmp_path, uninterrupted_run):
    uninterrupted_run.save_model(str(tmp_path))
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
