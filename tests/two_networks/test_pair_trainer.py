"""PairTrainer: each step against SGD by hand, the estimate of wrong labels, exact resumes, what it leaves and refuses.

tests/processes/test_processes.py has its runs in two processes, tests/core/test_pair_methods.py the formulas.
"""

import copy
import functools

import pytest
import torch

from famus_hf import L2R, FaMUSTrainer, PairTrainer, TwoNetworkTrainer, build_backbone, load_famus
from famus_hf.core.losses import CrossEntropyLoss
from famus_hf.core.pair_methods.base import EveryExample, PairBatch, PairMethod
from famus_hf.core.pair_methods.co_teaching import CoTeaching
from famus_hf.core.pair_methods.decoupling import Decoupling
from famus_hf.core.pair_methods.jocor import JoCoR
from famus_hf.core.pair_methods.registry import PAIR_METHODS
from famus_hf.models.two_networks import TwoNetworksForImageClassification
from famus_hf.two_networks.co_divide import noise_rate_by_anchors
from tests.helpers.callbacks import SaveAt
from tests.helpers.models import TwoModels, build_model
from tests.helpers.pair_runs import RUNS, learned, make
from tests.helpers.trainers import make_args
from tests.helpers.two_network_runs import Learnable, assert_equal
from tests.helpers.two_network_runs import make as make_dividing

# ---- The step ----


@pytest.mark.parametrize(
    ("name", "method"), [("co-teaching", CoTeaching()), ("jocor", JoCoR(0.8)), ("decoupling", Decoupling())]
)
def test_steps_equal_sgd_by_hand(tmp_path, name, method):
    trainer = make(tmp_path, **RUNS[name], lr_milestones=[])
    model, batches, compute_loss = copy.deepcopy(trainer.model), [], trainer.compute_loss
    trainer.compute_loss = lambda network, inputs, *others, **named: (
        batches.append(inputs) or compute_loss(network, inputs, *others, **named)
    )
    trainer.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for step, batch in enumerate(batches):
        logits = tuple(network(batch["pixel_values"]).logits for network in (model.model_a, model.model_b))
        rate = 0.3 * min(step // 6, 1)  # the ramp is one epoch
        chooses = EveryExample() if name == "decoupling" and step < 3 else method
        loss, _ = chooses.training_loss(PairBatch(logits, batch["labels"], CrossEntropyLoss(), rate))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(batches) == 10
    assert_equal(trainer.model.state_dict(), model.state_dict(), 1e-12)


def test_it_logs_what_was_chosen_and_how_rightly(tmp_path):
    trainer = make(tmp_path, pair_method="co-teaching", noise_rate=0.3, max_steps=40, logging_steps=10)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "chosen_share" in entry]
    assert logs[-1]["chosen_share"] == pytest.approx(round(0.7 * 16) / 16)
    right = 1 - (trainer.train_dataset.labels != trainer.train_dataset.clean).double().mean().item()
    assert logs[-1]["chosen_precision"] > right + 0.05


# ---- How much is left out ----


def test_the_rate_rises_by_epochs_to_what_is_given(tmp_path):
    trainer, seen = make(tmp_path, pair_method="jocor", noise_rate=0.4, forget_ramp_epochs=2, max_steps=20), []
    step = trainer.training_step
    trainer.training_step = lambda *given: seen.append(trainer.forget_rate) or step(*given)
    trainer.train()
    assert seen == pytest.approx([0.0] * 6 + [0.2] * 6 + [0.4] * 8)
    trainer.args.forget_ramp_epochs = None  # a fifth of a run of 20 / 6 epochs
    trainer.state.global_step = 6
    assert trainer.forget_rate == pytest.approx(0.4)
    trainer.state.max_steps = 600
    assert trainer.forget_rate == pytest.approx(0.04)


def test_the_rate_is_estimated_once_after_the_warm_up_by_the_surest_predictions_of_both(tmp_path):
    trainer, expected = make(tmp_path, **RUNS["estimated"]), []
    estimate = trainer._estimate_noise_rate

    def record():
        assert trainer.state.global_step == 6
        with torch.no_grad():
            for network in (trainer.model.model_a, trainer.model.model_b):
                network.eval()
                expected.append(noise_rate_by_anchors(network(trainer.train_dataset.images).logits.softmax(1).numpy()))
                network.train()
        estimate()

    trainer._estimate_noise_rate = record
    trainer.train()
    assert len(expected) == 2
    assert trainer.estimate == pytest.approx(sum(expected) / 2, abs=1e-6) and trainer.estimate > 0.5
    assert trainer.noise_rate is None and trainer.forget_rate == 0.5  # as the networks have learned little
    trainer.train()
    assert len(expected) == 4  # another training, another estimate


# ---- Runs ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Name of a run → a trainer that nothing happened to."""

    def train(name):
        folder = tmp_path_factory.mktemp("whole")
        trainer = make(folder, "batch norm", torch.float32, keywords={"callbacks": [SaveAt(4, 9, 12)]}, **RUNS[name])
        trainer.train()
        return trainer

    return functools.cache(train)


@pytest.mark.parametrize(  # in the warm-up, after it, at the end of an epoch
    ("name", "stop"),
    [("estimated", 4), ("estimated", 9), ("estimated", 12), ("jocor", 9), ("decoupling", 9), ("accumulation", 4)],
)
def test_a_resumed_run_is_bit_identical(tmp_path, trained, name, stop):
    whole, again = trained(name), make(tmp_path, "batch norm", torch.float32, **RUNS[name])
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{stop}")
    assert again.state.global_step == whole.state.global_step
    assert_equal(learned(again), learned(whole))


