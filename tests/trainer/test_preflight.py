"""What is refused before training: trainer/preflight.py, training_args_checks.py, and settings of training_args.py."""

import copy
import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import default_data_collator

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments
from famus_hf.core.losses import LDAMLoss
from famus_hf.core.meta_learners.posterior import PosteriorTargets
from famus_hf.errors import DataError, FaMUSError, SettingsError
from famus_hf.metrics import compute_accuracy
from famus_hf.trainer import preflight
from famus_hf.two_networks.trainer import TwoNetworkTrainer
from tests.helpers.models import PlainModule, TwoModels, build_model
from tests.helpers.trainers import Examples, make_args, make_trainer

REFUSED = {
    "unknown meta-learner": ({"meta_learner": "mwnet"}, "choose one of mw-net, l2r, mlc, .*none"),
    "unknown sampler": ({"layer_sampler": "some"}, "choose one of learned, all, block, random"),
    "block without its number": ({"layer_sampler": "block"}, "belong together"),
    "number without block": ({"sampler_block": 2}, "belong together"),
    "no such block": (
        {"layer_sampler": "block", "sampler_block": 4},
        r"the blocks there are 1 \(from blocks.0.bn1\), 2",
    ),
    "too many random layers": ({"layer_sampler": "random", "random_layers": 99}, "can't be drawn from"),
    "budget without meta-learner": ({"meta_learner": "none", "meta_budget": 0.5}, "needs a meta_learner"),
    "budget and sparsity": ({"meta_budget": 0.5, "sparsity_weight": 0.1}, "takes the place of Eq. 10"),
    "optimizer of what has no parameters": ({"meta_learner": "l2r", "meta_optim": "adam"}, "does not go with"),
    "step size of what has no parameters": ({"meta_learner": "l2b", "meta_learning_rate": 0.1}, "'l2b', which has no"),
    "virtual step of what has none": ({"meta_learner": "l2b", "gradient_match_weight": 0.1}, "does not go with"),
    "class counts that nobody tells": ({"meta_learner": "jamal"}, "meta_learner='jamal' needs the number of examples"),
    "classes grouped by counts that nobody tells": (
        {"meta_learner": "soft", "class_heads": 3},
        "class_heads needs the number of examples",
    ),
    "given transitions counted anew": (
        {"meta_learner": "forward", "transitions": "trusted", "transition_counts": "each-epoch"},
        "leave one of the two out",
    ),
    "margins of probabilities": (
        {"meta_learner": "mlc", "mlc_form": "probabilities", "base_loss": "ldam"},
        "does not go with mlc_form",
    ),
    "budget without learned sampler": ({"layer_sampler": "all", "meta_budget": 0.5}, "meta_budget needs"),
    "budget below the cheapest layer": ({"meta_budget": 1e-6}, r"cheapest layer's cost of 0\.\d+ plain steps"),
    "budget of what has no meta step": ({"meta_learner": "forward", "meta_budget": 0.5}, "'forward' has no meta step"),
    "rate of what has no parameters": ({"meta_learner": "forward", "meta_learning_rate": 1.0}, "has no parameters"),
    "diagnostics of no meta step": ({"meta_learner": "forward", "log_layers": 2}, "no meta step to look into"),
    "preset of no meta step": ({"meta_learner": "forward", "preset": "fast"}, "meta_learner 'forward' has none"),
    "another form": ({"posterior_form": "prior"}, "choose one of posterior, likelihood"),
    "a decay that grows": ({"belief_decay": 1.5}, "belief_decay=1.5 must be less than 1"),
    "shares of classes that are not told": ({"logit_adjustment": 1.0}, "logit_adjustment needs the labels of all"),
    "a loss that a likelihood passes over": (
        {"meta_learner": "posterior", "posterior_form": "likelihood", "base_loss": "focal"},
        "PosteriorTargets's loss is the likelihood of a label",
    ),
    "smoothing that a likelihood passes over": (
        {"meta_learner": "forward", "label_smoothing_factor": 0.1},
        "ForwardCorrection's loss is the likelihood",
    ),
    "unknown base loss": ({"base_loss": "hinge"}, "choose one of ce, focal"),
    "an optimizer within the backward pass": ({"optim": "lomo"}, "'lomo' moves the network within the backward pass"),
    "unknown derivative": ({"derivative": "backward"}, "choose one of auto"),
    "negative weight": ({"sparsity_weight": -1.0}, "must be at least 0"),
    "candidate layers": ({"candidate_layers": "0"}, "whole number from 1"),
    "fp16 without a GPU": ({"fp16": True}, "needs a GPU"),
    "finite differences in bf16": ({"bf16": True, "derivative": "finite"}, "differences drown"),
    "unknown preset": ({"preset": "faster"}, "choose one of fast"),
    "preset of plain training": ({"preset": "fast", "meta_learner": "none"}, "is about the meta step"),
    "unknown policy": ({"nan_policy": "ignore"}, "choose one of stop, skip"),
    "unknown scope": ({"virtual_scope": "top"}, "choose one of all, candidates"),
    "meta interval": ({"meta_interval": 0}, "greater than 0"),
    "a gradient of some layers reused for all": (
        {"virtual_scope": "candidates", "reuse_virtual_gradient": True},
        "takes the gradient of all layers",
    ),
    "two ways to save one backward": (
        {"scale_example_gradients": True, "reuse_virtual_gradient": True},
        "choose one of the three",
    ),
    "examples that batch norm couples": ({"scale_example_gradients": True}, "couples the examples of a batch"),
    "gradients that do not scale": (
        {"scale_example_gradients": True, "meta_learner": "mlc"},
        "do not differ by example weights alone",
    ),
    "a term that no weight scales": (
        {"scale_example_gradients": True, "elr_weight": 3.0},
        r"elr_weight=3.0 adds one that no example weight scales: leave one of the two out",
    ),
    "a term that pushes away": ({"elr_weight": -1.0}, "elr_weight=-1.0 must be at least 0"),
    "interval without memory": ({"meta_learner": "l2r", "meta_interval": 2}, "starts afresh in each step"),
    "reuse before anything is known": (
        {"meta_learner": "mlc", "mlc_keep_matrix": False, "reuse_virtual_gradient": True},
        "starts afresh in each step",
    ),
    "label names": ({"label_names": ["target"]}, "rename the column"),
    "no whole number": ({"meta_interval": 2.5}, "meta_interval=2.5 must be a whole number"),
    "no number": ({"expected_layers": "many"}, "expected_layers='many' must be a number"),
    "no number of a list": ({"lr_milestones": (0.5, "late")}, "lr_milestones='late' must be a number"),
    "neither true nor false": ({"label_report": "perhaps"}, "label_report='perhaps' must be True or False"),
    "nothing where there is something": ({"meta_interval": None}, "leave it out for its default"),
    "a flag for a number": ({"candidate_layers": True}, "'all' or a whole number from 1"),
    "milestones": ({"lr_milestones": [0.0]}, "greater than 0"),
    "a misspelt setting of the optimizer": (
        {"optim_args": "momentun=0.9"},
        "optim_args 'momentun' does nothing with optim='sgd': it takes momentum",
    ),
    "settings of an optimizer that has none": ({"optim": "adamw_torch", "optim_args": "momentum=0.5"}, "it takes none"),
    "settings of a constant schedule": ({"lr_scheduler_kwargs": {"min_lr": 0.1}}, "which has no settings"),
    "target modules without a low rank": ({"optim_target_modules": "all"}, "it is for GaLore and APOLLO"),
    "settings of a kernel that is off": ({"liger_kernel_config": {"rope": True}}, "nothing without use_liger_kernel"),
    "two ways to draw batches": (
        {"balanced_batches_per_epoch": 2, "train_sampling_strategy": "sequential"},
        "train_sampling_strategy='sequential' does nothing",
    ),
    "pickles to the Hub": ({"hub_strategy": "all_checkpoints"}, "pickles"),
    "batch larger than the set": ({"per_device_train_batch_size": 41}, "less than one batch of 41"),
}


