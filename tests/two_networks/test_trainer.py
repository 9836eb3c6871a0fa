"""TwoNetworkTrainer: each step against brute force, divisions, exact resumes, what it survives and leaves.

tests/processes/test_processes.py has its runs in two processes.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import one_hot
from transformers import ViTForImageClassification

from famus_hf import L2R, MLC, MWNet, build_backbone, load_famus
from famus_hf.core.losses import LDAMLoss
from famus_hf.models.two_networks import TwoNetworksForImageClassification
from famus_hf.storage import checkpoints
from famus_hf.two_networks.peer import LABELLED, rows_of_epoch
from famus_hf.two_networks.trainer import TwoNetworkTrainer
from tests.helpers import brute_force
from tests.helpers.callbacks import SaveAt
from tests.helpers.models import CLASSES, TwoModels, build_model
from tests.helpers.trainers import make_args
from tests.helpers.two_network_runs import EXACT, PLAIN, RUNS, Learnable, assert_equal, learned, make

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
    mixed_batch, meta_batch = trainer._mixed_batch, trainer._meta_batch_of

    def record(peer, number, clock):
        batch, clean_labels = mixed_batch(peer, number, clock)
        found.append({"peer": peer.number, "batch": batch, "weight": peer.loss.unlabelled_weight, "meta": None})
        return batch, clean_labels

    def record_meta(peer):
        found[-1]["meta"] = meta_batch(peer)
        return found[-1]["meta"]

    trainer._mixed_batch, trainer._meta_batch_of = record, record_meta
    return found


@pytest.mark.parametrize("settings", [PLAIN, EXACT], ids=["DivideMix", "MW-Net"])
def test_steps_of_both_networks_equal_double_backward_and_sgd_by_hand(tmp_path, settings):
    trainer = make(tmp_path, **settings, max_steps=9, plain_warmup_epochs=0)
    model, learners = copy.deepcopy((trainer.model, [peer.meta_learner for peer in trainer.peers]))
    steps = recorded(trainer)
    trainer.train()
    assert len(steps) == 2 * 9

    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    meta_optimizers = [learner and torch.optim.SGD(learner.parameters(), 0.05, momentum=0.9) for learner in learners]
    rates = [0.05 * 0.1 ** ((step >= 4) + (step >= 7)) for step in range(9)]  # a tenth from 1/2 and 3/4 on
    for place, taken in enumerate(steps):
        step, peer = place // 2, taken["peer"]
        network, learner = (model.model_a, model.model_b)[peer], learners[peer]
        assert peer == place % 2 and taken["weight"] == pytest.approx(2 * min(step / 6, 1))

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
            meta_optimizers[peer].step()
        if peer == 0:
            optimizer.zero_grad()
        loss(network(taken["batch"]["pixel_values"]).logits, taken["batch"]["labels"]).backward()
        if peer == 1:
            optimizer.param_groups[0]["lr"] = rates[step]
            optimizer.step()
    assert_equal(trainer.model.state_dict(), model.state_dict(), 1e-9)
    for peer, learner in zip(trainer.peers, learners, strict=True):
        assert (learner is None) == (peer.meta_learner is None)
        if learner is not None:
            assert_equal(peer.meta_learner.state_dict(), learner.state_dict(), 1e-9)


def test_a_mixed_batch_is_that_of_the_method(tmp_path):
    """Own draws by hand: labels refined by the division of the other network, guessed by both, sharpened and mixed."""
    trainer = make(tmp_path, **PLAIN, augmentation="pad-crop", mixup_alpha=0.0)  # each example mixed with nothing
    trainer.train()
    peer = trainer.peers[0]
    drawn = []
    draw = peer.drawn
    peer.drawn = lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    batch, clean_labels = peer.mixed_batch(trainer.state.global_step, trainer.clock)
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
    assert peer.loss.is_labelled.tolist() == [True] * 16 + [False] * 16
    assert torch.equal(clean_labels, torch.cat([labelled.clean_labels] * 2 + [unlabelled.clean_labels] * 2))

    seen_by = trainer.peers[1].division  # a network learns from the other one's division
    loader = peer._batches_of(LABELLED)
    assert np.array_equal(loader.dataset.rows, seen_by.rows)
    known = set(seen_by.clean_probabilities[seen_by.rows].astype(np.float32).tolist())
    assert set(labelled.clean_probabilities.tolist()) <= known


def test_images_and_targets_are_mixed_alike_with_a_share_of_at_least_a_half(tmp_path):
    trainer = make(tmp_path, **PLAIN, max_steps=8)
    trainer.train()
    peer = trainer.peers[0]
    batch, _ = peer.mixed_batch(8, trainer.clock)
    peer.end_loading()
    trainer.args.mixup_alpha = 0.0
    unmixed, _ = peer.mixed_batch(8, trainer.clock)
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


def test_a_batch_has_the_shares_of_the_division_and_the_unlabelled_loss_counts_in_proportion(tmp_path):
    trainer = make(tmp_path, **PLAIN, unlabelled_share="division", max_steps=30)
    steps = recorded(trainer)
    trainer.train()
    peer = trainer.peers[0]
    seen, taken = peer.other.division, [taken for taken in steps if taken["peer"] == 0]
    share = len(seen.unlabelled) / len(trainer.train_dataset)
    unlabelled = int((~peer.loss.is_labelled).sum())
    assert unlabelled == round(16 * round(8 * share) / 8) != 8
    assert len(taken[-1]["batch"]["labels"]) == 16
    assert taken[-1]["weight"] == pytest.approx(2 * min(1, len(seen.unlabelled) / len(seen.rows)))


def test_a_division_leaves_out_about_as_many_labels_as_seem_wrong_after_the_warm_up(tmp_path):
    trainer = make(tmp_path, "batch norm", **PLAIN, calibrate_division=True, max_steps=30, plain_warmup_epochs=3)
    trainer.train()
    for peer in trainer.peers:
        division = peer.division
        assert 0.05 < division.noise_rate < 0.95
        expected = min(max(division.mixture_noise_rate, division.noise_rate), 1.25 * division.noise_rate)
        assert 1 - division.clean_probabilities.mean() == pytest.approx(expected, abs=1e-6)


# ---- Runs ----


RESUMED = {"by the division": "group norm", "history": "batch norm", "accumulation": "group norm"}  # and its networks
STOPS = {"in the warm-up": 4, "within an epoch": 9, "at its end": 12}  # batches


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Name of a run → a trainer that nothing happened to."""

    def train(name):
        steps = [stop // RUNS[name].get("gradient_accumulation_steps", 1) for stop in STOPS.values()]
        keywords = {"callbacks": [SaveAt(*steps)]}
        folder = tmp_path_factory.mktemp("whole")
        trainer = make(folder, RESUMED[name], torch.float32, keywords=keywords, **RUNS[name])
        trainer.train()
        return trainer

    return functools.cache(train)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_is_bit_identical(tmp_path, trained, name, stop):
    """Networks with batch norm and dropout; a stop in the warm-up, within an epoch and between two."""
    whole = trained(name)
    again = make(tmp_path, RESUMED[name], torch.float32, **RUNS[name])
    step = STOPS[stop] // RUNS[name].get("gradient_accumulation_steps", 1)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
    assert again.state.global_step == whole.state.global_step
    assert_equal(learned(again), learned(whole))
    for peer, other in zip(again.peers, whole.peers, strict=True):
        for name in ("purity", "recall", "noise_rate", "mixture_noise_rate", "epoch"):
            assert getattr(peer.division, name) == getattr(other.division, name) is not None


def test_a_second_training_divides_anew(tmp_path):
    trainer = make(tmp_path, **RUNS["history"])
    trainer.train()
    epochs = []
    divide = trainer._log_division
    trainer._log_division = lambda division: epochs.append((division.epoch, len(division.history))) or divide(division)
    trainer.train()
    assert epochs == [(1, 1), (1, 1), (2, 2), (2, 2)]


# ---- What it survives ----


@pytest.mark.parametrize("settings", [PLAIN, {}], ids=["DivideMix", "FaMUS"])
def test_images_that_are_not_finite_never_reach_weights_running_statistics_or_labels(tmp_path, settings):
    train = Learnable()
    train.images[5] = float("nan")
    trainer = make(tmp_path, "batch norm", torch.float32, train, nan_policy="skip", max_steps=24, **settings)
    start = trainer.model.model_b.classifier.weight.detach().clone()
    trainer.train()
    assert all(tensor.isfinite().all() for tensor in learned(trainer).values())
    assert not torch.equal(start, trainer.model.model_b.classifier.weight)
    assert all(5 in peer.division.unlabelled for peer in trainer.peers)


def test_a_gradient_that_overflows_in_one_network_moves_neither_theta(tmp_path):
    trainer = make(tmp_path, dtype=torch.float32, max_steps=8, plain_warmup_epochs=0)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=10**6)
    states = []
    learn = trainer._learn

    def overflow(peer, number, clock):
        states.append([copy.deepcopy(own.meta_learner.state_dict()) for own in trainer.peers])
        loss = learn(peer, number, clock)
        if number == 5 and peer.number == 1:
            next(peer.network.parameters()).grad.fill_(float("inf"))
        return loss

    trainer._learn = overflow
    trainer.train()
    before, after = states[10], states[12]  # of the sixth step, and of the seventh
    assert_equal(after[0], before[0])
    assert_equal(after[1], before[1])
    assert not torch.equal(states[14][0]["hidden.weight"], states[12][0]["hidden.weight"])
    assert trainer.accelerator.scaler.get_scale() == 2.0**3


