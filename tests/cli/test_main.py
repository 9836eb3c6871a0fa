"""The command `famus-hf`, and how its errors are told."""

import pytest
import torch
from transformers.utils import logging

from famus_hf.cli import main as command
from famus_hf.cli import run as run_famus
from famus_hf.cli.program import fail, started_as
from tests.helpers.command_line import SMALL


def ended(capsys, *argv):
    """Exit code, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as end:
        command.main(list(argv))
    return end.value.code, *capsys.readouterr()


def test_the_help_has_a_line_for_each_command(capsys):
    for argv in (["--help"], []):
        command.main(argv)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [words[0] for words in lines if words and words[0] in command.COMMANDS] == list(command.COMMANDS)
    expected = ["train", "compare", "label-report", "review", "relabel", "plot", "report", "push-dataset"]
    assert list(command.COMMANDS) == expected


def test_an_unknown_command_is_refused_in_one_sentence(capsys):
    code, printed, error = ended(capsys, "trian", "--noise", "0.4")
    assert code == 2 and printed == ""
    assert error == f"famus-hf: error: 'trian' is no command: choose one of {', '.join(command.COMMANDS)}\n"


@pytest.mark.parametrize("name", list(command.COMMANDS)[1:])
def test_every_command_has_a_help_and_names_itself(capsys, name):
    code, printed, _ = ended(capsys, name, "--help")
    assert code == 0 and printed.startswith(f"usage: famus-hf {name} ")
    code, _, error = ended(capsys, name, "--no_such_flag", "1")
    assert code == 2 and error.splitlines()[-1].startswith(f"famus-hf {name}: error: ")


def test_errors_name_what_was_started(capsys):
    code, _, error = ended(capsys, "train", "--num_processes", "1", *SMALL, "--noise", "2")
    assert code == 2 and error.splitlines()[-1].startswith("famus-hf train: error: noise=2.0 is not a rate")
    with pytest.raises(SystemExit), started_as("benchmark.py"):
        fail("two\n lines")
    assert capsys.readouterr().err == "benchmark.py: error: two lines\n"


@pytest.mark.parametrize(
    "error, status, sentence",
    [
        (KeyboardInterrupt, 130, "interrupted; --resume_from_checkpoint true goes on from the newest checkpoint"),
        (torch.OutOfMemoryError, 2, "error: the memory of cpu is full: lower --per_device_train_batch_size (and raise "
         "--gradient_accumulation_steps), or choose a smaller network"),
    ],
)  # fmt: skip
def test_ctrl_c_and_a_full_memory_end_a_training_with_one_line(tmp_path, capsys, monkeypatch, error, status, sentence):
    def train(trainer, **keywords):
        raise error

    (tmp_path / "checkpoint-1").mkdir()
    monkeypatch.setattr(run_famus.FaMUSTrainer, "train", train)
    with pytest.raises(SystemExit) as end:
        run_famus.main([*SMALL, "--output_dir", str(tmp_path)])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == status and said == f"run_famus.py: {sentence}"


class Mistake(Exception):
    pass


@pytest.mark.parametrize("error", [ValueError, OSError, FloatingPointError, Mistake])
def test_an_error_while_training_is_one_sentence_unless_it_is_a_mistake_of_ours(tmp_path, capsys, monkeypatch, error):
    def train(trainer, **keywords):
        raise error("the training\nhas ended")

    monkeypatch.setattr(run_famus.FaMUSTrainer, "train", train)
    argv = [*SMALL, "--output_dir", str(tmp_path)]
    if error is Mistake:
        with pytest.raises(Mistake):
            run_famus.main(argv)
        return
    with pytest.raises(SystemExit) as end:
        run_famus.main(argv)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and said.startswith("run_famus.py: error: the training has ended")
    level = logging.get_verbosity()
    try:
        for words in (["--log_level", "debug"], ["--log_level=debug"]):
            with pytest.raises(error, match="has ended"):
                run_famus.main([*argv, *words])
    finally:
        logging.set_verbosity(level)