SAME = {
    "candidate_layers": (6, 6.0, "6", "6.0", np.int64(6)),
    "meta_interval": (2, 2.0, "2", np.int32(2), np.float32(2)),
    "learning_rate": (0.5, "0.5", "5e-1", np.float32(0.5)),
    "meta_budget": (1, 1.0, "1", np.float64(1)),
    "save_total_limit": (3, "3", np.int64(3)),
    "label_report": (False, "false", 0, np.bool_(False)),
    "lr_milestones": ([0.5, 3], (0.5, 3), ("0.5", "3"), np.array([0.5, 3]), (np.float32(0.5), np.int64(3))),
    "image_mean": ([0.5, 0.5, 0.5], (0.5,) * 3, np.full(3, 0.5, np.float32)),
    "run_name": ("7", 7),
}


@pytest.mark.parametrize("name", SAME)
def test_a_setting_may_come_as_number_word_tuple_or_from_numpy(tmp_path, name):
    saved = [json.loads(make_args(tmp_path, **{name: value}).to_json_string())[name] for value in SAME[name]]
    assert saved == [saved[0]] * len(saved) and (saved[0] == SAME[name][0] or saved[0] == str(SAME[name][0]))
    assert make_args(tmp_path, candidate_layers=6).num_candidate_layers == 6


