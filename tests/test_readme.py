"""The README's Python example runs as it stands."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.helpers import clean_process
from tests.helpers.loopback_hub import LoopbackHub

README = Path(__file__).parents[1] / "README.md"


def blocks(language, section):
    """The code of a section, in order."""
    text = README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


EXAMPLES = blocks("python", "In Python")


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
    result = clean_process.run(command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip().endswith(f"{meta_learner} LearnedSampler")
    assert (tmp_path / "outputs" / folder / "meta_net" / "config.json").is_file()


def test_the_example_of_two_networks_runs(tmp_path):
    code, of_the_hub = blocks("python", "No clean labels at all")
    assert 'load_famus("me/two", subfolder="model_a")' in of_the_hub  # tests/test_two_networks.py runs such lines
    code += "\nprint(type(ensemble).__name__, type(network).__name__, type(meta_learner).__name__)"
    done = clean_process.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    *_, said, kinds = done.stdout.strip().splitlines()
    assert re.fullmatch(r"share of wrong labels, as the networks estimate: 0\.\d\d", said)
    assert kinds == "TwoNetworksForImageClassification WideResNetForImageClassification MWNet"


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
    from transformers import HfArgumentParser

    from famus_hf import FaMUSTrainingArguments
    from famus_hf.cli import arguments

    kinds = (arguments.ModelArguments, arguments.DataArguments, FaMUSTrainingArguments)
    known = HfArgumentParser(kinds).format_help()
    table = re.findall(r"^\| (`--.*?) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    flags = {flag for row in table for flag in re.findall(r"--\w+", row)}
    assert len(flags) >= 25
    missing = {flag for flag in flags if f"{flag} " not in known} - {"--recipe", "--config"}  # read before the others
    assert not missing


def test_the_way_to_the_hub_and_back_works_as_it_is_written(tmp_path):
    """Train and push, then a process without this library, then one with it, against a Hub of our own."""
    login, command = blocks("bash", "To the Hub and back")[0].splitlines()
    assert login.startswith("hf auth login")
    repository = re.search(r"--hub_model_id (\S+)", command)[1]
    without, with_famus = blocks("python", "To the Hub and back")
    without = "import sys\nsys.modules['famus_hf'] = None\n" + without
    without += "\nfrom PIL import Image\nprint(len(classify(Image.new('L', (8, 8)))))"
    with_famus += "\nimport torch\nassert torch.equal(weigh.output.weight, meta_learner.output.weight)"
    with_famus += "\nprint(type(model).__name__, type(layer_sampler).__name__, processor.size.height)"
    script = shlex.split(command.replace("accelerate launch", ""))
    train = [sys.executable, str(README.parent / script[0]), *script[1:], "--num_train_epochs", "1", "--use_cpu"]
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}

        def output_of(command):
            done = clean_process.run(command, cwd=tmp_path, env=environment)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout.strip().splitlines()[-1]

        output_of(train)
        assert {"label_report.parquet", "figures/weight_curve.png", "README.md"} <= set(hub.files[repository])
        assert output_of([sys.executable, "-c", without]) == "5"
        assert output_of([sys.executable, "-c", with_famus]) == "WideResNetForImageClassification LearnedSampler 8"
