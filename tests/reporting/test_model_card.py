"""The model card of a run: what it claims, what it shows, and what it keeps to itself."""

import json
import os
import re
import sys

import pytest
import torch
from experiments import recipe_cards
from huggingface_hub import ModelCard

from famus_hf.cli import results as records
from famus_hf.errors import SettingsError
from famus_hf.reporting.model_card import metrics_of
from tests.helpers import clean_process
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.trainers import make_trainer
from tests.helpers.two_network_runs import make


def test_the_card_says_what_was_trained_on_what(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=3)
    trainer.train()
    trainer.create_model_card(dataset_name="digits", noise_description="symmetric, 40 %", license="apache-2.0")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict()["library_name"] == "transformers" and card.data.license == "apache-2.0"
    accuracies = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["last"] == pytest.approx(accuracies[-1], abs=1e-6)
    assert found["best"] == pytest.approx(max(accuracies), abs=1e-6)
    for text in ("huggingface.co/papers/2104.15092", "symmetric, 40 %", "MWNet", "load_famus(", "@inproceedings"):
        assert text in card.text


def test_the_card_takes_what_transformers_examples_say_of_a_run(tmp_path, caught):
    """As run_glue.py and run_image_classification.py call it, words alone or several of them."""
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=3, max_steps=3)
    trainer.model.model_tags = ["own-tag"]
    trainer.train()
    words = {
        "language": "en", "license": "mit", "tags": "glue-run", "model_name": "Mine", "finetuned_from": "org/base",
        "tasks": "text-classification", "dataset_tags": "glue", "dataset": "GLUE SST2", "dataset_args": "sst2",
    }  # fmt: skip
    plain = ("language", "license", "model_name", "finetuned_from")
    for given in (words, {name: words[name] if name in plain else [words[name]] for name in words}):
        trainer.create_model_card(**given)
        card = ModelCard.load(tmp_path / "README.md")
        data = card.data.to_dict()
        assert data["tags"] == ["famus", "noisy-labels", "meta-learning", "own-tag", "glue-run"]
        assert (data["language"], data["license"], data["base_model"]) == ("en", "mit", "org/base")
        assert data["datasets"] == ["glue"] and data["pipeline_tag"] == "text-classification"
        (result,) = [result for result in card.data.eval_results if result.metric_name == "last"]
        assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("glue", "GLUE SST2", "sst2")
        assert result.task_type == "text-classification" and "# Mine" in card.text and "on GLUE SST2" in card.text
        assert validated((tmp_path / "README.md").read_text(), tmp_path) == ""
    trainer.create_model_card("de", "apache-2.0", ["a", "b"], finetuned_from=str(tmp_path), dataset_tags=["x/a", "x/b"])
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.language == "de" and data.tags[-2:] == ["a", "b"] and data.datasets == ["x/a", "x/b"]
    assert data.base_model == "org/base" and str(tmp_path) not in (tmp_path / "README.md").read_text()
    assert f"finetuned_from='{tmp_path}' is no repository on the Hub" in caught.text
    with pytest.raises(SettingsError, match="the model card has no place for daatset: leave it out"):
        trainer.create_model_card(daatset="digits")


def validated(text, folder):
    """What huggingface_hub's own validation, which asks the Hub, says of a card; nothing if it is sound."""
    (folder / "card.md").write_text(text)
    code = "from huggingface_hub import ModelCard; ModelCard.load('card.md').validate()"
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(folder / "home")}
        command = [sys.executable, "-c", code]
        return clean_process.run(command, cwd=folder, env=environment).stderr


def test_the_card_of_a_compared_run_has_baselines_pictures_and_licences(compared_runs, tmp_path):
    folder = compared_runs / "own"
    results = json.loads((folder / "all_results.json").read_text())
    plain = json.loads((compared_runs / "own-plain" / "all_results.json").read_text())
    text = (folder / "README.md").read_text()
    for name, row in (("plain", plain), ("**this model**", results)):
        accuracies = " | ".join(f"{100 * row[key]:.2f} %" for key in ("eval_accuracy", "best_eval_accuracy"))
        assert f"| {name} | {accuracies} | {row['train_seconds_per_step']:.4f} |" in text
    ratio = results["train_seconds_per_step"] / plain["train_seconds_per_step"]
    assert f"a step took {ratio:.2f} times one of plain training" in text
    assert results["suspect_labels"] is None and "that one is empty, as\nfrom the first epochs on" in text
    assert "CC BY 4.0" in text
    pictures = [f"figures/{name}.png" for name in ("accuracy", "weight_curve", "weight_histogram", "suspect_labels")]
    assert [name for name in pictures if f"]({name})" in text and (folder / name).is_file()] == pictures
    assert "run_famus.py --dataset_name digits --noise 0.4 --max_steps 8" in text
    assert "hf_abc" not in text and str(compared_runs) not in text
    assert validated(text, tmp_path) == ""
    broken = text.replace("      name: digits\n", "      name: null\n", 1)
    assert "dataset lacks name" in validated(broken, tmp_path)
    baseline = (compared_runs / "own-plain" / "README.md").read_text()
    assert "plainly and without a meta-net" in baseline
    assert re.findall(r"\]\(figures/(\w+)", baseline) == ["accuracy"], "it has weighed nothing"


