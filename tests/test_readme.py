"""The README's Python example runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    "example, folder, meta_learner",
    [(0, "digits", "MWNet"), (1, "class-weights", "ClassWeights")],
    ids=["first", "own meta-learner"],
)
def test_the_python_examples_run(tmp_path, example, folder, meta_learner):
    assert len(EXAMPLES) == 2
    code = EXAMPLES[example] + "\nprint(type(meta_learner).__name__, type(layer_sampler).__name__)"
    if meta_learner == "ClassWeights":
        assert len([line for line in EXAMPLES[example].splitlines() if line]) <= 35
        code += "\nassert meta_learner.scores.abs().max() > 0"
        code += "\nassert torch.equal(meta_learner.scores, trainer.meta_learner.scores)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith(f"{meta_learner} LearnedSampler")
    assert (tmp_path / "outputs" / folder / "meta_net" / "config.json").is_file()


def test_every_function_that_the_readme_names_exists():
    import importlib

    names = re.findall(
        r"`((?:meta_learners|stages|virtual_step|derivatives|layers|layer_sampler)\.(?!py)\w+)`", README.read_text()
    )
    assert len(names) >= 10
    for name in names:
        module, attribute = name.split(".")
        assert hasattr(importlib.import_module(f"famus_hf.{module}"), attribute), name


def test_every_test_that_the_readme_names_exists():
    names = set(re.findall(r"`(test_\w+)`", README.read_text(encoding="utf-8")))
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert len(names) >= 30
    assert names <= set(re.findall(r"def (test_\w+)", sources))


def test_every_flag_that_the_readme_names_exists():
    import arguments
    from transformers import HfArgumentParser

    from famus_hf import FaMUSTrainingArguments

    kinds = (arguments.ModelArguments, arguments.DataArguments, FaMUSTrainingArguments)
    known = HfArgumentParser(kinds).format_help()
    table = re.findall(r"^\| (`--.*?) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    flags = {flag for row in table for flag in re.findall(r"--\w+", row)}
    assert len(flags) >= 25
    missing = {flag for flag in flags if f"{flag} " not in known} - {"--recipe", "--config"}  # read before the others
    assert not missing
