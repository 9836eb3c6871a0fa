"""Trainings with per-example memory, trusted rows, mixup and logit adjustment: resumed, and of data of any kind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.data import default_collate
from transformers import TrainerCallback

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_noisy_dataset
from famus_hf.core.three_stages import StepSettings
from famus_hf.errors import LoadError
from tests.helpers.datasets import IMAGE_CLASSES, pictures
from tests.helpers.models import CLASSES, build_audio_model, build_model
from tests.helpers.trainers import Examples, make_args, make_image_trainer, make_text_trainer, state_of

STEPS, EPOCH = 14, 6  # 48 pictures in batches of eight
POSTERIOR = {"meta_learner": "posterior", "max_steps": STEPS, "layer_sampler": "all", "train_on_trusted": False}


class SaveAt(TrainerCallback):
    """Saves after these steps."""

    def __init__(self, *steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **keywords):
        control.should_save = state.global_step in self.steps


def whole_state(trainer):
    """Everything that must come back after a resume, beliefs and class shares included."""
    found = state_of(trainer) if trainer.stages is not None else dict(trainer.model.state_dict())
    if trainer.beliefs is not None:
        found |= {f"beliefs.{name}": value for name, value in trainer.beliefs.state_dict().items()}
    return found | ({} if trainer.logit_shift is None else {"logit_shift": trainer.logit_shift})


def assert_same(one, other):
    one, other = whole_state(one), whole_state(other)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


RESUMED = {
    "posterior": {},
    "likelihood": {"posterior_form": "likelihood", "transition_counts": "each-epoch", "belief_decay": 0.8},
    "accumulation": {"gradient_accumulation_steps": 2, "num_train_epochs": 2, "max_steps": 8},
    "preset, interval": {"preset": "fast", "layer_sampler": "learned", "meta_interval": 2},
    "sgd": {"meta_optim": "sgd", "meta_lr_schedule": "main", "meta_learning_rate": 0.1},
    "trusted, adjusted": {"train_on_trusted": True, "logit_adjustment": 1.0, "transitions": "counts"},
    "waiting": {"train_on_trusted": True, "logit_adjustment": 1.0},  # labels are drawn: the network is right by chance
    "mixup": {"mixup_alpha": 1.0, "dataloader_num_workers": 1},
    "pseudo-clean": {},
    "forward": {"meta_learner": "forward", "transition_counts": "each-epoch"},
    "M-correction": {"meta_learner": "m-correction", "mixup_alpha": 8.0},
    "MentorNet": {"meta_learner": "mentornet", "mentor_quantile": 0.6},
    "MW-Net, adjusted": {"meta_learner": "mw-net", "logit_adjustment": 0.5, "label_report": False},
    "plain, all of it": {"meta_learner": "none", "train_on_trusted": True, "mixup_alpha": 0.5, "logit_adjustment": 1.0},
    "MW-Net, elr": {"meta_learner": "mw-net", "elr_weight": 3.0, "label_report": False},
    "plain, elr": {"meta_learner": "none", "elr_weight": 3.0, "label_report": False},
}  # fmt: skip


def make(folder, name="posterior", **settings):
    settings = {**POSTERIOR, **RESUMED[name], **settings}
    trainer = make_image_trainer(folder, **settings)
    if name in ("pseudo-clean", "forward"):
        callbacks = settings.get("callbacks", ())
        settings = {key: value for key, value in settings.items() if key != "callbacks"}
        trainer = FaMUSTrainer(trainer.model, trainer.args, train_dataset=pictures(48, 0), callbacks=list(callbacks))
    return trainer


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumes_bit_for_bit_before_and_after_its_plain_part_and_within_an_epoch(tmp_path, name):
    stops = (2, 3, 6) if name == "accumulation" else (3, 6, 9)
    whole = make(tmp_path, name, callbacks=[SaveAt(*stops)])
    assert whole.beliefs is None
    whole.train()
    if whole.stages is None:
        assert name == "plain, all of it" or int(whole.beliefs.visits.sum()) == STEPS * 8
    else:
        learner = whole.meta_learner
        assert whole.beliefs.is_shown == (name != "MentorNet") and int(whole.beliefs.visits.sum()) > 8 * 8
        assert getattr(learner, "is_counted", 1) == (name != "waiting")
    for stop in stops:
        resumed = make(tmp_path, name)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
        assert_same(resumed, whole)


def test_theta_moves_only_once_transitions_are_counted(tmp_path):
    trainer = make(tmp_path, max_steps=2 * EPOCH, callbacks=[SaveAt(EPOCH)])
    start = {name: value.clone() for name, value in trainer.meta_learner.state_dict().items()}
    trainer.train()
    plain = load_file(tmp_path / f"checkpoint-{EPOCH}" / "meta_net" / "model.safetensors")
    assert all(torch.equal(plain[name], value) for name, value in start.items()), "an epoch of plain training"
    assert trainer.meta.steps == EPOCH and trainer.meta_learner.is_counted
    assert not torch.equal(trainer.meta_learner.transitions, start["transitions"])


def test_while_trusted_examples_tell_of_no_wrong_label_training_is_plain(tmp_path):
    waiting = make(tmp_path / "waiting", "waiting")
    plain = make(tmp_path / "plain", "waiting", meta_learner="none")
    for trainer in (waiting, plain):
        trainer.train()
    assert waiting.meta_learner.waits and waiting.meta.steps == 0 and waiting.beliefs.is_shown
    torch.testing.assert_close(waiting.logit_shift, plain.logit_shift)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(waiting.model.state_dict()[name], value)


# ---- Other data ----


def test_a_checkpoint_of_other_data_is_refused_or_its_beliefs_begin_anew(tmp_path):
    make(tmp_path, callbacks=[SaveAt(9)]).train()
    checkpoint = str(tmp_path / "checkpoint-9")

    def other(rows, **settings):
        trainer = make(tmp_path, max_steps=24, **settings)
        return FaMUSTrainer(trainer.model, trainer.args, train_dataset=pictures(rows, 7), meta_dataset=pictures(24, 1))

    for rows in (48, 56):
        with pytest.raises(LoadError, match=r"the data differ from those of checkpoint .* set allow_other_data=True"):
            other(rows).train(resume_from_checkpoint=checkpoint)
        trainer = other(rows, allow_other_data=True)
        counted = load_file(tmp_path / "checkpoint-9" / "meta_net" / "model.safetensors")["stays"]
        trainer.train(resume_from_checkpoint=checkpoint)
        beliefs, epoch = trainer.beliefs, trainer.schedule.steps_per_epoch
        assert len(beliefs.sums) == rows and int(beliefs.visits.sum()) == 8 * (24 - 9)
        assert beliefs.begun == 9 // epoch and beliefs.epoch == (24 - 1) // epoch - beliefs.begun
        assert beliefs.is_shown and not torch.equal(trainer.meta_learner.stays, counted), "and are counted anew"


def test_after_the_best_model_is_loaded_beliefs_are_those_of_its_checkpoint(tmp_path):
    trainer = make(
        tmp_path, load_best_model_at_end=True, metric_for_best_model="falling", greater_is_better=True,
        save_strategy="steps", eval_strategy="steps", save_steps=7, eval_steps=7,
    )  # fmt: skip
    trainer.compute_metrics = lambda prediction: {"falling": -trainer.state.global_step}
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-7")
    saved = load_file(f"{best}/beliefs.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in trainer.beliefs.state_dict().items())
    assert int(trainer.beliefs.visits.sum()) == 7 * 8
    report = trainer.meta_learner.label_posteriors(
        trainer.beliefs.of(slice(None)), trainer.beliefs.labels.clamp(min=0), trainer.beliefs.losses
    )
    assert report.isfinite().all() and torch.allclose(report.sum(1), torch.ones(48))


# ---- Data of all kinds ----


class Own(torch.utils.data.Dataset):
    """A map-style data set of the user's own, without record columns."""

    def __init__(self, size, seed, kind="mapping"):
        self.batch, self.kind = Examples(size, seed=seed).batch, kind

    def __len__(self):
        return len(self.batch["labels"])

    def __getitem__(self, row):
        example = {name: self.batch[name][row] for name in ("pixel_values", "labels")}
        if self.kind == "soft":
            example["labels"] = torch.full((CLASSES,), 0.1).scatter(0, example["labels"], 1 - 0.1 * (CLASSES - 1))
        if self.kind == "object":
            return SimpleNamespace(**example)
        return example


