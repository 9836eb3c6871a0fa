"""Soft targets, L2B, class-balanced residuals and forward correction in a run: on digits, from settings to a folder."""

import json

import pytest
import torch

from famus_hf import (
    FaMUSTrainer,
    FaMUSTrainingArguments,
    ForwardCorrection,
    MetaLearner,
    build_backbone,
    load_noisy_dataset,
)
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.label_noise import transitions_of_trusted

STEPS, PLAIN = 8, 4  # the plain ones are an epoch
LEARNERS = {
    "soft": {"meta_learner": "soft"},
    "soft, all features, class heads": {"meta_learner": "soft", "soft_input": "beliefs", "class_heads": 2},
    "l2b": {"meta_learner": "l2b"},
    "jamal": {"meta_learner": "jamal"},
    "forward": {"meta_learner": "forward"},
    "forward, trusted": {"meta_learner": "forward", "transitions": "trusted"},
    "backward, anchors": {"meta_learner": "backward", "transitions": "anchors"},
    "M-correction": {"meta_learner": "m-correction", "mixup_alpha": 32},
    "MentorNet": {"meta_learner": "mentornet"},
    "posterior": {"meta_learner": "posterior"},
}


@pytest.fixture(scope="module")
def data():
    return load_noisy_dataset("digits", noise=0.4, noise_type="pair", num_meta=60, max_train_samples=260)


def make(folder, data, trusted=True, learner=None, **settings):
    torch.manual_seed(0)
    args = FaMUSTrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", lr_milestones=[],
        per_device_train_batch_size=50, **{"max_steps": STEPS, "plain_warmup_epochs": 1, **settings},
    )  # fmt: skip
    model = build_backbone("tiny", data["train"].features["label"].names)
    meta = data["meta"] if trusted else None
    return FaMUSTrainer(model, args, train_dataset=data["train"], meta_dataset=meta, meta_learner=learner)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """Plain training for as many steps as a run's plain part, and for all."""
    trainers = [make(tmp_path_factory.mktemp("plain"), data, meta_learner="none", max_steps=n) for n in (PLAIN, STEPS)]
    for trainer in trainers:
        trainer.train()
    return trainers


def weights_of(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize("name", LEARNERS)
def test_it_trains_digits_and_loads_again(tmp_path, data, plain, name):
    trainer = make(tmp_path, data, **LEARNERS[name])
    before = {key: value.clone() for key, value in trainer.meta_learner.state_dict().items()}
    trainer.train()
    trainer.save_model()
    learned = trainer.meta_learner.state_dict()
    assert weights_of(trainer).isfinite().all() and not torch.equal(weights_of(trainer), weights_of(plain[1]))
    assert all(not torch.equal(before[key], learned[key]) for key in before), "θ, or transitions, moved"
    loaded = MetaLearner.from_pretrained(tmp_path)
    assert type(loaded) is type(trainer.meta_learner) and loaded.config() == trainer.meta_learner.config()
    for key, value in learned.items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)


def test_gold_transitions_are_of_the_network_at_the_end_of_the_plain_part(tmp_path, data, plain):
    trainer = make(tmp_path, data, learner=ForwardCorrection(10, "trusted"), train_on_trusted=False)
    trainer.train()
    network = plain[0]
    found = network.evaluate_examples(network.model, trainer.meta_dataset, cross_entropy, with_probabilities=True)
    matrix = transitions_of_trusted(torch.from_numpy(found.probabilities), torch.from_numpy(found.labels))
    torch.testing.assert_close(trainer.meta_learner.stays, matrix.diagonal(), rtol=1e-4, atol=1e-5)


def test_gold_transitions_without_trusted_examples_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match="takes transitions from trusted examples, and there are none"):
        make(tmp_path, data, trusted=False, meta_learner="forward", transitions="trusted")


@pytest.mark.parametrize("learner", ["soft", "posterior", "m-correction", "d2l", "lccn"])
def test_margins_beside_soft_targets_are_refused(tmp_path, data, learner):
    with pytest.raises(ValueError, match=r"margins for class indices, and \w+ learns from probabilities"):
        make(tmp_path, data, meta_learner=learner, base_loss="ldam")


def test_transitions_of_a_file_correct_from_the_first_step(tmp_path, data, plain):
    path, names = tmp_path / "transitions.json", data["train"].features["label"].names

    def trained(matrix):
        path.write_text(json.dumps({"class_names": names, "transitions": matrix.tolist()}))
        trainer = make(tmp_path, data, trusted=False, meta_learner="forward", transitions=str(path),
                       plain_warmup_epochs=None, max_steps=PLAIN, train_on_trusted=False)  # fmt: skip
        trainer.train()
        return weights_of(trainer)

    matrix = torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(trained(matrix), weights_of(plain[0]), rtol=1e-3, atol=1e-5)
    assert (trained(0.6 * matrix + 0.4 * matrix.roll(1, 1)) - weights_of(plain[0])).abs().max() > 1e-3


@pytest.mark.parametrize(
    "names, matrix, words",
    [
        (range(10), torch.eye(9), "shape \\(9, 9\\), and there must be \\(10, 10\\)"),
        (range(10), torch.ones(10, 10), "sum to 1"),
        (range(9, -1, -1), torch.eye(10), "of the classes 9, 8, .* and the data of 0, 1, "),
    ],
)
def test_transitions_of_a_file_that_does_not_fit_are_refused_before_training(tmp_path, data, names, matrix, words):
    path = tmp_path / "transitions.json"
    path.write_text(json.dumps({"class_names": [str(name) for name in names], "transitions": matrix.tolist()}))
    with pytest.raises(ValueError, match=words):
        make(tmp_path, data, meta_learner="forward", transitions=str(path))


@pytest.mark.parametrize(
    "learner, steps, plain",
    [
        ("posterior", 8, 4),
        ("posterior", 24, 6),
        ("posterior", 100, 8),
        ("soft", 100, 25),
        ("jamal", 100, 80),
        ("forward", 8, 4),
        ("forward", 100, 25),
        ("forward", 800, 100),
    ],
)
def test_the_plain_part_is_a_share_of_the_run_and_of_transitions_two_epochs_at_most(
    tmp_path, data, learner, steps, plain
):
    trainer = make(tmp_path, data, meta_learner=learner, plain_warmup_epochs=None)
    trainer.get_train_dataloader()
    epoch = trainer.schedule.steps_per_epoch
    assert trainer.schedule.warmup_steps(steps * epoch // 4) == plain * epoch // 4
