"""trainer/classifier_mixin.py: which columns reach a collator, and which loss is taken outside of meta steps."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, default_data_collator

from famus_hf import FaMUSTrainer
from famus_hf.core.losses import FocalLoss
from famus_hf.errors import SettingsError
from famus_hf.two_networks.trainer import TwoNetworkTrainer
from tests.helpers.datasets import texts
from tests.helpers.models import CLASSES, PlainModule, TwoModels, build_model, build_text_model, build_tokenizer
from tests.helpers.trainers import Examples, make_args

MODES = ("none", "mw-net")


# ---- Columns ----


def tokenised(size, seed=0):
    """As in transformers' tutorial: the column of texts is still there."""
    tokenizer = build_tokenizer()
    clean = ["cold"] * size
    return texts(size, seed, clean_label=clean).map(
        lambda batch: {**tokenizer(batch["text"]), "clean_label": [0] * len(batch["text"])}, batched=True
    )


FORMS = {
    "as mapped": lambda data: data,
    "tensors": lambda data: data.with_format("torch"),
    "a stream": lambda data: data.to_iterable_dataset(),
    "a transform": lambda data: data.with_transform(lambda batch: dict(batch)),
    "a list": lambda data: [{**row, "id": f"row {number}"} for number, row in enumerate(data)],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("meta_learner", MODES)
@pytest.mark.parametrize("given", ["collator", "tokenizer"])
def test_a_tokenised_set_may_keep_its_texts_and_the_records_reach_the_logs(tmp_path, form, meta_learner, given):
    tokenizer = build_tokenizer()
    trainer = FaMUSTrainer(
        build_text_model(), make_args(tmp_path, meta_learner=meta_learner, max_steps=2),
        train_dataset=FORMS[form](tokenised(16)), meta_dataset=tokenised(8, 1), eval_dataset=tokenised(6, 2),
        **({"data_collator": DataCollatorWithPadding(tokenizer)} if given == "collator" else
           {"processing_class": tokenizer}),
    )  # fmt: skip
    trainer.train()
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (6, 3)
    if meta_learner == "mw-net":
        assert "mean_weight_noisy" in trainer.state.log_history[0], "clean_label is not dropped"


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("meta_learner", MODES)
def test_a_collator_of_ones_own_sees_all_columns_unless_they_are_to_be_removed(tmp_path, dropped, meta_learner):
    seen = set()

    def collate(examples):
        seen.update(examples[0])
        return default_data_collator([{name: row[name] for name in ("pixel_values", "labels")} for row in examples])

    class WithNames(Examples):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "file": "a.png"}

    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32),
        make_args(tmp_path, meta_learner=meta_learner, remove_unused_columns=dropped, max_steps=1),
        train_dataset=WithNames(16), meta_dataset=WithNames(8, 1000), data_collator=collate,
    )  # fmt: skip
    trainer.train()
    assert seen == {"pixel_values", "labels", "index", "clean_label"} | (set() if dropped else {"file"})
    assert trainer.data_collator is collate


def test_a_network_that_names_no_inputs_is_given_all_columns(tmp_path):
    class Anything(PlainModule):
        def forward(self, **inputs):
            return super().forward(inputs["pixel_values"] + inputs["shift"].view(-1, 1, 1, 1))

    class Shifted(Examples):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "shift": 1.0}

    data = {"train_dataset": Shifted(16), "meta_dataset": Shifted(8, 1000)}
    FaMUSTrainer(Anything(), make_args(tmp_path, max_steps=1), **data).train()


# ---- Losses ----


class OwnLoss(PlainModule):
    """Returns a loss of its own, and what it has found on the way; labels may have another name."""

    def forward(self, pixel_values, labels=None, target=None):
        logits = super().forward(pixel_values)["logits"]
        labels = target if labels is None else labels
        loss = None if labels is None else 3 * F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits, "features": pixel_values.mean((2, 3))}


class OnlyLogits(PlainModule):
    def forward(self, pixel_values):
        return super().forward(pixel_values)


class Renamed(Examples):
    """Labels under another name."""

    def __getitem__(self, row):
        example = super().__getitem__(row)
        return {"target": example.pop("labels"), **example}


