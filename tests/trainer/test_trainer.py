"""FaMUSTrainer as a Trainer: exact over a whole run, no traces, logs, checkpoints, what it refuses."""

import copy
import gc
import random

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from famus_hf import L2R, MLC, AllLayers, FaMUSTrainer, FaMUSTrainingArguments, LearnedSampler, MWNet
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.virtual_train import virtual_step_of
from famus_hf.metrics import compute_accuracy
from tests.helpers import brute_force
from tests.helpers.models import CLASSES, build_batch, build_model


class Examples(torch.utils.data.Dataset):
    """Small random images that already are model inputs, with a record column each."""

    def __init__(self, size, first_index=0, seed=0, dtype=torch.float32):
        self.batch = build_batch("batch norm", size, dtype=dtype, seed=seed)
        self.first_index = first_index

    def __len__(self):
        return len(self.batch["labels"])

    def __getitem__(self, row):
        label = int(self.batch["labels"][row])
        return {
            "pixel_values": self.batch["pixel_values"][row],
            "labels": label,
            "index": self.first_index + row,
            "clean_label": (label + (row % 3 == 0)) % CLASSES,
        }


def make_args(folder, **changes):
    settings = {
        "per_device_train_batch_size": 8, "max_steps": 6, "logging_steps": 2, "save_strategy": "no", "seed": 5,
        "disable_tqdm": True, "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    if changes.get("meta_learner") != "l2r":
        settings |= {"meta_learning_rate": 0.05, "meta_optim": "sgd"}
    return FaMUSTrainingArguments(str(folder), **{**settings, **changes})


def make_trainer(folder, kind="batch norm", dtype=torch.float32, keywords=None, **changes):
    return FaMUSTrainer(
        build_model(kind, dtype),
        make_args(folder, **changes),
        train_dataset=Examples(40, dtype=dtype),
        eval_dataset=Examples(19, 2000, seed=7, dtype=dtype),
        meta_dataset=Examples(11, 1000, seed=8, dtype=dtype),
        compute_metrics=compute_accuracy,
        **(keywords or {}),
    )


class RecordingCollator:
    """Keeps the batches of the training set and of the meta set apart, in order."""

    def __init__(self):
        self.train, self.meta = [], []

    def __call__(self, examples):
        batch = default_data_collator(examples)
        which = self.meta if 1000 <= examples[0]["index"] < 2000 else self.train
        which.append({name: batch[name] for name in ("pixel_values", "labels")})
        return batch


@pytest.mark.parametrize(
    "mode",
    [
        {"derivative": "forward"},
        {"derivative": "reverse"},
        {"reuse_virtual_gradient": True},
        {"meta_interval": 3},
        {"reuse_virtual_gradient": True, "meta_interval": 2},
        {"virtual_scope": "candidates", "candidate_layers": "4"},
        {"scale_example_gradients": True},
    ],
    ids=str,
)
def test_twenty_steps_with_all_layers_equal_published_mw_net(tmp_path, mode):
    """Departures from the paper that have a name are departures of the reference too, and nothing else changes."""
    steps, milestones = 20, [10, 15]
    kind = "called group norm" if "scale_example_gradients" in mode else "batch norm"
    reused, interval = mode.get("reuse_virtual_gradient", False), mode.get("meta_interval", 1)
    collator = RecordingCollator()
    trainer = make_trainer(
        tmp_path,
        kind,
        dtype=torch.float64,
        max_steps=steps,
        layer_sampler="all",
        **mode,
        learning_rate=0.1,
        lr_milestones=milestones,
        keywords={"meta_learner": MWNet().double(), "data_collator": collator},
    )
    model, meta_learner = build_model(kind), MWNet().double()
    model.load_state_dict(trainer.model.state_dict())
    meta_learner.load_state_dict(trainer.meta.meta_learner.state_dict())
    collator.train.clear()  # of the probe
    trainer.train()

    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    meta_optimizer = torch.optim.SGD(meta_learner.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    meta_batches = iter(collator.meta)
    on = None if "candidate_layers" not in mode else [layer.name for layer in trainer.meta.candidates]
    assert on is None or len(on) == 4
    for step, train in enumerate(collator.train[:steps]):
        before = copy.deepcopy(meta_learner)
        is_meta_step = step % interval == 0
        if is_meta_step:
            gradient = brute_force.mw_net_gradient(
                model, meta_learner, train, next(meta_batches), schedule.get_last_lr()[0], on, moved=on
            )
            for name, parameter in meta_learner.named_parameters():
                parameter.grad = gradient[name]
            meta_optimizer.step()
        losses = torch.nn.functional.cross_entropy(
            model(train["pixel_values"]).logits, train["labels"], reduction="none"
        )
        weights = (before if reused and is_meta_step else meta_learner)(losses.detach()).detach()
        optimizer.zero_grad()
        (weights / weights.sum() * losses).sum().backward()
        optimizer.step()
        schedule.step()
    assert trainer.state.global_step == steps
    for ours, published in (
        (trainer.model.state_dict(), model.state_dict()),
        (trainer.meta.meta_learner.state_dict(), meta_learner.state_dict()),
    ):
        for name in published:
            torch.testing.assert_close(ours[name], published[name], rtol=1e-8, atol=1e-10, msg=name)
    start = build_model(kind).classifier.weight
    assert (trainer.model.classifier.weight - start).norm() > 1e-2, "the run must have gone somewhere"


@pytest.mark.parametrize("kind", ["batch norm", "group norm", "vit"])
@pytest.mark.parametrize("derivative", ["forward", "reverse", "finite"])
def test_virtual_and_meta_passes_leave_no_trace(tmp_path, kind, derivative):
    """Buffers and random state after a step are those of one plain forward pass; no `.grad` is left but w's own."""
    trainer = make_trainer(tmp_path, kind, derivative=derivative)
    trainer.create_optimizer_and_scheduler(10)
    trainer.current_gradient_accumulation_steps = 1
    batch = default_data_collator([trainer.train_dataset[row] for row in range(8)])
    reference = build_model(kind, torch.float32)
    reference.load_state_dict(trainer.model.state_dict())
    weights = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}

    torch.manual_seed(3)
    reference(pixel_values=batch["pixel_values"])
    expected_state = torch.get_rng_state()
    torch.manual_seed(3)
    trainer.training_step(trainer.model, batch)

    assert torch.equal(torch.get_rng_state(), expected_state)
    for name, buffer in reference.named_buffers():
        assert torch.equal(buffer, trainer.model.get_buffer(name)), name
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    for module in (trainer.meta.meta_learner, trainer.meta.layer_sampler):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_plain_mode_is_transformers_trainer(tmp_path):
    ours = make_trainer(tmp_path / "a", meta_learner="none")
    ours.train()
    args = TrainingArguments(
        str(tmp_path / "b"), per_device_train_batch_size=8, max_steps=6, seed=5, use_cpu=True, disable_tqdm=True,
        optim="sgd", optim_args="momentum=0.9", learning_rate=0.05, weight_decay=5e-4, max_grad_norm=0,
        lr_scheduler_type="constant", dataloader_drop_last=True, save_strategy="no", report_to="none",
    )  # fmt: skip
    model = build_model("batch norm", torch.float32)
    decayed = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(decayed, lambda step: 0.1 ** ((step >= 3) + (step >= 4)))
    Trainer(model, args, train_dataset=Examples(40), optimizers=(decayed, schedule)).train()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, ours.model.state_dict()[name]), name


