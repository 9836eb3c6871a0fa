"""The virtual step ŵ: that of the optimizer where it is one of AdamW's kind, and none where nobody needs it."""

import logging
from copy import deepcopy

import pytest
import torch
from transformers import DataCollatorWithPadding

from famus_hf import FaMUSTrainer, MWNet
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.non_finite import log_once
from famus_hf.core.virtual_train import StepSizes, virtual_step_of
from tests.helpers import brute_force
from tests.helpers.datasets import texts
from tests.helpers.models import build_model, build_text_network, build_tokenizer
from tests.helpers.trainers import Examples, learned, make_args, make_trainer


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


class Recorder:
    """Pads as the trainer would, and keeps the batches of either set."""

    def __init__(self):
        self.pad, self.train, self.meta = DataCollatorWithPadding(build_tokenizer()), [], []

    def __call__(self, examples):
        batch = self.pad(examples)
        which = self.meta if 1000 <= examples[0]["index"] < 2000 else self.train
        which.append({name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
        return batch


def test_five_steps_of_fine_tuning_equal_double_backward_through_the_step_that_adamw_takes(tmp_path):
    """The virtual step is w − α·P·g, with P from the state of AdamW before its step, by default."""
    model = build_text_network("bert", torch.float64).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    reference, mw_net = deepcopy(model).train(), MWNet(initial_scale=1.0).double()
    theirs, rate = deepcopy(mw_net), 1e-2
    start = theirs.output.weight.detach().clone()
    trainer = FaMUSTrainer(
        model,
        make_args(tmp_path, max_steps=5, layer_sampler="all", optim="adamw_torch", learning_rate=rate, weight_decay=0.0,
                  lr_milestones=[]),
        Recorder(),
        texts(40),
        processing_class=build_tokenizer(),
        meta_dataset=texts(12, 1, 1000),
        meta_learner=mw_net,
    )  # fmt: skip
    recorder = trainer.data_collator
    recorder.train.clear(), recorder.meta.clear()
    trainer.train()
    parameters = dict(reference.named_parameters())
    means, squares = ({name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for step in range(5):
        train, meta = recorder.train[step], recorder.meta[step]
        factors = {
            name: (1 - 0.9) / (1 - 0.9 ** (step + 1)) * torch.where(
                squares[name] > 0,  # rows of words that did not come by have no denominator yet
                1 / ((squares[name] / (1 - 0.999 ** max(step, 1))).sqrt() + 1e-8),
                1.0,
            )
            for name in parameters
        }  # fmt: skip
        found = brute_force.mw_net_gradient(reference, theirs, train, meta, rate, preconditioners=factors)
        for name, parameter in theirs.named_parameters():
            parameter.grad = found[name]
        optimizer.step()
        loss = brute_force.mw_net_loss(theirs)(brute_force.logits_of(reference, train, parameters), train["labels"])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                means[name] = 0.9 * means[name] + 0.1 * gradient
                squares[name] = 0.999 * squares[name] + 0.001 * gradient**2
                root = (squares[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                parameter -= rate * means[name] / (1 - 0.9 ** (step + 1)) / root
    for own, other in ((trainer.meta_learner, theirs), (trainer.model, reference)):
        for name, tensor in other.named_parameters():
            difference = (own.get_parameter(name) - tensor).abs().max()
            assert difference < 1e-8, name  # AdamW divides gradients near zero by their own size
    assert (theirs.output.weight - start).abs().max() > 1e-6, "θ has moved"


# ---- The preconditioner of every optimizer in the table ----


def pinned_adam(group, state, gradient):
    """Have √v̂ of the coming step be that of the last one, whatever the gradient."""
    beta2, step = group["betas"][1], float(state["step"])
    growth = (1 - beta2 ** (step + 1)) / (1 - beta2**step)
    if group["amsgrad"]:
        state["max_exp_avg_sq"] *= growth
        state["exp_avg_sq"] = -(1 - beta2) * gradient**2 / beta2
    else:
        state["exp_avg_sq"] = (state["exp_avg_sq"] * growth - (1 - beta2) * gradient**2) / beta2


def pinned_nadam(group, state, gradient):
    pinned_adam({**group, "amsgrad": False}, state, gradient)


def pinned_radam(group, state, gradient):
    """Here ε is added before the correction of the bias."""
    beta2, step, eps = group["betas"][1], float(state["step"]), group["eps"]
    growth = ((1 - beta2 ** (step + 1)) / (1 - beta2**step)) ** 0.5
    coming = ((state["exp_avg_sq"].sqrt() + eps) * growth - eps) ** 2
    state["exp_avg_sq"] = (coming - (1 - beta2) * gradient**2) / beta2


def pinned_adamax(group, state, gradient):
    state["exp_inf"] /= group["betas"][1]


def pinned_adagrad(group, state, gradient):
    state["sum"] -= gradient**2


def pinned_rmsprop(group, state, gradient):
    alpha = group["alpha"]
    state["square_avg"] = (state["square_avg"] - (1 - alpha) * gradient**2) / alpha
    if group["centered"]:
        state["grad_avg"] = (state["grad_avg"] - (1 - alpha) * gradient) / alpha


def pinned_adadelta(group, state, gradient):
    state["square_avg"] = (state["square_avg"] - (1 - group["rho"]) * gradient**2) / group["rho"]


def pinned_sgd(group, state, gradient):
    pass


OPTIM = torch.optim
KNOWN = {
    "sgd": (OPTIM.SGD, {}, pinned_sgd),
    "momentum": (OPTIM.SGD, {"momentum": 0.9, "weight_decay": 0.1}, pinned_sgd),
    "dampening": (OPTIM.SGD, {"momentum": 0.9, "dampening": 0.3}, pinned_sgd),
    "nesterov": (OPTIM.SGD, {"momentum": 0.9, "nesterov": True}, pinned_sgd),
    "maximize": (OPTIM.SGD, {"maximize": True}, pinned_sgd),
    "adam": (OPTIM.Adam, {"betas": (0.8, 0.95)}, pinned_adam),
    "adamw": (OPTIM.AdamW, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}, pinned_adam),
    "fused": (OPTIM.AdamW, {"fused": True}, pinned_adam),
    "amsgrad": (OPTIM.AdamW, {"betas": (0.8, 0.95), "amsgrad": True}, pinned_adam),
    "ascending adam": (OPTIM.Adam, {"maximize": True}, pinned_adam),
    "nadam": (OPTIM.NAdam, {"betas": (0.8, 0.95), "eps": 1e-3}, pinned_nadam),
    "radam, rectified": (OPTIM.RAdam, {"betas": (0.8, 0.9), "eps": 1e-3}, pinned_radam),
    "radam, early": (OPTIM.RAdam, {"betas": (0.8, 0.4)}, pinned_radam),
    "adamax": (OPTIM.Adamax, {"betas": (0.8, 0.95), "eps": 1e-3}, pinned_adamax),
    "adagrad": (OPTIM.Adagrad, {"lr_decay": 0.1, "eps": 1e-3}, pinned_adagrad),
    "rmsprop": (OPTIM.RMSprop, {"alpha": 0.9, "eps": 1e-3}, pinned_rmsprop),
    "rmsprop, centered": (OPTIM.RMSprop, {"centered": True, "momentum": 0.9}, pinned_rmsprop),
    "adadelta": (OPTIM.Adadelta, {"eps": 1e-3}, pinned_adadelta),
}


def after_steps(kind, settings):
    """An optimizer after seven steps, of which its second parameter took two."""
    torch.manual_seed(3)
    model = torch.nn.Linear(5, 3).double()
    optimizer = kind(model.parameters(), lr=0.02, **settings)
    for step in range(7):
        model.weight.grad = torch.randn_like(model.weight)
        model.bias.grad = torch.randn_like(model.bias) if step in (2, 5) else None
        optimizer.step()
    return model, optimizer


def coming_step(model, optimizer, pin, gradient_of):
    """By how much the optimizer itself moves each parameter, with its denominators kept as they are."""
    model, optimizer = deepcopy((model, optimizer))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = gradient_of(parameter)
        pin(optimizer.param_groups[0], optimizer.state[parameter], parameter.grad)
    optimizer.step()
    return [parameter.detach() - start for parameter, start in zip(model.parameters(), before, strict=True)]


@pytest.mark.parametrize("name", KNOWN)
def test_the_preconditioner_is_the_derivative_of_the_optimizers_own_coming_step(name):
    kind, settings, pin = KNOWN[name]
    model, optimizer = after_steps(kind, settings)
    step, change = virtual_step_of(model, optimizer, "optimizer"), 1e-4
    without, with_gradient = (
        coming_step(model, optimizer, pin, lambda parameter, size=size: torch.full_like(parameter, size))
        for size in (0.0, change)
    )
    for (name, parameter), start, end in zip(model.named_parameters(), without, with_gradient, strict=True):
        found = step.displacement(name, torch.ones_like(parameter))
        torch.testing.assert_close(found, (end - start) / change, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", KNOWN)
def test_before_its_first_step_every_optimizer_is_taken_for_one_of_gradient_steps(name):
    """There is no denominator yet; of rows of an embedding that were never seen neither, at any step."""
    kind, settings, _ = KNOWN[name]
    model = torch.nn.Linear(5, 3).double()
    optimizer = kind(model.parameters(), lr=0.02, **settings)
    sign = -1 if settings.get("maximize") else 1

    def factors(row):
        step = virtual_step_of(model, optimizer, "optimizer")
        return step.displacement("weight", torch.ones_like(model.weight))[row] / -0.02

    first = {"nesterov": 1.9}.get(name, 1.0)
    if name not in ("nadam", "adagrad"):
        assert torch.allclose(factors(0), torch.full((5,), sign * first, dtype=torch.float64))
    for _ in range(3):
        model.weight.grad = torch.zeros_like(model.weight)
        model.weight.grad[0] = 0.3
        optimizer.step()
    unseen = factors(1)
    assert (unseen.abs() <= 2).all() and (unseen * sign > 0).all()
    assert torch.equal(virtual_step_of(model, optimizer, "sgd").displacement("weight", torch.ones(3, 5)),
                       torch.full((3, 5), -0.02))  # fmt: skip


class Sign(torch.optim.Optimizer):
    """Steps of one length whatever the gradient's, as Lion's; it keeps a second moment that is not Adam's."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["exp_avg_sq"] = parameter.grad**2
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


def test_of_an_unknown_optimizer_the_virtual_step_is_as_long_as_its_own():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3).double()
    optimizer, sizes = Sign(model.parameters(), lr=0.02), StepSizes()
    sizes.watch(model, optimizer, "optimizer")
    assert virtual_step_of(model, optimizer, "optimizer", sizes=sizes).preconditioners == {}, "nothing is known yet"
    for scale in (1e-3, 2e-3, 3e-3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter).sign() * scale
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.01
    step = virtual_step_of(model, optimizer, "optimizer", sizes=sizes)
    mean_scale = 0.81 * 1e-3 + 0.09 * 2e-3 + 0.1 * 3e-3
    for name, parameter in model.named_parameters():
        expected = torch.full_like(parameter, -0.01 / mean_scale)
        torch.testing.assert_close(step.displacement(name, torch.ones_like(parameter)), expected, rtol=1e-6, atol=0)
    again = StepSizes()
    again.load_state_dict(sizes.state_dict())
    assert again.state_dict() == sizes.state_dict() and len(again.lengths) == 2
    sizes.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), "optimizer")
    optimizer.step()
    assert again.state_dict() == sizes.state_dict(), "another optimizer is watched now"


def test_an_unknown_optimizer_is_named_at_the_start_and_its_steps_come_back_after_a_resume(tmp_path, caplog):
    log_once.cache_clear()

    def trainer(**changes):
        model = build_model("batch norm", torch.float32)
        return FaMUSTrainer(
            model, make_args(tmp_path, save_strategy="steps", save_steps=3, lr_milestones=[], **changes),
            train_dataset=Examples(40), meta_dataset=Examples(11, 1000),
            optimizers=(Sign(model.parameters(), lr=1e-3), None),
        )  # fmt: skip

    whole = trainer()
    with caplog.at_level(logging.WARNING, logger="famus_hf"):
        whole.train()
    assert [r.message for r in caplog.records if "Sign" in r.message] == [
        "the derivative of tests.Sign's step is not known: Virtual-Train takes a gradient step, of each parameter as "
        "long as the optimizer's own steps are on average"
    ]
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    before, after = learned(whole), learned(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert resumed.meta.step_sizes.state_dict() == whole.meta.step_sizes.state_dict() != {}
    plain = trainer(virtual_step="sgd")
    plain.train()
    assert not torch.equal(learned(plain)["theta.output.weight"], before["theta.output.weight"])
