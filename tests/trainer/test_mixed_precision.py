"""bf16 and fp16. No GPU is needed: torch's GradScaler and its fp16 autocast work on a CPU too."""

import copy
import logging
import re

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.autograd.function import once_differentiable

from famus_hf import FaMUSTrainer, MWNet, meta_gradient
from famus_hf.core.autodiff.training_pass import training_pass_without_trace
from famus_hf.core.autodiff.virtual_weights import VirtualStep
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import LabelledBatch
from famus_hf.core.meta_train import gradient_of_slope
from tests.helpers.hostile import refused
from tests.helpers.models import build_batch, build_model
from tests.helpers.trainers import Examples, make_args, make_trainer

LEARNING_RATE = 1e-6  # so small that without a scale fp16 rounds much of the direction to zero
MODES = [
    {"layer_sampler": "learned"},
    {"layer_sampler": "all", "derivative": "forward"},
    {"layer_sampler": "all", "derivative": "reverse"},
    {"layer_sampler": "all", "reuse_virtual_gradient": True},
    {"layer_sampler": "all", "scale_example_gradients": True},
    {"layer_sampler": "all", "virtual_scope": "candidates", "candidate_layers": "2"},
    {"layer_sampler": "all", "gradient_accumulation_steps": 2},
    {"layer_sampler": "all", "gradient_accumulation_steps": 2, "reuse_virtual_gradient": True},
    {"layer_sampler": "learned", "meta_learner": "l2r"},
]


def with_scaler(trainer, init_scale, half=False):
    """What accelerate does with a GPU where fp16 is asked for."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    if half:
        trainer.accelerator.native_amp = True
        trainer.accelerator.state._mixed_precision = "fp16"
    return trainer


@pytest.fixture(autouse=True)
def full_precision_afterwards():
    yield
    if AcceleratorState._shared_state:
        AcceleratorState._shared_state["_mixed_precision"] = "no"


def learned(trainer):
    parts = (trainer.model, trainer.meta_learner, trainer.layer_sampler)
    return [tensor.clone() for part in parts for tensor in part.state_dict().values()]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_gradient_is_scaled_and_unscaled(tmp_path, mode):
    """Powers of two are exact in float32, so a run with a scaler equals one without bit for bit."""
    without = make_trainer(tmp_path, "called group norm", **mode)
    without.train()
    scaled = with_scaler(make_trainer(tmp_path, "called group norm", **mode), 2.0**12)
    scaled.train()
    assert scaled.accelerator.scaler.get_scale() == 2.0**12
    for found, expected in zip(learned(scaled), learned(without), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_step_that_overflows_moves_nothing(tmp_path, mode):
    trainer = with_scaler(make_trainer(tmp_path, "called group norm", max_steps=1, **mode), float("inf"))
    before = copy.deepcopy(learned(trainer))
    trainer.train()
    assert trainer.accelerator.optimizer_step_was_skipped
    for found, expected in zip(learned(trainer), before, strict=True):
        assert torch.equal(found, expected)


def test_training_goes_on_once_the_scale_fits(tmp_path):
    trainer = make_trainer(tmp_path, "called group norm", max_steps=12, layer_sampler="learned")
    with_scaler(trainer, 2.0**68)  # float32 overflows in the norm of such gradients
    before = copy.deepcopy(learned(trainer))
    trainer.train()
    after = learned(trainer)
    assert all(tensor.isfinite().all() for tensor in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert trainer.accelerator.scaler.get_scale() < 2.0**68


def test_the_step_of_theta_is_taken_back_where_only_the_actual_gradient_overflows(tmp_path, monkeypatch):
    trainer = with_scaler(make_trainer(tmp_path, max_steps=1, layer_sampler="learned"), 2.0**4)
    before = copy.deepcopy(learned(trainer))
    actual = trainer.stages.actual_train

    def overflowing(*arguments):
        loss = actual(*arguments)
        trainer.model.classifier.bias.grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(trainer.stages, "actual_train", overflowing)
    trainer.train()
    for found, expected in zip(learned(trainer), before, strict=True):
        assert torch.equal(found, expected)


def meta_gradient_in_fp16(model, meta_learner, train, meta, derivative, loss_scale):
    """The three stages' gradient under fp16 autocast."""
    parameters = dict(model.named_parameters())
    step = VirtualStep(dict.fromkeys(parameters, LEARNING_RATE))
    with torch.autocast("cpu", dtype=torch.float16):
        training_pass = training_pass_without_trace(model, {"pixel_values": train["pixel_values"]}, train["labels"])
        training_pass.loss_scale = loss_scale
        batch = LabelledBatch(training_pass.logits, train["labels"], cross_entropy)
        loss = meta_learner.training_loss(batch)
        gradient = training_pass.virtual_gradient(loss, parameters)
        inputs = {"pixel_values": meta["pixel_values"]}
        _, validation = training_pass.validation_gradient(
            gradient, step, inputs, meta["labels"], list(parameters), cross_entropy
        )
        direction = {name: step.displacement(name, value) for name, value in validation.items()}
        tangent = training_pass.logit_tangent(direction, derivative)
    found = gradient_of_slope(meta_learner, batch, tangent)
    return torch.cat([value.flatten() for value in found.values()])


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
def test_the_meta_gradient_survives_fp16_with_a_scale_and_not_without(derivative):
    model = build_model("called group norm", torch.float32)
    meta_learner = MWNet()
    train, meta = (build_batch("called group norm", dtype=torch.float32, seed=seed) for seed in (1, 2))
    exact = meta_gradient(model, meta_learner, train, meta, learning_rate=LEARNING_RATE)
    exact = torch.cat([value.flatten() for value in exact.values()])
    scaled, unscaled = (
        meta_gradient_in_fp16(model, meta_learner, train, meta, derivative, scale) for scale in (2.0**10, 1.0)
    )
    assert (scaled - exact).norm() < 0.02 * exact.norm()
    assert (unscaled - exact).norm() > 0.05 * exact.norm()