class AbsoluteError:
    """A loss of the whole batch, as `compute_loss_func` takes it."""

    def __init__(self):
        self.counts = []

    def __call__(self, outputs, labels, num_items_in_batch=None):
        self.counts.append(num_items_in_batch)
        errors = (outputs["logits"].softmax(1) - F.one_hot(labels, CLASSES)).abs().sum()
        return errors / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def network(kind):
    torch.manual_seed(0)
    return {"ours": lambda: build_model("batch norm", torch.float32)}.get(kind, lambda: globals()[kind]())()


def trained(folder, model, kind=FaMUSTrainer, data=Examples, keywords=None, **settings):
    settings = {"meta_learner": "none", "max_steps": 3, "lr_milestones": [], "logging_steps": 1, **settings}
    trainer = kind(model, make_args(folder, **settings), train_dataset=data(40), eval_dataset=data(9, 2000, seed=7),
                   meta_dataset=data(8, 1000, seed=8), **(keywords or {}))  # fmt: skip
    trainer.train()
    return trainer


def control(folder, model, data=Examples, keywords=None, **settings):
    """transformers' own Trainer, by the settings that ours has in plain training."""
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=8, per_device_eval_batch_size=9, max_steps=3, seed=5,
        use_cpu=True, disable_tqdm=True, optim="sgd", optim_args="momentum=0.9", learning_rate=0.05,
        max_grad_norm=0, lr_scheduler_type="constant",
        dataloader_drop_last=True, save_strategy="no", report_to="none", logging_steps=1, data_seed=5, **settings,
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=data(40), eval_dataset=data(9, 2000, seed=7), **(keywords or {}))
    trainer.train()
    return trainer


