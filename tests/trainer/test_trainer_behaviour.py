"""What is expected of a Trainer: transformers' own shows it, and ours with it, plainly and with a meta-learner."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from transformers.trainer_utils import SchedulerType

from famus_hf.errors import LoadError
from tests.helpers.three_modes import (
    CLASSES,
    EVAL,
    MODES,
    OURS,
    TRAIN,
    NotingCallback,
    ToyClassifier,
    ToyConfig,
    examples,
    make,
    make_toy,
    run,
)

EVERY = {"eval_strategy": "steps", "eval_steps": 1}
SAVING = {"save_strategy": "steps", "save_steps": 1}


def accuracy(prediction):
    """By the largest of whatever stands first among the predictions."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((np.asarray(logits).argmax(1) == prediction.label_ids).mean())}


class Falling:
    """An accuracy that is best at the first evaluation."""

    def __init__(self):
        self.value = 1.0

    def __call__(self, prediction):
        self.value -= 0.1
        return {"accuracy": self.value}


# ---- Checkpoints ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("saving", "step"),
    [
        (SAVING, 3),
        ({**SAVING, "save_steps": 0.5}, 3),
        ({"save_strategy": "epoch"}, 4),
        ({**EVERY, "save_strategy": "best", "metric_for_best_model": "accuracy"}, 1),
        ({**SAVING, "gradient_accumulation_steps": 3}, 3),
    ],
    ids=["steps", "share", "epoch", "best", "accumulated"],
)
def test_a_run_goes_on_from_its_checkpoint(tmp_path, mode, saving, step):
    """As if it had not been interrupted, from whatever strategy has left."""
    settings = {"max_steps": 6, **saving}
    whole = run(mode, tmp_path, settings, compute_metrics=Falling())
    again = make(mode, tmp_path, settings, compute_metrics=Falling())
    again.trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert again.trainer.state.global_step == 6
    torch.testing.assert_close(again.weights, whole.weights, rtol=0, atol=0)
    rates = [entry["learning_rate"] for entry in again.trainer.state.log_history if "learning_rate" in entry]
    assert rates == whole.rates


@pytest.mark.parametrize("mode", OURS)
def test_a_checkpoint_without_optimizers_is_no_start(tmp_path, mode):
    run(mode, tmp_path, {**SAVING, "save_only_model": True})
    with pytest.raises(LoadError, match="was saved with save_only_model"):
        make(mode, tmp_path).trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("judge", ["accuracy", "eval_loss", "accuracy, less is better"])
def test_the_best_model_comes_back(tmp_path, mode, judge):
    """By the metric that is asked for, in its direction; its checkpoint survives the limit."""
    name, _, reverse = judge.partition(",")
    settings = {**EVERY, **SAVING, "max_steps": 4, "load_best_model_at_end": True, "metric_for_best_model": name,
                "save_total_limit": 2, "learning_rate": 0.5}  # fmt: skip
    settings |= {"greater_is_better": False} if reverse else {}
    weights = []

    class Noting(TrainerCallback):
        def on_save(self, args, state, control, model, **keywords):
            weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))

    found = run(mode, tmp_path, settings, compute_metrics=Falling(), callbacks=[Noting()])
    values = [entry[f"eval_{name.removeprefix('eval_')}"] for entry in found.evals]
    best = int(np.argmin(values) if name == "eval_loss" or reverse else np.argmax(values)) + 1
    assert found.trainer.state.best_global_step == best
    assert found.trainer.state.best_metric == pytest.approx(values[best - 1])
    assert torch.equal(found.weights, weights[best - 1])
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert f"checkpoint-{best}" in left and "checkpoint-4" in left and len(left) <= 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("anew", [False, True])
def test_a_resumed_run_may_read_an_epoch_anew(tmp_path, mode, anew):
    whole = run(mode, tmp_path, {**SAVING, "max_steps": 4})
    again = make(mode, tmp_path, {"max_steps": 4, "ignore_data_skip": anew})
    again.trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = whole.collator.train[:2] if anew else whole.collator.train[2:4]
    assert again.collator.train[-2 if not anew else 0 :][:2] == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_model_is_saved_where_it_is_asked_for(tmp_path, mode):
    found = run(mode, tmp_path / "run")
    for folder in (None, str(tmp_path / "other"), str(tmp_path / "deep" / "er")):
        found.trainer.save_model(folder)
    found.trainer.save_model(str(tmp_path / "inner"), _internal_call=True)
    for folder in ("run", "other", "deep/er", "inner"):
        loaded = ToyClassifier.from_pretrained(tmp_path / folder)
        assert torch.equal(loaded.classifier.weight, found.trainer.model.classifier.weight), folder


# ---- Evaluation ----


