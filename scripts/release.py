"""From a run to a repository on the Hub: trains or takes it, lays out the folder, proves its figures, pushes it.

    python scripts/release.py --recipe fashion-mnist-symmetric-40                  # trains; --dataset_name DIR wins
    python scripts/release.py --run outputs/digits --hub_model_id me/digits-famus  # takes a finished run, and pushes it

The folder RELEASE_DIR/NAME holds the files that go to the Hub and no others. Before anything is pushed, two clean
processes load it: one without famus_hf, which classifies the test set by transformers' pipeline and must find the
accuracy that the card claims, and one with it, which loads the meta-net (and each of two networks alone). Training is
preceded, for the card, by runs under the same schedule that need no meta step: plain, and where examples are trusted
plain with these in its training set, and forward correction (--no-baseline leaves them out). Other flags: those of
run_famus.py.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCard

from famus_hf import FaMUSTrainingArguments, load_famus, load_noisy_dataset
from famus_hf.cli.arguments import DataArguments, Settings, parse_arguments
from famus_hf.cli.config_files import named, take_flag
from famus_hf.cli.data_flags import source_of
from famus_hf.cli.program import USER_ERRORS, started_as
from famus_hf.cli.results import as_baseline, command_of
from famus_hf.cli.run import Run
from famus_hf.cli.run_setup import baselines_of, load_data, settings_for
from famus_hf.data.inputs.audio_inputs import RecordingInputs
from famus_hf.data.media.modalities import AUDIO, IMAGE, TEXT, modality_of_columns
from famus_hf.errors import first_few
from famus_hf.hub.load import files_to_push
from famus_hf.hub.push import prepare_repository, push_files
from famus_hf.reporting.figures.run_records import read_run
from famus_hf.storage.run_folder import CARD, CONFIG, RESULTS
from famus_hf.training_args_checks import has_meta_step

CLASSIFY = """
import json, sys
sys.modules["famus_hf"] = None  # as if it were not installed
import numpy as np
from datasets import load_from_disk
from sklearn.metrics import accuracy_score
from transformers import pipeline
folder, examples, task, settings = sys.argv[1:]
test = load_from_disk(examples)
classify = pipeline(task, folder, **json.loads(settings))
names = test.features["label"].names
inputs = [np.float32(example) if isinstance(example, list) else example for example in test["input"]]
predicted = [names.index(answer[0]["label"]) for answer in classify(inputs, top_k=1)]
print(json.dumps(accuracy_score(test["label"][:], predicted)))
"""
LOAD = """
import json, sys
import torch
from famus_hf import TwoNetworksForImageClassification, load_famus
parts = load_famus(sys.argv[1])
loaded = [parts]
if isinstance(parts[0], TwoNetworksForImageClassification):
    for name in ("model_a", "model_b"):
        loaded.append(load_famus(sys.argv[1], subfolder=name))
        beside, alone = parts[0].get_submodule(name).state_dict(), loaded[-1][0].state_dict()
        if beside.keys() != alone.keys() or not all(torch.equal(beside[key], alone[key]) for key in beside):
            raise ValueError(f"{name} is another network in its own folder than beside the other one")
