"""A run with averaged weights: judged, saved and pushed by the average, trained on with the weights themselves."""

import shutil
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from famus_hf import FaMUSTrainer, load_famus
from famus_hf.core.losses import cross_entropy
from famus_hf.storage import checkpoints
from famus_hf.storage.portable import pack, unpack
from famus_hf.trainer import preflight
from tests.helpers import two_network_runs
from tests.helpers.checkpointed_runs import assert_one_sentence
from tests.helpers.models import build_model
from tests.helpers.trainers import Examples, make_args, make_text_trainer, make_trainer, state_of

DECAY = 0.6
AVERAGED = {"ema_decay": DECAY, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 1}
PLAIN = {"meta_learner": "none"}


class Recorder(TrainerCallback):
    """The network's own weights after each step of the optimizer."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **keywords):
        self.weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


def recorded(folder, **settings):
    recorder = Recorder()
    trainer = make_trainer(folder, **{**AVERAGED, **settings}, keywords={"callbacks": [recorder]})
    trainer.train()
    return trainer, recorder.weights


def averaged(weights, decay=DECAY):
    """The average of a list of weights, by a loop."""
    found = dict(weights[0])
    for step, present in enumerate(weights[1:], 1):
        kept = min(decay, (1 + step) / (10 + step))
        for name, tensor in present.items():
            is_float = tensor.is_floating_point()
            found[name] = kept * found[name] + (1 - kept) * tensor if is_float else tensor
    return found


def assert_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance)


EXACT = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize("settings", [PLAIN, {}, {"gradient_accumulation_steps": 2}], ids=str)
def test_the_network_ends_with_the_average_of_its_weights_after_each_step(tmp_path, settings):
    trainer, weights = recorded(tmp_path, save_strategy="no", **settings)
    assert len(weights) == 6
    assert_equal(trainer.model.state_dict(), averaged(weights), rtol=1e-5, atol=1e-6)
    assert not torch.equal(trainer.model.classifier.weight, weights[-1]["classifier.weight"])


@pytest.mark.parametrize("settings", [PLAIN, {}], ids=str)
def test_training_does_not_see_the_average(tmp_path, settings):
    settings = {**settings, "eval_strategy": "steps", "eval_steps": 1}
    (_, found), (_, expected) = (
        recorded(tmp_path / "1", **settings),
        recorded(tmp_path / "2", ema_decay=None, **settings),
    )
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other, **EXACT)


def test_the_label_report_judges_by_the_same_beliefs_as_without_an_average(tmp_path):
    """Training and trusted examples are both seen by the weights themselves: two kinds of weights do not compare."""
    beliefs = []
    for decay in (None, DECAY):
        trainer = make_text_trainer(tmp_path, ema_decay=decay, learning_rate=0.1, max_steps=12)  # of five an epoch
        trainer.train()
        trainer.label_report()
        beliefs.append(trainer.beliefs.state_dict())
    assert beliefs[0]["epoch"] == 3
    assert_equal(*beliefs, **EXACT)


def loss_of(weights, dataset):
    model = build_model("batch norm", torch.float32)
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model.eval()(pixel_values=dataset.batch["pixel_values"]).logits
    return cross_entropy(logits, dataset.batch["labels"]).mean().item()


def test_evaluations_and_checkpoints_are_of_the_average(tmp_path):
    trainer, weights = recorded(tmp_path, eval_strategy="steps", eval_steps=1)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    for step in range(1, 7):
        expected = averaged(weights[:step])
        assert losses[step - 1] == pytest.approx(loss_of(expected, trainer.eval_dataset), rel=1e-4)
        assert_equal(load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors"), expected, rtol=1e-5, atol=1e-6)
        model, *_ = load_famus(tmp_path / f"checkpoint-{step}")
        assert_equal(model.state_dict(), expected, rtol=1e-5, atol=1e-6)
    assert losses[-1] != pytest.approx(loss_of(weights[-1], trainer.eval_dataset), rel=1e-3)
    trainer.save_model()
    assert_equal(load_file(tmp_path / "model.safetensors"), trainer.model.state_dict(), **EXACT)
    assert not (tmp_path / "raw_weights.safetensors").exists()


def test_examples_are_judged_and_a_model_saved_by_the_average_in_the_middle_of_a_training(tmp_path):
    found = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **keywords):
            if state.global_step == 3:
                before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                examples = trainer.evaluate_examples(model, trainer.eval_dataset, cross_entropy)
                found.extend([examples.losses.mean(), trainer.predict(trainer.eval_dataset).metrics["test_loss"]])
                trainer.save_model(str(tmp_path / "saved"))
                assert_equal(model.state_dict(), before, **EXACT)

    trainer = make_trainer(tmp_path, ema_decay=DECAY, learning_rate=0.1, keywords={"callbacks": [Look()]})
    trainer.train()
    expected = loss_of(load_file(tmp_path / "saved" / "model.safetensors"), trainer.eval_dataset)
    assert found == [pytest.approx(expected, rel=1e-4)] * 2


def test_the_best_checkpoint_brings_back_its_average(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 1.0}
    trainer, weights = recorded(tmp_path, **settings)
    best = trainer.state.best_global_step
    assert_equal(trainer.model.state_dict(), averaged(weights[:best]), rtol=1e-5, atol=1e-6)
    assert best < 6, "else the last one is seen"


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("batch norm", PLAIN),
        ("batch norm", {"gradient_accumulation_steps": 2}),
        ("batch norm", {"meta_learner": "posterior", "layer_sampler": "all", "train_on_trusted": True}),
        ("vit", {"optim": "adamw_torch", "learning_rate": 1e-3, "bf16": True}),
        ("group norm", {"layer_sampler": "all"}),
        ("bfloat16", PLAIN),
    ],
    ids=str,
)
def test_resuming_is_bit_identical_average_and_weights(tmp_path, kind, settings):
    is_half = kind == "bfloat16"
    settings = {**AVERAGED, "max_steps": 7, **settings}
    network = ("vit", torch.bfloat16) if is_half else (kind,)
    whole = make_trainer(tmp_path, *network, **settings)
    whole.train()
    for step in (1, 5):
        again = make_trainer(tmp_path / "again", *network, **settings)
        torch.manual_seed(step)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        if settings.get("meta_learner") == "none":
            assert_equal(again.model.state_dict(), whole.model.state_dict(), **EXACT)
        else:
            assert_equal(state_of(again), state_of(whole), **EXACT)
        for name in ("model.safetensors", "raw_weights.safetensors"):
            files = [load_file(folder / "checkpoint-7" / name) for folder in (tmp_path, tmp_path / "again")]
            assert_equal(*files, **EXACT)


def test_a_checkpoint_from_the_hub_brings_the_weights_along(tmp_path):
    whole, _ = recorded(tmp_path)
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "checkpoint-3", tmp_path / "packed")
    checkpoint = unpack(tmp_path / "packed", tmp_path / "fetched", 1)
    again = make_trainer(tmp_path / "again", **AVERAGED)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert_equal(again.model.state_dict(), whole.model.state_dict(), **EXACT)


def test_adapters_are_averaged_and_resume_bit_for_bit(tmp_path):
    peft = pytest.importorskip("peft")

    def trained(resume=None):
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, modules_to_save=["classifier"])
        model = peft.get_peft_model(build_model("vit", torch.float32), config)
        recorder = Recorder()
        args = make_args(tmp_path, **{**AVERAGED, "save_steps": 3})
        data = {"train_dataset": Examples(40), "meta_dataset": Examples(11, 1000)}
        trainer = FaMUSTrainer(model, args, callbacks=[recorder], **data)
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict(), recorder.weights

    whole, weights = trained()
    assert_equal(whole, averaged(weights), rtol=1e-5, atol=1e-6)
    kept = load_file(tmp_path / "checkpoint-3" / "raw_weights.safetensors")
    assert kept and all("lora" in name or "modules_to_save" in name or name == "steps" for name in kept)
    assert_equal(trained(str(tmp_path / "checkpoint-3"))[0], whole, **EXACT)


def test_without_ema_decay_a_resumed_run_goes_on_with_the_weights_themselves(tmp_path):
    _, weights = recorded(tmp_path)
    again = make_trainer(tmp_path / "again", **{**AVERAGED, "ema_decay": None, "save_strategy": "no"})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal(again.model.state_dict(), weights[-1], **EXACT)


def test_an_average_begins_where_a_checkpoint_has_none(tmp_path):
    _, weights = recorded(tmp_path, ema_decay=None)
    again = make_trainer(tmp_path / "again", **AVERAGED)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal(again.model.state_dict(), averaged(weights[3:]), rtol=1e-5, atol=1e-6)


def test_a_step_that_a_gradient_scaler_leaves_out_is_none_of_the_average(tmp_path):
    recorder = Recorder()
    keywords = {"callbacks": [recorder]}
    trainer = make_trainer(tmp_path, ema_decay=DECAY, learning_rate=0.1, keywords=keywords, **PLAIN)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**66)  # too large, and halved until it fits
    trainer.train()
    weights = [recorder.weights[0], *recorder.weights]
    moved = [
        after
        for before, after in pairwise(weights)
        if not torch.equal(before["classifier.weight"], after["classifier.weight"])
    ]
    assert 2 <= len(moved) < 6
    assert_equal(trainer.model.state_dict(), averaged(moved), rtol=1e-5, atol=1e-6)


def test_a_second_training_of_a_trainer_keeps_an_average_of_its_own(tmp_path):
    recorder = Recorder()
    trainer = make_trainer(tmp_path, ema_decay=DECAY, keywords={"callbacks": [recorder]})
    for _ in range(2):
        recorder.weights.clear()
        trainer.train()
        assert trainer.weight_average is None
    assert_equal(trainer.model.state_dict(), averaged(recorder.weights), rtol=1e-5, atol=1e-6)


def test_two_networks_are_averaged_each_and_resume_bit_for_bit(tmp_path):
    settings = {**AVERAGED, "learning_rate": 0.05, "save_steps": 8, "max_steps": 10}
    recorder = Recorder()
    whole = two_network_runs.make(tmp_path, kind="batch norm", keywords={"callbacks": [recorder]}, **settings)
    whole.train()
    assert_equal(whole.model.state_dict(), averaged(recorder.weights))
    again = two_network_runs.make(tmp_path / "again", kind="batch norm", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert_equal(again.model.state_dict(), whole.model.state_dict(), **EXACT)


# ---- What is refused ----


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan"), "much"])
def test_a_decay_that_is_none_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match=r"ema_decay=.* must be") as error:
        make_args(tmp_path, ema_decay=decay)
    assert_one_sentence(str(error.value))


@pytest.mark.parametrize("plugin, name", [("fsdp_plugin", "FSDP"), ("deepspeed_plugin", "DeepSpeed")])
def test_weights_that_are_spread_over_processes_are_not_averaged(tmp_path, plugin, name):
    accelerator = SimpleNamespace(state=SimpleNamespace(**{plugin: object()}))
    preflight.check_averaging(make_args(tmp_path), accelerator)
    with pytest.raises(ValueError, match=f"which {name} spreads over processes: leave it out") as error:
        preflight.check_averaging(make_args(tmp_path, ema_decay=0.9), accelerator)
    assert_one_sentence(str(error.value))


def test_a_schedule_free_optimizer_averages_by_itself(tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.9)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01)
    trainer.optimizer.param_groups[0]["train_mode"] = True
    with pytest.raises(ValueError, match="does not go with a schedule-free optimizer") as error:
        trainer.train()
    assert_one_sentence(str(error.value))
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("change", ["shape", "unknown", "no steps", "cut"])
def test_weights_of_another_network_are_refused_by_their_file(tmp_path, change):
    recorded(tmp_path, max_steps=2)
    checkpoint = shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "other" / "checkpoint-1")
    path = checkpoint / "raw_weights.safetensors"
    state = load_file(tmp_path / "checkpoint-2" / path.name)
    if change == "cut":
        path.write_bytes(b"no")
    else:
        changes = {"shape": {"raw.classifier.weight": torch.ones(2)}, "unknown": {"raw.other": torch.ones(2)}}
        state |= changes.get(change, {})
        state = {name: tensor for name, tensor in state.items() if change != "no steps" or name != "steps"}
        save_file(state, path)
    checkpoints.write_manifest(checkpoint, "run")
    with pytest.raises(ValueError, match=r"raw_weights\.safetensors of checkpoint") as error:
        make_trainer(tmp_path / "again", **AVERAGED).train(resume_from_checkpoint=str(checkpoint))
    assert_one_sentence(str(error.value))
