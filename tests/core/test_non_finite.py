"""Numbers that are not finite, degenerate batches, and what else must not poison what is learned; determinism."""

import copy
import random

import pytest
import torch

from famus_hf import FaMUSTrainer, LearnedSampler, MWNet
from famus_hf.core.non_finite import MOST_IN_A_ROW, log_once
from tests.helpers.models import build_model
from tests.helpers.trainers import Examples, make_args, make_trainer


def assert_finite(trainer):
    for module in (trainer.model, trainer.meta_learner, trainer.layer_sampler):
        for name, tensor in module.state_dict().items():
            assert torch.isfinite(tensor.float()).all(), name


@pytest.mark.parametrize("settings", [{"layer_sampler": "learned"}, {"meta_learner": "l2r"}, {"meta_learner": "mlc"}])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_never_reach_w_theta_or_running_statistics(tmp_path, caplog, bad, settings):
    class Broken(Examples):
        def __getitem__(self, row):
            example = super().__getitem__(row)
            return {**example, "pixel_values": example["pixel_values"] * bad} if row % 40 == 3 else example

    log_once.cache_clear()
    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32), make_args(tmp_path, max_steps=10, nan_policy="skip", **settings),
        train_dataset=Broken(80), meta_dataset=Examples(11, 1000),
    )  # fmt: skip
    start = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert_finite(trainer)
    assert not torch.equal(start, trainer.model.classifier.weight), "the sound batches train"
    assert trainer.meta.steps in (8, 9), "one batch or two hold the two broken examples"
    assert [record.message for record in caplog.records].count(
        "the network's logits held values that are not finite: such steps are left out"
    ) == 1


def test_a_meta_set_that_is_not_finite_never_reaches_theta(tmp_path, caplog):
    class Broken(Examples):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "pixel_values": torch.full((3, 8, 8), float("nan"))}

    log_once.cache_clear()
    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32), make_args(tmp_path, nan_policy="skip"), train_dataset=Examples(40),
        meta_dataset=Broken(11, 1000),
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in trainer.meta_learner.state_dict().items()}
    start = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.meta_learner.state_dict().items())
    assert_finite(trainer)
    assert not torch.equal(start, trainer.model.classifier.weight)
    assert len([record for record in caplog.records if "the meta gradient held values" in record.message]) == 1
    assert "such meta steps are left out, and the network learns without them" in caplog.text
    assert (trainer.guard.count, trainer.guard.meta_count) == (0, 6)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["meta_steps_left_out"] for entry in logs] == [2, 4, 6]
    assert not any("steps_left_out" in entry for entry in logs)


