"""scripts/run_famus.py: what it leaves behind, and what it says to wrong input."""

import contextlib
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel
from PIL import Image

from famus_hf import (
    BilateralBranchForImageClassification,
    ForwardCorrection,
    TwoNetworksForImageClassification,
    load_famus,
    load_noisy_dataset,
)
from famus_hf.cli import arguments
from famus_hf.cli import run as run_famus
from famus_hf.cli import run_setup as set_up_run
from famus_hf.data.labels.noise_file import read_noise_file
from famus_hf.errors import SettingsError
from famus_hf.reporting.tables import format_notes, format_table
from tests.helpers.command_line import SMALL

MW_NET = ["--meta_learner", "mw-net"]
QUICK = ["--save_strategy", "no", "--label_report", "false"]  # of runs from which neither is read


@pytest.fixture(scope="module")
def compared_run(tmp_path_factory):
    """The folder of a run, and what was printed of it and of the two runs that it is compared with."""
    folder, printed = tmp_path_factory.mktemp("compared") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_famus.main([*SMALL, *MW_NET, "--compare", "--output_dir", str(folder), "--seed", "3"])
    return folder, printed.getvalue()


def test_a_run_leaves_everything_that_the_readme_promises(compared_run):
    folder, table = compared_run
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json", "model.safetensors", "preprocessor_config.json", "meta_net", "noise.parquet", "all_results.json",
        "trainer_state.json", "README.md",
    } <= names  # fmt: skip
    results = json.loads((folder / "all_results.json").read_text())
    assert 0 <= results["eval_accuracy"] <= results["best_eval_accuracy"] <= 1
    assert results["test_labels_known"] is True and "estimated_true_accuracy" not in results
    assert results["train_seconds_per_step"] > 0 and 0 < results["mean_active_layers"] < 17
    noise = read_noise_file(folder / "noise.parquet")
    metadata = noise.metadata
    assert results["realised_noise_rate"] == pytest.approx((noise.labels != noise.clean_labels).mean())
    assert results["protocol"] == "clean" and results["meta_set"] == "clean" and results["meta_set_size"] == 40
    assert metadata["seed"] == 3 and metadata["realised_noise_rate"] == results["realised_noise_rate"]
    model, meta_learner, layer_sampler, processor = load_famus(folder)
    assert model.config.id2label[3] == "3" and None not in (meta_learner, layer_sampler, processor)
    for method in ("plain", "plain + trusted", "forward correction + trusted", "MW-Net, all layers", "MW-Net + FaMUS"):
        assert re.search(
            rf"^{re.escape(method)} +\d+\.\d\d% +\d+\.\d\d% +\d+\.\d+ +\d+\.\d% +\d+\.\d\d$", table, re.MULTILINE
        )
    plain = json.loads((folder.parent / "run-plain" / "all_results.json").read_text())
    assert plain["mean_active_layers"] == 0 and plain["realised_noise_rate"] == results["realised_noise_rate"]


def test_resuming_through_the_command_line_gives_the_same_result(tmp_path, compared_run):
    whole, parts = compared_run[0], tmp_path / "parts"
    shutil.copytree(whole, parts)
    for name in ("model.safetensors", "all_results.json"):
        (parts / name).unlink()
    newest = max(parts.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(newest)  # as if the run had been killed after the checkpoint before
    run_famus.main([*SMALL, *MW_NET, "--seed", "3", "--output_dir", str(parts), "--resume_from_checkpoint", "true"])
    for name in ("model.safetensors", "meta_net/model.safetensors", "meta_net/layer_sampler.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    first, second = (json.loads((folder / "all_results.json").read_text()) for folder in (whole, parts))
    for name in ("eval_accuracy", "best_eval_accuracy", "mean_active_layers", "global_step"):
        assert first[name] == second[name], name


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--seed", "4"], "in which training examples there are (their index) and which meta examples there are"),
        (["--seed", "3", "--num_meta", "20"], "in the number of training examples (380 instead of 360)"),
        (["--seed", "3", "--noise_type", "pair"], "of 360 training examples: give the flags"),
        (["--seed", "3", "--backbone", "small"], "does not fit"),
    ],
    ids=str,
)
def test_a_checkpoint_that_does_not_fit_is_found_before_anything_is_trained_or_written(
    tmp_path, compared_run, capsys, monkeypatch, flags, words
):
    checkpoint = max(compared_run[0].glob("checkpoint-*"))
    monkeypatch.setattr(run_famus.FaMUSTrainer, "train", lambda *arguments, **keywords: pytest.fail("it trains"))
    with pytest.raises(SystemExit):
        run_famus.main([
            *SMALL, *MW_NET, *flags, "--compare", "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint",
            str(checkpoint),
        ])  # fmt: skip
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in error and (("or add --allow_other_data" in error) == ("does not fit" not in error)), error
    assert not list(tmp_path.rglob("*.*"))


