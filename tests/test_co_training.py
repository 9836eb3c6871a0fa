"""TwoNetworkTrainer: each step against brute force, divisions, exact resumes, two processes, what it survives."""

import copy
from functools import partial

import brute_force
import numpy as np
import pytest
import torch
from models import CLASSES, TwoModels, build_batch, build_model
from spawned import run_in_two_processes
from test_trainer import make_args
from torch.nn.functional import one_hot

from famus_hf import LearnedSampler, MWNet
from famus_hf.co_training import TwoNetworkTrainer
from famus_hf.sides import LABELLED

PLAIN = {"meta_learner": "none"}
EXACT = {"layer_sampler": "all"}


class Learnable(torch.utils.data.Dataset):
    """Random images whose label can be learned, 30 % of the labels wrong."""

    def __init__(self, size=96, dtype=torch.float32, wrong=0.3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = build_batch("batch norm", size, dtype=dtype, seed=3)["pixel_values"]
        self.clean = torch.arange(size) % CLASSES
        self.images += 2 * one_hot(self.clean, CLASSES)[:, :3, None, None].to(dtype)
        is_wrong = torch.rand(size, generator=generator) < wrong
        self.labels = torch.where(is_wrong, (self.clean + 1) % CLASSES, self.clean)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.images[row], "labels": int(self.labels[row]), "index": row,
                "clean_label": int(self.clean[row])}  # fmt: skip


def make(folder, kind="called group norm", dtype=torch.float64, train=None, keywords=None, processes=1, **changes):
    """A trainer of two networks with a global batch of 8 labelled and 8 unlabelled examples: 6 steps an epoch."""
    torch.manual_seed(1)
    settings = {
        "per_device_train_batch_size": 8 // processes, "meta_batch_size": 8 // processes, "max_steps": 15,
        "plain_warmup_epochs": 1, "ramp_up_epochs": 1, "unlabelled_weight": 2.0, "learning_rate": 0.05,
    }  # fmt: skip
    keywords = dict(keywords or {})
    if changes.get("meta_learner") != "none" and "meta_learner" not in keywords:
        keywords["meta_learner"] = MWNet().to(dtype)
        if changes.get("layer_sampler", "learned") == "learned":
            keywords["layer_sampler"] = LearnedSampler().to(dtype)
    model = TwoModels(build_model(kind, dtype, seed=1), build_model(kind, dtype, seed=2))
    args = make_args(folder, **{**settings, **changes})
    return TwoNetworkTrainer(model, args, train_dataset=train or Learnable(dtype=dtype), **keywords)


def learned(trainer):
    """Everything that moves, by name."""
    parts = {"w": trainer.model}
    for side in trainer.sides:
        division = side.division.state_dict()
        tensors = {name: value for name, value in division.items() if isinstance(value, torch.Tensor)}
        parts |= {f"{side.name}.theta": side.meta.meta_learner, f"{side.name}.eta": side.meta.layer_sampler}
        parts[f"{side.name}.division"] = tensors
    found = {}
    for part, own in parts.items():
        tensors = own if isinstance(own, dict) else own.state_dict()
        found |= {f"{part}.{name}": tensor.clone() for name, tensor in tensors.items()}
    return found


