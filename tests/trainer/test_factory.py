"""What a trainer is set up with: the sampler and its losses, and the derivative that works with the network."""

import copy
from contextlib import nullcontext

import pytest
import torch
from transformers import default_data_collator

from famus_hf import AllLayers, FaMUSTrainer, LearnedSampler
from famus_hf.trainer.factory import takes_one_example
from tests.helpers.models import PlainModule, build_model
from tests.helpers.trainers import Examples, make_args, make_trainer


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


def test_networks_without_forward_mode_fall_back_to_two_backward_passes(tmp_path):
    class Recurrent(PlainModule):
        def __init__(self):
            super().__init__()
            self.recurrent = torch.nn.LSTM(8, 3, batch_first=True)

        def forward(self, pixel_values, labels=None):
            return {"logits": self.linear(self.recurrent(pixel_values.mean(1))[0][:, -1])}

    trainer = FaMUSTrainer(Recurrent(), make_args(tmp_path), train_dataset=Examples(40), meta_dataset=Examples(8, 1000))
    trainer.train()
    assert trainer.meta.objective.derivative == "reverse"
    with pytest.raises(ValueError, match="does not work with this network"):
        FaMUSTrainer(
            Recurrent(), make_args(tmp_path, derivative="forward"), train_dataset=Examples(40),
            meta_dataset=Examples(8, 1000),
        )  # fmt: skip


def test_plain_and_meta_training_start_from_the_same_random_state_where_examples_draw(tmp_path):
    class Drawing(Examples):
        def __getitem__(self, row):
            torch.rand(1)
            return super().__getitem__(row)

    states = []
    for settings in ({"meta_learner": "none"}, {}):
        meta = {} if settings else {"meta_dataset": Drawing(11, 1000)}
        model = build_model("batch norm", torch.float32)
        FaMUSTrainer(model, make_args(tmp_path, **settings), train_dataset=Drawing(40), **meta)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_asking_a_network_for_one_example_leaves_no_trace():
    network = build_model("batch norm", torch.float32)
    network.append = torch.nn.Dropout(0.5)
    network.classifier.register_forward_hook(lambda module, inputs, output: network.append(output))
    network.eval()
    network.append.train()
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    random_state = torch.get_rng_state()
    batches = [default_data_collator([Examples(1)[0]])]
    assert takes_one_example(network, lambda count: batches.pop(), nullcontext) and not batches
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert takes_one_example(build_model("vit"), lambda count: batches.pop(), nullcontext), "it is not asked"