def test_a_preset_fills_in_what_is_left_at_its_default(tmp_path, caplog):
    fast = make_args(tmp_path, preset="fast", per_device_train_batch_size=10)
    assert (fast.layer_sampler, fast.candidate_layers, fast.virtual_scope) == ("all", "4", "candidates")
    assert fast.meta_batch_size == 2
    with caplog.at_level("WARNING", "famus_hf"):
        assert make_args(tmp_path, preset="fast", per_device_train_batch_size=6).meta_batch_size == 2
    assert [record.message for record in caplog.records] == [
        "preset 'fast' takes meta batches of 2, more than a quarter of per_device_train_batch_size=6"
    ]
    mine = make_args(tmp_path, preset="fast", candidate_layers="2", meta_batch_size=9)
    assert (mine.layer_sampler, mine.candidate_layers, mine.meta_batch_size) == ("all", "2", 9)
    assert make_args(tmp_path).meta_batch_size == make_args(tmp_path).per_device_train_batch_size == 8


@pytest.mark.parametrize("case", REFUSED)
def test_contradictions_are_refused_before_training(tmp_path, case):
    changes, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        make_trainer(tmp_path, **changes)


def test_defaults_that_documents_and_tables_name_stay_what_they_are(tmp_path):
    args = FaMUSTrainingArguments(str(tmp_path))
    expected = {
        "expected_layers": 4.0, "sampler_learning_rate": 0.1, "sampler_temperature": 1.0, "meta_interval": 1,
        "weight_normalization": "sum", "layer_sampler": "all", "meta_learner": "posterior", "clean_threshold": 0.5,
        "candidate_layers": "4", "virtual_scope": "candidates", "meta_batch_size": 25, "train_on_trusted": True,
        "sharpening_temperature": 0.5, "mixup_alpha": None, "unlabelled_weight": 5.0, "ramp_up_epochs": 16.0,
        "focal_gamma": 2.0, "gce_q": 0.7, "sce_alpha": 0.1, "sce_beta": 1.0, "nce_alpha": 1.0, "nce_beta": 1.0,
        "logit_adjustment": 0.0, "posterior_form": "posterior", "transition_rate": 1.0, "transition_counts": "once",
        "belief_decay": None, "meta_lr_schedule": None, "ema_decay": None, "learning_rate": 0.05, "weight_decay": 5e-4,
        "max_grad_norm": 0.0, "elr_weight": 0.0,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected
    paper = FaMUSTrainingArguments(str(tmp_path), meta_learner="mw-net")
    of_paper = {
        "layer_sampler": "learned", "candidate_layers": "all", "virtual_scope": "all", "meta_batch_size": 100,
        "train_on_trusted": False,
    }  # fmt: skip
    assert {name: getattr(paper, name) for name in of_paper} == of_paper
    assert args.use_paper_where_open() and not args.use_paper_where_open() and not paper.use_paper_where_open()
    assert {name: getattr(args, name) for name in of_paper} == of_paper and args.meta_learner == "mw-net"
    fast = FaMUSTrainingArguments(str(tmp_path), preset="fast")  # which the user asks for, whatever learns
    assert fast.use_paper_where_open() and (fast.candidate_layers, fast.virtual_scope) == ("4", "candidates")
    assert (fast.meta_learner, fast.layer_sampler, fast.meta_batch_size) == ("mw-net", "all", 25)
    for asked, learner in (
        ({}, "forward"), ({"mixup_alpha": 1.0}, "forward"), ({"preset": "fast"}, "mw-net"),
        ({"meta_set": "pseudo-clean"}, "mw-net"), ({"layer_sampler": "all"}, "mw-net"),
        ({"meta_learning_rate": 0.1}, "mw-net"), ({"meta_learner": "posterior"}, "posterior"),
        ({"meta_learner": "none"}, "none"),
    ):  # fmt: skip
        untrusted = FaMUSTrainingArguments(str(tmp_path), **asked)
        untrusted.use_untrusted_where_open()
        assert untrusted.meta_learner == learner, asked
    for sampler, weight in (("learned", 0.1), ("all", 0.0)):  # λ1 and λ2 hang on it
        objective = make_trainer(tmp_path, layer_sampler=sampler).stages.meta.objective
        assert (objective.sparsity_weight, objective.gradient_match_weight) == (weight, weight)


def test_models_that_do_not_classify_are_refused(tmp_path):
    model = build_model("vit", torch.float32)
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="one class each"):
        FaMUSTrainer(model, make_args(tmp_path), train_dataset=Examples(40), meta_dataset=Examples(8))

    class NoLogits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, pixel_values, labels=None):
            return self.linear(pixel_values.mean((2, 3)))

    with pytest.raises(TypeError, match=r"\.logits of shape \(batch, classes\)"):
        FaMUSTrainer(NoLogits(), make_args(tmp_path), train_dataset=Examples(40), meta_dataset=Examples(8))