OWN = {
    "mapping": {},
    "object": {},
    "soft": {},
    "torch's collator": {"data_collator": default_collate},
    "workers": {"dataloader_num_workers": 2},
    "objects and workers": {"dataloader_num_workers": 1, "train_on_trusted": True},
}


@pytest.mark.parametrize("name", OWN)
def test_data_of_ones_own_have_a_memory_of_each_example(tmp_path, name):
    kind = name if name in ("object", "soft") else "mapping"
    kind = "object" if name.startswith("objects") else kind
    settings = {key: value for key, value in OWN[name].items() if key != "data_collator"}
    keywords = {key: value for key, value in OWN[name].items() if key == "data_collator"}
    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32),
        make_args(tmp_path, **{**POSTERIOR, "meta_optim": None, "meta_learning_rate": None, **settings}),
        train_dataset=Own(40, 0, kind), meta_dataset=Own(20, 8, kind), **keywords,
    )  # fmt: skip
    trainer.train()
    beliefs, given = trainer.beliefs, Own(40, 0).batch["labels"]
    assert int(beliefs.visits.sum()) <= STEPS * 8 and (beliefs.visits > 0).all()
    assert torch.equal(beliefs.labels, given), "each row is the data set's own"
    assert trainer.meta_learner.is_counted and trainer.meta.steps > 0