def assert_equal(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


# ---- The step ----


def dividemix_loss(weigh, unlabelled_weight):
    """J by hand: the first half of a batch is labelled."""

    def loss(logits, targets):
        half = len(logits) // 2
        log_p = logits.log_softmax(1)
        losses = -(targets * log_p).sum(1)
        errors = ((log_p.exp() - targets) ** 2).mean(1)
        mean = log_p.exp().mean(0)
        prior = sum((1 / CLASSES) * torch.log((1 / CLASSES) / mean[c]) for c in range(CLASSES))
        of_labelled = (weigh(losses[:half].detach()) * losses[:half]).sum()
        of_unlabelled = (weigh(losses[half:].detach()) * errors[half:]).sum()
        return of_labelled + unlabelled_weight * of_unlabelled + prior

    return loss


def recorded(trainer):
    """Per step after the warm-up and network: the mixed batch, λ_u, the meta batch, and the weights before it."""
    found = []
    three_stages, next_meta_batch = trainer._three_stages, trainer._next_meta_batch

    def record(meta, network, batch, clean_labels):
        side = next(side for side in trainer.sides if side.meta is meta)
        found.append({"side": side.number, "batch": batch, "weight": side.loss.unlabelled_weight, "meta": None})
        return three_stages(meta, network, batch, clean_labels)

    def record_meta(meta):
        found[-1]["meta"] = next_meta_batch(meta)
        return found[-1]["meta"]

    trainer._three_stages, trainer._next_meta_batch = record, record_meta
    return found


@pytest.mark.parametrize("settings", [PLAIN, EXACT], ids=["DivideMix", "MW-Net"])
def test_steps_of_both_networks_equal_double_backward_and_sgd_by_hand(tmp_path, settings):
    trainer = make(tmp_path, **settings, max_steps=9, plain_warmup_epochs=0)
    model, learners = copy.deepcopy((trainer.model, [side.meta_learner for side in trainer.sides]))
    steps = recorded(trainer)
    trainer.train()
    assert len(steps) == 2 * 9

    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    meta_optimizers = [learner and torch.optim.SGD(learner.parameters(), 0.05, momentum=0.9) for learner in learners]
    rates = [0.05 * 0.1 ** ((step >= 4) + (step >= 7)) for step in range(9)]  # a tenth from 1/2 and 3/4 on
    for place, taken in enumerate(steps):
        step, side = place // 2, taken["side"]
        network, learner = (model.model_a, model.model_b)[side], learners[side]
        assert side == place % 2 and taken["weight"] == pytest.approx(2 * min(step / 6, 1))

        def weigh(losses, learner=learner):
            if learner is None:
                return torch.full_like(losses, 1 / len(losses))
            raw = learner(losses)
            return raw / raw.sum()

        loss = dividemix_loss(weigh, taken["weight"])
        if learner is not None:
            value, *_ = brute_force.meta_loss(network, loss, taken["batch"], taken["meta"], rates[step])
            gradients = torch.autograd.grad(value, list(learner.parameters()))
            for parameter, gradient in zip(learner.parameters(), gradients, strict=True):
                parameter.grad = gradient
            meta_optimizers[side].step()
        if side == 0:
            optimizer.zero_grad()
        loss(network(taken["batch"]["pixel_values"]).logits, taken["batch"]["labels"]).backward()
        if side == 1:
            optimizer.param_groups[0]["lr"] = rates[step]
            optimizer.step()
    assert_equal(trainer.model.state_dict(), model.state_dict(), 1e-9)
    for side, learner in zip(trainer.sides, learners, strict=True):
        assert (learner is None) == (side.meta_learner is None)
        if learner is not None:
            assert_equal(side.meta_learner.state_dict(), learner.state_dict(), 1e-9)


def test_a_mixed_batch_is_that_of_the_method(tmp_path):
    """Own draws by hand: labels refined by the division of the other network, guessed by both, sharpened and mixed."""
    trainer = make(tmp_path, **PLAIN, augmentation="pad-crop", mixup_alpha=0.0)  # each example mixed with nothing
    trainer.train()
    side = trainer.sides[0]
    drawn = []
    draw = side.drawn
    side.drawn = lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    with trainer._turn_of(side):
        batch, clean_labels = trainer._mixed_batch(side, trainer.state.global_step, trainer.clock)
    labelled, unlabelled = drawn
    assert all(set(part.views[0].flatten().tolist()) != set(part.views[1].flatten().tolist()) for part in drawn)

    def p(network, images):
        return network(images).logits.softmax(1)

    def sharp(rows):
        return rows**2 / (rows**2).sum(1, keepdim=True)

    with torch.no_grad():
        own, other = trainer.model.model_a, trainer.model.model_b
        c = labelled.clean_probabilities[:, None]
        seen = (p(own, labelled.views[0]) + p(own, labelled.views[1])) / 2
        refined = sharp(c * one_hot(labelled.labels, CLASSES) + (1 - c) * seen)
        guessed = sharp(sum(p(network, view) for network in (own, other) for view in unlabelled.views) / 4)
    expected = torch.cat([refined, refined, guessed, guessed])
    torch.testing.assert_close(batch["labels"], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(batch["pixel_values"], torch.cat([*labelled.views, *unlabelled.views]))
    assert side.loss.is_labelled.tolist() == [True] * 16 + [False] * 16
    assert torch.equal(clean_labels, torch.cat([labelled.clean_labels] * 2 + [unlabelled.clean_labels] * 2))

    seen_by = trainer.sides[1].division  # a network learns from the other one's division
    loader = side._batches_of(LABELLED)
    assert np.array_equal(loader.dataset.rows, seen_by.rows)
    known = set(seen_by.clean_probabilities[seen_by.rows].astype(np.float32).tolist())
    assert set(labelled.clean_probabilities.tolist()) <= known


def test_images_and_targets_are_mixed_alike_with_a_share_of_at_least_a_half(tmp_path):
    trainer = make(tmp_path, **PLAIN, max_steps=8)
    trainer.train()
    side = trainer.sides[0]
    draw, drawn = side.drawn, []
    side.drawn = lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    with trainer._turn_of(side):
        batch, _ = trainer._mixed_batch(side, 8, trainer.clock)
        side.end_loading()
        trainer.args.mixup_alpha = 0.0
        unmixed, _ = trainer._mixed_batch(side, 8, trainer.clock)
    images, targets = unmixed["pixel_values"].flatten(1), unmixed["labels"]
    found = []
    for row, image in enumerate(batch["pixel_values"].flatten(1)):
        for partner in range(len(images)):
            way = images[partner] - images[row]
            part = float((image - images[row]) @ way / way.square().sum()) if partner != row else 0.0
            if part > 1e-6 and torch.allclose(image, images[row] + part * way):
                found.append((row, partner, 1 - part))
    rows, partners, shares = zip(*found, strict=True)
    assert len(rows) >= 10 and len(set(rows)) == len(rows) == len(set(partners))
    assert max(shares) - min(shares) < 1e-9 and 0.5 <= shares[0] < 1
    for row, partner, share in found:
        expected = share * targets[row] + (1 - share) * targets[partner]
        torch.testing.assert_close(batch["labels"][row], expected, rtol=1e-7, atol=1e-9)


# ---- Runs ----


RUNS = {
    "DivideMix": PLAIN,
    "MW-Net": EXACT,
    "FaMUS, crops": {"augmentation": "pad-crop"},
    "accumulation": {"gradient_accumulation_steps": 2, "max_steps": 9},
    "history": {**PLAIN, "division_history": 3, "augmentation": "pad-crop"},
    "confident warm-up": {**PLAIN, "warmup_confidence_penalty": True, "max_steps": 8},
}


@pytest.mark.parametrize("step", [4, 9, 12], ids=["in the warm-up", "within an epoch", "at its end"])
@pytest.mark.parametrize("name", ["FaMUS, crops", "history", "accumulation"])
def test_a_resumed_run_is_bit_identical(tmp_path, name, step):
    """Networks with batch norm and dropout; a stop in the warm-up, within an epoch and between two."""
    if name == "accumulation":
        step = step // 2
    kind = "batch norm" if name == "history" else "group norm"
    settings = {**RUNS[name], "save_strategy": "steps", "save_steps": step}
    whole = make(tmp_path, kind, torch.float32, **settings)
    whole.train()
    again = make(tmp_path, kind, torch.float32, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert again.state.global_step == whole.state.global_step
    assert_equal(learned(again), learned(whole))
    for side, other in zip(again.sides, whole.sides, strict=True):
        assert (side.division.purity, side.division.recall, side.division.noise_rate, side.division.epoch) == (
            other.division.purity, other.division.recall, other.division.noise_rate, other.division.epoch
        )  # fmt: skip


def run(folder, name, processes):
    trainer = make(folder, processes=processes, keywords=None, **RUNS[name])
    assert trainer.args.world_size == processes
    trainer.train()
    return learned(trainer)


def work(rank, folder):
    import os

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    return {name: run(folder / name, name, 2) for name in RUNS}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return run_in_two_processes(partial(work, folder=folder), folder)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_learns_crops_and_partners_included(both, tmp_path, name):
    expected = run(tmp_path, name, 1)
    assert_equal(both[0][name], expected, 1e-9)
    assert_equal(both[1][name], both[0][name])
