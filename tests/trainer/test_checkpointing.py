"""Checkpoints of a run: resuming from any of them is bit-identical, and the best one comes back."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from famus_hf import FaMUSTrainer, load_famus
from famus_hf.errors import LoadError
from famus_hf.storage import checkpoints
from tests.helpers.checkpointed_runs import STEPS, assert_one_sentence, assert_same, names, run
from tests.helpers.datasets import texts
from tests.helpers.models import build_model, build_text_model, build_tokenizer
from tests.helpers.trainers import Examples, make_args, make_trainer, state_of

# ---- Resuming ----


def check_resuming(tmp_path, kind, after, **settings):
    """Checkpoints fall inside and at the end of epochs of five steps (three with accumulation)."""
    settings = {
        "max_steps": 8, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.1, "lr_milestones": [4, 6],
        **settings,
    }  # fmt: skip
    whole = make_trainer(tmp_path, kind, **settings)
    whole.train()
    expected = state_of(whole)
    for step in after:
        resumed = make_trainer(tmp_path, kind, **{**settings, "save_strategy": "no"})
        torch.manual_seed(step)  # whatever a new process happens to start with
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        found = state_of(resumed)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), step
        assert resumed.meta.steps == whole.meta.steps
        assert resumed.meta.times_on == whole.meta.times_on


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("meta_optim, kind", [("sgd", "batch norm"), ("adam", "vit")])
def test_resuming_after_any_checkpoint_is_bit_identical(tmp_path, accumulation, meta_optim, kind):
    check_resuming(tmp_path, kind, (1, 3, 5, 7), meta_optim=meta_optim, gradient_accumulation_steps=accumulation)


@pytest.mark.parametrize(
    "settings",
    [
        {"meta_learner": "l2r"},
        {"meta_learner": "mlc", "mlc_form": "probabilities", "layer_sampler": "random"},
        {"meta_learner": "mlc", "mlc_keep_matrix": False, "layer_sampler": "block", "sampler_block": 3},
        {"meta_budget": 0.5, "sampler_relative_slopes": True},
        {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "linear"},
        {"base_loss": "focal", "layer_sampler": "all", "candidate_layers": "4", "virtual_scope": "candidates"},
        {"reuse_virtual_gradient": True, "meta_interval": 3, "gradient_accumulation_steps": 2, "meta_batch_size": 3},
    ],
    ids=str,
)
def test_resuming_is_bit_identical_with_every_part(tmp_path, settings):
    """With a budget, the costs are those that were measured at the start of the run, whatever is measured later."""
    check_resuming(tmp_path, "batch norm", (3, 5), **settings)


def test_best_checkpoint_brings_back_its_own_meta_net(tmp_path):
    class Degrade(TrainerCallback):
        """Worsens the reported loss as training goes on, so that the first checkpoint is the best."""

        def on_evaluate(self, args, state, control, metrics, **keywords):
            metrics["eval_order"] = float(state.global_step)

    trainer = make_trainer(
        tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model="order", greater_is_better=False,
        keywords={"callbacks": [Degrade()]},
    )  # fmt: skip
    trainer.train()
    best = tmp_path / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    fresh = make_trainer(tmp_path / "fresh")
    fresh._load_from_checkpoint(str(best))
    for module, other in (
        (trainer.meta.meta_learner, fresh.meta.meta_learner),
        (trainer.meta.layer_sampler, fresh.meta.layer_sampler),
        (trainer.model, fresh.model),
    ):
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, module.state_dict()[name]), name


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    make_trainer(tmp_path / "plain", meta_learner="none", save_strategy="steps", save_steps=6).train()
    make_trainer(tmp_path / "famus", save_strategy="steps", save_steps=6).train()
    for folder, settings in (
        ("plain", {}),
        ("famus", {"candidate_layers": "5"}),
        ("famus", {"meta_learner": "l2r"}),
        ("famus", {"layer_sampler": "random"}),
        ("famus", {"weight_normalization": "mean"}),
    ):
        with pytest.raises(ValueError, match="does not fit"):
            make_trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-6"))


# ---- Other data, other settings ----

TEXTS, META_TEXTS = texts(40), texts(12, 1, 1000)


def text_trainer(folder, train=TEXTS, meta=META_TEXTS, **changes):
    args = make_args(folder, **{"max_steps": 2, **changes})
    keywords = {"train_dataset": train, "meta_dataset": meta, "processing_class": build_tokenizer()}
    return FaMUSTrainer(build_text_model(), args, **keywords)


@pytest.fixture(scope="module")
def checkpoint_of_texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    text_trainer(folder, save_strategy="steps", save_steps=1).train()
    return folder / "checkpoint-1"


def with_column(name, values):
    return TEXTS.remove_columns(name).add_column(name, values, feature=TEXTS.features[name])


def with_renamed_class(dataset):
    names = ["hot", *dataset.features["label"].names[1:]]
    return dataset.cast_column("label", ClassLabel(names=names))


OTHER_DATA = {
    "labels": (lambda: with_column("label", [*TEXTS["label"][:-1], 0]), META_TEXTS, "the labels of 1 of 40 training"),
    "size": (lambda: TEXTS.select(range(39)), META_TEXTS, "the number of training examples (39 instead of 40)"),
    "rows": (lambda: with_column("index", list(range(1, 41))), META_TEXTS, "which training examples there are"),
    "contents": (lambda: with_column("text", ["cold"] * 40), META_TEXTS, "the contents of the training examples"),
    "classes": (
        lambda: with_renamed_class(TEXTS), with_renamed_class(META_TEXTS),
        "the class names ('hot', 'warm', 'wet' instead of 'cold', 'warm', 'wet')",
    ),
    "meta": (lambda: TEXTS, texts(11, 1, 1000), "in the number of meta examples (11 instead of 12)"),
    "no meta": (lambda: TEXTS, None, "in the meta set (none of its own instead of 12 examples)"),
    "two": (
        lambda: TEXTS.select(range(39)),
        None,
        "(39 instead of 40) and the meta set (none of its own instead of 12 examples)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_DATA)
def test_a_checkpoint_of_other_data_is_refused_by_what_differs(tmp_path, checkpoint_of_texts, kind):
    make, meta, words = OTHER_DATA[kind]
    with pytest.raises(LoadError) as error:
        text_trainer(tmp_path, make(), meta).train(resume_from_checkpoint=str(checkpoint_of_texts))
    assert_one_sentence(str(error.value), "the data differ from those of checkpoint", words, "allow_other_data=True")


def test_other_data_that_are_allowed_are_named_in_one_line(tmp_path, checkpoint_of_texts, caplog):
    trainer = text_trainer(tmp_path, TEXTS.select(range(39)), allow_other_data=True)
    trainer.train(resume_from_checkpoint=str(checkpoint_of_texts))
    lines = [record.getMessage() for record in caplog.records if "differ" in record.getMessage()]
    assert trainer.state.global_step == 2 and len(lines) == 1
    assert lines[0].endswith("data that differ in the number of training examples (39 instead of 40)")


def test_examples_that_tell_their_labels_one_by_one_are_compared_too(tmp_path):
    run(tmp_path, max_steps=1)
    trainer = make_trainer(tmp_path)
    trainer.train_dataset = Examples(40, seed=1)
    with pytest.raises(
        LoadError, match=r"differ from those of checkpoint .* in the labels or index of the training ex"
    ):
        trainer.train(resume_from_checkpoint=True)


def test_other_settings_are_named_with_what_they_were_and_which_of_them_do_nothing(
    tmp_path, checkpoint_of_texts, caplog
):
    def said(**changes):
        caplog.clear()
        trainer = text_trainer(tmp_path, **changes)
        trainer.train(resume_from_checkpoint=str(checkpoint_of_texts))
        lines = [record.getMessage() for record in caplog.records if "settings" in record.getMessage()]
        return trainer, [line.partition("other settings: ")[2] for line in lines]

    assert said(logging_steps=1, eval_strategy="no")[1] == []
    trainer, lines = said(max_steps=3, base_loss="focal", learning_rate=0.5, meta_learning_rate=0.7)
    assert lines == [
        'base_loss="focal" (was "ce"), max_steps=3 (was 2); the optimizers bring back learning_rate=0.05 (not 0.5), '
        "meta_learning_rate=0.05 (not 0.7)"
    ]
    assert trainer.lr_scheduler.base_lrs == [0.05] * 2 and trainer.meta.learner_optimizer.param_groups[0]["lr"] == 0.05


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_goes_on_with_a_warning(
    tmp_path, checkpoint_of_texts, caplog
):
    earlier = shutil.copytree(checkpoint_of_texts, tmp_path / "checkpoint-1")
    (earlier / "trained_on.json").unlink()
    checkpoints.write_manifest(earlier, "run")
    trainer = text_trainer(tmp_path, TEXTS.select(range(39)))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2 and "whether data and settings are the same is not known" in caplog.text


def test_another_optimizer_is_refused(tmp_path):
    """torch takes any state whose groups are as large, and fails at the next step."""
    run(tmp_path, max_steps=1, optim="adamw_torch")
    with pytest.raises(LoadError) as error:
        run(tmp_path, True, optim="rmsprop")
    assert_one_sentence(str(error.value), "it is of another optimizer, without alpha: set optim to the one of that run")


# ---- Which checkpoint, and what is kept ----


def test_a_run_that_has_ended_is_left_as_it_is(tmp_path, uninterrupted_run):
    """transformers would train on to the end of the epoch, of which this run has done a part."""
    assert STEPS % 5 != 0
    for step in (STEPS - 1, STEPS):
        resumed = run(tmp_path, str(Path(uninterrupted_run.args.output_dir) / f"checkpoint-{step}"))
        assert resumed.state.global_step == STEPS
        assert_same(uninterrupted_run, resumed)


def test_early_stopping_comes_back_as_it_was_and_more_patience_goes_on(tmp_path):
    def stopping(patience, resume=None):
        return run(
            tmp_path, resume, max_steps=30, eval_strategy="steps", eval_steps=1, learning_rate=0.0,
            metric_for_best_model="accuracy", keywords={"callbacks": [EarlyStoppingCallback(patience)]},
        ).state.global_step  # fmt: skip

    assert stopping(3) == 4
    assert stopping(3, str(tmp_path / "checkpoint-2")) == 4, "one of three chances was gone"
    assert stopping(3, str(tmp_path / "checkpoint-4")) == 4, "it had stopped"
    assert stopping(5, str(tmp_path / "checkpoint-4")) == 6


def test_a_callback_that_is_new_after_a_resume_is_saved_too(tmp_path):
    run(tmp_path, max_steps=2)
    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "accuracy"}
    run(tmp_path, True, max_steps=4, keywords={"callbacks": [EarlyStoppingCallback(9)]}, **settings)
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["EarlyStoppingCallback"]["args"]["early_stopping_patience"] == 9


@pytest.mark.parametrize("meta_learner", ["mw-net", "none"])
def test_checkpoints_without_optimizers_are_not_resumed(tmp_path, meta_learner):
    run(tmp_path, max_steps=2, save_only_model=True, meta_learner=meta_learner)
    for wanted in (True, str(tmp_path / "checkpoint-1")):
        with pytest.raises(ValueError) as error:
            run(tmp_path, wanted, meta_learner=meta_learner)
        assert_one_sentence(str(error.value), "was saved with save_only_model")
    model, meta_learner, *_ = load_famus(tmp_path / "checkpoint-2")
    assert model is not None


class Best(TrainerCallback):
    """Makes one step the best."""

    def __init__(self, step):
        self.step = step

    def on_evaluate(self, args, state, control, metrics, **keywords):
        metrics["eval_order"] = abs(state.global_step - self.step)


def best_run(folder, step, resume=None, **changes):
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "order", "greater_is_better": False,
        "load_best_model_at_end": True, "save_total_limit": 1, **changes,
    }  # fmt: skip
    return run(folder, resume, keywords={"callbacks": [Best(step)]}, **settings)


def test_the_best_checkpoint_is_named_by_its_final_path_and_comes_back_after_a_resume(tmp_path):
    trainer = best_run(tmp_path / "whole", 2)
    best = tmp_path / "whole" / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best) and names(tmp_path / "whole") == ["checkpoint-2"]
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    best_run(tmp_path / "parts", 2, max_steps=4)
    (tmp_path / "parts").rename(tmp_path / "moved")
    resumed = best_run(tmp_path / "moved", 2, True)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-2")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_the_best_checkpoint_is_never_an_earlier_run_s(tmp_path):
    """The second run evaluates more often than it saves; at its best step only the first run has a checkpoint."""
    run(tmp_path, max_steps=3)
    second = best_run(tmp_path, 3, max_steps=4, save_steps=2, seed=6, save_total_limit=None)
    assert second.state.best_global_step == 3
    assert second.state.best_model_checkpoint in (None, str(tmp_path / "checkpoint-2"))


# ---- Checkpoints of transformers' own Trainer ----


def without_records(examples):
    return default_data_collator([{name: row[name] for name in ("pixel_values", "labels")} for row in examples])


def train_with_transformers(folder, **settings):
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=8, save_strategy="steps", save_steps=3, seed=5, data_seed=5,
        dataloader_drop_last=True, max_grad_norm=0.0, disable_tqdm=True, use_cpu=True, report_to="none",
        remove_unused_columns=False, lr_scheduler_type="constant", weight_decay=0.01, max_steps=6, **settings,
    )  # fmt: skip
    trainer = Trainer(
        build_model("batch norm", torch.float32), args, without_records, Examples(40),
        callbacks=[EarlyStoppingCallback(3)] if args.eval_strategy != "no" else None, eval_dataset=Examples(9),
    )  # fmt: skip
    trainer.train()
    return trainer


FOREIGN = {
    "sgd": {"optim": "sgd", "learning_rate": 0.05, "optim_args": "momentum=0.9"},
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-3},
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("resume", ["by name", True])
def test_plain_training_goes_on_from_a_checkpoint_of_transformers_own_trainer(tmp_path, caplog, name, resume):
    whole = train_with_transformers(tmp_path, **FOREIGN[name])
    if resume is True:
        shutil.rmtree(tmp_path / "checkpoint-6")
    resumed = make_trainer(
        tmp_path, meta_learner="none", lr_milestones=[], weight_decay=0.01, **FOREIGN[name],
        save_strategy="steps", save_steps=3,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="famus_hf"):
        resumed.train(resume_from_checkpoint=True if resume is True else str(tmp_path / "checkpoint-3"))
    assert [entry for entry in messages(caplog) if entry.startswith(str(tmp_path / "checkpoint-3"))] == [
        f"{tmp_path / 'checkpoint-3'} is of transformers' own Trainer: whether data and settings are the same is not "
        "known"
    ]
    assert resumed.state.global_step == 6
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], tensor), key
    assert checkpoints.run_of(tmp_path / "checkpoint-6"), "the resumed run has a name"


@pytest.mark.parametrize("meta_dataset", ["clean", None])
def test_a_meta_run_starts_its_meta_learner_afresh_from_there_and_says_so(tmp_path, caplog, meta_dataset):
    train_with_transformers(tmp_path, **FOREIGN["adamw"])
    settings = {"lr_milestones": [], "max_steps": 10, "save_strategy": "steps", "save_steps": 3, **FOREIGN["adamw"]}

    def make():
        return FaMUSTrainer(
            build_model("batch norm", torch.float32), make_args(tmp_path / "own", **settings),
            train_dataset=Examples(40), meta_dataset=meta_dataset and Examples(11, 1000),
        )  # fmt: skip

    trainer = make()
    with caplog.at_level(logging.WARNING, logger="famus_hf"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    said = f"{tmp_path / 'checkpoint-6'} holds no meta-learner: that and the layer sampler start afresh"
    assert messages(caplog).count(said) == 1
    assert trainer.meta.steps == 4 and trainer.state.global_step == 10
    again = make()
    again.train(resume_from_checkpoint=str(tmp_path / "own" / "checkpoint-9"))
    expected, found = state_of(trainer), state_of(again)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_lost_callbacks_are_named_as_trainer_names_them(tmp_path, caplog):
    steps = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    train_with_transformers(tmp_path, **FOREIGN["adamw"], **steps)
    trainer = make_trainer(tmp_path, meta_learner="none", max_steps=7, lr_milestones=[], **FOREIGN["adamw"])
    with caplog.at_level(logging.WARNING, logger="famus_hf"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert messages(caplog).count(
        "Checkpoint included callbacks not included in current configuration. Ignoring. (EarlyStoppingCallback)"
    ) == 1  # fmt: skip


def test_of_transformers_checkpoints_a_damaged_one_is_refused_too(tmp_path):
    train_with_transformers(tmp_path, **FOREIGN["adamw"])
    checkpoint = tmp_path / "checkpoint-6"
    for file, complaint in (
        ("optimizer.pt", "has no optimizer.pt: it was saved without optimizers"),
        ("model.safetensors", "is damaged .there are no weights in it.: resume from .*checkpoint-3"),
    ):
        (checkpoint / file).unlink()
        with pytest.raises(LoadError, match=complaint):
            make_trainer(tmp_path, meta_learner="none", **FOREIGN["adamw"]).train(str(checkpoint))
    make_trainer(tmp_path / "own", save_strategy="steps", save_steps=6).train()
    (tmp_path / "own" / "checkpoint-6" / "checkpoint_files.json").unlink()
    with pytest.raises(LoadError, match=r"is damaged .checkpoint_files\.json is missing"):
        make_trainer(tmp_path / "own").train(str(tmp_path / "own" / "checkpoint-6"))


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


# ---- Subclasses ----


class Noting(FaMUSTrainer):
    """Writes a file of its own with each model, as subclasses of transformers' Trainer do."""

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.args.output_dir)
        (folder / "note.txt").write_text(f"step {self.state.global_step}")


@pytest.mark.parametrize("meta_learner", ["none", "mw-net"])
def test_a_save_model_of_ones_own_is_called_for_checkpoints_too(tmp_path, meta_learner):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "meta_learner": meta_learner}

    def make(kind):
        model = build_model("batch norm", torch.float32)
        return kind(model, make_args(tmp_path, **settings), train_dataset=Examples(40), meta_dataset=Examples(8, 1000))

    whole = make(Noting)
    whole.train()
    for step in (2, 4):
        checkpoint = tmp_path / f"checkpoint-{step}"
        assert (checkpoint / "note.txt").read_text() == f"step {step}" and checkpoints.fault_of(checkpoint) is None
    resumed = make(Noting)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
    whole.save_model()
    assert (tmp_path / "note.txt").is_file()
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir()), "nothing unfinished is left"