def test_texts_and_recordings_have_it_too(tmp_path):
    text = make_text_trainer(tmp_path, **{**POSTERIOR, "train_sampling_strategy": "group_by_length"})
    rows = [
        {"input_values": torch.randn(32, 16), "labels": row % 3, "index": row}
        for row in range(40)
    ]  # fmt: skip
    audio = FaMUSTrainer(
        build_audio_model("ast", num_labels=3), make_args(tmp_path, **POSTERIOR), train_dataset=rows[:30],
        meta_dataset=rows[30:],
    )  # fmt: skip
    for trainer in (text, audio):
        trainer.train()
        given = [int(trainer.train_dataset[row]["labels"]) for row in range(len(trainer.train_dataset))]
        came_by = trainer.beliefs.visits > 0
        assert torch.equal(trainer.beliefs.labels[came_by], torch.tensor(given)[came_by]) and came_by.sum() > 24
        assert trainer.meta_learner.is_counted and trainer.meta.steps > 0


def test_forward_correction_needs_no_meta_set_and_makes_none(tmp_path):
    trainer = make(tmp_path, "forward")
    assert trainer.meta_dataset is None and not trainer._learns_from_meta_set
    trainer.train()
    assert trainer.meta_dataset is None and trainer.meta.steps == 0 and trainer.meta_learner.is_counted
    trainer.save_model()
    trainer.create_model_card()
    assert "ForwardCorrection" in (tmp_path / "README.md").read_text()
    assert trainer.label_report().num_rows == 48


def test_a_data_set_without_labels_for_all_is_remembered_where_there_are_some(tmp_path):
    """Plain training, with the label report's beliefs: an example without a label (−100) leaves none."""

    class Some(Examples):
        def __getitem__(self, row):
            example = super().__getitem__(row)
            return {**example, "labels": -100 if row % 4 == 0 else example["labels"]}

    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32), make_args(tmp_path, meta_learner="none"), train_dataset=Some(40),
        meta_dataset=Examples(11),
    )  # fmt: skip
    trainer.begin_beliefs()
    trainer.keeps_beliefs = True
    rows, labels = torch.arange(8), torch.tensor([Some(40)[row]["labels"] for row in range(8)])
    trainer.note_beliefs(rows, torch.randn(8, CLASSES), labels)
    assert trainer.beliefs.visits[:8].tolist() == [0, 1, 1, 1, 0, 1, 1, 1]


# ---- What is added to any method ----