def test_both_networks_compute_in_bf16_where_that_is_asked_for(tmp_path):
    seen = []
    trainer = make(tmp_path, dtype=torch.float32, max_steps=8, bf16=True)
    for peer in trainer.peers:
        peer.network.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in learned(trainer).values())


def test_balanced_epochs_judge_and_divide_their_own_rows(tmp_path):
    train = Learnable()
    trainer = make(tmp_path, **PLAIN, train=as_dataset(train), max_steps=8, balanced_batches_per_epoch=2)
    trainer.train()
    assert trainer.schedule.steps_per_epoch == 2
    rows, earlier = (rows_of_epoch(trainer.train_dataset, trainer.args, 1, epoch) for epoch in (3, 2))
    assert not np.array_equal(rows, earlier)
    for peer in trainer.peers:
        division = peer.division
        assert np.array_equal(np.sort([*division.rows, *division.unlabelled]), rows)
        assert set(np.flatnonzero(division.clean_probabilities)) <= set(rows)


def as_dataset(examples):
    """A data set that tells its labels."""
    rows = [examples[row] for row in range(len(examples))]
    columns = {name: [np.asarray(row[name]) for row in rows] for name in rows[0]}
    columns |= {name: [int(value) for value in columns[name]] for name in columns if name != "pixel_values"}
    return Dataset.from_dict(columns).with_format("torch", dtype=torch.float64, columns=["pixel_values"],
                                                  output_all_columns=True)  # fmt: skip