def test_labels_that_are_no_classes_are_refused_in_ready_made_inputs(tmp_path):
    class Ignored(Examples):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "labels": -100 if row == self.where else 0}

    for where in (0, 39):  # seen before training, or in the batch that holds it
        dataset = Ignored(40)
        dataset.where = where
        with pytest.raises(ValueError, match="-100"):
            FaMUSTrainer(
                build_model("batch norm", torch.float32), make_args(tmp_path), train_dataset=dataset,
                meta_dataset=Examples(8, 1000),
            ).train()  # fmt: skip


class Labelled(Examples):
    """Examples with the labels given, one after the other."""

    def __init__(self, labels):
        super().__init__(40)
        self.labels = labels

    def __getitem__(self, row):
        return {"pixel_values": self.batch["pixel_values"][row], "labels": self.labels[row % len(self.labels)]}


NO_LABELS = {
    "several classes each": ([[1.0, 0, 1, 0]], "rows of probabilities"),
    "several classes of the third": ([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 1, 0, 0]], "rows of probabilities"),
    "whole numbers of several classes": ([[1, 0, 1, 0]], "not one class index per example"),
    "numbers": ([0.3], "not one class index per example"),
    "a class too many": ([0, 9], r"not in 0\.\.3 \(the first is 9\)"),
    "a class below": ([0, -1], r"not in 0\.\.3 \(the first is -1\)"),
}


