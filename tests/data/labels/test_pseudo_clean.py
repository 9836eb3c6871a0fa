"""The pseudo-clean meta set: the mixture, the choice, its part in training, resuming."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch.nn import functional as F

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, load_noisy_dataset
from famus_hf.core.losses import cross_entropy
from famus_hf.data.labels.pseudo_clean import MIXTURE, PseudoCleanSet, clean_probabilities, pseudo_clean_rows
from famus_hf.storage.checkpoints import write_manifest
from famus_hf.storage.run_folder import META_STATE
from tests.helpers.callbacks import SaveAt
from tests.helpers.models import build_model
from tests.helpers.pseudo_clean_runs import Learnable, make_trainer


def two_groups(small=300, large=200, seed=0):
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.gamma(2, 0.1, small), 3 + 0.5 * generator.standard_normal(large)])


def test_probabilities_are_those_of_the_mixture_of_the_method():
    losses = two_groups()
    scaled = ((losses - losses.min()) / (losses.max() - losses.min())).reshape(-1, 1)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    expected = mixture.predict_proba(scaled)[:, np.argmin(mixture.means_)]
    assert np.array_equal(clean_probabilities(losses), expected)
    assert (expected[:300] > 0.5).mean() > 0.99 and (expected[300:] > 0.5).mean() < 0.01


def test_losses_that_are_not_finite_count_as_the_largest():
    losses = np.concatenate([two_groups(), [np.nan, np.inf]])
    probabilities = clean_probabilities(losses)
    assert np.isfinite(probabilities).all() and (probabilities[-2:] < 0.5).all()


@pytest.mark.parametrize("losses", [np.full(50, 0.7), np.full(50, np.nan), np.array([0.5])])
def test_losses_that_tell_nothing_give_the_half_with_the_smaller_ones(losses):
    rows = pseudo_clean_rows(losses, clean_probabilities(losses), batch_size=8)
    assert len(rows) == max(1, len(losses) // 2)


def test_too_few_and_nearly_all_fall_back_on_the_median():
    losses = np.random.default_rng(0).permutation(100).astype(float)
    half = np.flatnonzero(losses < 50)
    for chosen in (3, 97):
        probabilities = (losses < chosen).astype(float)
        assert np.array_equal(pseudo_clean_rows(losses, probabilities, batch_size=8), half)
    assert len(pseudo_clean_rows(losses, (losses < 20).astype(float), batch_size=8)) == 20
    assert len(pseudo_clean_rows(losses, np.where(losses < 20, 0.51, 0.5), batch_size=8)) == 20


def test_the_mixture_is_that_of_dividemix():
    assert MIXTURE == {"n_components": 2, "max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}


def test_the_set_is_chosen_after_the_warm_up_and_anew_in_each_epoch(tmp_path):
    trainer, recorder = make_trainer(tmp_path, num_train_epochs=5)
    trainer.train()
    assert len(set(recorder.rows[:16])) == 1 and len(recorder.rows[0]) == 64, "two epochs of plain steps"
    epochs = [set(recorder.rows[start : start + 8]) for start in (16, 24, 32)]
    assert all(len(rows) == 1 for rows in epochs), "within an epoch it stays"
    assert len(set.union(*epochs)) > 1
    assert trainer.meta.steps == 24
    logs = [entry for entry in trainer.state.log_history if "meta_set_size" in entry]
    data = trainer.train_dataset
    right = (data.labels == data.clean).float()
    for entry, rows in zip(logs, epochs, strict=True):
        rows = list(rows.pop())
        assert entry["meta_set_size"] == len(rows)
        assert entry["meta_set_purity"] == pytest.approx(right[rows].mean().item())


def test_a_second_training_chooses_anew(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    trainer.train()
    first = trainer.meta_dataset.epoch
    assert first > 0
    chosen = []
    choose = trainer.meta_dataset.choose
    trainer.meta_dataset.choose = lambda *arguments: chosen.append(arguments[-1]) or choose(*arguments)
    trainer.train()
    assert chosen[-1] == first and len(chosen) == len(set(chosen)) > 1


def test_the_choice_is_by_losses_in_eval_mode_and_leaves_no_trace(tmp_path):
    trainer, _ = make_trainer(tmp_path, num_train_epochs=2)
    trainer.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    state = torch.get_rng_state()
    found = trainer.evaluate_examples(trainer.model, trainer.train_dataset, cross_entropy)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    data = trainer.train_dataset
    trainer.model.eval()
    with torch.no_grad():
        expected = F.cross_entropy(trainer.model(data.batch["pixel_values"]).logits, data.labels, reduction="none")
    assert np.allclose(found.losses, expected.numpy(), atol=1e-5)
    assert np.array_equal(found.correct, (data.labels == data.clean).numpy())


STOPS = (5, 16, 19, 24)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trainer that nothing happened to, and its record."""
    trainer, recorder = make_trainer(tmp_path_factory.mktemp("whole"), SaveAt(*STOPS))
    trainer.train()
    return trainer, recorder