def test_best_model_is_selected_on_the_meta_set(tmp_path):
    run_famus.main([
        *SMALL, "--output_dir", str(tmp_path), "--load_best_model_at_end", "--save_strategy", "epoch",
        "--early_stopping_patience", "1", "--label_report", "false",
    ])  # fmt: skip
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    meta = [entry["eval_meta_accuracy"] for entry in state["log_history"] if "eval_meta_accuracy" in entry]
    assert state["best_metric"] == max(meta)


def test_under_the_paper_s_protocol_it_is_selected_on_the_test_set(tmp_path):
    flags = [
        *SMALL,
        "--output_dir",
        str(tmp_path),
        "--load_best_model_at_end",
        "--protocol",
        "paper",
        "--label_report",
        "false",
    ]
    run_famus.main(flags)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    test = [entry["eval_test_accuracy"] for entry in state["log_history"] if "eval_test_accuracy" in entry]
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert state["best_metric"] == max(test) == results["eval_accuracy"] and results["protocol"] == "paper"
    assert "selected by test_accuracy on the evaluation set" in (tmp_path / "README.md").read_text()


def test_an_own_noisy_folder_trains_by_transitions_or_with_a_pseudo_clean_meta_set(tmp_path, capsys):
    """Images in a folder for each class, nothing known of their labels: one command, whose words fit one screen."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for row in range(300):
        place = tmp_path / "data" / ("train", "test")[row % 5 == 0] / f"digit {digits.target[row]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[row] * 15).astype("uint8")).save(place / f"{row}.png")
    flags = [
        "--dataset_name", str(tmp_path / "data"), "--num_train_epochs", "3", "--use_cpu",
        "--per_device_train_batch_size", "40", "--disable_tqdm", "true", "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    run_famus.main(flags)
    captured = capsys.readouterr()
    lines = [line for text in captured for line in text.splitlines() if line]
    assert len(lines) < 20, lines
    assert lines[0] == "network: tiny (0.08 M parameters), as images are 8 × 8; --backbone names another"
    assert re.search(
        r"^epoch 3 of 3: loss [\d.]+, agreement with the test labels [\d.]+ %$", captured.out, re.MULTILINE
    )
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["method"] == "forward correction" and results["meta_set"] is None
    learner = load_famus(tmp_path / "run")[1]
    assert isinstance(learner, ForwardCorrection) and learner.is_counted
    run_famus.main([*flags, "--meta_set", "pseudo-clean"])
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["meta_set"] == "pseudo-clean" and 0 < results["meta_set_size"] < 240
    assert results["meta_set_purity"] is None and results["realised_noise_rate"] is None
    assert results["test_labels_known"] is False and results["estimated_true_accuracy"] is None
    words = "agreement with test labels that are not known to be right; the true accuracy can't be told, as there are"
    assert words in captured.out and results["network"].startswith("tiny (0.08 M parameters), as")
    noise = read_noise_file(tmp_path / "run" / "noise.parquet")
    assert len(noise.index) == 240 and noise.clean_labels is None
    card = (tmp_path / "run" / "README.md").read_text()
    assert "pseudo-clean: " in card and "as the labels came" in card and "| unknown |" in card
    assert (
        words in card
        and "| network | tiny (0.08 M" in card
        and "split: test, with labels not known to be right" in card
    )
    assert "| | last | best | true accuracy, as estimated | seconds a step |" in card
    model, *_ = load_famus(tmp_path / "run")
    assert model.config.id2label[3] == "digit 3"


@pytest.mark.parametrize("name, is_judged", [("my_photos", True), ("animal10n", False)])
def test_the_test_set_is_judged_where_its_labels_are_not_known_to_be_right(name, is_judged):
    run = run_famus.Run.__new__(run_famus.Run)
    test = SimpleNamespace(features={"label": ClassLabel(names=["a", "b"])})
    run.data, run.data_args = {"test": test}, SimpleNamespace(dataset_name=name)
    assert run.judged_test_set is (test if is_judged else None) and run.test_labels_are_known is not is_judged


def test_another_method_trains_on_the_labels_of_a_noise_file(tmp_path, compared_run):
    file, second = compared_run[0] / "noise.parquet", tmp_path / "second"
    flags = [flag for flag in SMALL if flag not in ("--noise", "0.4", "--max_train_samples", "400")]
    run_famus.main([*flags, "--noise_file", str(file), "--output_dir", str(second), "--meta_learner", "l2r", *QUICK])
    first, again = read_noise_file(file), read_noise_file(second / "noise.parquet")
    assert (first.index == again.index).all() and (first.labels == again.labels).all()
    assert first.metadata["meta_index"] == again.metadata["meta_index"]
    results = json.loads((second / "all_results.json").read_text())
    assert results["realised_noise_rate"] == first.metadata["realised_noise_rate"]


@pytest.mark.parametrize("recipe", ["table8-cifar10-ce", "table8-cifar10-ldam"])
def test_recipes_of_the_long_tail_build_their_backbone(recipe, monkeypatch):
    monkeypatch.setattr(run_famus, "load_data", lambda *arguments: load_noisy_dataset("digits", num_meta=100))
    built = []

    class Stop(Exception):
        pass

    def train(run, *arguments):
        built.append(run.trainer.model)
        raise Stop

    monkeypatch.setattr(run_famus.Run, "train", train)
    with pytest.raises(Stop):
        run_famus.main(["--recipe", recipe, "--use_cpu"])
    assert built[0].config.depth == 32 and built[0].config.model_type == "cifar_resnet"
    assert built[0].config.cosine_classifier == (recipe == "table8-cifar10-ldam")


def test_recipes_of_two_networks_train_two_networks(tmp_path):
    """Two steps of the warm-up and two of the pipeline, on other data."""
    run_famus.main([
        "--recipe", "table5-cifar10-sym40", "--dataset_name", "digits", "--backbone", "tiny", "--use_cpu",
        "--max_steps", "4", "--max_train_samples", "256", "--max_eval_samples", "20", "--plain_warmup_epochs", "1",
        "--output_dir", str(tmp_path), "--disable_tqdm", "true", "--label_report", "false",
    ])  # fmt: skip
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["method"] == "two networks, MW-Net + FaMUS" and results["global_step"] == 4
    assert results["mean_active_layers"] > 0 and results["meta_set"] == "pseudo-clean"
    assert "| mixing | Beta(4, 4) |" in (tmp_path / "README.md").read_text()


def test_pretrained_models_load_from_disk(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    run_famus.main(
        [*SMALL, "--output_dir", str(tmp_path / "run"), "--model_name_or_path", str(tmp_path / "vit"), *QUICK]
    )
    model, _, _, processor = load_famus(tmp_path / "run")
    assert type(model).__name__ == "ViTForImageClassification" and model.config.num_labels == 10
    assert processor.size["height"] == 8


WRONG_INPUT = {
    "unknown data set": (["--dataset_name", "digit"], "data set 'digit' is unknown: choose one of digits, cifar10"),
    "no network": (
        ["--dataset_name", "cifar10", "--noise", "0.4"],
        "check id and network, or use --dataset_name digits",
    ),
    "noise": (["--noise", "1.0"], "noise=1.0 is not a rate"),
    "noise type": (
        ["--noise_type", "sym"],
        "noise_type='sym' is unknown: choose one of symmetric, symmetric-exclusive",
    ),
    "not a number": (["--noise", "much"], "argument --noise: invalid float value: 'much'"),
    "unknown flag": (["--noize", "0.4"], "not used by the HfArgumentParser: ['--noize', '0.4']"),
    "empty meta set": (
        ["--num_meta", "0", "--meta_learner", "mw-net"],
        "leaves the meta set empty: add --meta_set pseudo-clean",
    ),
    "no meta set": (["--num_meta", "0", "--meta_set", "clean"], "contradict each other: leave one of them out"),
    "meta set": (["--meta_set", "trusted"], "choose one of clean, pseudo-clean"),
    "protocol": (["--protocol", "mine"], "--protocol 'mine' is unknown: choose one of clean, paper"),
    "recipe": (["--recipe", "table9"], "--recipe 'table9' is unknown: choose one of clothing1m, fashion-mnist"),
    "recipe without a value": (["--recipe"], "--recipe needs a value"),
    "subset and a noise file": (["--noise", "0", "--noise_file", "/nowhere"], "max_train_samples=400 and noise_file"),
    "noise and a noise file": (["--noise_file", "/nowhere"], "noise=0.4 and noise_file contradict each other"),
    "augmentation": (["--augmentation", "mixup"], "augmentation='mixup' is unknown: choose one of none, pad-crop"),
    "crop": (["--augmentation", "random-crop"], "crops image_size out of resize_size: give both"),
    "crop larger than the image": (["--image_size", "9", "--resize_size", "8"], "can't be cropped out of"),
    "normalisation": (["--image_std", "1", "1", "0"], "must be three numbers in"),
    "padding": (["--augmentation", "pad-crop", "--augmentation_padding_mode", "blue"], "choose one of zero, reflect"),
    "benchmark without its folder": (["--dataset_name", "clothing1m", "--noise", "0"], "name it with --data_dir"),
    "stream of digits": (["--streaming"], "can't be streamed"),
    "selection without anything to select on": (
        ["--meta_set", "pseudo-clean", "--load_best_model_at_end"],
        "select on a validation split or a clean meta set, and there is neither",
    ),
    "one-class meta set": (["--num_meta", "1"], "choose at least 10"),
    "meta set too large": (["--num_meta", "1400"], "choose at most 390"),
    "two models": (["--backbone", "tiny", "--model_name_or_path", "x/y"], "contradict each other"),
    "unknown backbone": (
        ["--backbone", "resnet"],
        "choose one of tiny, small, small-wide, medium, wide-resnet-28-10, wide-resnet-40-2, preact",
    ),
    "no such model": (["--model_name_or_path", "/nowhere"], "model '/nowhere' could not be loaded"),
    "noise on noisy data": (["--clean_label_column_name", "c"], "contradict each other"),
    "selection on the test set": (
        ["--load_best_model_at_end", "--save_strategy", "epoch", "--metric_for_best_model", "accuracy"],
        "does not select on the meta set, as --protocol clean does here",
    ),
    "no checkpoint": (["--resume_from_checkpoint", "/nowhere"], "is no checkpoint folder"),
    "nothing to resume": (["--resume_from_checkpoint", "true"], "found no checkpoint"),
    "batch too large": (["--per_device_train_batch_size", "500"], "less than one batch of 500"),
    "config missing": (["--config", "/nowhere.yaml"], "--config /nowhere.yaml can't be read"),
    "two networks and another meta-learner": (
        ["--two_networks", "--meta_learner", "l2r"],
        "meta_learner='l2r' does not go with two networks",
    ),
    "two networks and too few examples": (
        ["--two_networks", "--per_device_train_batch_size", "300"],
        "less than 600, one batch of labelled and one of unlabelled ones",
    ),
    "precisions": (["--bf16", "--derivative", "finite"], "differences drown"),
}


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_wrong_input_gets_one_sentence_before_training(tmp_path, capsys, monkeypatch, case):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    flags, sentence = WRONG_INPUT[case]
    monkeypatch.setattr(run_famus.FaMUSTrainer, "train", lambda *arguments, **keywords: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as end:
        run_famus.main([*SMALL, "--output_dir", str(tmp_path / "run"), *flags])
    assert end.value.code not in (0, None)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("run_famus.py: error: ") and sentence in error, error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "flags",
    [
        ["--meta_learner", "l2r", "--layer_sampler", "random", "--random_layers", "3", "--base_loss", "focal"],
        ["--meta_learner", "mlc", "--mlc_form", "probabilities", "--layer_sampler", "block", "--sampler_block", "3"],
        ["--meta_learner", "mw-net", "--meta_budget", "0.5", "--base_loss", "ldam"],
        ["--meta_learner", "none", "--base_loss", "cb-focal"],
    ],
    ids=lambda flags: flags[1],
)
def test_every_meta_learner_and_loss_runs_and_loads_again(tmp_path, flags):
    run_famus.main([*SMALL, *flags, "--output_dir", str(tmp_path), "--save_strategy", "no"])
    results = json.loads((tmp_path / "all_results.json").read_text())
    model, meta_learner, layer_sampler, _ = load_famus(tmp_path)
    assert model.config.cosine_classifier is ("ldam" in flags)
    if "none" in flags:
        assert meta_learner is None and layer_sampler is None
        return
    assert type(meta_learner).__name__.lower().replace("net", "-net") == flags[1]
    assert results["mean_active_layers"] == pytest.approx(sum(results["share_of_steps_on"].values()))
    if "random" in flags:
        assert results["mean_active_layers"] == 3 and layer_sampler.num_layers == 3
    if "block" in flags:
        on = {name for name, share in results["share_of_steps_on"].items() if share > 0}
        assert on and all(name.startswith("blocks.2.") for name in on)
        assert meta_learner.form == "probabilities" and not torch.equal(meta_learner.matrix, torch.eye(10))
    assert (results["mean_meta_cost"] is not None) == ("--meta_budget" in flags)


def test_compare_takes_the_meta_learner_that_was_asked_for():
    def names(*flags, has_trusted=False):
        networks, _, args = arguments.parse_arguments([*SMALL, *flags])
        pairs = [*set_up_run.baselines_of(networks, args, has_trusted), (networks, args)]
        assert [pair[1].train_on_trusted for pair in pairs[:-1]] == [
            "trusted" in set_up_run.method_name(*pair) for pair in pairs[:-1]
        ]
        return [set_up_run.method_name(*pair) for pair in pairs]

    assert names("--meta_learner", "l2r") == ["plain", "L2R, all layers", "L2R + FaMUS"]
    block = names("--meta_learner", "mlc", "--layer_sampler", "block", "--sampler_block", "2")
    assert block == ["plain", "MLC, all layers", "MLC, block 2"]
    assert names(*MW_NET, "--layer_sampler", "all") == ["plain", "MW-Net, all layers"]
    assert names(*MW_NET, "--layer_sampler", "all", "--candidate_layers", "4")[-1] == "MW-Net, top 4 layers"
    assert names(*MW_NET, "--preset", "fast") == ["plain", "MW-Net, all layers", "MW-Net, top 4 layers"]
    assert names("--meta_learner", "none") == ["plain"]
    honest = ["plain", "plain + trusted", "forward correction + trusted"]
    of_paper = ["MW-Net, all layers", "MW-Net + FaMUS"]
    assert names(has_trusted=True) == [*honest, *of_paper, "posterior targets, top 4 layers"]
    networks, _, args = arguments.parse_arguments(SMALL)
    famus = set_up_run.baselines_of(networks, args, has_trusted=True)[-1][1]
    assert (famus.candidate_layers, famus.virtual_scope, famus.meta_batch_size) == ("all", "all", 40)
    assert names(*MW_NET, has_trusted=True) == [*honest, "MW-Net, all layers", "MW-Net + FaMUS"]
    assert names("--meta_learner", "forward", has_trusted=True) == honest


PIPELINE = [*SMALL, "--two_networks", "--num_train_epochs", "3", "--label_report", "false"]


@pytest.fixture(scope="module")
def pipeline_run(tmp_path_factory):
    """Two networks, and the three runs that they are compared with."""
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    run_famus.main([*PIPELINE, "--compare", "--output_dir", str(folder)])
    return folder


def test_two_networks_leave_both_alone_and_together_and_their_records(pipeline_run):
    results = json.loads((pipeline_run / "all_results.json").read_text())
    assert results["method"] == "two networks, MW-Net + FaMUS" and results["meta_set"] == "pseudo-clean"
    rate = np.mean([found["estimated_noise_rate"] for found in results["division"].values()])
    assert results["estimated_noise_rate"] == (pytest.approx(rate) if rate <= 0.5 else None)
    assert results["realised_noise_rate"] > 0.25
    assert set(results["division"]) == {"model_a", "model_b"}
    for found in results["division"].values():
        assert (
            found["labelled"] + found["unlabelled"] == 400 and 0 < found["precision"] <= 1 and 0 < found["recall"] <= 1
        )
    assert set(results["time_shares"]) == {"division", "guessing", "meta step"}
    assert 0 < sum(results["time_shares"].values()) < 1
    assert results["mean_active_layers"] == pytest.approx(sum(results["share_of_steps_on"].values()))
    ensemble, *nothing, _ = load_famus(pipeline_run)
    assert type(ensemble) is TwoNetworksForImageClassification and nothing == [None, None]
    images = torch.rand(4, 3, 8, 8)
    logits = []
    for name in ("model_a", "model_b"):
        network, meta_learner, layer_sampler, processor = load_famus(pipeline_run, subfolder=name)
        assert None not in (meta_learner, layer_sampler, processor)
        logits.append(network(images).logits)
    assert not torch.allclose(*logits) and torch.allclose(ensemble(images).logits, sum(logits) / 2, atol=1e-6)


def test_two_networks_and_plain_training_beside_them_see_every_row_and_no_clean_label(pipeline_run):
    folders = [pipeline_run.with_name(f"run{suffix}") for suffix in ("", "-plain", "-dividemix", "-mw-net")]
    files = [read_noise_file(folder / "noise.parquet") for folder in folders]
    assert all((file.index == files[0].index).all() and (file.labels == files[0].labels).all() for file in files)
    assert len(files[0].index) == 400 and files[0].metadata["meta_index"] == []
    plain, dividemix, mw_net = (json.loads((folder / "all_results.json").read_text()) for folder in folders[1:])
    assert [row["meta_set"] for row in (plain, dividemix, mw_net)] == [None, None, "pseudo-clean"]
    assert len({row["global_step"] for row in (plain, dividemix, mw_net)}) == 1
    assert mw_net["mean_active_layers"] == 17 and dividemix["mean_active_layers"] == 0
    assert all(row["seconds_per_epoch"] > 0 and row["peak_memory_mb"] > 0 for row in (plain, dividemix))
    assert not (folders[2] / "model_a" / "meta_net").exists() and load_famus(folders[2], subfolder="model_a")[1] is None


def test_two_networks_that_choose_in_every_step_leave_an_estimate_and_a_label_report(tmp_path):
    flags = ["--method", "co-teaching", "--num_meta", "40", "--save_strategy", "no", "--output_dir", str(tmp_path)]
    run_famus.main([*SMALL, *flags])
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["method"] == "Co-teaching" and results["meta_set"] is None and results["global_step"] == 18
    assert results["estimated_noise_rate"] is None or 0 < results["estimated_noise_rate"] <= 0.5
    assert "division" not in results
    report = pd.read_parquet(tmp_path / "label_report.parquet")
    assert len(report) == 360 and results["wrong_label_average_precision"] > results["realised_noise_rate"] + 0.1
    assert type(load_famus(tmp_path)[0]) is TwoNetworksForImageClassification


def test_a_selection_by_cross_validation_is_told_of_in_results_and_card(tmp_path):
    flags = ["--method", "incv", "--cross_validation_epochs", "2", "--cross_validation_rounds", "1"]
    run_famus.main([*SMALL, *flags, "--output_dir", str(tmp_path), "--num_train_epochs", "1"])
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["method"] == "INCV" and results["global_step"] == 10
    assert 0 < results["cross_validation_seconds"] < results["train_seconds"]
    assert 0 < results["selected_examples"] < 400 and results["selected_precision"] > 1 - results["realised_noise_rate"]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "predicted by networks that had not seen them" in card and "| cross-validation | 1 rounds, each ha" in card
    assert f"| selected by cross-validation | {results['selected_examples']} examples, " in card


def test_a_long_tail_is_learned_by_two_branches_of_one_network(tmp_path):
    flags = ["--method", "bbn", "--noise", "0", "--imbalance_factor", "5", "--output_dir", str(tmp_path)]
    run_famus.main([*SMALL, *flags])
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert results["method"] == "BBN" and results["meta_set"] is None and 0 <= results["eval_accuracy"] <= 1
    assert type(load_famus(tmp_path)[0]) is BilateralBranchForImageClassification


def test_the_end_of_a_comparison_says_what_an_epoch_takes_and_how_many_labels_are_wrong(pipeline_run):
    suffixes = ("-plain", "-dividemix", "-mw-net", "")
    files = [pipeline_run.with_name(f"run{suffix}") / "all_results.json" for suffix in suffixes]
    rows = [json.loads(file.read_text()) for file in files]
    table, notes = format_table(rows), format_notes(rows)
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == [row["method"] for row in rows]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert re.search(r"seconds an epoch: plain \d+\.\d\d; DivideMix \d+\.\d\d \(\d+\.\d\d × plain\); ", notes)
    for rate, words in ((0.364, "36.4%"), (None, "not told, as they have learned too little")):
        assert f"as the networks estimate: {words}" in format_notes(
            [*rows[:-1], {**rows[-1], "estimated_noise_rate": rate}]
        )
    assert re.search(r"division \d+ %, guessing \d+ %, meta step \d+ %", notes)


def test_resuming_two_networks_through_the_command_line_gives_the_same_result(tmp_path, pipeline_run, capsys):
    shutil.copytree(pipeline_run, tmp_path, dirs_exist_ok=True)
    newest = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(newest)  # as if the run had been killed after the checkpoint before
    with pytest.raises(SystemExit):
        run_famus.main([*SMALL, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "true"])
    assert "is of two networks: add --two_networks" in capsys.readouterr().err
    run_famus.main([*PIPELINE, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "true"])
    for name in ("model.safetensors", "model_b/model.safetensors", "model_a/meta_net/layer_sampler.safetensors"):
        assert (pipeline_run / name).read_bytes() == (tmp_path / name).read_bytes(), name
    first, second = (json.loads((folder / "all_results.json").read_text()) for folder in (pipeline_run, tmp_path))
    for name in ("eval_accuracy", "best_eval_accuracy", "mean_active_layers", "division", "estimated_noise_rate"):
        assert first[name] == second[name], name


def test_a_checkpoint_of_another_kind_of_run_is_refused_in_one_sentence(pipeline_run):
    plain, dividemix = (
        str(next(pipeline_run.with_name(f"run{suffix}").glob("checkpoint-*"))) for suffix in ("-plain", "-dividemix")
    )
    whole = str(next(pipeline_run.glob("checkpoint-*")))
    for flags, checkpoint, sentence in (
        (["--two_networks"], plain, "is of a run with one network: leave --two_networks out"),
        (["--two_networks"], dividemix, "is of a run without a meta-learner: add --meta_learner none"),
        ([], dividemix, "is of two networks: add --two_networks"),
        ([], plain, "is of a run without a meta-learner: add --meta_learner none"),
        (["--two_networks", "--meta_learner", "none"], whole, "is of a run with a meta-learner: leave"),
    ):
        networks, _, args = arguments.parse_arguments([*SMALL, *flags])
        with pytest.raises(ValueError, match=sentence):
            set_up_run.check_checkpoint(checkpoint, networks, args)


def build(networks, names, args):
    """Network and processor for images of these classes."""
    features = {"image": None, "label": ClassLabel(names=names)}
    return set_up_run.build_model(networks, {"train": SimpleNamespace(features=features)}, args)


def test_two_pretrained_networks_differ_in_their_heads(tmp_path, caplog):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    flags = [*SMALL, "--two_networks", "--model_name_or_path", str(tmp_path)]
    networks, _, args = arguments.parse_arguments(flags)
    model, processor = build(networks, list("abc"), args)
    own, other = (dict(network.named_parameters()) for network in (model.model_a, model.model_b))
    assert {name for name in own if not torch.equal(own[name], other[name])} == {"classifier.weight"}
    assert processor.size["height"] == 8 and "start from the same weights" not in caplog.text
    build(networks, ["LABEL_0", "LABEL_1"], args)
    assert "both networks start from the same weights" in caplog.text


def test_the_first_of_two_networks_starts_where_one_network_does():
    networks, _, args = arguments.parse_arguments([*SMALL, "--two_networks", "--backbone", "tiny"])
    both, _ = build(networks, list("abc"), args)
    networks.two_networks = False
    alone, _ = build(networks, list("abc"), args)
    assert torch.equal(alone.classifier.weight, both.model_a.classifier.weight)
    assert not torch.equal(alone.classifier.weight, both.model_b.classifier.weight)


def test_two_branches_are_compared_with_one_network_of_one():
    networks, _, args = arguments.parse_arguments([*SMALL, "--method", "bbn"])
    runs = set_up_run.baselines_of(networks, args, has_trusted=True)
    names = ["plain", "plain + trusted", "forward correction + trusted"]
    assert [set_up_run.method_name(*pair) for pair in runs] == names
    assert not any(own.bilateral_branch for own, _ in runs)
    with pytest.raises(SettingsError, match="--bilateral_branch is for one network: leave out it or --two_networks"):
        arguments.parse_arguments([*SMALL, "--bilateral_branch", "--two_networks"])


def test_two_networks_are_compared_with_what_the_paper_compares_them_with():
    def runs_of(*flags):
        networks, _, args = arguments.parse_arguments([*SMALL, "--two_networks", *flags])
        return [*set_up_run.baselines_of(networks, args, has_trusted=False), (networks, args)]

    runs = runs_of()
    assert [set_up_run.method_name(*pair) for pair in runs] == [
        "plain", "DivideMix", "two networks, MW-Net, all layers", "two networks, MW-Net + FaMUS",
    ]  # fmt: skip
    assert [networks.two_networks for networks, _ in runs] == [False, True, True, True]
    assert [args.per_device_train_batch_size for _, args in runs] == [80, 40, 40, 40], (
        "as many steps, as in the warm-up"
    )
    assert {args.meta_set for _, args in runs} == {"pseudo-clean"}
    assert [set_up_run.method_name(*pair) for pair in runs_of("--meta_learner", "none")] == ["plain", "DivideMix"]
    pair = runs_of("--pair_method", "jocor", "--noise_rate", "0.4")
    assert [set_up_run.method_name(*run) for run in pair] == ["plain", "JoCoR"]
    assert [args.per_device_train_batch_size for _, args in pair] == [40, 40]
    pair = runs_of("--pair_method", "incv", "--cross_validation_epochs", "3")
    assert [set_up_run.method_name(*run) for run in pair] == ["plain", "INCV"]
    one_less = [set_up_run.method_name(*pair) for pair in runs_of("--layer_sampler", "all")]
    assert one_less == ["plain", "DivideMix", "two networks, MW-Net, all layers"]