def test_logs_meta_loss_active_layers_and_weights_of_clean_and_noisy_examples(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=3)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for name in ("meta_loss", "mean_active_layers", "mean_weight_clean", "mean_weight_noisy"):
        assert all(torch.isfinite(torch.tensor(entry[name])) for entry in logs), name
    assert trainer.meta.steps == 6
    logged = sum(entry["mean_active_layers"] for entry in logs) / 3
    assert logged == pytest.approx(trainer.meta.mean_active_layers)
    assert any("eval_accuracy" in entry for entry in trainer.state.log_history)


def test_evaluation_sees_the_whole_test_set_although_training_drops_the_last_batch(tmp_path):
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=8)
    assert trainer.args.dataloader_drop_last
    assert len(trainer.predict(trainer.eval_dataset).label_ids) == 19
    assert sum(len(batch["labels"]) for batch in trainer.get_train_dataloader()) == 40


def state_of(trainer):
    """Everything that must come back after a resume: w, θ, η and all optimizers, flat by name."""
    tensors = {f"w.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    tensors |= {f"theta.{name}": tensor for name, tensor in trainer.meta.meta_learner.state_dict().items()}
    tensors |= {f"eta.{name}": tensor for name, tensor in trainer.meta.layer_sampler.state_dict().items()}
    optimizers = {
        "w": trainer.optimizer, "theta": trainer.meta.learner_optimizer, "eta": trainer.meta.sampler_optimizer
    }  # fmt: skip
    for owner, optimizer in optimizers.items():
        for place, state in ({} if optimizer is None else optimizer.state_dict()["state"]).items():
            values = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
            tensors |= {f"{owner}.state.{place}.{name}": value for name, value in values.items()}
    return tensors


def check_resuming(tmp_path, kind, **settings):
    """Checkpoints fall inside and at the end of epochs of five steps (three with accumulation)."""
    settings = {
        "max_steps": 8, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.1, "lr_milestones": [4, 6],
        **settings,
    }  # fmt: skip
    whole = make_trainer(tmp_path, kind, **settings)
    whole.train()
    expected = state_of(whole)
    for step in (1, 3, 5, 7):
        resumed = make_trainer(tmp_path, kind, **{**settings, "save_strategy": "no"})
        torch.manual_seed(step)  # whatever a new process happens to start with
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        found = state_of(resumed)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), step
        assert resumed.meta.steps == whole.meta.steps
        assert resumed.meta.times_on == whole.meta.times_on


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("meta_optim, kind", [("sgd", "batch norm"), ("adam", "vit")])
def test_resuming_after_any_checkpoint_is_bit_identical(tmp_path, accumulation, meta_optim, kind):
    check_resuming(tmp_path, kind, meta_optim=meta_optim, gradient_accumulation_steps=accumulation)


