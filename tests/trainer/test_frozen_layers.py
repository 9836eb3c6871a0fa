"""Layers that are frozen after construction, or set free within a run: layers, candidates and gates follow."""

import pytest
import torch
from transformers import TrainerCallback

from famus_hf import load_famus
from famus_hf.errors import SettingsError
from tests.helpers.trainers import make_trainer, state_of
from tests.helpers.two_network_runs import assert_equal, learned, make


class Unfreezing(TrainerCallback):
    """Freezes the network's lower part at the start, and sets some of it free at a step."""

    def __init__(self, frozen, at_step, free):
        self.frozen, self.at_step, self.free = frozen, at_step, free

    def on_train_begin(self, args, state, control, model=None, **keywords):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(self.frozen))

    def on_step_begin(self, args, state, control, model=None, **keywords):
        for name, parameter in model.named_parameters():
            if state.global_step >= self.at_step and name.startswith(self.free):
                parameter.requires_grad_(True)


def candidates_in(trainer):
    return [layer.name for layer in trainer.meta.candidates]


@pytest.mark.parametrize("sampler", ["learned", "all", "random"])
def test_layers_follow_what_is_frozen_after_construction(tmp_path, sampler):
    trainer = make_trainer(tmp_path, layer_sampler=sampler, random_layers=2, max_steps=2)
    every = candidates_in(trainer)
    frozen = trainer.model.blocks[0].conv1.weight
    before = frozen.detach().clone()
    trainer.model.blocks[0].requires_grad_(False)
    trainer.train()
    assert candidates_in(trainer) == [name for name in every if not name.startswith("blocks.0")]
    assert torch.equal(frozen, before) and trainer.meta.steps == 2
    trainer.model.blocks[0].requires_grad_(True)
    trainer.optimizer = None
    trainer.train()
    assert candidates_in(trainer) == every and not torch.equal(frozen, before)


SET_FREE = {
    "learned": {},
    "top": {"candidate_layers": "8"},
    "budget": {"meta_budget": 2.0},
    "adam of the network": {"optim": "adamw_torch", "learning_rate": 1e-3},
    "every layer": {"layer_sampler": "all", "virtual_scope": "candidates"},
    "recorded": {"log_layers": 2, "log_meta_gradient": 2},
}


@pytest.mark.parametrize("name", SET_FREE)
def test_gradual_unfreezing_goes_on_bit_for_bit_after_a_resume(tmp_path, name):
    """Before the change and after it; what gates have learned stays theirs."""

    def trainer():
        callback = Unfreezing(("stem", "blocks.0", "blocks.1"), 3, "blocks.1")
        return make_trainer(
            tmp_path, max_steps=6, save_strategy="steps", save_steps=2, lr_milestones=[], **SET_FREE[name],
            keywords={"callbacks": [callback]},
        )  # fmt: skip

    whole = trainer()
    whole.train()
    names = candidates_in(whole)
    assert any(name.startswith("blocks.1") for name in names) and not any(n.startswith("blocks.0") for n in names)
    assert sum(whole.meta.times_on) > 0 and len(whole.meta.times_on) == len(names)
    for step in (2, 4):
        resumed = trainer()
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        if name != "budget":  # whose costs are measured anew
            expected, found = state_of(whole), state_of(resumed)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected)
            assert resumed.meta.times_on == whole.meta.times_on
    assert load_famus(tmp_path / "checkpoint-6")[2].layers == whole.meta.candidates


def test_the_gates_of_layers_that_stay_keep_weights_and_momentum(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=4, sampler_learning_rate=1.0)
    trainer.train()
    sampler, optimizer = trainer.layer_sampler, trainer.meta.sampler_optimizer

    def gate(name):
        width, row = sampler._places()[name]
        parameters = sampler.stacks[width].parameters()
        return [(p[row].clone(), optimizer.state[p]["momentum_buffer"][row].clone()) for p in parameters]

    before, counts = gate("blocks.2.conv1"), dict(zip(candidates_in(trainer), trainer.meta.times_on, strict=True))
    mean = trainer.meta.mean_active_layers
    random_state = torch.get_rng_state()
    for is_free in (False, True):
        trainer.model.blocks[0].requires_grad_(is_free)
        trainer._follow_frozen(trainer.stages)
        for old, new in zip(before, gate("blocks.2.conv1"), strict=True):
            assert torch.equal(old[0], new[0]) and torch.equal(old[1], new[1])
        assert trainer.meta.mean_active_layers == mean
    assert torch.equal(torch.get_rng_state(), random_state)
    assert dict(zip(candidates_in(trainer), trainer.meta.times_on, strict=True)) == counts
    (weights, momentum), *_ = gate("blocks.0.conv1")
    assert momentum.abs().max() == 0 and weights.abs().max() > 0, "it begins anew"
    trainer.model.requires_grad_(False)
    with pytest.raises(SettingsError, match="all parameters of the network are frozen"):
        trainer._follow_frozen(trainer.stages)


def test_of_two_networks_the_layers_of_each_follow_what_is_frozen_in_it(tmp_path):
    def trainer():
        callback = Unfreezing(("model_a.conv1", "model_b.norm"), 9, "model_a.conv1")
        settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, "lr_milestones": []}
        return make(tmp_path, **settings, keywords={"callbacks": [callback]})

    whole = trainer()
    whole.train()
    found = [[layer.name for layer in peer.meta.candidates] for peer in whole.peers]
    assert "conv1" in found[0] and "norm1" in found[0] and "conv1" in found[1] and "norm1" not in found[1]
    for step in (4, 8):
        resumed = trainer()
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_equal(learned(whole), learned(resumed))