@pytest.mark.parametrize("mode", MODES)
def test_several_evaluation_sets_are_told_apart(tmp_path, mode):
    sets = {"near": examples(6, EVAL), "far": examples(5, EVAL + 50)}
    found = run(mode, tmp_path, EVERY, eval_dataset=sets, compute_metrics=accuracy)
    logged = {name for entry in found.trainer.state.log_history for name in entry}
    assert {"eval_near_loss", "eval_far_loss", "eval_near_accuracy", "eval_far_accuracy"} <= logged
    alone = found.trainer.evaluate(sets["far"])["eval_loss"]
    assert found.trainer.evaluate("far")["eval_loss"] == pytest.approx(alone)
    assert found.trainer.evaluate()["eval_far_loss"] == pytest.approx(alone)
    assert found.trainer.evaluate({"own": sets["far"]})["eval_own_loss"] == pytest.approx(alone)


@pytest.mark.parametrize("mode", MODES)
def test_metrics_have_the_prefix_that_is_asked_for(tmp_path, mode):
    trainer = make(mode, tmp_path, compute_metrics=accuracy).trainer
    evaluated = trainer.evaluate(metric_key_prefix="mine")
    assert {"mine_loss", "mine_accuracy", "mine_runtime"} <= set(evaluated)
    predicted = trainer.predict(examples(6, EVAL), metric_key_prefix="other")
    assert {"other_loss", "other_accuracy"} <= set(predicted.metrics)
    assert predicted.predictions.shape == (6, CLASSES) and predicted.label_ids.shape == (6,)
    assert evaluated["mine_loss"] == pytest.approx(predicted.metrics["other_loss"])
    unlabelled = [{name: row[name] for name in ("input_ids", "index")} for row in examples(6, EVAL)]
    trainer.data_collator = lambda rows: {"input_ids": torch.stack([row["input_ids"] for row in rows])}
    alone = trainer.predict(unlabelled)
    assert np.array_equal(alone.predictions, predicted.predictions) and alone.label_ids is None


class Talkative(ToyClassifier):
    """Also returns what stands before its classifier."""

    def forward(self, input_ids, labels=None):
        outputs = super().forward(input_ids, labels)
        outputs["hidden_states"] = self.embedding(input_ids).mean(1)
        return outputs


@pytest.mark.parametrize("mode", MODES)
def test_outputs_may_be_left_out_of_predictions(tmp_path, mode):
    seen = []

    def metrics(prediction):
        seen.append(type(prediction.predictions))
        return accuracy(prediction)

    found = make(mode, tmp_path, EVERY, model=Talkative(ToyConfig()), compute_metrics=metrics)
    found.trainer.train(ignore_keys_for_eval=["hidden_states"])
    found.trainer.evaluate(ignore_keys=["hidden_states"])
    assert set(seen) == {np.ndarray}
    assert isinstance(found.trainer.predict(examples(6, EVAL), ["hidden_states"]).predictions, np.ndarray)
    logits, hidden = found.trainer.predict(examples(6, EVAL)).predictions
    assert logits.shape == (6, CLASSES) and hidden.shape == (6, 8)


@pytest.mark.parametrize("mode", MODES)
def test_metrics_are_given_what_is_made_of_the_logits(tmp_path, mode):
    found = make(
        mode, tmp_path, preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(1),
        compute_metrics=lambda prediction: {"same": float((prediction.predictions == prediction.label_ids).mean())},
    )  # fmt: skip
    assert 0 <= found.trainer.evaluate()["eval_same"] <= 1
    assert found.trainer.predict(examples(6, EVAL)).predictions.shape == (6,)


# ---- Callbacks ----


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_callbacks_hear_the_same_events_in_the_same_order(tmp_path, mode, accumulated):
    settings = {**EVERY, **SAVING, "gradient_accumulation_steps": accumulated, "max_steps": 5}
    theirs, ours = (run(kind, tmp_path / kind, settings).noted.events for kind in ("control", mode))
    assert ours == theirs and "on_save" in ours and ("on_substep_end" in ours) == (accumulated == 2)


@pytest.mark.parametrize("mode", MODES)
def test_callbacks_come_and_go(tmp_path, mode):
    trainer = make(mode, tmp_path).trainer
    own = NotingCallback()
    trainer.add_callback(own)
    assert trainer.pop_callback(own) is own
    trainer.add_callback(own)
    trainer.remove_callback(own)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(EarlyStoppingCallback(2))
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert PrinterCallback not in kinds and EarlyStoppingCallback in kinds
    trainer.pop_callback(EarlyStoppingCallback)
    trainer.train()
    assert own.events == []


@pytest.mark.parametrize("mode", MODES)
def test_patience_has_an_end(tmp_path, mode):
    settings = {**EVERY, **SAVING, "max_steps": 8, "metric_for_best_model": "accuracy", "load_best_model_at_end": True}
    found = run(mode, tmp_path, settings, compute_metrics=Falling(), callbacks=[EarlyStoppingCallback(2)])
    assert found.trainer.state.global_step == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_callback_may_stop_the_training(tmp_path, mode):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            control.should_training_stop = state.global_step == 2

    assert run(mode, tmp_path, callbacks=[Stop()]).trainer.state.global_step == 2