def test_trusted_examples_are_trained_on_but_for_a_held_out_fifth(tmp_path):
    seen, trainer = [], make(tmp_path, "trusted, adjusted", max_steps=24)
    describe = trainer.describe
    trainer.describe = lambda train, rows: (describe(train, rows), seen.append((rows, train.is_trusted)))
    trainer.train()
    rows, is_trusted = (torch.cat(values) for values in zip(*seen, strict=True))
    assert torch.equal(is_trusted, rows >= 48) and set(rows[is_trusted].tolist()) == set(range(48, 48 + 20))
    held_out = set(range(24)) - set(trainer._trusted_in_training)
    assert len(held_out) == 4 and len(trainer._trusted_sample) == 4
    assert int(trainer.beliefs.visits.sum()) + int(trainer.beliefs.trained.visits.sum()) == 24 * 8
    labels = [trainer.meta_dataset[row]["labels"] for row in trainer._trusted_in_training]
    assert trainer.beliefs.trained.labels.tolist() == labels, "each row is the trusted set's own"


def test_a_trusted_label_is_learned_as_it_is_whatever_is_believed(tmp_path):
    """By the targets of training alone: with all examples trusted, posterior targets are plain training."""
    trainer = make(tmp_path, "trusted, adjusted", logit_adjustment=0.0)
    trainer.train()
    trainer.stages.meta.meta_learner.goes.fill_(1 / 3)
    batch = {"pixel_values": torch.randn(6, 3, 12, 16), "labels": torch.arange(6) % 3}
    train = trainer.stages.forward(trainer.model, batch, is_meta_step=False)
    losses = {}
    for first in (0, 48):
        train.beliefs = train.is_trusted = None
        trainer.describe(train, torch.arange(first, first + 6))
        losses[first] = trainer.stages.training_loss(train)
    plain = torch.nn.functional.cross_entropy(train.logits, batch["labels"])
    torch.testing.assert_close(losses[48], plain)
    assert (losses[0] - plain).abs() > 1e-4


def test_logit_adjustment_takes_given_labels_at_first_and_then_what_is_believed(tmp_path):
    """And the trusted examples that are trained on, too: with these left out, a tail would seem rarer than it is."""
    trainer = make(tmp_path, "trusted, adjusted")
    trainer.begin_beliefs()
    trusted = torch.tensor([trainer.meta_dataset[row]["labels"] for row in trainer._trusted_in_training]).bincount()
    assert trusted.sum() == 20
    torch.testing.assert_close(trainer.logit_shift, ((trusted + 16) / 68).log())
    trainer.train()
    beliefs, place = trainer.beliefs, trainer.schedule.steps_per_epoch
    assert place == 8 and trainer.beliefs.is_shown
    believed = trainer.logit_shift.exp() * 68 - trusted
    assert believed.sum().item() == pytest.approx(48, rel=0.1) and not torch.allclose(believed, torch.full((3,), 16.0))
    assert beliefs.sums.isfinite().all()


def test_plain_training_mixes_images_and_shifts_logits_by_hand(tmp_path):
    """Two steps of the first batches, against the loss written out."""
    trainer = make(tmp_path, "plain, all of it", augmentation="none", max_steps=1, label_report=False)
    trainer.begin_beliefs()
    shift = trainer.logit_shift
    batch = {"pixel_values": torch.randn(6, 3, 12, 16), "labels": torch.arange(6) % 3}
    trainer._micro_batch = (0, 0)
    mixed = trainer._mix(batch)
    partner, share = trainer.mixture
    assert (share >= 0.5).all() and sorted(partner.tolist()) == list(range(6))
    by_hand = share[:, None, None, None] * batch["pixel_values"]
    by_hand = by_hand + (1 - share)[:, None, None, None] * batch["pixel_values"][partner]
    torch.testing.assert_close(mixed["pixel_values"], by_hand)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, mixed)
    logits = (trainer.model(by_hand).logits + shift).log_softmax(1)
    targets = torch.nn.functional.one_hot(batch["labels"], 3).float()
    targets = share[:, None] * targets + (1 - share)[:, None] * targets[partner]
    torch.testing.assert_close(loss, -(targets * logits).sum(1).mean(), rtol=1e-4, atol=1e-5)
    again = trainer._mix(batch)
    assert torch.equal(again["pixel_values"], mixed["pixel_values"]), "a function of seed and step"