@pytest.mark.parametrize(
    "settings",
    [
        {"meta_learner": "l2r"},
        {"meta_learner": "mlc", "mlc_form": "probabilities", "layer_sampler": "random"},
        {"meta_learner": "mlc", "mlc_keep_matrix": False, "layer_sampler": "block", "sampler_block": 3},
        {"meta_budget": 0.5, "sampler_relative_slopes": True},
        {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "linear"},
        {"base_loss": "focal", "layer_sampler": "all", "candidate_layers": "4", "virtual_scope": "candidates"},
        {"reuse_virtual_gradient": True, "meta_interval": 3, "gradient_accumulation_steps": 2, "meta_batch_size": 3},
    ],
    ids=str,
)
def test_resuming_is_bit_identical_with_every_part(tmp_path, settings):
    """With a budget, the costs are those that were measured at the start of the run, whatever is measured later."""
    check_resuming(tmp_path, "batch norm", **settings)


def test_best_checkpoint_brings_back_its_own_meta_net(tmp_path):
    class Degrade(TrainerCallback):
        """Worsens the reported loss as training goes on, so that the first checkpoint is the best."""

        def on_evaluate(self, args, state, control, metrics, **keywords):
            metrics["eval_order"] = float(state.global_step)

    trainer = make_trainer(
        tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="order", greater_is_better=False,
        keywords={"callbacks": [Degrade()]},
    )  # fmt: skip
    trainer.train()
    best = tmp_path / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    fresh = make_trainer(tmp_path / "fresh")
    fresh._load_from_checkpoint(str(best))
    for module, other in (
        (trainer.meta.meta_learner, fresh.meta.meta_learner),
        (trainer.meta.layer_sampler, fresh.meta.layer_sampler),
        (trainer.model, fresh.model),
    ):
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, module.state_dict()[name]), name