def test_a_clean_meta_set_teaches_both_networks(tmp_path):
    clean = Learnable(20, torch.float64, wrong=0.0)
    trainer = make(tmp_path, max_steps=8, keywords={"meta_dataset": clean})
    batches = recorded(trainer)
    trainer.train()
    known = {image.sum().item() for image in clean.images}
    assert len(batches) == 4 and all(
        image.sum().item() in known for taken in batches for image in taken["meta"]["pixel_values"]
    )


def test_a_budget_holds_for_both_networks(tmp_path):
    trainer = make(tmp_path, max_steps=12, dtype=torch.float32, meta_budget=0.5)
    trainer.train()
    assert all(peer.meta.steps == 6 and peer.meta.measured_cost > 0 for peer in trainer.peers)


def test_the_log_says_how_good_divisions_are_and_what_takes_the_time(tmp_path):
    trainer = make(tmp_path, max_steps=18)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "labelled_size" in entry]
    assert len(logged) == 2
    last, divisions = logged[-1], [peer.division for peer in trainer.peers]
    train = trainer.train_dataset
    right = (train.labels == train.clean).numpy()
    assert last["labelled_size"] == np.mean([len(division.rows) for division in divisions])
    assert last["labelled_precision"] == pytest.approx(np.mean([right[division.rows].mean() for division in divisions]))
    recall = [right[division.rows].sum() / right.sum() for division in divisions]
    assert last["labelled_recall"] == pytest.approx(np.mean(recall))
    rate = np.mean([1 - division.clean_probabilities.mean() for division in divisions])
    assert last["mixture_noise_rate"] == pytest.approx(rate)
    assert trainer.noise_rate == pytest.approx(rate)
    for division in divisions:  # after a warm-up in which the networks learned too little
        division.clean_probabilities *= 0.45 / division.clean_probabilities.mean()
    assert trainer.noise_rate is None
    assert "doubt most labels" in trainer.model_card_facts()["estimated_noise"]
    assert set(trainer.time_shares) == {"division", "guessing", "meta step"}
    assert 0 < sum(trainer.time_shares.values()) < 1