@pytest.mark.parametrize("learner", ["none", "mw-net"])
def test_early_learning_regularization_by_hand_of_mixed_images_some_of_them_trusted(tmp_path, learner):
    network = build_backbone("tiny", IMAGE_CLASSES)
    network.config.cosine_classifier = True  # whose logits are scaled
    settings = {"meta_learner": learner, "elr_weight": 2.0, "ldam_scale": 1.5, "augmentation": "none"}
    trainer = make(tmp_path, "plain, all of it", model=network, **settings)
    trainer.begin_beliefs()
    trainer._micro_batch = (0, 0)
    batch = {"pixel_values": torch.randn(6, 3, 12, 16), "labels": torch.arange(6) % 3}
    mixed, rows, earlier = trainer._mix(batch), torch.tensor([0, 50, 2, 3, 51, 5]), torch.tensor([[0.7, 0.2, 0.1]])
    trainer.beliefs = trainer._new_beliefs(3)
    trainer.beliefs.update(rows[2:3], earlier, batch["labels"][2:3], torch.zeros(1))
    model, shift, (partner, share) = trainer.model.train(), trainer.logit_shift, trainer.mixture
    targets = 0.2 * (1.5 * (model(batch["pixel_values"]).logits + shift)).softmax(1).detach()
    targets[2] += 0.8 * 0.2 * earlier[0]
    targets[[1, 4]] = 0  # trusted
    targets = share[:, None] * targets + (1 - share)[:, None] * targets[partner]
    p = (1.5 * (model(mixed["pixel_values"]).logits + shift)).softmax(1)
    expected = 2 * (1 - (p * targets).sum(1)).log().mean()

    def loss():
        if learner == "none":
            trainer._batch_rows = rows
            return trainer.compute_loss(model, mixed)
        train = trainer.stages.forward(model, mixed, is_meta_step=False)
        trainer.describe(train, rows)
        return trainer.stages.training_loss(train)

    regularized = loss()
    if learner == "none":
        trainer.args.elr_weight = 0.0
    else:
        trainer.stages.settings = StepSettings()
    torch.testing.assert_close(regularized - loss(), expected, rtol=1e-4, atol=1e-6)


def test_early_learning_regularization_of_plain_training_leaves_out_examples_without_a_label(tmp_path):
    class Some(Examples):
        def __getitem__(self, row):
            example = super().__getitem__(row)
            return {**example, "labels": -100 if row % 4 == 0 else example["labels"]}

    model = build_model("batch norm", torch.float32)
    trainer = FaMUSTrainer(
        model, make_args(tmp_path, meta_learner="none", elr_weight=2.0), train_dataset=Some(40)
    )  # fmt: skip
    trainer.begin_beliefs()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer._batch_rows = batch["row"]
    inputs = trainer._prepare_inputs(batch)
    loss, labelled = trainer.compute_loss(model.train(), inputs), inputs["labels"] >= 0
    logits = model(inputs["pixel_values"]).logits[labelled]
    agreement = 0.2 * logits.softmax(1).square().sum(1)
    expected = F.cross_entropy(logits, inputs["labels"][labelled]) + 2 * (1 - agreement).log().mean()
    torch.testing.assert_close(loss, expected)
    assert 0 < labelled.sum() < 8


@pytest.mark.parametrize("meta_learner", ["mw-net", "mlc", "l2r"])
def test_every_meta_learner_learns_from_mixed_labels(tmp_path, meta_learner):
    trainer = make(tmp_path, "mixup", meta_learner=meta_learner, max_steps=1, dataloader_num_workers=0)
    trainer.train()
    batch = {"pixel_values": torch.randn(6, 3, 12, 16), "labels": torch.arange(6) % 3}
    train = trainer.stages.forward(trainer.model, batch, is_meta_step=False)
    partner, share = torch.tensor([1, 2, 3, 4, 5, 0]), torch.full((6,), 0.6)
    train.mixture = partner, share
    targets = torch.nn.functional.one_hot(batch["labels"], 3).float()
    soft = 0.6 * targets + 0.4 * targets[partner]
    by_hand = trainer.stages.forward(trainer.model, {**batch, "labels": soft}, is_meta_step=False)
    by_hand.logits = train.logits
    learner = trainer.meta_learner
    if meta_learner == "l2r":
        with torch.no_grad():
            learner.epsilon.fill_(0.3) if hasattr(learner, "epsilon") else None
    torch.testing.assert_close(trainer.stages.training_loss(train), trainer.stages.training_loss(by_hand))


