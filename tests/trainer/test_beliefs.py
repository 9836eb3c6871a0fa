"""What a run believes of its examples before it learns them: by hand, over a resume, and in the report."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_noisy_dataset
from famus_hf.cli.results import summary_of
from famus_hf.core.beliefs import DECAY
from famus_hf.reporting.judged_splits import BY_HEART, NO_TRUSTED, NOT_SEEN
from famus_hf.storage import checkpoints

STEPS = 12  # three epochs of four


@pytest.fixture(scope="module")
def data():
    return load_noisy_dataset("digits", noise=0.4, num_meta=60, max_train_samples=260)


def make(folder, data, trusted=True, **settings):
    torch.manual_seed(0)
    defaults = {
        "meta_learner": "mw-net", "max_steps": STEPS, "save_strategy": "no", "preset": "fast",
        "per_device_train_batch_size": 50,
    }  # fmt: skip
    args = FaMUSTrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **{**defaults, **settings}
    )
    model = build_backbone("tiny", data["train"].features["label"].names)
    meta = data["meta"] if trusted else None
    return FaMUSTrainer(model, args, train_dataset=data["train"], meta_dataset=meta)


class Recorded(FaMUSTrainer):
    """Keeps index and predictions of each step's own forward pass."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        seen = []
        hook = self.model.register_forward_hook(
            lambda module, arguments, outputs: seen.append(outputs.logits.detach().softmax(1)) if not seen else None
        )
        self.close_epoch_of_beliefs(is_over=False)  # which looks at the trusted examples
        seen.clear()
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            hook.remove()
            self.seen = [*getattr(self, "seen", []), (inputs["index"].tolist(), seen[0])]


@pytest.mark.parametrize("settings", [{}, {"meta_learner": "none", "preset": None}], ids=["FaMUS", "plain"])
def test_beliefs_are_the_predictions_from_before_each_step(tmp_path, data, settings):
    trainer = make(tmp_path, data, **settings)
    trainer.__class__ = Recorded
    trainer.train()
    visits = {}
    for index, probabilities in trainer.seen:
        for number, prediction in zip(index, probabilities, strict=True):
            visits.setdefault(number, []).append(prediction)
    assert sum(map(len, visits.values())) == 50 * STEPS
    assert trainer.beliefs.epoch == 2 and trainer.beliefs.is_pending, "the last epoch is closed by the report"
    trainer.label_report()
    assert trainer.beliefs.epoch == 3 and not trainer.beliefs.is_pending
    for row, number in enumerate(data["train"]["index"][:]):
        expected = torch.zeros(10)
        for prediction in visits.get(number, []):
            expected = DECAY * expected + (1 - DECAY) * prediction
        torch.testing.assert_close(trainer.beliefs.sums[row], expected, rtol=1e-5, atol=1e-6)
        assert trainer.beliefs.visits[row] == len(visits.get(number, []))
    of_trusted = trainer.evaluate_examples(
        trainer.model, trainer.meta_dataset, trainer.base_loss, with_probabilities=True
    )
    last = trainer.beliefs.trusted_sums - (1 - DECAY) * torch.from_numpy(of_trusted.probabilities)
    assert last.sum(1).numpy() == pytest.approx(np.full(60, DECAY - DECAY**3), abs=1e-4), "so the last one is in it"