class BrokenBelow(torch.nn.Module):
    """Of batches that begin with a bright pixel the gradient is no number below the two highest layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(192, 8), torch.nn.Linear(8, 8)
        self.classifier = torch.nn.Linear(8, 4)

    def forward(self, pixel_values, labels=None):
        hidden = self.first(pixel_values.flatten(1))
        if pixel_values[0, 0, 0, 0] > 50:
            hidden = hidden + (hidden - hidden.detach()).abs().sqrt()
        return {"logits": self.classifier(torch.tanh(self.second(torch.tanh(hidden))))}


class Bright(Examples):
    def __getitem__(self, row):
        example = super().__getitem__(row)
        return {**example, "pixel_values": example["pixel_values"] + 100}


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_sampler": "all"},
        {"layer_sampler": "learned", "sampler_relative_slopes": True},
        {"layer_sampler": "learned", "meta_learner": "l2r"},
        {"layer_sampler": "all", "meta_learner": "mlc"},
        {"layer_sampler": "all", "reuse_virtual_gradient": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("scope", ["all", "candidates"])
def test_a_step_that_is_left_out_moves_neither_w_nor_theta_nor_eta(tmp_path, scope, settings):
    if scope == "candidates" and "reuse_virtual_gradient" in settings:
        pytest.skip("does not go together")
    torch.manual_seed(1)
    args = make_args(tmp_path, max_steps=3, nan_policy="skip", candidate_layers="2", virtual_scope=scope, **settings)
    trainer = FaMUSTrainer(BrokenBelow(), args, train_dataset=Bright(40), meta_dataset=Examples(11, 1000))
    parts = (trainer.model, trainer.meta_learner, trainer.layer_sampler)

    def everything():
        return copy.deepcopy([*(part.state_dict() for part in parts), {"slopes": trainer.meta.slope_size}])

    before = everything()
    trainer.train()
    for old, new in zip(before, everything(), strict=True):
        assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    for optimizer in (trainer.meta.learner_optimizer, trainer.meta.sampler_optimizer):
        assert optimizer is None or not optimizer.state_dict()["state"]
    assert (trainer.guard.count, trainer.guard.meta_count) == (3, 0)


def test_a_meta_batch_that_is_not_finite_ends_a_run_that_is_to_stop(tmp_path):
    class Broken(Examples):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "pixel_values": torch.full((3, 8, 8), float("nan"))}

    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32), make_args(tmp_path), train_dataset=Examples(40),
        meta_dataset=Broken(11, 1000),
    )  # fmt: skip
    start = trainer.model.classifier.weight.detach().clone()
    with pytest.raises(
        FloatingPointError, match=r"^step 0: the meta gradient held values that are not finite: look at"
    ):
        trainer.train()
    assert torch.equal(start, trainer.model.classifier.weight)


@pytest.mark.parametrize("meta_learner", ["mw-net", "l2r", "mlc"])
def test_losses_that_are_infinite_are_left_out(tmp_path, meta_learner):
    def loss(logits, labels):
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return torch.where(losses == losses.min(), losses / 0.0, losses) if labels[0] == 1 else losses

    settings = {"meta_learner": meta_learner, "max_steps": 12, "nan_policy": "skip"}
    trainer = make_trainer(tmp_path, **settings, keywords={"base_loss": loss})
    start = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert_finite(trainer)
    assert trainer.guard.count > 0
    assert not torch.equal(start, trainer.model.classifier.weight), "the sound batches train"


@pytest.mark.parametrize("mode", [{}, {"reuse_virtual_gradient": True}, {"meta_learner": "l2r"}], ids=str)
def test_gradients_that_are_not_finite_where_losses_are_move_nothing(tmp_path, mode):
    """The gates see the virtual gradient first."""

    def loss(logits, labels):
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return losses + (losses - losses.detach()).abs().sqrt() if labels[0] == 1 else losses  # 0, with a slope of NaN

    settings = {"layer_sampler": "learned", "max_steps": 12, "nan_policy": "skip", **mode}
    trainer = make_trainer(tmp_path, **settings, keywords={"base_loss": loss})
    start = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert_finite(trainer)
    assert trainer.guard.count > 0 and not torch.equal(start, trainer.model.classifier.weight)


@pytest.mark.parametrize("meta_learner", ["mw-net", "l2r", "mlc"])
@pytest.mark.parametrize("degenerate", ["one class", "equal losses"])
def test_degenerate_batches_train_without_nan(tmp_path, meta_learner, degenerate):
    class Degenerate(Examples):
        def __getitem__(self, row):
            return {**super().__getitem__(0 if degenerate == "equal losses" else row), "labels": 2}

    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32), make_args(tmp_path, meta_learner=meta_learner),
        train_dataset=Degenerate(40), meta_dataset=Examples(11, 1000),
    )  # fmt: skip
    trainer.train()
    assert_finite(trainer)


def test_weights_that_sum_to_zero_leave_the_network_where_it_is(tmp_path):
    trainer = make_trainer(tmp_path, weight_decay=0.0, keywords={"meta_learner": MWNet(initial_bias=-1e4)})
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("meta_learner", ["mw-net", "none"])
def test_a_run_stops_at_the_first_fault_unless_told_otherwise(tmp_path, meta_learner):
    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32), make_args(tmp_path, meta_learner=meta_learner, max_steps=20),
        train_dataset=BadImages(80), meta_dataset=Examples(11, 1000) if meta_learner != "none" else None,
    )  # fmt: skip
    with pytest.raises(
        FloatingPointError, match=r"^step \d+: the .* not finite: look at .* 'skip' leaves such steps out"
    ):
        trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        assert tensor.isfinite().all(), name


class BadImages(Examples):
    """Two of eighty images are not numbers."""

    def __getitem__(self, row):
        example = super().__getitem__(row)
        return {**example, "pixel_values": example["pixel_values"] * torch.nan} if row % 40 == 3 else example


def test_plain_training_leaves_bad_batches_out_too(tmp_path):
    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32),
        make_args(tmp_path, meta_learner="none", max_steps=20, nan_policy="skip", logging_steps=20),
        train_dataset=BadImages(80),
    )
    start = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        assert tensor.isfinite().all(), name
    assert not torch.equal(start, trainer.model.classifier.weight)
    logged = next(entry for entry in trainer.state.log_history if "steps_left_out" in entry)
    assert logged["steps_left_out"] == trainer.guard.count in (2, 3, 4), "one or two of ten batches, in two epochs"


@pytest.mark.parametrize("settings", [{"layer_sampler": "learned"}, {"layer_sampler": "all"}, {"meta_learner": "l2r"}])
def test_a_learning_rate_that_diverges_ends_the_run_with_finite_weights(tmp_path, settings):
    settings |= {"learning_rate": 1e30, "max_steps": 4 * MOST_IN_A_ROW, "nan_policy": "skip", "lr_milestones": []}
    trainer = make_trainer(tmp_path, **settings)
    with pytest.raises(FloatingPointError, match=f"not finite {MOST_IN_A_ROW} times in a row"):
        trainer.train()
    assert_finite(trainer)


def test_theta_stays_while_all_layers_are_off(tmp_path):
    sampler = LearnedSampler(initial_bias=-40.0)
    settings = {"max_steps": 10, "sparsity_weight": 0.0, "gradient_match_weight": 0.0}
    trainer = make_trainer(tmp_path, **settings, keywords={"layer_sampler": sampler})
    before = {name: tensor.clone() for name, tensor in trainer.meta_learner.state_dict().items()}
    start = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert trainer.meta.times_on == [0] * len(trainer.meta.candidates)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.meta_learner.state_dict().items())
    assert not torch.equal(start, trainer.model.classifier.weight)
    assert_finite(trainer)


def test_a_meta_batch_larger_than_the_meta_set_is_all_of_it(tmp_path):
    trainer = make_trainer(tmp_path, meta_batch_size=50)
    sizes = []
    step = trainer.meta.step

    def counting(training_pass, loss, inputs, labels, *arguments):
        sizes.append(len(labels))
        return step(training_pass, loss, inputs, labels, *arguments)

    trainer.meta.step = counting
    trainer.train()
    assert set(sizes) == {len(trainer.meta_dataset)} == {11}


class Drawing(Examples):
    """Examples that draw from every generator, as a user's own augmentation may."""

    def __getitem__(self, row):
        example = super().__getitem__(row)
        return {**example, "pixel_values": example["pixel_values"] + 0.0 * random.random()}


@pytest.mark.parametrize("kind", ["batch norm", "vit"])
def test_the_number_of_loading_processes_changes_nothing(tmp_path, kind):
    """With dropout in the network, and batches that are augmented on the device."""
    states = []
    for workers in (0, 1, 2):
        settings = {"layer_sampler": "learned", "augmentation": "pad-crop", "dataloader_num_workers": workers}
        trainer = FaMUSTrainer(
            build_model(kind, torch.float32), make_args(tmp_path, **settings), train_dataset=Drawing(40),
            meta_dataset=Examples(11, 1000),
        )  # fmt: skip
        trainer.train()
        parts = (trainer.model, trainer.meta_learner, trainer.layer_sampler)
        states.append([tensor for part in parts for tensor in part.state_dict().values()])
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(state, states[0], strict=True))


def test_full_determinism_is_honoured(tmp_path):
    """torch refuses operations without a deterministic form while it is on, and the meta step needs none of them."""
    try:
        trainer = make_trainer(tmp_path, full_determinism=True, layer_sampler="learned")
        assert torch.are_deterministic_algorithms_enabled()
        trainer.train()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert_finite(trainer)
