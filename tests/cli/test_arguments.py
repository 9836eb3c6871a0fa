"""The flags of `famus-hf train`: how they are parsed, and what the help says of them."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from inspect import signature

import pytest
import yaml

from famus_hf import FaMUSTrainingArguments, load_noisy_dataset
from famus_hf.cli import arguments, data_flags
from famus_hf.cli.config_files import RECIPES, recipe_names
from famus_hf.data.labels.noise import NOISE_TYPES
from famus_hf.data.sources.benchmarks import BUILDERS
from famus_hf.data.sources.load_source import HUB_DATASETS
from famus_hf.errors import SettingsError
from famus_hf.models import BACKBONES
from tests.helpers.command_line import SMALL


def test_config_file_sets_defaults_and_flags_win(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learning_rate: 1e-3\nnoise: 0.2\nlr_milestones: [0.25, 1e+1]\nbf16: true\nmeta_optim: sgd\n")
    _, data_args, args = arguments.parse_arguments(["--config", str(config), "--noise", "0.3", "--use_cpu"])
    assert args.learning_rate == 1e-3 and args.lr_milestones == [0.25, 10.0] and args.bf16 is True
    assert args.meta_optim == "sgd" and data_args.noise == 0.3
    _, data_args, _ = arguments.parse_arguments([f"--config={config}", "--use_cpu"])
    assert data_args.noise == 0.2


def test_whole_numbers_may_be_written_with_a_point_or_an_exponent_in_a_file_and_in_a_flag(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("num_meta: 1e2\nmeta_interval: 2.0\ncandidate_layers: 6.0\nlr_milestones: 0.25\n")
    _, data_args, args = arguments.parse_arguments(["--config", str(config), "--max_steps=1e3", "--use_cpu"])
    assert (data_args.num_meta, args.meta_interval, args.max_steps) == (100, 2, 1000)
    assert (args.candidate_layers, args.lr_milestones) == ("6", [0.25])
    with pytest.raises(SystemExit):
        arguments.parse_arguments(["--max_steps", "2.5", "--use_cpu"])


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_is_parsed(recipe, tmp_path):
    values = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    about = values["about"]
    assert set(about) - {"methods"} == {"source", "paper", "doubts"} and all(about.values())
    settings = arguments.parse_arguments(["--recipe", recipe, "--use_cpu", "--output_dir", str(tmp_path)])
    for name, value in values.items():
        parsed = [getattr(part, name) for part in settings if hasattr(part, name)]
        if name not in ("about", "optim"):
            assert parsed == [pytest.approx(value) if isinstance(value, float) else value], name
    args = arguments.parse_arguments(["--recipe", recipe, "--use_cpu", "--seed", "9", "--learning_rate", "0.3"])[2]
    assert args.seed == 9 and args.learning_rate == 0.3, "flags win"


def test_a_pair_method_asks_for_two_networks_and_for_no_meta_learner():
    with pytest.raises(SettingsError, match="--pair_method jocor is for two networks: add --two_networks"):
        arguments.parse_arguments(["--pair_method", "jocor"])
    assert arguments.parse_arguments(["--two_networks", "--pair_method", "jocor"])[2].meta_learner == "none"


def test_two_networks_take_no_clean_meta_set_unless_one_is_asked_for():
    def meta_set_of(*flags):
        return arguments.parse_arguments([*SMALL, *flags])[2].meta_set

    assert meta_set_of("--two_networks") == "pseudo-clean" and meta_set_of() is None
    assert meta_set_of("--two_networks", "--num_meta", "40") == meta_set_of("--two_networks", "--meta_set", "clean")
    assert meta_set_of("--two_networks", "--num_meta", "40") == "clean"


# ---- Topics and help ----


def test_every_flag_of_ours_is_in_exactly_one_topic():
    kinds = (arguments.ModelArguments, arguments.DataArguments)
    ours = {field.name for kind in kinds for field in fields(kind) if field.init} | set(
        FaMUSTrainingArguments.__annotations__
    )
    listed = Counter(flag for flags in arguments.TOPICS.values() for flag in flags)
    assert ours <= set(listed) and set(listed.values()) == {1}
    theirs = {field.name for field in fields(FaMUSTrainingArguments)} - set(FaMUSTrainingArguments.__annotations__)
    assert set(listed) - ours == {"output_dir", *arguments.DEFAULTS} <= theirs


@pytest.fixture(scope="module")
def help_page():
    """The help of `famus-hf train` in a process of its own, and which modules that took."""
    code = """if True:
        import sys
        from famus_hf.cli.main import main
        try:
            main(["train", "--help"])
        finally:
            print("modules:", *(name for name, module in sys.modules.items() if module is not None), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr.rpartition("modules: ")[2].split()


def test_the_help_is_grouped_by_topic_ours_first_and_shows_defaults(help_page):
    text, _ = help_page
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles == ["Recipes, files, processes", *arguments.TOPICS, "Transformers' other flags"]
    sections = re.split(r"^\S.*:$", text, flags=re.MULTILINE)[2:]
    for section, flags in zip(sections, arguments.TOPICS.values(), strict=False):
        assert re.findall(r"^  --(\w+)", section, re.MULTILINE) == list(flags)
    others = re.findall(r"^  --(\w+)", sections[-1], re.MULTILINE)
    assert {"seed", "bf16", "resume_from_checkpoint", "push_to_hub"} <= set(others)
    words = " ".join(text.split())
    for said in (
        "--num_processes VALUE", "--config VALUE", "--recipe VALUE", "--learning_rate VALUE Initial learning rate α of "
        "the network. (default: 0.05)", "(default: symmetric)", "Default: outputs/ and the name of the data set.",
    ):  # fmt: skip
        assert said in words
    evaluation = re.search(r"--eval_strategy .*?\(default: (\w+)\)", words)
    assert evaluation[1] == "epoch"


def test_the_help_comes_without_what_takes_long_to_import(help_page):
    heavy = {
        "datasets", "sklearn", "matplotlib", "peft", "transformers.trainer", "transformers.modeling_utils",
        "famus_hf.trainer", "famus_hf.cli.run",
    }  # fmt: skip
    assert not heavy & set(help_page[1])


def test_the_help_names_every_data_set_noise_and_backbone():
    texts = {field.name: field.metadata["help"] for field in fields(arguments.DataArguments)}
    backbones = arguments.ModelArguments.__dataclass_fields__["backbone"].metadata["help"]
    for names, text in (
        (["digits", *HUB_DATASETS, *BUILDERS], texts["dataset_name"]),
        (NOISE_TYPES, texts["noise_type"]),
        (BACKBONES, backbones),
    ):
        listed = set(re.findall(r"[\w-]+", text))
        assert set(names) <= listed


def test_run_famus_has_the_same_help_but_for_processes(capsys):
    from famus_hf.cli import train

    with pytest.raises(SystemExit) as end:
        train.main(["--dataset_name", "digits", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith("usage: run_famus.py ") and "--num_processes" not in text


# ---- What load_noisy_dataset takes ----


def test_flags_about_data_are_the_arguments_of_load_noisy_dataset():
    """The same names, but for `dataset_` before two of them, and the same defaults; some are flags of training."""
    parameters = signature(load_noisy_dataset).parameters
    defaults = {data_flags.argument_of(field.name): field.default for field in fields(arguments.DataArguments)}
    shared = set(parameters) & set(defaults)
    assert set(parameters) - shared == {"class_map", "meta_set", "seed", "sample_weight_column"}
    assert set(defaults) - shared == {"protocol", "compare", "early_stopping_patience"}
    assert {name: parameters[name].default for name in shared} == {name: defaults[name] for name in shared}
    data_args = arguments.parse_arguments([*SMALL, "--noise_type", "pair"])[1]
    settings = data_flags.settings_of(data_args)
    assert set(settings) == shared and settings["name"] == "digits" and settings["noise_type"] == "pair"
    assert data_flags.source_of(data_args).items() <= settings.items()