def test_balanced_epochs_count_trusted_examples(tmp_path):
    trainer = make(tmp_path, "trusted, adjusted", balanced_batches_per_epoch=3, per_device_train_batch_size=9)
    rows, labels = [], []
    for batch in trainer.get_train_dataloader():
        rows += batch["row"].tolist()
        labels.append(batch["labels"].bincount(minlength=3).tolist())
    assert np.sum(labels, 0).tolist() == [9, 9, 9] and max(rows) >= 48


# ---- β ----


def rates(folder, **settings):
    """α and β of each meta step."""
    found, trainer = [], make(folder, lr_milestones=[0.5, 0.75], max_steps=16, **settings)
    step = trainer.stages.meta.step

    def noted(*arguments, **keywords):
        groups = trainer.meta.learner_optimizer.param_groups
        found.append((trainer.optimizer.param_groups[0]["lr"], *(group["lr"] for group in groups)))
        return step(*arguments, **keywords)

    trainer.stages.meta.step = noted
    return trainer, found


@pytest.mark.parametrize("optimizer, schedule", [("adam", None), ("adam", "constant"), ("sgd", None), ("sgd", "main")])
def test_beta_follows_the_schedule_with_adam_or_where_that_is_asked_for(tmp_path, optimizer, schedule):
    trainer, found = rates(
        tmp_path, meta_optim=optimizer, meta_lr_schedule=schedule, learning_rate=0.05, meta_learning_rate=0.01,
        transition_rate=20.0,         callbacks=[SaveAt(9)],
    )  # fmt: skip
    trainer.train()
    follows = schedule == "main" or (schedule is None and optimizer == "adam")
    alphas = [alpha for alpha, *_ in found]
    assert alphas == pytest.approx([0.05] * 2 + [0.005] * 4 + [0.0005] * 4)
    for alpha, network, transitions in found:
        share = alpha / 0.05 if follows else 1.0
        assert (network, transitions) == pytest.approx((0.01 * share, 0.2 * share))
    # What the run began with comes back, whatever the rate is set to now.
    resumed, again = rates(
        tmp_path,
        meta_optim=optimizer,
        meta_lr_schedule=schedule,
        learning_rate=0.05,
        meta_learning_rate=7.0,
        transition_rate=20.0,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert again == found[-7:]
    assert_same(resumed, trainer)


def test_an_optimizer_that_finds_its_own_rate_leaves_beta_as_it_is(tmp_path):
    meta = make(tmp_path).stages.meta
    for rate in (None, 0.0):
        meta.follow_rate(type("Own", (), {"param_groups": [{"lr": rate}]}))
        assert [group["lr"] for group in meta.learner_optimizer.param_groups] == [3e-3, 3e-3]


# ---- Does it help? ----


def test_posterior_targets_find_wrong_labels_of_digits(tmp_path):
    """A few epochs of pair noise of 40 %: the posterior tells right labels from wrong ones, and T is as it was made."""
    data = load_noisy_dataset("digits", noise=0.4, noise_type="pair", num_meta=100)
    torch.manual_seed(0)
    args = FaMUSTrainingArguments(
        str(tmp_path), meta_learner="posterior", preset="fast", num_train_epochs=8, per_device_train_batch_size=50,
        use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    model = build_backbone("tiny", data["train"].features["label"].names)
    trainer = FaMUSTrainer(model, args, train_dataset=data["train"], meta_dataset=data["meta"])
    trainer.train()
    beliefs = trainer.beliefs
    with torch.no_grad():
        posteriors = trainer.meta_learner.label_posteriors(beliefs.of(slice(None)), beliefs.labels, beliefs.losses)
    sound = posteriors.gather(1, beliefs.labels[:, None])[:, 0].numpy()
    wrong = np.asarray(data["train"]["label"][:]) != np.asarray(data["train"]["clean_label"][:])
    assert abs((1 - sound).mean() - wrong.mean()) < 0.08
    assert ((sound < 0.5) == wrong).mean() > 0.9
    right = torch.tensor(data["train"]["clean_label"][:])
    assert (posteriors.argmax(1) == right).float().mean() > 0.9
    assert 0.5 < trainer.meta_learner.stays.mean() < 0.75
