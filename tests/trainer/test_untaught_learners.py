"""MentorMix, D2L and LCCN in a run: what they are shown, resumed runs, and what does not go with them."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from famus_hf import FaMUSTrainer, MetaLearner
from famus_hf.core.meta_learners.d2l import D2L
from famus_hf.core.meta_learners.lccn import LCCN
from famus_hf.core.meta_learners.mentor_mix import MentorMix
from famus_hf.errors import LoadError
from famus_hf.trainer import preflight_rows
from tests.helpers.datasets import pictures
from tests.helpers.models import build_model
from tests.helpers.trainers import Examples, make_args, make_image_trainer, make_text_trainer, state_of, turning_d2l

EPOCH = 6  # 48 pictures in batches of eight
ALONE = {"train_on_trusted": False, "max_steps": 3 * EPOCH + 2, "plain_warmup_epochs": 1.0, "learning_rate": 0.02}
RUNS = {
    "MentorMix": {"meta_learner": "mentormix", "plain_warmup_epochs": 0.5},
    "D2L": {"meta_learner": "d2l"},
    "D2L, averaged": {"meta_learner": "d2l", "ema_decay": 0.9},
    "LCCN": {"meta_learner": "lccn"},
    "LCCN, trusted, accumulation": {
        "meta_learner": "lccn", "train_on_trusted": True, "gradient_accumulation_steps": 2, "max_steps": EPOCH + 1,
        "num_train_epochs": 2,
    },
}  # fmt: skip


class SaveAt(TrainerCallback):
    """Saves after these steps."""

    def __init__(self, *steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **keywords):
        control.should_save = state.global_step in self.steps


def make(folder, name, learner=None, **changes):
    settings = {**ALONE, **RUNS[name], **changes}
    trainer = make_image_trainer(folder, **settings)
    if settings["meta_learner"] != "d2l" and learner is None:
        return trainer
    data = {"train_dataset": trainer.train_dataset, "meta_dataset": trainer.meta_dataset}
    callbacks = list(settings.get("callbacks", ()))
    return FaMUSTrainer(trainer.model, trainer.args, meta_learner=learner or turning_d2l(), callbacks=callbacks, **data)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_bit_for_bit_before_at_and_after_each_turn(tmp_path, name):
    stops = {"MentorMix": (2, 9), "D2L": (6, 9, 13), "LCCN": (6, 9)}.get(name, (4,))
    whole = make(tmp_path, name, callbacks=[SaveAt(*stops)])
    whole.train()
    learner = whole.meta_learner
    assert int(getattr(learner, "has_turned", 1)) == int(getattr(learner, "is_counted", 1)) == 1
    for stop in stops:
        resumed = make(tmp_path, name)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
        found, expected = state_of(resumed), state_of(whole)
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == [], stop


@pytest.mark.parametrize("name", ["MentorMix", "D2L", "LCCN"])
def test_a_run_leaves_a_learner_that_loads_again(tmp_path, name):
    trainer = make(tmp_path, name, max_steps=2 * EPOCH)
    trainer.train()
    trainer.save_model()
    loaded = MetaLearner.from_pretrained(tmp_path)
    assert type(loaded) is type(trainer.meta_learner) and loaded.config() == trainer.meta_learner.config()
    for key, value in trainer.meta_learner.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)


# ---- MentorMix ----


def test_examples_are_mixed_as_the_mentor_says_and_by_chance_alone_before(tmp_path):
    trainer = make(tmp_path, "MentorMix", max_steps=EPOCH)
    plain = make_image_trainer(tmp_path, **{**ALONE, "max_steps": EPOCH // 2, "meta_learner": "none", "mixup_alpha": 8})
    plain.train()
    trainer.train()
    at = make(tmp_path, "MentorMix", max_steps=EPOCH // 2)
    at.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, at.model.state_dict()[name]), name
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, _, keywords: seen.append(keywords["pixel_values"]) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    losses = []
    mixture = trainer.meta_learner.mixture
    trainer.meta_learner.mixture = lambda *given: losses.append(given[0]) or mixture(*given)
    with torch.no_grad():
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.training_step(trainer.model, batch)
    images, (partner, share) = trainer._unmixed["pixel_values"], trainer.mixture
    expected = [s * images[i] + (1 - s) * images[j] for i, (j, s) in enumerate(zip(partner, share, strict=True))]
    torch.testing.assert_close(seen[-1], torch.stack(expected))
    assert (share < 0.5).any() and (share > 0.5).any()
    trainer.model.load_state_dict(before)
    logits = trainer.model.train()(pixel_values=images).logits
    by_hand = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    torch.testing.assert_close(losses[-1], by_hand.detach())


@pytest.mark.parametrize("asked, taken", [(None, 8.0), (2.0, 2.0)])
def test_alpha_is_the_authors_where_nobody_names_another(tmp_path, asked, taken):
    assert make(tmp_path, "MentorMix", mixup_alpha=asked).mixup_alpha == taken
    assert make_image_trainer(tmp_path).mixup_alpha == 0


def test_the_quantile_is_the_authors_where_nobody_names_another(tmp_path):
    for settings, expected in (({}, 0.5), ({"mentor_quantile": 0.9}, 0.9)):
        assert make(tmp_path, "MentorMix", **settings).meta_learner.quantile == expected
    assert make_image_trainer(tmp_path, meta_learner="mentornet").meta_learner.quantile == 0.75


# ---- D2L ----


class Watched(D2L):
    """Keeps what it is shown, and the network's weights in the first step after it has turned."""

    def __init__(self):
        super().__init__()
        self.shown, self.after = [], None
        self._stands_out = lambda dimension: True

    def observe_features(self, features, progress, is_plain):
        self.shown.append((features.clone(), progress, is_plain))
        return super().observe_features(features, progress, is_plain)

    def training_loss(self, batch):
        if self.has_turned and self.after is None:
            self.after = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        return super().training_loss(batch)