print(json.dumps([[type(part).__name__ for part in each if part is not None] for each in loaded]))
"""
PIPELINE_SETTINGS = {  # recordings one by one, as padding may change what a network hears
    IMAGE: {"trust_remote_code": True, "batch_size": 100},
    TEXT: {"truncation": True, "batch_size": 100},
    AUDIO: {},
}
NAMES_DATA = {"dataset_name", "recipe", "config"}  # flags that may say what the data are


def train(options: argparse.Namespace, settings: Settings, argv: list[str]) -> Path:
    """Train plainly, then as the flags say. Return the folder of the latter run."""
    _, data_args, args = settings
    data = load_data(data_args, args)
    model_args, data_args, args = settings_for(data, argv, settings)
    compared = baselines_of(model_args, args, "meta" in data) if options.baseline else []
    compared = [pair for pair in compared if not has_meta_step(pair[1])]
    runs = [Run(networks, data_args, run_args, data) for networks, run_args in [*compared, (model_args, args)]]
    rows = [as_baseline(run.train(None)) for run in runs[:-1]]
    command = command_of(argv).replace("accelerate launch scripts/run_famus.py", "python scripts/release.py")
    card = {"baselines": rows, "command": command, "license": options.license, "model_name": options.name}
    card["compared"] = [read_run(str(run.args.output_dir), run.name) for run in runs[:-1]]
    runs[-1].train(None, with_label_report=runs[-1].can_report, card=card)
    return Path(str(args.output_dir))


def lay_out(run: Path, target: Path, repo_id: str) -> None:
    """Copy what is pushed, and nothing else, into an empty folder; the card then says how to load it from `repo_id`.

    Raises:
        ValueError: The folder is no finished run's, or the target holds something else than an earlier release.
    """
    missing = [name for name in (CONFIG, CARD, RESULTS) if not (run / name).is_file()]
    if missing:
        raise ValueError(f"--run {str(run)!r} is no finished run of run_famus.py: it has no {missing[0]}")
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    if there - set(files_to_push(target)):  # an earlier release has nothing else
        raise ValueError(
            f"{str(target)!r} holds {first_few(sorted(there))} and is no earlier release: give another --name"
        )
    inside, outside = target.resolve(), run.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ValueError(
            f"the release can't be laid out in {str(target)!r}, where the run is: give another --release_dir"
        )
    shutil.rmtree(target, ignore_errors=True)
    for name in files_to_push(run):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(run / name, target / name)
    card = ModelCard.load(target / CARD)
    loads = re.compile(r'(load_famus\(|pipeline\("[a-z]+-classification", )"[^"]*"')
    card.text = loads.sub(lambda call: f'{call[1]}"{repo_id}"', card.text)
    card.text = re.sub(r"^# .*$", lambda _: f"# {target.name}", card.text, count=1, flags=re.MULTILINE)
    card.data.model_name = card.data.model_name and target.name
    card.save(target / CARD)


def check(folder: Path, data_args: DataArguments) -> None:
    """Load the folder in clean processes. Raise ValueError where it does not load, or is not as good as it claims."""
    results = ModelCard.load(folder / CARD).data.eval_results or []
    claims = {result.metric_name: result.metric_value for result in results}
    if "last" not in claims:
        raise ValueError(f"the card in {str(folder)!r} claims no accuracy, so nothing can be proven: evaluate the run")
    test = load_test_set(data_args)
    with tempfile.TemporaryDirectory() as scratch:
        modality = modality_of_columns(test.features) or IMAGE
        pipeline_inputs(test, folder).save_to_disk(f"{scratch}/test")
        settings = json.dumps(PIPELINE_SETTINGS[modality])
        accuracy = in_clean_process(
            CLASSIFY, scratch, str(folder.resolve()), f"{scratch}/test", modality.task, settings
        )
        if abs(accuracy - claims["last"]) > max(5e-5, 1.01 / len(test)):  # rounding, or one whose best classes tie
            raise ValueError(
                f"{str(folder)!r} claims an accuracy of {claims['last']} and has {accuracy}: it is not released"
            )
        loaded = in_clean_process(LOAD, scratch, str(folder.resolve()))
    size = f"{len(test)} {modality.things}"
    print(f"claimed {100 * claims['last']:.2f} %, found {100 * accuracy:.2f} % by the pipeline, on {size}")
    for subfolder, parts in zip(("", " of model_a", " of model_b"), loaded, strict=False):
        print(f"load_famus{subfolder} gives {', '.join(parts)}", flush=True)


def pipeline_inputs(test: Dataset, folder: Path) -> Dataset:
    """Return columns `input`, as the pipeline of this kind of data takes it, and `label`."""
    if "image" in test.features:
        return test.select_columns(["image", "label"]).rename_column("image", "input")
    if "text" in test.features:
        names = [name for name in ("text", "text_pair") if name in test.features]
        inputs: list[Any] = [dict(zip(names, (text or "" for text in texts), strict=True))
                            for texts in zip(*(test[name] for name in names), strict=True)]  # fmt: skip
    else:
        extractor = load_famus(folder)[3]
        inputs = RecordingInputs(test, extractor).waves()
    labels = test.select_columns("label").flatten_indices()
    return labels.add_column("input", inputs)


def load_test_set(data_args: DataArguments) -> Dataset:
    """Return the test split. Raise ValueError where the data are not at hand."""
    try:
        data = load_noisy_dataset(**source_of(data_args), max_eval_samples=data_args.max_eval_samples, num_meta=0)
    except (ValueError, OSError) as error:
        raise ValueError(f"the test set is needed to check the release (give --dataset_name): {error}") from error
    return data["test"]


def in_clean_process(code: str, home: str, *arguments: str) -> Any:
    """Return what a new process prints last. Its cache of remote code is empty, and it reaches no Hub."""
    environment = {**os.environ, "HF_HOME": f"{home}/cache", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise ValueError(f"the folder does not load in a clean process: {last}")
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="folder of a finished run of run_famus.py; without it one is trained")
    parser.add_argument("--release_dir", type=Path, default=Path("outputs/releases"), help="the folder is made below")
    parser.add_argument("--name", help="of the release; default: of the repository, the recipe or the run's folder")
    parser.add_argument("--license", default="apache-2.0", help="of the weights, where a run is trained")
    parser.add_argument(
        "--baseline", action=argparse.BooleanOptionalAction, default=True, help="train what needs no meta step as well"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    parser.epilog = "Other flags: those of run_famus.py. --hub_model_id USER/NAME pushes the release there."
    options, passed_on = parser.parse_known_args(argv)
    with started_as("release.py", errors=(*USER_ERRORS, TypeError)):
        release(options, passed_on)


def release(options: argparse.Namespace, argv: list[str]) -> None:
    """Train or take a run, lay it out, check it, push it."""
    settings = parse_arguments(argv)
    _, data_args, args = settings
    if args.push_to_hub:
        raise ValueError("--push_to_hub would push what is not proven yet: --hub_model_id alone pushes the release")
    recipe, run = take_flag(argv, "--recipe")[0], options.run
    options.name = options.name or Path(str(args.hub_model_id or recipe or run or args.output_dir)).name
    target = options.release_dir / options.name
    if run is None:
        prepare(options, args)  # found out before hours of training
        if "output_dir" not in named(argv):
            args.output_dir = f"outputs/{options.name}"
        run = train(options, settings, argv)
    lay_out(run, target, args.hub_model_id or options.name)
    if options.run is not None and data_args.train_dir is None and not named(argv) & NAMES_DATA:
        results = json.loads((run / RESULTS).read_text(encoding="utf-8"))
        data_args.dataset_name = results["dataset_name"]
    check(target, data_args)
    files = {file: target / file for file in files_to_push(target)}
    print(f"{target} is ready: {', '.join(files)}", flush=True)
    if args.hub_model_id is not None:
        repo_id, message = prepare(options, args), f"Release {options.name}"
        commit = push_files(files, repo_id, message=message, token=args.hub_token, revision=args.hub_revision)
        print(f"pushed to {commit.repo_url}")


def prepare(options: argparse.Namespace, args: FaMUSTrainingArguments) -> str:
    """Return the repository, if there is to be one. Raise ValueError where it can't be pushed to."""
    if args.hub_model_id is None:
        return ""
    private = options.private or None
    return prepare_repository(args.hub_model_id, token=args.hub_token, private=private, revision=args.hub_revision)


if __name__ == "__main__":
    main(sys.argv[1:])