# ---- What it leaves ----


@pytest.mark.parametrize("settings", [PLAIN, {}], ids=["DivideMix", "FaMUS"])
def test_the_folder_loads_as_one_model_and_as_each_of_two(tmp_path, settings):
    names = [f"class {label}" for label in range(CLASSES)]
    torch.manual_seed(1)
    model = TwoNetworksForImageClassification.of(build_backbone("tiny", names), build_backbone("tiny", names))
    args = make_args(tmp_path, max_steps=3, plain_warmup_epochs=0, **settings)
    trainer = TwoNetworkTrainer(model, args, train_dataset=Learnable())
    trainer.train()
    trainer.save_model()
    images = trainer.train_dataset.images[:5]
    ensemble, learner, sampler, _ = load_famus(tmp_path)
    assert learner is None and sampler is None
    logits = []
    for peer in trainer.peers:
        network, learner, sampler, _ = load_famus(tmp_path, subfolder=peer.name)
        assert_equal(network.state_dict(), peer.network.state_dict())
        assert (learner is None) == (sampler is None) == (settings == PLAIN)
        if learner is not None:
            assert_equal(learner.state_dict(), peer.meta_learner.state_dict())
        logits.append(network(images).logits)
    torch.testing.assert_close(ensemble(images).logits, (logits[0] + logits[1]) / 2)
    assert not torch.allclose(logits[0], logits[1])