def test_last_and_best_of_a_run_are_not_mistaken_for_each_other(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.create_model_card(metrics={"last": 0.25, "best": 0.75}, baselines=[
        {"method": "plain", "last": 0.125, "best": 0.375, "seconds_per_step": 0.5}
    ])  # fmt: skip
    card = ModelCard.load(tmp_path / "README.md")
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        "last": 0.25,
        "best": 0.75,
    }
    rows = [re.sub(r"[\s%*]", "", line) for line in card.text.splitlines() if line.startswith("|")]
    assert any("|25.0|75.0|" in row or "|25.00|75.00|" in row for row in rows), rows
    assert any("|12.5|37.5|" in row or "|12.50|37.50|" in row for row in rows), rows
    log = [{"step": step, "eval_accuracy": accuracy} for step, accuracy in ((1, 0.5), (2, 0.75), (3, 0.625))]
    trainer.state.log_history = log
    assert metrics_of(trainer.args, trainer.state) == {"last": 0.625, "best": 0.75}


def test_a_finished_run_is_a_baseline_by_its_own_last_and_best():
    results = {"method": "plain", "eval_accuracy": 0.5, "best_eval_accuracy": 0.75, "train_seconds_per_step": 0.1}
    assert records.as_baseline(results) == {"method": "plain", "last": 0.5, "best": 0.75, "seconds_per_step": 0.1}


def test_a_card_says_so_where_a_baseline_is_better(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    rows = [
        {"method": name, "last": last, "best": 0.9, "seconds_per_step": 0.1} for name, last in (("a", 0.6), ("b", 0.4))
    ]
    for own, sentence in ((0.5, "under the same schedule a ended higher"), (0.7, None)):
        trainer.create_model_card(metrics={"last": own, "best": own}, baselines=rows, seconds_per_step=0.2)
        text = (tmp_path / "README.md").read_text()
        assert (sentence is not None) == ("Not better here" in text) and (sentence or "") in text


def test_the_card_of_two_networks_says_how_they_divided_the_data_and_how_to_load_each(tmp_path):
    trainer = make(tmp_path, dtype=torch.float32, mixup_alpha=1.5)
    trainer.train()
    trainer.create_model_card(dataset_name="digits", metrics={"last": 0.8, "best": 0.9})
    text = (tmp_path / "README.md").read_text()
    for words in (
        "It is two networks whose logits are averaged", "no clean label was used",
        f'load_famus("{tmp_path.name}", subfolder="model_a")', "MWNet(", "LearnedSampler(", "Beta(1.5, 1.5)",
        "| weight of unlabelled examples, λ_u | 2, reached after 1 epochs |", "2 × CalledGroupNormNet",
        f"| wrong labels, as the networks estimate | {100 * trainer.noise_rate:.1f} % |",
        "| batch | 16 |",
    ):  # fmt: skip
        assert words in text, words
    for side in trainer.peers:
        counts = f"{len(side.division)} labelled and {len(side.division.unlabelled)} unlabelled examples"
        assert f"| the division by `{side.name}` | {counts}, {100 * side.division.purity:.1f} % of these" in text
    assert "SemiSupervisedLoss" not in text and validated(text, tmp_path) == ""


def test_the_card_of_dividemix_names_no_meta_net(tmp_path):
    trainer = make(tmp_path, dtype=torch.float32, meta_learner="none", plain_warmup_epochs=3)
    trainer.train()
    trainer.create_model_card(dataset_name="digits")
    text = (tmp_path / "README.md").read_text()
    assert "without a meta-net ([DivideMix]" in text and "| meta set | none |" in text
    assert "EqualWeights" not in text and "layer sampler |" not in text
    assert "not estimated, as the warm-up did not end" in text and "the division by" not in text


def test_the_command_on_the_card_holds_no_token_and_no_path_of_this_machine(tmp_path):
    words = [
        "--dataset_name", str(tmp_path), "--hub_token=hf_abc", "--output_dir", "/home/me/run", "--push_to_hub",
        "--lr_milestones", "0.5", "0.75", "--noise=0.4", "--hub_model_id", "me/x",
    ]  # fmt: skip
    expected = f"--dataset_name {tmp_path.name} --lr_milestones 0.5 0.75 --noise 0.4"
    assert records.command_of(words) == f"accelerate launch scripts/run_famus.py {expected}"


@pytest.mark.parametrize("name", recipe_cards.recipe_names())
def test_cards_of_recipes_are_those_that_the_recipes_give_and_claim_nothing_of_ours(name):
    """`python scripts/experiments/recipe_cards.py` writes them anew."""
    expected, path = recipe_cards.card_of(name), recipe_cards.CARDS / f"{name}.md"
    assert path.is_file() == (expected is not None)
    if expected is not None:
        text = path.read_text(encoding="utf-8")
        assert text == expected and f"--recipe {name} --compare" in text and "Figures of the paper, not ours" in text
        assert ModelCard(text).data.eval_results is None