# ---- Optimizer and schedule ----


@pytest.mark.parametrize("kind", [kind for kind in SchedulerType])
def test_every_schedule_is_that_of_transformers(tmp_path, kind):
    needs = {
        SchedulerType.COSINE_WITH_MIN_LR: {"min_lr": 0.01}, SchedulerType.WARMUP_STABLE_DECAY: {"num_decay_steps": 2},
        SchedulerType.COSINE_WARMUP_WITH_MIN_LR: {"min_lr": 0.01},
    }  # fmt: skip
    settings = {"lr_scheduler_type": kind.value, "lr_scheduler_kwargs": needs.get(kind), "max_steps": 6,
                "warmup_steps": 0 if kind is SchedulerType.CONSTANT else 2, **EVERY}  # fmt: skip
    control, plain, meta = (run(mode, tmp_path / mode, settings).rates for mode in MODES)
    assert control == plain
    if kind in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):  # which follow the evaluations
        assert len(meta) == 6
    else:
        assert control == meta


@pytest.mark.parametrize("mode", MODES)
def test_optimizers_are_those_that_are_given(tmp_path, mode):
    model = make_toy()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    found = run(mode, tmp_path / "a", model=model, optimizers=(optimizer, schedule))
    assert found.rates == pytest.approx([0.02, 0.01, 0.005]) and found.trainer.optimizer.optimizer is optimizer
    kind = (torch.optim.Adagrad, {"lr": 0.03})
    found = run(mode, tmp_path / "b", optimizer_cls_and_kwargs=kind)
    assert type(found.trainer.optimizer.optimizer) is torch.optim.Adagrad and found.rates[0] == 0.03
    with pytest.raises(RuntimeError, match="incompatible"):
        make(mode, tmp_path / "c", optimizers=(optimizer, None), optimizer_cls_and_kwargs=kind)


@pytest.mark.parametrize("mode", MODES)
def test_model_init_starts_each_training_anew(tmp_path, mode):
    found = make(mode, tmp_path, model_init=lambda: make_toy())
    found.trainer.train()
    first, losses = found.weights, [entry["loss"] for entry in found.log]
    found.trainer.train()
    assert torch.equal(found.weights, first) and [entry["loss"] for entry in found.log] == losses


def test_plain_training_takes_the_steps_of_trainers(tmp_path):
    """Accumulated, clipped, with Adam, through noise on the embeddings, and of adapters."""
    cases = {
        "accumulated": {"gradient_accumulation_steps": 2, "max_steps": 4},
        "clipped": {"max_grad_norm": 0.1},
        "Adam": {"optim": "adamw_torch", "optim_args": None, "learning_rate": 1e-2, "weight_decay": 0.1},
        "noise": {"neftune_noise_alpha": 5.0},
        "smoothed": {"label_smoothing_factor": 0.2},
        "adapters": {},
    }
    for name, settings in cases.items():
        found = []
        for mode in ("control", "plain"):
            model = make_toy()
            if name == "adapters":
                model = get_peft_model(model, LoraConfig(target_modules=["linear"], r=2))
            found.append(run(mode, tmp_path / name / mode, settings, model=model))
        torch.testing.assert_close(found[1].weights, found[0].weights, msg=name)
        assert found[1].way > 0


# ---- Data ----


@pytest.mark.parametrize("mode", MODES)
def test_streams_are_read_in_their_order_and_resumed_where_they_were(tmp_path, mode):
    rows = [{**row, "input_ids": row["input_ids"].tolist()} for row in examples(16, TRAIN)]

    def stream():
        return Dataset.from_list(rows).to_iterable_dataset()

    whole = run(mode, tmp_path, {**SAVING, "max_steps": 6}, train_dataset=stream())
    batches = [batch for batch in whole.collator.train if len(batch) == 4]
    assert batches[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    again = make(mode, tmp_path, {"max_steps": 6}, train_dataset=stream())
    again.trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(again.weights, whole.weights)


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_needs_a_number_of_steps(tmp_path, mode):
    rows = [{**row, "input_ids": row["input_ids"].tolist()} for row in examples(16, TRAIN)]
    data = Dataset.from_list(rows).to_iterable_dataset()
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        make(mode, tmp_path, {"max_steps": -1, "num_train_epochs": 1}, train_dataset=data)


@pytest.mark.parametrize("mode", MODES)
def test_training_without_a_training_set_and_a_trainer_without_a_model_are_refused(tmp_path, mode):
    with pytest.raises((RuntimeError, ValueError), match="requires either a `model` or `model_init`"):
        make(mode, tmp_path, model=None)
    with pytest.raises(ValueError, match="train_dataset"):
        make(mode, tmp_path, train_dataset=None).trainer.train()
    with pytest.raises(ValueError, match="eval_dataset"):
        make(mode, tmp_path, EVERY, eval_dataset=None)