def assert_same(ours, theirs):
    for name, tensor in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[name], tensor, msg=name)
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["ours", "PlainModule", "OwnLoss"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_function_of_trainers_is_called_whatever_the_network(tmp_path, kind, accumulated):
    """With accumulation it is told how many examples there are in all, and its values are added up.

    The last step of an epoch, of five batches, accumulates one less.
    """
    settings = {"gradient_accumulation_steps": accumulated, "weight_decay": 0.0}
    losses = AbsoluteError(), AbsoluteError()
    ours = trained(tmp_path, network(kind), keywords={"compute_loss_func": losses[0]}, **settings)
    theirs = control(tmp_path, network(kind), keywords={"compute_loss_func": losses[1]}, **settings)
    assert losses[0].counts == losses[1].counts == ([8] * 3 if accumulated == 1 else [16] * 4 + [8])
    assert_same(ours, theirs)


REFUSED_BESIDE = {
    "an object": ({}, {"base_loss": FocalLoss()}, "a base_loss object does nothing"),
    "a name": ({"base_loss": "focal"}, {}, "base_loss='focal' does nothing"),
    "smoothing": ({"label_smoothing_factor": 0.1}, {}, "label_smoothing_factor=0.1 does nothing"),
}


@pytest.mark.parametrize("case", REFUSED_BESIDE)
def test_another_loss_beside_a_loss_function_is_refused(tmp_path, case):
    settings, keywords, sentence = REFUSED_BESIDE[case]
    with pytest.raises(SettingsError, match=sentence):
        trained(tmp_path, PlainModule(), keywords={"compute_loss_func": AbsoluteError(), **keywords}, **settings)


class OwnTrainer(FaMUSTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True)
        return (2 * loss, outputs) if return_outputs else 2 * loss


class GrandchildTrainer(OwnTrainer):
    pass


class OwnPairTrainer(TwoNetworkTrainer):
    compute_loss = OwnTrainer.compute_loss


@pytest.mark.parametrize("kind", [OwnTrainer, GrandchildTrainer])
def test_a_subclass_with_a_loss_of_its_own_trains_plainly_and_is_refused_with_a_meta_learner(tmp_path, kind):
    doubled = trained(tmp_path, PlainModule(), kind=kind, max_steps=1)
    plain = trained(tmp_path, PlainModule(), max_steps=1)
    sentence = "OwnTrainer.compute_loss returns one number.* give a base_loss, a callable .*or a MetaLearner"
    assert doubled.state.log_history[0]["loss"] > 1.5 * plain.state.log_history[0]["loss"]
    with pytest.raises(SettingsError, match=sentence):
        trained(tmp_path, PlainModule(), kind=kind, meta_learner="mw-net")


def test_two_networks_refuse_a_loss_of_a_subclass_and_a_loss_function_too(tmp_path):
    def pair():
        return TwoModels(
            build_model("called group norm", torch.float32), build_model("called group norm", torch.float32, 1)
        )

    for kind, keywords in ((OwnPairTrainer, {}), (TwoNetworkTrainer, {"compute_loss_func": AbsoluteError()})):
        with pytest.raises(SettingsError, match="would never call it: give a base_loss"):
            kind(pair(), make_args(tmp_path), train_dataset=Examples(40), **keywords)


def test_a_networks_own_loss_is_taken_in_plain_training_and_its_outputs_are_kept(tmp_path):
    ours, theirs = trained(tmp_path, network("OwnLoss"), weight_decay=0.0), control(tmp_path, network("OwnLoss"))
    assert_same(ours, theirs)
    logits, features = ours.predict(ours.eval_dataset).predictions
    assert logits.shape == (9, CLASSES) and features.shape == (9, 3)


@pytest.mark.parametrize("kind", ["OwnLoss", "PlainModule"])
@pytest.mark.parametrize("around", ["bf16", "adapters"])
def test_what_is_wrapped_around_a_network_leaves_its_loss_alone(tmp_path, kind, around):
    losses = []
    for wrapped in (False, True):
        model = network(kind)
        if wrapped and around == "adapters":
            model = get_peft_model(model, LoraConfig(target_modules=["linear"], r=2))
        trainer = trained(tmp_path, model, max_steps=1, bf16=wrapped and around == "bf16")
        losses.append((trainer.state.log_history[0]["loss"], trainer.evaluate()["eval_loss"]))
        assert np.shape(trainer.predict(trainer.eval_dataset).predictions[0])[-1] == CLASSES
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("settings", [{"base_loss": "focal"}, {"label_smoothing_factor": 0.2}], ids=str)
def test_a_loss_that_is_asked_for_goes_before_the_networks_own(tmp_path, settings):
    own = trained(tmp_path, network("OwnLoss"), **settings)
    plain = trained(tmp_path, network("PlainModule"), **settings)
    assert torch.equal(own.model.linear.weight, plain.model.linear.weight)


@pytest.mark.parametrize("warmup", [0, 1.0])
def test_meta_steps_and_the_warm_up_before_them_go_by_the_logits_and_the_base_loss(tmp_path, warmup):
    settings = {"meta_learner": "mw-net", "plain_warmup_epochs": warmup}
    own, plain = (trained(tmp_path, network(kind), **settings) for kind in ("OwnLoss", "PlainModule"))
    assert torch.equal(own.model.linear.weight, plain.model.linear.weight)
    assert own.evaluate()["eval_loss"] == pytest.approx(3 * plain.evaluate()["eval_loss"], rel=1e-5)


def test_a_network_without_labels_or_loss_learns_by_cross_entropy(tmp_path):
    found = [trained(tmp_path, network(kind)).model.linear.weight for kind in ("PlainModule", "OnlyLogits")]
    assert torch.equal(*found)


def test_labels_may_have_another_name_in_plain_training(tmp_path):
    kind, settings = "OwnLoss", {"label_names": ["target"]}
    ours = trained(tmp_path, network(kind), data=Renamed, weight_decay=0.0, **settings)
    assert_same(ours, control(tmp_path, network(kind), data=Renamed, **settings))
    named = trained(tmp_path, network(kind), weight_decay=0.0)
    assert torch.equal(ours.model.linear.weight, named.model.linear.weight)
    for loss in ({"base_loss": "focal"}, {"label_smoothing_factor": 0.2}):
        focal = [trained(tmp_path, network(kind), data=data, **loss, **names).model.linear.weight
                 for data, names in ((Renamed, settings), (Examples, {}))]  # fmt: skip
        assert torch.equal(*focal)
    assert ours.label_report()["loss"][:] == named.label_report()["loss"][:]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label_names": ["target"], "meta_learner": "mw-net"}, "rename the column to 'labels'"),
        ({"label_names": ["a", "b"]}, "must hold one name"),
        ({"label_names": []}, "must hold one name"),
        ({"label_names": ["target"]}, "hold no labels"),
    ],
    ids=str,
)
def test_other_names_of_labels_are_refused_where_they_can_not_be(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        trained(tmp_path, network("OwnLoss"), **settings)