def test_after_each_epoch_features_are_shown_and_the_network_goes_back_to_the_epoch_before(tmp_path):
    learner = Watched()
    trainer = make(tmp_path, "D2L", learner, callbacks=[SaveAt(EPOCH, 2 * EPOCH)], logging_steps=1)
    object.__setattr__(learner, "network", trainer.model)
    trainer.train()
    steps = trainer.state.max_steps
    assert [(progress, is_plain) for _, progress, is_plain in learner.shown] == [
        (EPOCH / steps, True), (2 * EPOCH / steps, False), (3 * EPOCH / steps, False)
    ]  # fmt: skip
    assert all(features.shape[0] == 48 for features, _, _ in learner.shown), "all there are, as 1280 are wanted"
    expected, later = (load_file(tmp_path / f"checkpoint-{n * EPOCH}" / "model.safetensors") for n in (1, 2))
    assert all(torch.equal(value, expected[name]) for name, value in learner.after.items())
    assert not any(torch.equal(value, later[name]) for name, value in learner.after.items())
    logged = [entry["label_share"] for entry in trainer.state.log_history if "label_share" in entry]
    assert len(logged) == 3 and logged[0] == 1 > logged[1]


def test_a_checkpoint_whose_earlier_weights_are_of_another_network_is_refused(tmp_path):
    make(tmp_path, "D2L", callbacks=[SaveAt(9)]).train()
    path = tmp_path / "checkpoint-9" / "earlier_weights.safetensors"
    (tmp_path / "checkpoint-9" / "model.safetensors").replace(path)
    whole = path.read_bytes()
    (tmp_path / "checkpoint-9" / "model.safetensors").write_bytes(whole)
    path.write_bytes(whole[:200])
    with pytest.raises(LoadError, match=r"earlier_weights\.safetensors"):
        make(tmp_path, "D2L").train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


# ---- LCCN ----


def test_latent_classes_are_of_the_rows_of_the_training_set(tmp_path):
    trainer = make(tmp_path, "LCCN")
    trainer.train()
    learner, labels = trainer.meta_learner, torch.tensor(pictures(48, 0)["label"][:])
    counts = torch.zeros_like(learner.counts)
    assert (learner.latent >= 0).all()
    for z, y in zip(learner.latent, labels, strict=True):
        counts[z, y] += 1
    assert torch.equal(learner.counts, counts) and learner.draws == trainer.state.max_steps - EPOCH


# ---- What does not go together ----


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("MentorMix", {"mixup_alpha": 0}, r"MentorMix mixes images, and mixup_alpha=0 mixes none: raise it"),
        ("LCCN", {"mixup_alpha": 1.0}, "LCCN asks for the class of each image, and mixup_alpha mixes them"),
        ("LCCN", {"learner": LCCN(3, 47)}, "LCCN was made for 47 examples, and the training set has 48"),
        ("LCCN", {"learner": LCCN(5, 48)}, "LCCN was made for 5 classes, and the network has 3"),
        ("LCCN", {"transitions": "anchors"}, "lccn counts transitions once, .*: leave transitions out"),
        ("LCCN", {"transition_counts": "each-epoch"}, "lccn counts transitions once, .*: leave transition_counts out"),
        ("MentorMix", {"pair_method": "jocor"}, "leave one of them out"),
    ],
)
def test_what_they_can_not_serve_is_refused_in_one_sentence(tmp_path, name, settings, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, name, **settings)


class Stream(torch.utils.data.IterableDataset):
    """Examples of which nobody knows which is which."""

    def __iter__(self):
        return iter(Examples(40))


@pytest.mark.parametrize("learner", ["d2l", "lccn"])
def test_a_stream_is_refused(tmp_path, learner):
    args = make_args(tmp_path, meta_learner=learner)
    with pytest.raises(ValueError, match=r"a stream .*: load it without streaming"):
        FaMUSTrainer(build_model("batch norm", torch.float32), args, train_dataset=Stream())


def test_texts_can_not_be_mixed(tmp_path):
    with pytest.raises(ValueError, match="mixup_alpha mixes images"):
        make_text_trainer(tmp_path, meta_learner="mentormix")


def test_under_fsdp_there_is_no_second_pass_and_no_way_back(tmp_path):
    args = make_args(tmp_path, meta_learner="mentormix")
    with pytest.raises(ValueError, match="MentorMix under FSDP would need a pass of the unmixed images"):
        preflight_rows.check_mixture(args, MentorMix(), 8.0, is_sharded=True)
    with pytest.raises(ValueError, match="D2L goes back to weights of an earlier epoch, which FSDP spreads"):
        preflight_rows.check_features(pictures(8, 0), D2L(), is_sharded=True)


def test_single_examples_that_count_more_can_not_be_mixed(tmp_path):
    args = make_args(tmp_path, meta_learner="mentormix", sample_weight_column="w")
    with pytest.raises(ValueError, match="sample_weight_column weighs single examples, which MentorMix mixes"):
        preflight_rows.check_mixture(args, MentorMix(), 8.0, is_sharded=False)