def test_early_stopping_stops(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=30, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        learning_rate=0.0, load_best_model_at_end=True, save_total_limit=1, metric_for_best_model="accuracy",
        keywords={"callbacks": [EarlyStoppingCallback(2)]},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step < 30


@pytest.mark.parametrize("derivative", ["auto", "forward", "reverse"])
def test_bf16_trains_and_keeps_float32_weights(tmp_path, derivative):
    trainer = make_trainer(tmp_path, bf16=True, derivative=derivative)
    before = trainer.model.classifier.weight.clone()
    trainer.train()
    assert trainer.model.classifier.weight.dtype == torch.float32
    assert torch.isfinite(trainer.model.classifier.weight).all()
    assert not torch.equal(before, trainer.model.classifier.weight)


def test_adamw_with_a_linear_schedule_trains(tmp_path):
    trainer = make_trainer(tmp_path, optim="adamw_torch", lr_scheduler_type="linear", learning_rate=1e-3)
    trainer.train()
    assert trainer.state.log_history[-2]["learning_rate"] < 1e-3


def test_theta_and_sampler_move_and_stay_where_there_is_nothing_to_learn(tmp_path):
    trainer = make_trainer(tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.meta.meta_learner.state_dict().items()}
    gates = {name: tensor.clone() for name, tensor in trainer.meta.layer_sampler.state_dict().items()}
    trainer.train()
    assert any(not torch.equal(before[n], t) for n, t in trainer.meta.meta_learner.state_dict().items())
    assert any(not torch.equal(gates[n], t) for n, t in trainer.meta.layer_sampler.state_dict().items())
    never = make_trainer(
        tmp_path,
        gradient_match_weight=0.0,
        sparsity_weight=0.0,
        keywords={"layer_sampler": LearnedSampler(initial_bias=-60)},
    )
    never.train()  # all gates stay off: no meta pass, θ stays
    assert sum(never.meta.times_on) == 0
    assert all(torch.equal(before[n], t) for n, t in never.meta.meta_learner.state_dict().items())


def test_label_smoothing_reaches_the_training_loss(tmp_path):
    losses = {}
    for smoothing in (0.0, 0.5):
        trainer = make_trainer(tmp_path, label_smoothing_factor=smoothing, max_steps=1, logging_steps=1)
        trainer.train()
        losses[smoothing] = trainer.state.log_history[0]["loss"]
    assert losses[0.0] != losses[0.5]


REFUSED = {
    "unknown meta-learner": ({"meta_learner": "mwnet"}, "choose one of mw-net, l2r, mlc, none"),
    "unknown sampler": ({"layer_sampler": "some"}, "choose one of learned, all, block, random"),
    "block without its number": ({"layer_sampler": "block"}, "belong together"),
    "number without block": ({"sampler_block": 2}, "belong together"),
    "no such block": (
        {"layer_sampler": "block", "sampler_block": 4},
        r"the blocks there are 1 \(from blocks.0.bn1\), 2",
    ),
    "too many random layers": ({"layer_sampler": "random", "random_layers": 99}, "can't be drawn from"),
    "budget without meta-learner": ({"meta_learner": "none", "meta_budget": 0.5}, "needs a meta_learner"),
    "budget and sparsity": ({"meta_budget": 0.5, "sparsity_weight": 0.1}, "takes the place of Eq. 10"),
    "optimizer of what has no parameters": ({"meta_learner": "l2r", "meta_optim": "adam"}, "does not go with"),
    "margins of probabilities": (
        {"meta_learner": "mlc", "mlc_form": "probabilities", "base_loss": "ldam"},
        "does not go with mlc_form",
    ),
    "budget without learned sampler": ({"layer_sampler": "all", "meta_budget": 0.5}, "meta_budget needs"),
    "budget below the cheapest layer": ({"meta_budget": 1e-6}, r"cheapest layer's cost of 0\.\d+ plain steps"),
    "unknown base loss": ({"base_loss": "hinge"}, "choose one of ce, focal"),
    "preconditioned step of an unknown optimizer": (
        {"virtual_step": "optimizer", "optim": "adafactor"},
        "does not know the step of optim='adafactor'",
    ),
    "unknown derivative": ({"derivative": "backward"}, "choose one of auto"),
    "negative weight": ({"sparsity_weight": -1.0}, "must not be negative"),
    "candidate layers": ({"candidate_layers": "0"}, "whole number from 1"),
    "fp16 without a GPU": ({"fp16": True}, "needs a GPU"),
    "finite differences in bf16": ({"bf16": True, "derivative": "finite"}, "differences drown"),
    "unknown preset": ({"preset": "faster"}, "choose one of fast"),
    "preset of plain training": ({"preset": "fast", "meta_learner": "none"}, "is about the meta step"),
    "unknown policy": ({"nan_policy": "ignore"}, "choose one of stop, skip"),
    "unknown scope": ({"virtual_scope": "top"}, "choose one of all, candidates"),
    "meta interval": ({"meta_interval": 0}, "greater than 0"),
    "a gradient of some layers reused for all": (
        {"virtual_scope": "candidates", "reuse_virtual_gradient": True},
        "takes the gradient of all layers",
    ),
    "two ways to save one backward": (
        {"scale_example_gradients": True, "reuse_virtual_gradient": True},
        "choose one of the three",
    ),
    "examples that batch norm couples": ({"scale_example_gradients": True}, "couples the examples of a batch"),
    "gradients that do not scale": (
        {"scale_example_gradients": True, "meta_learner": "mlc"},
        "do not differ by example weights alone",
    ),
    "interval without memory": ({"meta_learner": "l2r", "meta_interval": 2}, "starts afresh in each step"),
    "reuse before anything is known": (
        {"meta_learner": "mlc", "mlc_keep_matrix": False, "reuse_virtual_gradient": True},
        "starts afresh in each step",
    ),
    "label names": ({"label_names": ["target"]}, "rename the column"),
    "milestones": ({"lr_milestones": [0.0]}, "greater than 0"),
    "columns": ({"remove_unused_columns": True}, "leave it False"),
    "pickles to the Hub": ({"hub_strategy": "all_checkpoints"}, "pickles"),
    "batch larger than the set": ({"per_device_train_batch_size": 41}, "less than one batch of 41"),
}


def test_a_preset_fills_in_what_is_left_at_its_default(tmp_path):
    fast = make_args(tmp_path, preset="fast", per_device_train_batch_size=10)
    assert (fast.layer_sampler, fast.candidate_layers, fast.virtual_scope) == ("all", "4", "candidates")
    assert fast.meta_batch_size == 2
    mine = make_args(tmp_path, preset="fast", candidate_layers="2", meta_batch_size=9)
    assert (mine.layer_sampler, mine.candidate_layers, mine.meta_batch_size) == ("all", "2", 9)
    assert make_args(tmp_path).meta_batch_size == make_args(tmp_path).per_device_train_batch_size == 8


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused_before_training(tmp_path, case):
    changes, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tmp_path, **changes)