@pytest.mark.parametrize("stop", [4, 6, STEPS], ids=["end of an epoch", "within one", "end of the run"])
def test_a_resumed_run_believes_and_reports_the_same(tmp_path, data, stop):
    whole = make(tmp_path / "whole", data, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = make(tmp_path / "resumed", data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    reports = [trainer.label_report().to_dict() for trainer in (whole, resumed)]
    one, other = (trainer.beliefs.state_dict() for trainer in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert reports[0] == reports[1]


def test_a_checkpoint_of_other_beliefs_is_refused_and_one_without_leaves_a_doubt(tmp_path, data):
    whole = make(tmp_path, data, save_strategy="steps", save_steps=6)
    whole.train()
    path = tmp_path / "checkpoint-6" / "beliefs.safetensors"
    state = load_file(path)
    trainer = make(tmp_path / "other", data)
    trainer.begin_beliefs()
    for name, value in (("sums", 2 * torch.ones_like(state["sums"])), ("visits", state["visits"][1:]),
                        ("labels", state["labels"] + 10), ("best", torch.tensor(torch.nan))):  # fmt: skip
        with pytest.raises(ValueError, match=f"beliefs.safetensors of checkpoint 'a' has {name} of other data"):
            trainer.checked_beliefs({**state, name: value}, "a")
    with pytest.raises(ValueError, match="lacks the key 'visits'"):
        trainer.checked_beliefs({name: value for name, value in state.items() if name != "visits"}, "a")
    path.unlink()
    checkpoints.write_manifest(path.parent, checkpoints.run_of(path.parent), resumable=True)
    resumed = make(tmp_path / "other", data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.label_report().info.description == NOT_SEEN


def test_the_report_says_why_it_can_not_tell_and_still_ranks(tmp_path, data):
    plain = make(tmp_path, data, trusted=False, meta_learner="none", preset=None, max_steps=40)
    plain.train()
    report = plain.label_report()
    assert report.info.description == NO_TRUSTED and report["clean_probability"][:] == [None] * 200
    summary = summary_of(report)
    assert summary["suspect_labels"] is summary["estimated_noise_rate_by_label_report"] is None
    assert summary["label_report_doubt"] == NO_TRUSTED
    assert summary["wrong_label_average_precision"] > 0.45, "40 % are wrong"
    assert plain.label_report(data["meta"]).info.description == ""
    assert plain.label_report(data["train"], is_trained_on=True).info.description == NOT_SEEN


def test_without_a_label_report_nothing_is_kept_and_before_training_nothing_is_known(tmp_path, data):
    trainer = make(tmp_path, data, label_report=False)
    assert trainer.label_report().info.description == NOT_SEEN
    trainer.train()
    assert trainer.beliefs is None


def test_a_network_that_has_learned_by_heart_says_so(tmp_path):
    """Few training examples at a high rate, so that it is surer of them than of trusted ones in every epoch."""
    data = load_noisy_dataset("digits", noise=0.4, noise_type="pair", num_meta=200, max_train_samples=240)
    settings = {"meta_learner": "none", "preset": None, "per_device_train_batch_size": 10}
    trainer = make(tmp_path, data, max_steps=100, learning_rate=0.02, **settings)
    trainer.train()
    report = trainer.label_report()
    labels, predicted = (np.asarray(report[name][:]) for name in ("label", "predicted_label"))
    assert (labels == predicted).mean() > 0.9 and report.info.description == BY_HEART
    assert report["clean_probability"][:] == [None] * 40 and summary_of(report)["suspect_labels"] is None


@pytest.mark.parametrize("noise_type, learner", [("symmetric", "mw-net"), ("pair", "posterior"), ("symmetric", "none")])
def test_the_share_of_wrong_labels_of_digits_is_estimated(tmp_path, noise_type, learner):
    """Also after so many epochs that the network believes a large part of the wrong ones."""
    data = load_noisy_dataset("digits", noise=0.4, noise_type=noise_type)
    settings = {"meta_learner": learner, **({"preset": None} if learner == "none" else {})}
    trainer = make(tmp_path, data, max_steps=-1, num_train_epochs=12, per_device_train_batch_size=100, **settings)
    trainer.train()
    report = trainer.label_report()
    summary, true = summary_of(report), trainer.train_dataset.realised_noise_rate
    assert summary["estimated_noise_rate_by_label_report"] == pytest.approx(true, abs=0.1)
    sound = np.asarray(report["clean_probability"][:])
    wrong = np.asarray(report["label"][:]) != np.asarray(report["clean_label"][:])
    assert wrong[sound > 0.99].mean() < 0.05 and wrong[sound < 0.5].mean() > 0.75