@pytest.mark.parametrize("stop", STOPS)
def test_resuming_is_exact_in_the_warm_up_and_between_choices(tmp_path, whole, stop):
    whole, all_rows = whole
    second, later_rows = make_trainer(tmp_path)
    second.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{stop}")
    assert later_rows.rows == all_rows.rows[stop:]
    for (name, one), other in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(whole.meta_learner.parameters(), second.meta_learner.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_a_given_meta_set_is_refused(tmp_path):
    trainer, _ = make_trainer(tmp_path, SaveAt(9), max_steps=9, plain_warmup_epochs=1)
    trainer.train()
    path = tmp_path / "checkpoint-9" / META_STATE
    state = torch.load(path, weights_only=True)
    del state["pseudo_clean"]
    torch.save(state, path)
    write_manifest(path.parent, "a run")
    with pytest.raises(ValueError, match="is of a run with a given meta set"):
        make_trainer(tmp_path)[0].train(resume_from_checkpoint=str(path.parent))


@pytest.mark.parametrize("epochs, plain", [(0, 0), (0.5, 4), (2, 16)])
def test_warm_up_epochs_are_plain(tmp_path, epochs, plain):
    trainer, _ = make_trainer(tmp_path, plain_warmup_epochs=epochs)
    trainer.train()
    assert trainer.meta.steps == 32 - plain


def test_a_short_run_warms_up_for_at_most_half_of_it(tmp_path):
    trainer, _ = make_trainer(tmp_path, max_steps=6)
    trainer.train()
    assert trainer.meta.steps == 3 and trainer.meta_dataset.epoch == 0


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="meta_set 'clean' needs a meta_dataset"):
        make_trainer(tmp_path, meta_set="clean")
    with pytest.raises(ValueError, match="meta_set 'pseudo-clean' is found in train_dataset: leave meta_dataset out"):
        FaMUSTrainer(
            build_model("batch norm"),
            FaMUSTrainingArguments(str(tmp_path), meta_set="pseudo-clean", use_cpu=True, per_device_train_batch_size=8),
            train_dataset=Learnable(),
            meta_dataset=Learnable(16),
        )
    with pytest.raises(ValueError, match="plain_warmup_epochs=-1 must be at least 0"):
        make_trainer(tmp_path, plain_warmup_epochs=-1)


def test_without_known_clean_labels_there_is_no_purity():
    chosen = PseudoCleanSet(range(100))
    chosen.choose(two_groups(60, 40), None, 8, 0, epoch=2)
    assert chosen.purity is None and chosen.epoch == 2 and len(chosen) == 60 and chosen[3] == chosen.rows[3]


def test_digits_give_a_pure_set(tmp_path):
    """Real data, 40 % symmetric noise: after three epochs most chosen labels are right, and far from all are chosen."""
    from famus_hf import build_backbone

    data = load_noisy_dataset("digits", noise=0.4, meta_set="pseudo-clean", seed=1)
    trainer = FaMUSTrainer(
        build_backbone("tiny", data["train"].features["label"].names),
        FaMUSTrainingArguments(
            str(tmp_path), num_train_epochs=6, plain_warmup_epochs=4, per_device_train_batch_size=50, use_cpu=True,
            save_strategy="no", report_to="none", disable_tqdm=True, layer_sampler="all", candidate_layers="4",
        ),
        train_dataset=data["train"],
    )  # fmt: skip
    trainer.train()
    share_right = 1 - trainer.train_dataset.realised_noise_rate
    assert trainer.meta_dataset.purity > share_right + 0.2, (trainer.meta_dataset.purity, share_right)
    assert 0.3 < len(trainer.meta_dataset) / len(trainer.train_dataset) < 0.8