@pytest.mark.parametrize("settings", [{}, {"reuse_virtual_gradient": True}], ids=str)
def test_fp16_trains_and_resumes_bit_for_bit(tmp_path, settings):
    settings |= {"layer_sampler": "learned", "max_steps": 6, "save_strategy": "steps", "save_steps": 2}

    def make():
        return with_scaler(make_trainer(tmp_path, "called group norm", **settings), 2.0**24, half=True)

    whole = make()
    whole.train()
    again = make()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.accelerator.scaler.get_scale() == whole.accelerator.scaler.get_scale() < 2.0**24
    for found, expected in zip(learned(again), learned(whole), strict=True):
        assert torch.equal(found, expected)
        assert found.isfinite().all()


class Squared(torch.autograd.Function):
    """Has no forward mode, and a backward with a derivative."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(context, gradient):
        return 2 * context.saved_tensors[0] * gradient


class SquaredOnce(Squared):
    """Its backward has none either."""

    backward = staticmethod(once_differentiable(Squared.backward))


class RoundedOnce(SquaredOnce):
    """A straight-through estimator without any second derivative: its values say nothing of its gradients."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(torch.full_like(x, 0.5))
        return x.round()


class Odd(torch.nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.linear, self.operation = torch.nn.Linear(3 * 64, 4), operation

    def forward(self, pixel_values, labels=None):
        return {"logits": self.operation.apply(self.linear(pixel_values.flatten(1)))}


def make_odd(folder, operation, **settings):
    data = {"train_dataset": Examples(40), "meta_dataset": Examples(8, 1000)}
    return FaMUSTrainer(Odd(operation), make_args(folder, max_steps=1, **settings), **data)


def test_a_network_without_forward_mode_gets_the_derivative_that_the_precision_leaves(tmp_path, caplog):
    logging.getLogger("famus_hf").addHandler(caplog.handler)
    try:
        for operation, settings, derivative, words in (
            (Squared, {}, "reverse", "by two backward passes, as forward mode does not work with it"),
            (SquaredOnce, {}, "finite", "by finite differences, two more forward passes"),
            (Squared, {"bf16": True}, "reverse", "by two backward passes, as forward mode does not work with it"),
        ):
            caplog.clear()
            trainer = make_odd(tmp_path, operation, **settings)
            assert trainer.meta.objective.derivative == derivative and words in caplog.text
            trainer.train()
        caplog.clear()
        make_odd(tmp_path, SquaredOnce)
        error = float(re.search(r"off by (\S+) % on the first training examples, as forward mode", caplog.text)[1])
        assert 0 < error < 1, "in per cent; the operation is smooth"
        refused(
            "no derivative is left for this network, as .*; finite differences are off by .* as where it rounds",
            lambda: make_odd(tmp_path, RoundedOnce),
        )
        refused(
            "no derivative is left for this network under mixed precision",
            lambda: make_odd(tmp_path, SquaredOnce, bf16=True),
        )
        refused(
            "derivative='reverse' does not work with this network.*once_differentiable",
            lambda: make_odd(tmp_path, SquaredOnce, derivative="reverse"),
        )
    finally:
        logging.getLogger("famus_hf").removeHandler(caplog.handler)
