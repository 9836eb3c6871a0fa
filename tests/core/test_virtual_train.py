"""The virtual step ŵ: that of the optimizer where it is one of AdamW's kind, and none where nobody needs it."""

from copy import deepcopy

import pytest
import torch
from transformers import DataCollatorWithPadding

from famus_hf import FaMUSTrainer, MWNet
from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.virtual_train import virtual_step_of
from tests.helpers import brute_force
from tests.helpers.datasets import texts
from tests.helpers.models import build_model, build_text_network, build_tokenizer
from tests.helpers.trainers import Examples, make_args, make_trainer


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
            name: torch.ones_like(p) if step == 0 else (1 - 0.9) / (1 - 0.9 ** (step + 1))
            / ((squares[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            for name, p in parameters.items()
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