def test_models_that_do_not_classify_are_refused(tmp_path):
    model = build_model("vit", torch.float32)
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="one class each"):
        FaMUSTrainer(model, make_args(tmp_path), train_dataset=Examples(40), meta_dataset=Examples(8))

    class NoLogits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, pixel_values, labels=None):
            return self.linear(pixel_values.mean((2, 3)))

    with pytest.raises(TypeError, match=r"\.logits of shape \(batch, classes\)"):
        FaMUSTrainer(NoLogits(), make_args(tmp_path), train_dataset=Examples(40), meta_dataset=Examples(8))


class PlainModule(torch.nn.Module):
    """A user's own network: logits, no loss, no config."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, CLASSES)

    def forward(self, pixel_values, labels=None):
        return {"logits": self.linear(pixel_values.mean((2, 3)))}


@pytest.mark.parametrize("meta_learner", ["mw-net", "none"])
def test_a_users_own_module_trains_evaluates_and_resumes(tmp_path, meta_learner):
    def trainer():
        args = make_args(
            tmp_path,
            save_strategy="steps",
            save_steps=3,
            eval_strategy="steps",
            eval_steps=3,
            meta_learner=meta_learner,
        )
        torch.manual_seed(0)
        return FaMUSTrainer(
            PlainModule(), args, train_dataset=Examples(40), eval_dataset=Examples(19), meta_dataset=Examples(8, 1000),
            compute_metrics=compute_accuracy,
        )  # fmt: skip

    whole = trainer()
    whole.train()
    assert 0 <= whole.evaluate()["eval_accuracy"] <= 1
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_second_training_starts_from_the_initial_learning_rate(tmp_path):
    trainer = make_trainer(tmp_path, lr_milestones=[2], logging_steps=1)
    rates = []
    for _ in range(2):
        trainer.train()
        rates.append([entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry])
    assert rates[0] == rates[1]
    assert rates[0] == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.005, 0.005])


def test_model_init_starts_everything_that_learns_anew(tmp_path):
    trainer = FaMUSTrainer(
        None, make_args(tmp_path), train_dataset=Examples(40), meta_dataset=Examples(8, 1000),
        model_init=lambda: build_model("batch norm", torch.float32),
    )  # fmt: skip
    trainer.train()
    first = state_of(trainer)
    trainer.train()
    second = state_of(trainer)
    assert trainer.meta.steps == 6
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_auxiliary_losses_follow_the_sampler_that_is_used(tmp_path):
    exact = make_trainer(tmp_path, keywords={"layer_sampler": AllLayers()}).meta.objective
    assert (exact.sparsity_weight, exact.gradient_match_weight) == (0, 0)
    learned = make_trainer(tmp_path, layer_sampler="all", keywords={"layer_sampler": LearnedSampler()}).meta.objective
    assert (learned.sparsity_weight, learned.gradient_match_weight) == (0.1, 0.1)


def test_a_trained_sampler_keeps_what_it_has_learned(tmp_path):
    first = make_trainer(tmp_path)
    first.train()
    learned = {name: tensor.clone() for name, tensor in first.layer_sampler.state_dict().items()}
    second = make_trainer(tmp_path, keywords={"layer_sampler": first.layer_sampler})
    assert all(torch.equal(learned[name], tensor) for name, tensor in second.layer_sampler.state_dict().items())
    with pytest.raises(ValueError, match="made for 17 other layers"):
        make_trainer(tmp_path, kind="vit", keywords={"layer_sampler": first.layer_sampler})


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    make_trainer(tmp_path / "plain", meta_learner="none", save_strategy="steps", save_steps=6).train()
    make_trainer(tmp_path / "famus", save_strategy="steps", save_steps=6).train()
    for folder, settings in (
        ("plain", {}),
        ("famus", {"candidate_layers": "5"}),
        ("famus", {"meta_learner": "l2r"}),
        ("famus", {"layer_sampler": "random"}),
        ("famus", {"weight_normalization": "mean"}),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            make_trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-6"))


def test_networks_without_forward_mode_fall_back_to_finite_differences(tmp_path):
    class Recurrent(PlainModule):
        def __init__(self):
            super().__init__()
            self.recurrent = torch.nn.LSTM(8, 3, batch_first=True)

        def forward(self, pixel_values, labels=None):
            return {"logits": self.linear(self.recurrent(pixel_values.mean(1))[0][:, -1])}

    trainer = FaMUSTrainer(Recurrent(), make_args(tmp_path), train_dataset=Examples(40), meta_dataset=Examples(8, 1000))
    trainer.train()
    assert trainer.meta.objective.derivative == "finite"
    with pytest.raises(ValueError, match="does not work with this network"):
        FaMUSTrainer(
            Recurrent(), make_args(tmp_path, derivative="forward"), train_dataset=Examples(40),
            meta_dataset=Examples(8, 1000),
        )  # fmt: skip


def test_meta_examples_that_draw_random_numbers_leave_the_training_alone(tmp_path):
    """The network's dropout draws the same masks, whether or not the meta set draws for itself."""

    class Drawing(Examples):
        def __getitem__(self, row):
            torch.rand(3), np.random.rand(), random.random()
            return super().__getitem__(row)

    weights = []
    for kind in (Examples, Drawing):
        trainer = FaMUSTrainer(
            build_model("vit", torch.float32), make_args(tmp_path), train_dataset=Examples(40),
            meta_dataset=kind(8, 1000, seed=8),
        )  # fmt: skip
        trainer.train()
        weights.append(trainer.model.classifier.weight)
    assert torch.equal(*weights)


