"""The pair method incv: what is selected before training, that a run takes it up again exactly, what it refuses.

tests/core/test_cross_validation.py has its formulas, test_pair_trainer.py and tests/processes what all pairs share.
"""

import copy
import shutil
import time

import numpy as np
import pytest
import torch

from famus_hf.data.per_example import PerExample
from famus_hf.two_networks import selection_mixin
from tests.helpers.pair_runs import RUNS, learned, make
from tests.helpers.two_network_runs import Learnable, assert_equal

INCV = RUNS["incv"]
ALWAYS = {"save_strategy": "steps", "save_steps": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to, its checkpoints of each turn aside in `turn-N`, and the batches that it saw."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make(folder, "batch norm", torch.float32, **INCV, **ALWAYS)
    save, compute_loss, trainer.seen = trainer._save_checkpoint, trainer.compute_loss, []

    def saved(model, trial):
        save(model, trial)
        if trainer.state.global_step == 0:
            shutil.copytree(folder / "checkpoint-0", folder / f"turn-{trainer.selection.turn}" / "checkpoint-0")

    trainer._save_checkpoint = saved
    trainer.compute_loss = lambda model, inputs, *others, **named: (
        trainer.seen.append(inputs["labels"]) or compute_loss(model, inputs, *others, **named)
    )
    trainer.start = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    return trainer


@pytest.mark.parametrize("checkpoint", [*(f"turn-{turn}/checkpoint-0" for turn in (1, 2, 4)), "checkpoint-8"])
def test_a_run_that_was_stopped_in_the_selection_or_after_it_ends_as_one_that_was_not(tmp_path, whole, checkpoint):
    again = make(tmp_path, "batch norm", torch.float32, **INCV)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/{checkpoint}")
    assert again.state.global_step == 10 and again.selection.turn == 4
    assert_equal(learned(again), learned(whole))
    assert again.selection_facts["selected_examples"] == whole.selection_facts["selected_examples"]


def test_a_turn_leaves_the_networks_and_what_is_drawn_as_they_were(tmp_path, whole):
    trainer = make(tmp_path, "batch norm", torch.float32, **INCV)
    trainer.forget_earlier_training()
    trainer.state.max_steps, trainer.schedule.steps_per_epoch = 10, 6
    before = torch.get_rng_state()
    trainer._take_turn(trainer.selection)
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(trainer.model.state_dict(), whole.start)


def test_each_turn_trains_the_same_start_on_one_half_and_what_is_selected_and_judges_the_other(tmp_path, monkeypatch):
    seen, trainer = [], make(tmp_path, **INCV)

    def judged_after_learning(network, train, learned_rows, judged_rows, args, **others):
        seen.append((copy.deepcopy(network.state_dict()), learned_rows, judged_rows, args))
        return judge(network, train, learned_rows, judged_rows, args, **others)

    judge = selection_mixin.judged_after_learning
    monkeypatch.setattr(selection_mixin, "judged_after_learning", judged_after_learning)
    start = copy.deepcopy(trainer.model.model_a.state_dict())
    trainer.train()
    assert len(seen) == 4
    for network, learned_rows, judged_rows, args in seen:
        assert_equal(network, start)
        assert not set(learned_rows) & set(judged_rows)
        assert (args.num_train_epochs, args.max_steps, args.pair_method, args.learning_rate) == (2, -1, None, 0.05)
    assert [len(judged) for *_, judged, _ in seen[:2]] == [48, 48]
    selected = trainer.selection.selected & (trainer.selection.settled_at < 2)
    assert all(set(np.flatnonzero(selected)) < set(rows) for _, rows, _, _ in seen[2:])


def test_training_sees_the_selected_alone_as_many_steps_as_without_and_they_are_labelled_more_rightly(whole):
    rows, train = whole.selection.rows, whole.train_dataset
    assert 16 < len(rows) < 96 and whole.schedule.steps_per_epoch == 6
    counts = torch.cat(whole.seen[:6]).bincount(minlength=4)  # an epoch of 96 goes through them once and a part again
    times, own = divmod(96, len(rows)), train.labels[torch.from_numpy(rows)].bincount(minlength=4)
    assert (counts >= times[0] * own).all() and counts.sum() == 96
    right = (train.labels == train.clean).double()
    assert whole.selection.precision == pytest.approx(right[rows].mean().item())
    assert right[rows].mean() > right.mean() + 0.05
    assert whole.estimate == whole.selection.noise_rate(4)
    shares = [entry for entry in whole.state.log_history if "selected_share" in entry]
    assert len(shares) == 4 and shares[-1]["selected_share"] == pytest.approx(len(rows) / 96)
    assert shares[-1]["selected_precision"] == pytest.approx(whole.selection.precision)


def test_the_time_of_a_run_contains_that_of_its_selection(tmp_path, monkeypatch):
    def judged_after_learning(network, train, learned_rows, judged_rows, args, **others):
        time.sleep(0.1)
        labels = train.labels[torch.from_numpy(judged_rows)].numpy()
        return PerExample(labels, np.ones(len(labels)), np.eye(4)[labels * 0], None, None)

    monkeypatch.setattr(selection_mixin, "judged_after_learning", judged_after_learning)
    trainer = make(tmp_path, **INCV)
    trainer.train()
    facts = trainer.selection_facts
    assert trainer.training_time.seconds > facts["cross_validation_seconds"] > 0.4
    assert facts["selected_precision"] is None
    assert (trainer.train_dataset.labels[torch.from_numpy(trainer.selection.rows)] == 0).all()


def test_a_noise_rate_that_is_given_is_taken(tmp_path):
    trainer = make(tmp_path, **INCV, noise_rate=0.25, max_steps=7)
    trainer.train()
    assert trainer.estimate is None and trainer.noise_rate == 0.25
    trainer.state.global_step = 6
    assert trainer.forget_rate == 0.25


def test_half_as_many_epochs_as_the_run_are_taken_where_none_are_named_and_milestones_are_shares(tmp_path):
    trainer = make(tmp_path, pair_method="incv", lr_milestones=[0.5, 45], warmup_steps=6, max_steps=60)
    trainer.state.max_steps, trainer.schedule.steps_per_epoch = 60, 6
    own = trainer._settings_of_turn
    assert own.num_train_epochs == 5 and own.lr_milestones == [0.5, 0.75] and own.warmup_steps == 0.1


def test_nothing_selected_is_an_error_and_a_class_without_any_a_warning(tmp_path, monkeypatch, caplog):
    trainer = make(tmp_path, **INCV)
    trainer.forget_earlier_training()
    with pytest.raises(
        ValueError, match="of 96 labels none was predicted in cross-validation, so that nothing is left"
    ):
        trainer._check_selection(trainer.selection)
    trainer.selection.selected[:3] = True
    monkeypatch.setattr(selection_mixin, "known_labels", lambda train: train.labels.tolist())
    trainer._check_selection(trainer.selection)
    missing = sorted({0, 1, 2, 3} - set(trainer.train_dataset.labels[:3].tolist()))
    assert f"no example of {len(missing)} classes ({', '.join(map(str, missing))})" in caplog.text


def test_an_untrained_network_is_not_pushed(tmp_path, monkeypatch):
    trainer = make(tmp_path, **INCV)
    monkeypatch.setattr(trainer, "save_model", lambda **named: pytest.fail("it was"))
    trainer._push_from_checkpoint("checkpoint-0")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"per_device_train_batch_size": 50}, "trains on halves of the training set, 48 examples, less than one batch"),
        ({"pair_method": "jocor", "cross_validation_epochs": 3}, r"cross_validation_epochs=3 does nothing .* \(incv\)"),
        ({"cross_validation_rounds": 0}, "cross_validation_rounds=0 must be greater than 0"),
        ({"cross_validation_drop": 1}, "cross_validation_drop=1 must be less than 1"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' does not go with pair_meth"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_is_refused_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **{"pair_method": "incv", **changes})


def test_checkpoints_without_a_selection_or_with_that_of_other_data_are_refused(tmp_path, whole):
    trainer, other = make(tmp_path, **INCV), make(tmp_path, **RUNS["jocor"])
    smaller = make(tmp_path, train=Learnable(80), **INCV)
    state = whole._meta_state()
    with pytest.raises(ValueError, match="it is of a run with a pair_method without cross-validation: give the same"):
        trainer._take_meta_state({"noise_rate": 0.1})
    with pytest.raises(ValueError, match="it is of a run with another pair_method: give the same"):
        other._take_meta_state(state)
    with pytest.raises(ValueError, match="the selection has settled_at that is not of 80 examples"):
        smaller._take_meta_state(state)
    for name, value in (("turn", -1), ("selected", torch.zeros(96)), ("settled_at", None)):
        with pytest.raises(ValueError, match=f"the selection has (a )?{name} that is"):
            trainer._take_meta_state({**state, "selection": {**state["selection"], name: value}})