def test_a_checkpoint_of_one_network_is_refused(tmp_path):
    trainer = make(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    path = tmp_path / "checkpoint-2"
    state = torch.load(path / "meta_state.pt", weights_only=True)
    torch.save(state["model_a"], path / "meta_state.pt")
    checkpoints.write_manifest(path, trainer._run)
    with pytest.raises(ValueError, match="it is of a run with one network: resume that with FaMUSTrainer"):
        make(tmp_path).train(resume_from_checkpoint=str(path))


def test_a_checkpoint_of_other_data_is_refused_with_two_networks_too(tmp_path):
    make(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    with pytest.raises(
        ValueError, match=r"checkpoint .* in the labels or index of the training examples: give the same"
    ):
        make(tmp_path, train=Learnable(dtype=torch.float64, seed=1)).train(resume_from_checkpoint=True)


# ---- What it refuses ----


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"meta_learner": "l2r"}, "meta_learner='l2r' does not go with two networks: choose mw-net, or none"),
        ({"keywords": {"meta_learner": L2R()}}, "L2R gives an example no weight by its loss"),
        ({"keywords": {"meta_learner": MWNet(detach_losses=False)}}, "detach_losses=False does not go with two"),
        ({"keywords": {"meta_learner": MLC(CLASSES)}}, "MLC gives an example no weight by its loss"),
        ({"keywords": {"base_loss": LDAMLoss([24] * CLASSES)}}, "base_loss 'ldam' does not go with two networks"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' does not go"),
        ({"scale_example_gradients": True}, "scale_example_gradients does not go with two networks"),
        ({"per_device_train_batch_size": 60}, "the training set has 96 examples, less than 120"),
        ({"clean_threshold": 1.0}, "clean_threshold=1.0 must"),
        ({"sharpening_temperature": 0.0}, "sharpening_temperature=0.0 must"),
        ({"mixup_alpha": -1.0}, "mixup_alpha=-1.0 must"),
        ({"division_history": 0}, "division_history=0 must"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_with_two_networks_is_refused_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **changes)


def test_one_network_and_twice_the_same_are_refused(tmp_path):
    one = build_model("called group norm")
    for model in (one, TwoModels(one, one)):
        with pytest.raises(ValueError, match="is not two networks: give TwoNetworksForImageClassification"):
            TwoNetworkTrainer(model, make_args(tmp_path), train_dataset=Learnable(dtype=torch.float64))


def test_inputs_that_can_not_be_mixed_are_refused_where_the_networks_take_them(tmp_path):
    class Masked(Learnable):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "attention_mask": torch.ones(3)}

    class TakeMasks(TwoModels):
        def forward(self, pixel_values, attention_mask=None, labels=None):
            return super().forward(pixel_values)

    model = TakeMasks(build_model("called group norm"), build_model("called group norm", seed=2))
    with pytest.raises(ValueError, match="mix images, and these examples hold attention_mask, pixel_values"):
        TwoNetworkTrainer(model, make_args(tmp_path), train_dataset=Masked(dtype=torch.float64))
    trainer = make(tmp_path, train=Masked(dtype=torch.float64), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_trainer_without_a_training_set_evaluates(tmp_path):
    model = TwoModels(build_model("called group norm"), build_model("called group norm", seed=2))
    trainer = TwoNetworkTrainer(model, make_args(tmp_path), eval_dataset=Learnable(20, torch.float64))
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.num_examples(trainer.get_eval_dataloader()) == 20
    assert trainer.noise_rate is None and trainer.time_shares == {}


def test_checkpointed_layers_take_the_same_attention_kernel_again(tmp_path):
    config = build_model("vit").config
    config.attn_implementation = config._attn_implementation = "sdpa"
    torch.manual_seed(1)
    networks = [ViTForImageClassification(config) for _ in range(2)]
    args = make_args(tmp_path, max_steps=2, plain_warmup_epochs=0, per_device_train_batch_size=8,
                     gradient_checkpointing=True)  # fmt: skip
    trainer = TwoNetworkTrainer(TwoNetworksForImageClassification.of(*networks), args, train_dataset=Learnable())
    trainer.train()
    assert trainer.state.global_step == 2


def test_resuming_is_exact_where_the_last_step_of_an_epoch_accumulates_less(tmp_path):
    settings = {**PLAIN, "gradient_accumulation_steps": 4, "max_steps": 6, "plain_warmup_epochs": 3,
                "save_strategy": "steps", "save_steps": 4}  # fmt: skip
    whole = make(tmp_path, **settings)
    whole.train()
    again = make(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_equal(learned(again), learned(whole))


def test_a_collator_may_make_images_of_whatever_the_data_set_holds(tmp_path):
    class Pairs(Learnable):
        def __getitem__(self, row):
            return self.images[row], int(self.labels[row])

    def collate(pairs):
        images, labels = zip(*pairs, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}

    trainer = make(tmp_path, **PLAIN, train=Pairs(dtype=torch.float64), max_steps=8,
                   keywords={"data_collator": collate})  # fmt: skip
    trainer.train()
    assert trainer.peers[0].division.epoch == 1 and trainer.peers[0].division.purity is None
