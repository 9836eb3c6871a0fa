"""FaMUSTrainer as a Trainer, core/three_stages.py in it: exact over a whole run, no traces, logs."""

import copy
import gc
import random

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from famus_hf import L2R, MLC, FaMUSTrainer, MWNet
from famus_hf.metrics import compute_accuracy
from tests.helpers import brute_force
from tests.helpers.models import CLASSES, PlainModule, build_model
from tests.helpers.trainers import Examples, RecordingCollator, make_args, make_trainer, state_of


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


def test_theta_and_sampler_move(tmp_path):
    trainer = make_trainer(tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.meta.meta_learner.state_dict().items()}
    gates = {name: tensor.clone() for name, tensor in trainer.meta.layer_sampler.state_dict().items()}
    trainer.train()
    assert any(not torch.equal(before[n], t) for n, t in trainer.meta.meta_learner.state_dict().items())
    assert any(not torch.equal(gates[n], t) for n, t in trainer.meta.layer_sampler.state_dict().items())


def test_label_smoothing_reaches_the_training_loss(tmp_path):
    losses = {}
    for smoothing in (0.0, 0.5):
        trainer = make_trainer(tmp_path, label_smoothing_factor=smoothing, max_steps=1, logging_steps=1)
        trainer.train()
        losses[smoothing] = trainer.state.log_history[0]["loss"]
    assert losses[0.0] != losses[0.5]


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
    gc.freeze()  # what is there before is not looked at

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            if state.global_step >= 10:
                gc.collect()
                alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    make_trainer(tmp_path, max_steps=20, logging_strategy="no", keywords={"callbacks": [Count()]}, **mode).train()
    epoch = 5  # steps; at its end a loader goes and another comes
    assert len(alive) == 11
    assert max(alive[-epoch:]) == max(alive[:epoch]), alive


@pytest.mark.parametrize("milestones", [[], [4]])
def test_the_constant_schedule_warms_up(tmp_path, milestones):
    trainer = make_trainer(tmp_path, max_steps=6, warmup_steps=2, lr_milestones=milestones, logging_steps=1)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    last = [0.005] * 2 if milestones else [0.05] * 2
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.05, *last])


@pytest.mark.parametrize("settings", [{}, {"meta_learner": "none"}, {"plain_warmup_epochs": 0.4}])
def test_the_device_cache_is_emptied_every_so_many_steps(tmp_path, monkeypatch, settings):
    emptied = []
    for module in ("famus_hf.trainer.trainer", "transformers.trainer"):
        monkeypatch.setattr(f"{module}.clear_device_cache", lambda: emptied.append(trainer.state.global_step))
    trainer = make_trainer(tmp_path, torch_empty_cache_steps=2, **settings)
    trainer.train()
    assert emptied == [0, 2, 4]


class Averaging(torch.optim.SGD):
    """Schedule-free in small: gradients are taken at some weights, and the network is judged by others."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.param_groups[0]["train_mode"] = False
        self.switches = []

    def _switch(self, is_training):
        for group in self.param_groups:
            if group["train_mode"] != is_training:
                self.switches.append(is_training)
                group["train_mode"] = is_training
                for parameter in group["params"]:
                    parameter.data *= 2 if is_training else 0.5

    def train(self):
        self._switch(True)

    def eval(self):
        self._switch(False)

    def step(self, closure=None):
        assert self.param_groups[0]["train_mode"], "Optimizer was not in train mode"
        return super().step(closure)


@pytest.mark.parametrize(
    "settings", [{}, {"meta_learner": "none"}, {"pseudo clean": True}, {"log_weights": 2}], ids=str
)
def test_a_schedule_free_optimizer_trains_in_steps_and_is_judged_in_evaluations(tmp_path, settings):
    model = build_model("batch norm", torch.float32)
    optimizer, judged = Averaging(model.parameters(), lr=0.01), []
    changes = {**settings, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    is_pseudo_clean = changes.pop("pseudo clean", False)
    trainer = FaMUSTrainer(
        model, make_args(tmp_path, plain_warmup_epochs=0 if is_pseudo_clean else None, **changes),
        train_dataset=Examples(40), eval_dataset=Examples(9, 2000),
        meta_dataset=None if is_pseudo_clean else Examples(8, 1000), optimizers=(optimizer, None),
    )  # fmt: skip
    handle = model.register_forward_pre_hook(
        lambda module, inputs: judged.append(optimizer.param_groups[0]["train_mode"] == module.training)
    )
    trainer.train()
    handle.remove()
    assert all(judged) and len(judged) > 4
    assert optimizer.switches[-1] is False, "the last evaluation"


def test_schedule_free_optimizers_of_their_package_train(tmp_path):
    pytest.importorskip("schedulefree")
    trainer = make_trainer(tmp_path, optim="schedule_free_adamw", learning_rate=1e-3, lr_milestones=[])
    trainer.train()
    assert trainer.meta.step_sizes.state_dict(), "their steps have no derivative that is known"
    assert trainer.evaluate()["eval_loss"] > 0