def test_labels_that_are_no_classes_are_refused_in_ready_made_inputs(tmp_path):
    class Ignored(Examples):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "labels": -100 if row == self.where else 0}

    for where in (0, 39):  # seen before training, or in the batch that holds it
        dataset = Ignored(40)
        dataset.where = where
        with pytest.raises(ValueError, match="-100"):
            FaMUSTrainer(
                build_model("batch norm", torch.float32), make_args(tmp_path), train_dataset=dataset,
                meta_dataset=Examples(8, 1000),
            ).train()  # fmt: skip


def test_a_trainer_for_evaluation_alone_needs_no_training_data(tmp_path):
    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32), make_args(tmp_path), compute_metrics=compute_accuracy
    )
    assert 0 <= trainer.evaluate(Examples(19))["eval_accuracy"] <= 1


def test_an_empty_meta_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="meta_dataset is empty"):
        FaMUSTrainer(
            build_model("vit", torch.float32),
            make_args(tmp_path),
            train_dataset=Examples(40),
            meta_dataset=Examples(0),
        )


@pytest.mark.parametrize("meta_learner", ["l2r", "mlc"])
def test_twenty_steps_with_all_layers_equal_the_published_method(tmp_path, meta_learner):
    """L2R: autograd through ε. MLC: autograd through T, then the projected step."""
    steps, rate, beta = 20, 0.1, 0.5
    collator = RecordingCollator()
    trainer = make_trainer(
        tmp_path, dtype=torch.float64, max_steps=steps, layer_sampler="all", learning_rate=rate, lr_milestones=[],
        keywords={"meta_learner": L2R() if meta_learner == "l2r" else MLC(CLASSES).double(), "data_collator": collator},
        meta_learning_rate=beta,
    )  # fmt: skip
    model = build_model("batch norm")
    model.load_state_dict(trainer.model.state_dict())
    collator.train.clear()  # of the probe
    trainer.train()

    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    matrix = torch.eye(CLASSES, dtype=torch.float64)
    for train, meta in zip(collator.train[:steps], collator.meta, strict=False):
        if meta_learner == "l2r":
            weights = brute_force.l2r_weights(model, train, meta, rate)
            losses = torch.nn.functional.cross_entropy(
                model(train["pixel_values"]).logits, train["labels"], reduction="none"
            )
            loss = (weights * losses).sum()
        else:
            theta = {"matrix": matrix.requires_grad_()}
            loss_at = brute_force.mlc_loss(matrix, "logits")
            gradient = brute_force.gradient_of(theta, model, loss_at, train, meta, rate)["matrix"]
            matrix = (matrix.detach() - beta * gradient).clamp(min=0)
            matrix = matrix / matrix.sum(0, keepdim=True)
            loss = brute_force.mlc_loss(matrix, "logits")(model(train["pixel_values"]).logits, train["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-8, msg=name)
    if meta_learner == "mlc":
        torch.testing.assert_close(trainer.meta_learner.matrix.detach(), matrix, rtol=1e-8, atol=1e-10)
        assert (matrix - torch.eye(CLASSES)).abs().max() > 0.01, "the matrix must have moved"


@pytest.mark.parametrize("sampler", ["all", "random", "learned"])
def test_l2r_skips_the_virtual_backward_that_it_does_not_need(tmp_path, monkeypatch, sampler):
    asked = []

    virtual_gradient = TrainingPass.virtual_gradient

    def spy(training_pass, loss, names):
        asked.append({name.rpartition(".")[0] for name in names})
        return virtual_gradient(training_pass, loss, names)

    monkeypatch.setattr(TrainingPass, "virtual_gradient", spy)
    make_trainer(
        tmp_path, meta_learner="l2r", layer_sampler=sampler, candidate_layers="4", max_steps=2, random_layers=2
    ).train()
    top_four = {"bn", "blocks.2.bn2", "blocks.2.conv2", "classifier"}
    assert asked == ([top_four] * 2 if sampler == "learned" else [])


def test_adamw_takes_its_own_step_virtually_unless_told_otherwise(tmp_path):
    """The first step has no second moment yet; the second one is preconditioned, and θ moves differently."""
    thetas = []
    for virtual_step in (None, "optimizer", "sgd"):
        settings = {} if virtual_step is None else {"virtual_step": virtual_step}
        trainer = make_trainer(tmp_path, optim="adamw_torch", learning_rate=1e-3, max_steps=3, **settings)
        trainer.train()
        thetas.append(torch.cat([p.detach().flatten() for p in trainer.meta_learner.parameters()]))
    assert torch.equal(thetas[0], thetas[1]), "the default for AdamW"
    assert not torch.equal(thetas[1], thetas[2])


def test_an_optimizer_object_decides_the_virtual_step_too(tmp_path):
    model = build_model("batch norm", torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = FaMUSTrainer(
        model, make_args(tmp_path, max_steps=2), train_dataset=Examples(40), meta_dataset=Examples(11, 1000),
        optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train()
    step = virtual_step_of(trainer.model, trainer.optimizer, trainer.args.virtual_step or "optimizer")
    assert step.preconditioners.keys() == dict(model.named_parameters()).keys()


def test_a_budget_is_calibrated_by_the_clock_and_comes_back_after_a_resume(tmp_path):
    settings = {"max_steps": 52, "meta_budget": 0.5, "save_strategy": "steps", "save_steps": 51}
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    budget = trainer.meta.budget
    assert budget.scale != 1.0
    assert trainer.mean_meta_cost > 0 and trainer.mean_fixed_meta_cost > 0
    resumed = make_trainer(tmp_path, **{**settings, "save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-51"))
    assert resumed.meta.budget.costs == budget.costs and resumed.meta.budget.scale == budget.scale
    assert resumed.meta.times_on == trainer.meta.times_on
    assert resumed.mean_meta_cost == pytest.approx(trainer.mean_meta_cost, rel=0.5), "the clock goes on"


@pytest.mark.parametrize(
    "mode", [{"derivative": "forward"}, {"reuse_virtual_gradient": True, "meta_interval": 2}], ids=str
)
def test_no_tensor_outlives_its_step(tmp_path, mode):
    alive = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            if state.global_step >= 10:
                gc.collect()
                alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    make_trainer(tmp_path, max_steps=20, logging_strategy="no", keywords={"callbacks": [Count()]}, **mode).train()
    epoch = 5  # steps; at its end a loader goes and another comes
    assert len(alive) == 11
    assert max(alive[-epoch:]) == max(alive[:epoch]), alive