@pytest.mark.parametrize("case", NO_LABELS)
@pytest.mark.parametrize("meta_learner", ["none", "mw-net"])
def test_labels_that_are_no_classes_are_refused_with_and_without_a_meta_learner(tmp_path, case, meta_learner):
    labels, sentence = NO_LABELS[case]
    with pytest.raises(DataError, match=sentence):
        FaMUSTrainer(
            build_model("batch norm", torch.float32), make_args(tmp_path, meta_learner=meta_learner),
            train_dataset=Labelled([torch.tensor(label) for label in labels]), meta_dataset=Examples(8, 1000),
        )  # fmt: skip


def test_examples_without_labels_are_refused(tmp_path):
    data = [{"pixel_values": torch.randn(3, 8, 8)}] * 8
    with pytest.raises(DataError, match="hold no labels"):
        FaMUSTrainer(build_model("vit", torch.float32), make_args(tmp_path, meta_learner="none"), train_dataset=data)


class PooledBatchNorm(PlainModule):
    """Batch norm after pooling, to which an example is one value for each channel."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, pixel_values, labels=None):
        return {"logits": self.linear(self.norm(pixel_values.mean((2, 3))))}


def trainer_of_few(folder, model, train=40, meta=11, kind=FaMUSTrainer, **settings):
    data = {"train_dataset": Examples(train), "meta_dataset": Examples(meta, 1000) if meta else None}
    return kind(model, make_args(folder, **settings), **data)


PLAIN, KEPT = {"meta_learner": "none"}, {"dataloader_drop_last": False}
OF_ONE = {
    "training batch": ({"per_device_train_batch_size": 1, "meta_batch_size": 8}, "raise it to at least 2"),
    "plain training batch": ({"per_device_train_batch_size": 1, **PLAIN}, "raise it to at least 2"),
    "last batch": ({**KEPT, "train": 25}, "set dataloader_drop_last to True"),
    "last plain batch": ({**KEPT, **PLAIN, "train": 25}, "set dataloader_drop_last to True"),
    "last of accumulated ones": (
        {**KEPT, **PLAIN, "train": 25, "gradient_accumulation_steps": 3, "max_steps": 2}, "dataloader_drop_last"
    ),
    "a set of one": ({**KEPT, **PLAIN, "train": 1}, "set dataloader_drop_last to True"),
    "meta batch": ({"meta_batch_size": 1}, "raise meta_batch_size to at least 2, with at least 2 meta"),
    "pseudo-clean meta batch": ({"meta_batch_size": 1, "meta": 0}, "raise meta_batch_size"),
    "meta set": ({"meta": 1}, "raise meta_batch_size"),
    "meta batch of two networks": (
        {"meta_batch_size": 1, "meta": 0, "plain_warmup_epochs": 1, "layer_sampler": "all", "kind": TwoNetworkTrainer},
        "raise meta_batch_size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_ONE)
def test_batches_of_one_are_refused_only_where_batch_norm_has_one_value(tmp_path, case):
    settings, advice = OF_ONE[case]
    is_pair = settings.get("kind") is TwoNetworkTrainer
    pooled, spatial = (
        TwoModels(build(), build()) if is_pair else build()
        for build in (PooledBatchNorm, lambda: build_model("batch norm", torch.float32))
    )
    before = copy.deepcopy(pooled.state_dict())
    with pytest.raises(SettingsError, match=f"of a single example.*{advice}"):
        trainer_of_few(tmp_path, pooled, **settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pooled.state_dict().items())
    trainer_of_few(tmp_path, spatial, **{"max_steps": 4, **settings}).train()


ENOUGH = {
    "the last batch dropped": {"train": 25},
    "the last batch not reached": {**KEPT, "train": 25, "max_steps": 3},
    "nor by epochs": {**KEPT, "train": 25, "max_steps": -1, "num_train_epochs": 0.75},
    "a last batch of two": {**KEPT, "train": 26},
    "a preset": {"preset": "fast", "per_device_train_batch_size": 4},
    "two networks": {"per_device_train_batch_size": 1, "meta_batch_size": 2, "kind": TwoNetworkTrainer, "meta": 0,
                     "layer_sampler": "all", "plain_warmup_epochs": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("case", ENOUGH)
def test_batches_of_several_train_through_any_batch_norm(tmp_path, case):
    is_pair = ENOUGH[case].get("kind") is TwoNetworkTrainer
    model = TwoModels(PooledBatchNorm(), PooledBatchNorm()) if is_pair else PooledBatchNorm()
    trainer_of_few(tmp_path, model, **ENOUGH[case]).train()


def test_of_several_processes_the_last_batches_are_filled_up(tmp_path):
    args = make_args(tmp_path, **KEPT)
    takes_one = iter([False]).__next__
    with patch.object(type(args), "world_size", property(lambda self: 2)):
        preflight.check_batches_of_one(args, range(25), None, True, takes_one)
        with pytest.raises(SettingsError, match="the last of the batches"):
            preflight.check_batches_of_one(args, range(25), None, False, takes_one)
        with pytest.raises(SettingsError, match="with at least 4 meta examples"):
            preflight.check_batches_of_one(args, range(25), range(3), True, lambda: False)


def test_a_trainer_for_evaluation_alone_needs_no_training_data(tmp_path):
    trainer = FaMUSTrainer(
        build_model("batch norm", torch.float32), make_args(tmp_path), compute_metrics=compute_accuracy
    )
    assert 0 <= trainer.evaluate(Examples(19))["eval_accuracy"] <= 1


def test_an_empty_meta_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="meta_dataset is empty"):
        FaMUSTrainer(
            build_model("vit", torch.float32),
            make_args(tmp_path),
            train_dataset=Examples(40),
            meta_dataset=Examples(0),
        )


# ---- Beliefs, trusted rows, mixup, shares of classes ----


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        data = Examples(40)
        return (data[row] for row in range(40))


class Changed(Examples):
    """Examples of which a column is another."""

    def __init__(self, size, change, **keywords):
        super().__init__(size, **keywords)
        self.change = change

    def __getitem__(self, row):
        return self.change(super().__getitem__(row))


def without_row(examples):
    kept = ("pixel_values", "labels", "index")
    return default_data_collator([{name: example[name] for name in kept} for example in examples])


def margins():
    return LDAMLoss([10] * 4)


def bytes_of(example):
    return {**example, "pixel_values": (255 * example["pixel_values"]).to(torch.uint8)}


FORWARD, POSTERIOR = {"meta_learner": "forward"}, {"meta_learner": "posterior", "meta_batch_size": 8}
TRUSTED, MIXED, ADJUSTED = (
    {"train_on_trusted": True, "meta_learner": "mw-net"},
    {"mixup_alpha": 1.0},
    {"logit_adjustment": 1.0},
)
ELR, OPEN = {"elr_weight": 3.0}, {"meta_learner": None, "meta_optim": None, "meta_learning_rate": None}
OF_ADDITIONS = {
    "beliefs of a stream": (POSTERIOR, {"train_dataset": Stream()}, "PosteriorTargets needs to know which example is"),
    "forward correction of a stream": (
        FORWARD, {"train_dataset": Stream(), "meta_dataset": None}, "ForwardCorrection needs to know which example is"
    ),
    "a collator that drops rows": (
        POSTERIOR, {"data_collator": without_row}, "PosteriorTargets needs the column 'row' .* data_collator drops"
    ),
    "… of trusted ones": (
        {**TRUSTED, **PLAIN}, {"data_collator": without_row}, "train_on_trusted needs the column 'row'"
    ),
    "gradients of targets that do not scale": (
        {"meta_learner": "mw-net", "scale_example_gradients": True}, {"meta_learner": PosteriorTargets(4)},
        "PosteriorTargets, whose virtual and actual gradients do not differ by example weights alone",
    ),
    "margins below targets": (POSTERIOR, {"base_loss": margins()}, "from probabilities|soft targets"),
    "margins below forward correction": (FORWARD, {"base_loss": margins()}, "ForwardCorrection learns from probabil"),
    "margins of mixed images": (MIXED, {"base_loss": margins()}, "it does not go with mixup_alpha"),
    "mixed bytes": (
        {**MIXED, **PLAIN}, {"train_dataset": Changed(40, bytes_of)}, "mixes images, and .* of type torch.uint8"
    ),
    "mixed words": (
        {**MIXED, **PLAIN},
        {"train_dataset": [{"input_ids": [1, 2], "labels": 0}] * 8, "model": build_model("bert", torch.float32)},
        "mixup_alpha mixes images, and the examples hold input_ids: give pixel_values",
    ),
    "mixed examples without a label": (
        {**MIXED, **PLAIN}, {"train_dataset": Changed(40, lambda example: {**example, "labels": -100})},
        r"some examples have none \(-100\)",
    ),
    "mixup in a loss of the user's": (
        {**MIXED, **PLAIN}, {"compute_loss_func": lambda *given: 0}, "mixup_alpha=1.0 does nothing: drop one"
    ),
    "shares in a loss of the user's": (
        {**ADJUSTED, **PLAIN}, {"compute_loss_func": lambda *given: 0}, "logit_adjustment=1.0 does nothing: drop one"
    ),
    "shares of classes among trusted examples that are not told": (
        {**ADJUSTED, **TRUSTED}, {}, "logit_adjustment with train_on_trusted needs the labels of all trusted examples"
    ),
    "a term in a loss of the user's": (
        {**ELR, **PLAIN}, {"compute_loss_func": lambda *given: 0}, "elr_weight=3.0 does nothing: drop one"
    ),
    "beliefs of a stream in plain training": (
        {**ELR, **PLAIN}, {"train_dataset": Stream()}, "elr_weight needs to know which example is which"
    ),
    "beliefs of a stream where no meta-learner was chosen": (
        {**ELR, **OPEN}, {"train_dataset": Stream()}, "elr_weight needs to know which example is which"
    ),
    "beliefs without rows where no meta-learner was chosen": (
        {**ELR, **OPEN}, {"data_collator": without_row}, "elr_weight needs the column 'row'"
    ),
    "shares of a stream": ({**ADJUSTED, **PLAIN}, {"train_dataset": Stream()}, "needs the labels of all"),
    "none trusted": ({**TRUSTED, **PLAIN}, {"meta_dataset": None}, "train_on_trusted needs trusted examples"),
    "pseudo-clean ones": (TRUSTED, {"meta_dataset": None}, "train_on_trusted needs trusted examples, and there are no"),
    "trusted ones beside a stream": (TRUSTED, {"train_dataset": Stream()}, "train_on_trusted needs to know which"),
    "four trusted": (TRUSTED, {"meta_dataset": Examples(4, 1000)}, "there are 4: give at least 5"),
    "trusted ones without a column": (
        TRUSTED, {"train_dataset": Changed(40, lambda example: {**example, "weight": 1.0})}, "which lack weight$"
    ),
    "trusted ones with labels of another name": (
        {**TRUSTED, **PLAIN},
        {"meta_dataset": Changed(11, lambda example: {"pixel_values": example["pixel_values"], "label": 1})},
        r"lack labels \(they have label\)",
    ),
}  # fmt: skip


def trainer_with(folder, settings, keywords, kind=FaMUSTrainer, model=None):
    data = {"train_dataset": Examples(40), "meta_dataset": Examples(11, 1000)}
    model = keywords.get("model") or model or build_model("batch norm", torch.float32)
    keywords = {name: value for name, value in keywords.items() if name != "model"}
    return kind(model, make_args(folder, **{"layer_sampler": "all", **settings}), **{**data, **keywords})


@pytest.mark.parametrize("case", OF_ADDITIONS)
def test_what_can_not_be_added_is_refused_in_one_sentence_before_training(tmp_path, case):
    settings, keywords, sentence = OF_ADDITIONS[case]
    with pytest.raises(FaMUSError, match=sentence) as error:
        trainer_with(tmp_path, settings, keywords)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize("trusted", [0, 4, 11])
def test_trusted_examples_train_where_nobody_asked_only_if_they_can(tmp_path, trusted):
    meta = Examples(trusted, 1000) if trusted else None
    trainer = trainer_with(tmp_path, POSTERIOR, {"meta_dataset": meta})
    assert trainer.args.train_on_trusted == (trusted == 11)
    trainer.train()
    assert len(trainer._trusted_in_training) == (9 if trusted == 11 else 0) and trainer.beliefs is not None


def test_beliefs_beyond_a_limit_are_refused_in_bytes(tmp_path):
    class Many(Examples):
        def __len__(self):
            return 2**28 + 1

    with pytest.raises(SettingsError, match=rf"of {2**28 + 1} examples in 4 classes, {2**32 + 16} bytes on"):
        trainer_with(tmp_path, POSTERIOR, {"train_dataset": Many(40)})
    model = build_model("vit", torch.float32)
    with pytest.raises(SettingsError, match=rf"^elr_weight remembers what is believed of {2**28 + 1} examples in"):
        trainer_with(tmp_path, {**ELR, **PLAIN}, {"train_dataset": Many(40)}, model=model)


def test_shares_of_classes_need_their_number_and_no_other_margins(tmp_path):
    train = Dataset.from_dict({"pixel_values": np.zeros((40, 3, 8, 8), np.float32), "labels": [0, 1] * 20})
    train = train.with_format("torch")
    settings = {**ADJUSTED, **PLAIN}
    trainer_with(tmp_path, settings, {"train_dataset": train})
    with pytest.raises(SettingsError, match=r"the PlainModule has no config\.num_labels: give it one"):
        trainer_with(tmp_path, settings, {"train_dataset": train}, model=PlainModule())
    with pytest.raises(SettingsError, match="it does not go with logit_adjustment"):
        trainer_with(tmp_path, settings, {"train_dataset": train, "base_loss": margins()})


def test_a_loss_that_a_subclass_computes_is_not_passed_over(tmp_path):
    class Own(FaMUSTrainer):
        def compute_loss(self, *given, **keywords):
            return super().compute_loss(*given, **keywords)

    with pytest.raises(SettingsError, match=r"Own\.compute_loss is the whole loss, so that mixup_alpha does nothing"):
        trainer_with(tmp_path, {**MIXED, **PLAIN}, {}, kind=Own)
    with pytest.raises(SettingsError, match=r"Own\.compute_loss is the whole loss, so that elr_weight does nothing"):
        trainer_with(tmp_path, {**ELR, **PLAIN}, {}, kind=Own)
    trainer_with(tmp_path, PLAIN, {}, kind=Own)


@pytest.mark.parametrize("settings", [TRUSTED, ADJUSTED, ELR])
def test_two_networks_take_neither_trusted_rows_nor_shares_and_mix_as_ever(tmp_path, settings):
    def two(**settings):
        model = TwoModels(build_model("batch norm", torch.float32, 0), build_model("batch norm", torch.float32, 1))
        return trainer_with(tmp_path, settings, {"meta_dataset": None}, kind=TwoNetworkTrainer, model=model)

    with pytest.raises(SettingsError, match=f"{next(iter(settings))} does not go with two networks: leave it out"):
        two(**settings)
    with pytest.raises(SettingsError, match="meta_learner='posterior' does not go with two networks"):
        two(**POSTERIOR)
    assert two().args.mixup_alpha == 0.5 and two(mixup_alpha=0.0).args.mixup_alpha == 0.0


def test_a_batch_without_labels_for_all_is_not_mixed(tmp_path):
    """Where no check before training has seen it."""
    late = Changed(40, lambda example: {**example, "labels": -100 if example["index"] == 39 else example["labels"]})
    trainer = trainer_with(tmp_path, {**MIXED, **PLAIN}, {"train_dataset": late})
    with pytest.raises(DataError, match="-100"):
        trainer.train()
