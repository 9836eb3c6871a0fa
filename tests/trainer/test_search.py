"""Searching settings with `hyperparameter_search`: each trial is a run of its own, by its own settings."""

from types import SimpleNamespace

import pytest
import torch
from transformers.trainer_utils import HPSearchBackend

from famus_hf import FaMUSTrainer
from famus_hf.errors import SettingsError
from famus_hf.two_networks.trainer import TwoNetworkTrainer
from tests.helpers.models import TwoModels, build_model
from tests.helpers.trainers import Examples, learned, make_args
from tests.helpers.two_network_runs import Learnable


@pytest.fixture(autouse=True)
def trials_of_any_class(monkeypatch):
    """transformers knows the trials of the packages that are installed."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)


def make_searcher(folder, meta=True, **settings):
    return FaMUSTrainer(
        None, make_args(folder, **{"max_steps": 3, **settings}), train_dataset=Examples(40),
        eval_dataset=Examples(9, 2000), meta_dataset=Examples(8, 1000) if meta else None,
        model_init=lambda: build_model("batch norm", torch.float32),
    )  # fmt: skip


def trial_of(trainer, number=0, **settings):
    """Train as a backend of a search does, and drop the network afterwards."""
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: settings
    trainer.hp_name = trainer.compute_objective = None
    trainer.train(trial=SimpleNamespace(number=number, params=settings))
    found = learned(trainer) if trainer.stages is not None else {}
    trainer.model = trainer.model_wrapped = None
    trainer.accelerator.clear()
    return found


SEARCHED = {
    "rate of the meta-learner": ({"meta_learning_rate": 0.2}, {"meta_learning_rate": 0.01}),
    "meta-learner": ({"meta_learner": "mlc"}, {"meta_learner": "mw-net"}),
    "sampler": ({"layer_sampler": "all"}, {"expected_layers": 2.0, "layer_sampler": "learned"}),
    "size of batches": ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 5}),
    "base loss": ({"base_loss": "focal"}, {"base_loss": "ce", "label_smoothing_factor": 0.1}),
    "optimizer": ({"optim": "adamw_torch", "learning_rate": 1e-3}, {"optim": "sgd", "learning_rate": 0.05}),
    "derivative": ({"derivative": "reverse"}, {"derivative": "forward", "virtual_step": "sgd"}),
}


@pytest.mark.parametrize("name", SEARCHED)
def test_a_trial_is_the_run_that_its_settings_make(tmp_path, name):
    """Also the second one, whose network was dropped before, and whatever the first one has left."""
    searcher = make_searcher(tmp_path)
    for settings in SEARCHED[name]:
        found = trial_of(searcher, **settings)
        alone = make_searcher(tmp_path / "alone", **settings)
        alone.train()
        expected = learned(alone)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), settings
        assert searcher.args.meta_batch_size == searcher.args.per_device_train_batch_size


def test_a_searched_seed_changes_the_order_of_the_data_and_a_searched_data_seed_too(tmp_path):
    searcher, rows = make_searcher(tmp_path), []
    training_step = searcher.training_step

    def record(model, inputs, num_items_in_batch=None):
        rows.extend(inputs["index"].tolist())
        return training_step(model, inputs, num_items_in_batch)

    searcher.training_step = record

    def order(**settings):
        rows.clear()
        trial_of(searcher, **settings)
        return list(rows)

    orders = [order(**settings) for settings in ({"seed": 1}, {"seed": 2}, {"seed": 1}, {"data_seed": 2}, {"seed": 3})]
    assert orders[0] != orders[1]
    assert orders[0] == orders[2] and orders[1] == orders[3]
    assert orders[3] == orders[4], "one that was given does not follow the seed"


def test_plain_training_and_a_pseudo_clean_meta_set_are_searched_too(tmp_path):
    searcher = make_searcher(tmp_path, meta=False, plain_warmup_epochs=0.2)
    assert trial_of(searcher, meta_learner="none") == {} and searcher.meta is None
    assert trial_of(searcher, meta_learner="mw-net") and searcher.meta.steps == 2


def test_what_a_search_can_not_change_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(SettingsError, match="image_size can't be searched, as the data sets are made for it"):
        trial_of(make_searcher(tmp_path), image_size=8)
    with pytest.raises(SettingsError, match="meta_interval=0 must be greater than 0"):
        trial_of(make_searcher(tmp_path), meta_interval=0)


def test_two_networks_are_searched(tmp_path):
    searcher = TwoNetworkTrainer(
        None, make_args(tmp_path, max_steps=3, plain_warmup_epochs=0), train_dataset=Learnable(),
        model_init=lambda: TwoModels(*(build_model("called group norm", torch.float32, seed) for seed in (1, 2))),
    )  # fmt: skip
    for rate in (0.2, 0.01):
        trial_of(searcher, meta_learning_rate=rate)
        assert {peer.meta.learner_optimizer.param_groups[0]["lr"] for peer in searcher.peers} == {rate}
        assert [peer.meta.steps for peer in searcher.peers] == [3, 3]


def test_hyperparameter_search_finds_the_best_of_its_trials(tmp_path):
    pytest.importorskip("optuna")
    searcher = make_searcher(tmp_path, save_strategy="steps", save_steps=3)
    best = searcher.hyperparameter_search(
        lambda trial: {"meta_learning_rate": trial.suggest_float("meta_learning_rate", 1e-3, 0.1, log=True)},
        backend="optuna", n_trials=2,
    )  # fmt: skip
    assert best.objective > 0 and set(best.hyperparameters) == {"meta_learning_rate"}
    runs = [tmp_path / f"run-{number}" / "checkpoint-3" for number in range(2)]
    assert all((run / "trained_on.json").is_file() for run in runs)