def test_images_that_are_not_finite_never_reach_the_weights(tmp_path):
    train = Learnable()
    train.images[5] = float("nan")
    trainer = make(tmp_path, "batch norm", torch.float32, train, nan_policy="skip", pair_method="jocor")
    trainer.train()
    assert all(tensor.isfinite().all() for tensor in learned(trainer).values())


def test_a_run_is_saved_with_both_networks_and_a_card_that_says_how(tmp_path):
    names = list("abcd")
    model = TwoNetworksForImageClassification.of(build_backbone("tiny", names), build_backbone("tiny", names))
    args = make_args(tmp_path, meta_learner=None, pair_method="co-teaching", max_steps=3, plain_warmup_epochs=0)
    trainer = PairTrainer(model, args, train_dataset=Learnable(dtype=torch.float32))
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    images = trainer.train_dataset.images[:5]
    ensemble, learner, _, _ = load_famus(tmp_path)
    logits = [load_famus(tmp_path, subfolder=name)[0](images).logits for name in ("model_a", "model_b")]
    torch.testing.assert_close(ensemble(images).logits, (logits[0] + logits[1]) / 2)
    assert learner is None and not torch.allclose(*logits)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "each learned, in every step, from those examples that the other one found easiest" in card
    assert "| wrong labels, as the networks estimate | not estimated, as the networks doubt most labels" in card
    trainer.estimate = 0.25
    assert trainer.model_card_facts()["estimated_noise"] == "25.0 %"
    assert "| method | co-teaching |" in card and "divide the training set" not in card


def test_a_method_of_ones_own_is_taken_by_its_name(tmp_path, monkeypatch):
    class First(PairMethod):
        """Both learn from the first example alone."""

        def weights(self, batch, losses):
            return torch.eye(1, losses.shape[1]).expand_as(losses)

    monkeypatch.setitem(PAIR_METHODS, "first", First)
    trainer = make(tmp_path, pair_method="first", forget_ramp_epochs=None, max_steps=4)
    trainer.train()
    assert trainer.state.log_history[0]["chosen_share"] == pytest.approx(1 / 16)


# ---- What it refuses ----


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pair_method": "coteaching"}, "pair_method='coteaching' is unknown: choose one of co-teaching, jocor, "),
        ({"meta_learner": "mw-net"}, "chooses examples without a meta-learner, and meta_learner is 'mw-net': leave"),
        ({"keywords": {"meta_learner": L2R()}}, "a meta_learner object does not go with pair_method='jocor'"),
        ({"noise_rate": 1.0}, "noise_rate=1.0 must be less than 1"),
        ({"pair_method": "decoupling", "noise_rate": 0.2}, "noise_rate=0.2 does nothing without a pair_method that"),
        ({"jocor_agreement": 1.0}, "jocor_agreement=1.0 must be less than 1"),
        ({"mixup_alpha": 1.0}, "mixup_alpha=1.0 does not go with pair_method='jocor': leave it out"),
        ({"elr_weight": 1.0}, "elr_weight does not go with two networks: leave it out"),
        ({"pair_method": None, "forget_ramp_epochs": None, "meta_learner": "none"}, "PairTrainer needs a pair_method"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_is_refused_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **{"pair_method": "jocor", **changes})


def test_a_pair_method_needs_two_networks(tmp_path):
    one, train = build_model("called group norm"), Learnable(dtype=torch.float64)
    args = make_args(tmp_path, meta_learner=None, pair_method="jocor")
    with pytest.raises(ValueError, match="a CalledGroupNormNet is not two networks: give TwoNetworksForImageClass"):
        PairTrainer(one, args, train_dataset=train)
    for kind, model in ((FaMUSTrainer, one), (TwoNetworkTrainer, TwoModels(one, build_model("called group norm")))):
        with pytest.raises(ValueError, match=r"pair_method='jocor' is for two networks, and \w+ does not take it"):
            kind(model, args, train_dataset=train)


def test_checkpoints_of_networks_that_divide_are_refused_and_the_other_way_round(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make_dividing(tmp_path / "divide", meta_learner="none", **settings).train()
    make(tmp_path / "pair", pair_method="jocor", **settings).train()
    with pytest.raises(ValueError, match="it is of a run without pair_method: resume that with the trainer"):
        make(tmp_path / "pair", pair_method="jocor").train(str(tmp_path / "divide" / "checkpoint-2"))
    with pytest.raises(ValueError, match="with PairTrainer if it had a pair_method"):
        make_dividing(tmp_path / "divide", meta_learner="none").train(str(tmp_path / "pair" / "checkpoint-2"))


def test_a_noise_rate_of_a_checkpoint_is_checked(tmp_path):
    trainer = make(tmp_path, pair_method="jocor")
    with pytest.raises(ValueError, match="the state has a noise_rate that is not in"):
        trainer._take_meta_state({"noise_rate": 2.0})
    given = make(tmp_path, pair_method="jocor", noise_rate=0.1)
    for own, expected in ((trainer, 0.25), (given, 0.1)):
        own._take_meta_state({"noise_rate": 0.25})
        assert own.noise_rate == expected
