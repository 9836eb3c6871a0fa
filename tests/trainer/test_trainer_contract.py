"""Every field of TrainingArguments, and every parameter of Trainer and its methods: each works or is refused.

`FIELDS` says of each field how it is shown to work, on transformers' Trainer as well as on ours, plainly and with
MW-Net and the learned sampler: under some settings something is seen that a run without them does not have.
"""

import dataclasses
import inspect
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import is_compiled_module
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from famus_hf import BilateralBranchTrainer, FaMUSTrainer
from famus_hf.data.inputs import meta_batches
from famus_hf.two_networks.pair_trainer import PairTrainer
from famus_hf.two_networks.trainer import TwoNetworkTrainer
from tests.helpers.three_modes import (
    EVAL,
    MODES,
    OURS,
    TRAIN,
    ToyClassifier,
    ToyConfig,
    examples,
    make,
    make_args,
    make_toy,
    run,
)

ROOT = Path(__file__).parents[2]


@dataclass
class Shown:
    """A run that shows that a field works.

    Attributes:
        settings: Of the run; the field among them.
        seen: Run with them, run without → whether their effect is there.
        keywords: Of the trainer, made anew for each run.
        act: What is done after the training.
        trains: Whether it needs to train.
        modes: In which it is shown.
    """

    settings: dict[str, Any]
    seen: Callable[[Any, Any], bool]
    keywords: Callable[[], dict[str, Any]] = dict
    act: Callable[[Any], Any] | None = None
    trains: bool = True
    modes: tuple[str, ...] = MODES


@dataclass
class Elsewhere:
    """Tests of their own that show it."""

    tests: tuple[str, ...]

    def __init__(self, *tests: str):
        self.tests = tests


@dataclass
class Refused:
    """A sentence before training."""

    settings: dict[str, Any]
    sentence: str
    modes: tuple[str, ...] = OURS


def steps(entries):
    return [entry["step"] for entry in entries]


def sizes(batches):
    return [len(batch) for batch in batches]


def checkpoints(found):
    return sorted(path.name for path in found.folder.glob("checkpoint-*"))


def evaluated(trainer):
    return trainer.evaluate()


def predicted(trainer):
    return trainer.predict(trainer.eval_dataset)


def accelerator_args(found):
    return found.trainer._build_accelerator_args()


def handler(found):
    """What accelerate wraps a network with in DDP by."""
    return accelerator_args(found)["kwargs_handlers"][0]


def loader(found):
    return found.trainer.get_train_dataloader()


class Metrics:
    """Notes what `compute_metrics` is given."""

    def __init__(self):
        self.given = []

    def __call__(self, prediction, compute_result=False):
        self.given.append((prediction, compute_result))
        return {"accuracy": float((np.argmax(np.asarray(prediction.predictions), 1) == prediction.label_ids).mean())}


class BatchMetrics(Metrics):
    def __call__(self, prediction, compute_result=False):
        self.given.append((prediction, compute_result))
        return {"batches": len(self.given)} if compute_result else {}


def with_metrics(kind=Metrics):
    return lambda: {"compute_metrics": kind()}


class AskForCheckpoint(TrainerCallback):
    """Sends the signal that clusters send before they end a job, and waits until it has been noticed."""

    def on_step_end(self, args, state, control, **keywords):
        if state.global_step == 2:
            manager = self.manager
            manager.kill_wait = 0
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 5
            while not manager.is_checkpoint_requested and time.monotonic() < deadline:
                time.sleep(0.01)

    def on_train_begin(self, args, state, control, **keywords):
        (self.manager,) = [c.jit_manager for c in self.handler.callbacks if hasattr(c, "jit_manager")]


def ordered(found):
    return [row for batch in found.collator.train[:4] for row in batch] == list(range(16))


ADAM = {"optim": "adamw_torch", "optim_args": None, "learning_rate": 1e-3}
EVERY = {"eval_strategy": "steps", "eval_steps": 1}
SAVING = {"save_strategy": "steps", "save_steps": 1}
COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}

FIELDS: dict[str, Any] = {
    # ---- Steps, batches, schedule, optimizer ----
    "output_dir": Shown({}, lambda r, base: Path(r.trainer.args.output_dir) == r.folder and r.folder.is_dir()
                        and r.folder != base.folder),
    "per_device_train_batch_size": Shown(
        {"per_device_train_batch_size": 8}, lambda r, _: sizes(r.collator.train)[0] == 8
    ),
    "num_train_epochs": Shown({"num_train_epochs": 2, "max_steps": -1}, lambda r, _: r.trainer.state.global_step == 8),
    "max_steps": Shown({"max_steps": 2}, lambda r, _: r.trainer.state.global_step == 2),
    "learning_rate": Shown({"learning_rate": 0.01}, lambda r, _: r.rates == [0.01] * 3),
    "lr_scheduler_type": Shown({"lr_scheduler_type": "linear"}, lambda r, _: r.rates[0] > r.rates[1] > r.rates[2]),
    "lr_scheduler_kwargs": Shown(
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.04}, "max_steps": 4},
        lambda r, _: 0.04 <= min(r.rates) < 0.05,
    ),
    "warmup_steps": Shown(
        {"warmup_steps": 2, "lr_scheduler_type": "linear"}, lambda r, _: r.rates[0] < r.rates[1] <= 0.05
    ),
    "optim": Shown({**ADAM}, lambda r, _: type(r.trainer.optimizer.optimizer) is torch.optim.AdamW),
    "optim_args": Shown({"optim_args": "momentum=0.5"}, lambda r, _: r.groups[0]["momentum"] == 0.5),
    "weight_decay": Shown({"weight_decay": 0.1}, lambda r, _: r.groups[0]["weight_decay"] == 0.1),
    "adam_beta1": Shown({**ADAM, "adam_beta1": 0.7}, lambda r, _: r.groups[0].get("betas", (0,))[0] == 0.7),
    "adam_beta2": Shown({**ADAM, "adam_beta2": 0.7}, lambda r, _: r.groups[0].get("betas", (0, 0))[1] == 0.7),
    "adam_epsilon": Shown({**ADAM, "adam_epsilon": 1e-3}, lambda r, _: r.groups[0].get("eps") == 1e-3),
    "optim_target_modules": Refused({"optim_target_modules": ["hidden"]}, "it is for GaLore and APOLLO"),
    "gradient_accumulation_steps": Shown(
        {"gradient_accumulation_steps": 2}, lambda r, _: sizes(r.collator.train)[:6] == [4] * 6
        and r.trainer.state.global_step == 3 and len(r.collator.train) >= 6,
    ),
    "average_tokens_across_devices": Elsewhere("test_examples_are_counted_over_all_processes"),
    "max_grad_norm": Shown({"max_grad_norm": 1e-3}, lambda r, base: r.way < 0.1 * base.way),
    "label_smoothing_factor": Shown(
        {"label_smoothing_factor": 0.5}, lambda r, base: abs(r.log[0]["loss"] - base.log[0]["loss"]) > 1e-4
    ),
    "train_sampling_strategy": Shown(
        {"train_sampling_strategy": "sequential", "max_steps": 4}, lambda r, _: ordered(r)
    ),
    "length_column_name": Elsewhere("test_batches_are_grouped_by_a_column_of_lengths"),
    # ---- Precision and memory ----
    "bf16": Shown({"bf16": True}, lambda r, _: torch.bfloat16 in r.trainer.model.dtypes),
    "fp16": Refused({"fp16": True}, "(?i)fp16 .*GPU"),
    "bf16_full_eval": Shown(
        {"bf16_full_eval": True}, lambda r, _: torch.bfloat16 in r.trainer.model.dtypes, act=evaluated
    ),
    "fp16_full_eval": Shown(
        {"fp16_full_eval": True}, lambda r, _: torch.float16 in r.trainer.model.dtypes, act=evaluated
    ),
    "tf32": Refused({"tf32": True}, "--tf32 requires Ampere"),
    "activation_checkpointing": Shown(
        {"activation_checkpointing": True}, lambda r, _: r.trainer.model.is_gradient_checkpointing
    ),
    "activation_checkpointing_kwargs": Shown(
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        lambda r, _: getattr(r.trainer.model.hidden, "_gradient_checkpointing_func", None) is not None
        and r.trainer.model.hidden._gradient_checkpointing_func.keywords == {"use_reentrant": False},
    ),
    "gradient_checkpointing": Shown(
        {"gradient_checkpointing": True}, lambda r, _: r.trainer.model.is_gradient_checkpointing
    ),
    "gradient_checkpointing_kwargs": Shown(
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        lambda r, _: getattr(r.trainer.model.hidden, "_gradient_checkpointing_func", None) is not None
        and r.trainer.model.hidden._gradient_checkpointing_func.keywords == {"use_reentrant": False},
    ),
    "torch_compile": Shown(COMPILED, lambda r, _: is_compiled_module(r.trainer.model_wrapped)),
    "torch_compile_backend": Shown(
        COMPILED, lambda r, _: accelerator_args(r)["dynamo_plugin"].backend == "EAGER", trains=False
    ),
    "torch_compile_mode": Shown(
        {"torch_compile_mode": "reduce-overhead"}, trains=False,
        seen=lambda r, _: accelerator_args(r)["dynamo_plugin"].mode == "reduce-overhead",
    ),
    "use_liger_kernel": Refused({"use_liger_kernel": True}, "liger"),
    "liger_kernel_config": Refused({"liger_kernel_config": {"rope": True}}, "does nothing without use_liger_kernel"),
    "use_cache": Shown({"use_cache": True}, lambda r, _: r.trainer.model.config.use_cache, trains=False),
    "neftune_noise_alpha": Shown(
        {"neftune_noise_alpha": 50.0}, lambda r, base: abs(r.log[0]["loss"] - base.log[0]["loss"]) > 1e-3
        and not r.trainer.model.embedding._forward_hooks,
    ),
    "torch_empty_cache_steps": Elsewhere("test_the_cache_is_emptied_every_so_many_steps"),
    "auto_find_batch_size": Elsewhere("test_a_batch_that_is_too_large_is_halved_in_plain_training"),
    # ---- Logging ----
    "logging_strategy": Shown({"logging_strategy": "epoch", "max_steps": 4}, lambda r, _: steps(r.log) == [4]),
    "logging_steps": Shown({"logging_steps": 2}, lambda r, _: steps(r.log) == [2]),
    "logging_first_step": Shown({"logging_steps": 3, "logging_first_step": True}, lambda r, _: steps(r.log) == [1, 3]),
    "log_on_each_node": Elsewhere("test_who_logs_and_saves_on_several_machines"),
    "logging_nan_inf_filter": Elsewhere("test_examples_whose_loss_is_no_number_count_in_no_mean_unless_asked_for"),
    "include_num_input_tokens_seen": Shown(
        {"include_num_input_tokens_seen": "all"}, lambda r, _: r.trainer.state.num_input_tokens_seen == 3 * 4 * 5
    ),
    "log_level": Shown(
        {"log_level": "debug"}, trains=False,
        seen=lambda r, base: r is not base and transformers.logging.get_verbosity() == 10
        and (r.mode == "control" or logging.getLogger("famus_hf").level == 10),
    ),
    "log_level_replica": Elsewhere("test_who_logs_and_saves_on_several_machines"),
    "disable_tqdm": Shown(
        {"disable_tqdm": False}, trains=False,
        seen=lambda r, _: any("Progress" in type(c).__name__ for c in r.trainer.callback_handler.callbacks),
    ),
    "report_to": Elsewhere("test_trackers_are_asked_for_by_name"),
    **{
        name: Shown({name: "mine"}, lambda r, _, name=name: getattr(r.noted.args, name) == "mine")
        for name in ("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
    },
    # ---- Evaluation ----
    "eval_strategy": Shown({"eval_strategy": "epoch", "max_steps": 4}, lambda r, _: steps(r.evals) == [4]),
    "eval_steps": Shown({**EVERY, "eval_steps": 2}, lambda r, _: steps(r.evals) == [2, 3]),
    "eval_delay": Shown({**EVERY, "eval_delay": 2}, lambda r, _: steps(r.evals) == [2, 3]),
    "per_device_eval_batch_size": Shown(
        {"per_device_eval_batch_size": 3}, lambda r, _: sizes(r.collator.eval)[-2:] == [3, 3], act=evaluated
    ),
    "prediction_loss_only": Shown(
        {"prediction_loss_only": True}, act=predicted,
        seen=lambda r, _: r.result is not None and r.result.predictions is None,
    ),
    "eval_on_start": Shown({**EVERY, "eval_on_start": True}, lambda r, _: steps(r.evals) == [0, 1, 2, 3]),
    "eval_do_concat_batches": Shown(
        {"eval_do_concat_batches": False}, act=predicted,
        seen=lambda r, _: r.result is not None and [len(part) for part in r.result.predictions] == [4, 2],
    ),
    "eval_use_gather_object": Shown(
        {"eval_use_gather_object": True}, lambda r, _: r.trainer.gather_function.keywords["use_gather_object"],
        trains=False,
    ),
    "eval_accumulation_steps": Elsewhere("test_predictions_leave_the_device_every_so_many_steps"),
    "include_for_metrics": Shown(
        {"include_for_metrics": ["inputs", "loss"]}, keywords=with_metrics(), act=evaluated,
        seen=lambda r, _: r.trainer.compute_metrics is not None
        and np.shape(r.trainer.compute_metrics.given[-1][0].inputs) == (6, 5)
        and np.size(r.trainer.compute_metrics.given[-1][0].losses) == 6,
    ),
    "batch_eval_metrics": Shown(
        {"batch_eval_metrics": True}, keywords=with_metrics(BatchMetrics), act=evaluated,
        seen=lambda r, _: r.result is not None and r.result["eval_batches"] == 2,
    ),
    # ---- Saving ----
    "save_only_model": Shown(
        {**SAVING, "save_only_model": True}, lambda r, _: checkpoints(r) == [f"checkpoint-{n}" for n in (1, 2, 3)]
        and not (r.folder / "checkpoint-3" / "optimizer.pt").exists(),
    ),
    "save_strategy": Shown({"save_strategy": "epoch", "max_steps": 4}, lambda r, _: checkpoints(r) == ["checkpoint-4"]),
    "save_steps": Shown({**SAVING, "save_steps": 2}, lambda r, _: checkpoints(r) == ["checkpoint-2", "checkpoint-3"]),
    "save_on_each_node": Elsewhere("test_who_logs_and_saves_on_several_machines"),
    "save_total_limit": Shown({**SAVING, "save_total_limit": 1}, lambda r, _: checkpoints(r) == ["checkpoint-3"]),
    "enable_jit_checkpoint": Elsewhere("test_a_signal_to_end_leaves_a_checkpoint"),
    "load_best_model_at_end": Elsewhere("tests/trainer/test_trainer_behaviour.py::test_the_best_model_comes_back"),
    "metric_for_best_model": Elsewhere("tests/trainer/test_trainer_behaviour.py::test_the_best_model_comes_back"),
    "greater_is_better": Elsewhere("tests/trainer/test_trainer_behaviour.py::test_the_best_model_comes_back"),
    "ignore_data_skip": Elsewhere("tests/trainer/test_trainer_behaviour.py::test_a_resumed_run_may_read_an_epoch_anew"),
    "restore_callback_states_from_checkpoint": Elsewhere(
        "tests/trainer/test_checkpointing.py::test_early_stopping_comes_back_as_it_was_and_more_patience_goes_on"
    ),
    # ---- Hub ----
    **{
        name: Elsewhere("tests/hub/test_push.py::" + test)
        for name, test in {
            "push_to_hub": "test_a_run_goes_on_from_the_hub_bit_for_bit",
            "hub_token": "test_no_token_is_in_any_file_or_line",
            "hub_private_repo": "test_a_private_repository_is_private_and_opens_with_a_token_alone",
            "hub_model_id": "test_a_run_goes_on_from_the_hub_bit_for_bit",
            "hub_strategy": "test_settings_that_would_push_pickles_or_nothing_to_resume_from_are_refused",
            "hub_revision": "test_a_branch_to_resume_from_is_that_of_hub_revision",
            # Every save is pushed and waited for, and so none is passed over.
            "hub_always_push": "test_a_hub_that_fails_while_training_costs_a_warning_and_the_next_save_pushes",
        }.items()
    },
    # ---- Randomness ----
    "full_determinism": Elsewhere("test_full_determinism_is_switched_on"),
    "seed": Shown(
        {"seed": 6}, lambda r, base: not torch.equal(r.before["hidden.linear.bias"], base.before["hidden.linear.bias"]),
        keywords=lambda: {"model_init": lambda: ToyClassifier(ToyConfig())}, trains=False,
    ),
    "data_seed": Shown({"data_seed": 6}, lambda r, base: r.collator.train != base.collator.train),
    # ---- Devices, processes, loading ----
    "use_cpu": Shown({"use_cpu": True}, lambda r, base: r is not base and r.trainer.args.device.type == "cpu"),
    "accelerator_config": Shown(
        {"accelerator_config": {"split_batches": True}}, lambda r, _: r.trainer.accelerator.split_batches
    ),
    "parallelism_config": Elsewhere("test_parallelism_is_handed_to_accelerate_or_refused"),
    "dataloader_drop_last": Shown(
        {"dataloader_drop_last": True, "per_device_train_batch_size": 5, "max_steps": 4},
        lambda r, _: sizes(r.collator.train)[:4] == [5] * 4,
    ),
    "dataloader_num_workers": Shown(
        {"dataloader_num_workers": 1}, lambda r, _: loader(r).num_workers == 1 and r.trainer.state.global_step == 3
    ),
    # On CPU torch would only warn of it.
    "dataloader_pin_memory": Shown(
        {"dataloader_pin_memory": True}, lambda r, base: r is not base and not loader(r).pin_memory, trains=False
    ),
    "dataloader_persistent_workers": Shown(
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        lambda r, _: loader(r).persistent_workers, trains=False,
    ),
    "dataloader_prefetch_factor": Shown(
        {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3}, lambda r, _: loader(r).prefetch_factor == 3,
        trains=False,
    ),
    "dataloader_multiprocessing_context": Shown(
        {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "forkserver"}, trains=False,
        seen=lambda r, _: loader(r).multiprocessing_context is not None
        and loader(r).multiprocessing_context.get_start_method() == "forkserver",
    ),
    "dataloader_in_order": Shown({"dataloader_in_order": False}, lambda r, _: not loader(r).in_order, trains=False),
    "remove_unused_columns": Elsewhere(
        "tests/trainer/test_classifier_mixin.py::"
        "test_a_collator_of_ones_own_sees_all_columns_unless_they_are_to_be_removed"
    ),
    "label_names": Elsewhere(
        "tests/trainer/test_classifier_mixin.py::test_labels_may_have_another_name_in_plain_training",
        "tests/trainer/test_classifier_mixin.py::test_other_names_of_labels_are_refused_where_they_can_not_be",
    ),
    "ddp_find_unused_parameters": Shown(
        {"ddp_find_unused_parameters": True}, lambda r, base: r is not base and handler(r).find_unused_parameters,
        trains=False,
    ),
    "ddp_bucket_cap_mb": Shown({"ddp_bucket_cap_mb": 7}, lambda r, _: handler(r).bucket_cap_mb == 7, trains=False),
    "ddp_broadcast_buffers": Shown(
        {"ddp_broadcast_buffers": False}, lambda r, _: not handler(r).broadcast_buffers, trains=False
    ),
    "ddp_static_graph": Shown({"ddp_static_graph": True}, lambda r, _: handler(r).static_graph, trains=False),
    "ddp_backend": Elsewhere("test_backend_and_patience_of_processes_reach_accelerate"),
    "ddp_timeout": Elsewhere("test_backend_and_patience_of_processes_reach_accelerate"),
    "fsdp": Refused({"fsdp": "full_shard"}, "fsdp asks for FSDP, which does not engage on CPU"),
    "fsdp_config": Refused({"fsdp_config": {"version": 2}}, "fsdp_config does nothing without fsdp"),
    "deepspeed": Refused({"deepspeed": {"zero_optimization": {"stage": 2}}}, "(?i)deepspeed"),
    "debug": Shown({"debug": "underflow_overflow"}, lambda r, _: bool(r.trainer.model._forward_hooks)),
    "skip_memory_metrics": Shown(
        {"skip_memory_metrics": False},
        lambda r, _: any("train_mem_cpu_alloc_delta" in entry for entry in r.trainer.state.log_history),
    ),
    # ---- For scripts, which read them; Trainer does not ----
    **{
        name: Shown({name: value}, lambda r, _, given=(name, value): getattr(r.trainer.args, given[0]) == given[1])
        for name, value in {
            "do_train": True, "do_eval": True, "do_predict": True, "resume_from_checkpoint": "a folder", "local_rank": 3
        }.items()
    },
}  # fmt: skip

# Of the methods that users call: of each parameter, the test that shows it.
BEHAVIOUR = "tests/trainer/test_trainer_behaviour.py::"
CARD = "tests/reporting/test_model_card.py::test_the_card_takes_what_transformers_examples_say_of_a_run"
PUSH = "tests/hub/test_push.py::"
SEARCH = "tests/trainer/test_search.py::test_hyperparameter_search_finds_the_best_of_its_trials"
MIXIN = "tests/trainer/test_classifier_mixin.py::"
PARAMETERS: dict[str, dict[str, str]] = {
    "__init__": {
        "model": "test_one_run_in_three_modes",
        "args": "test_arguments_of_transformers_are_refused",
        "data_collator": MIXIN + "test_a_collator_of_ones_own_sees_all_columns_unless_they_are_to_be_removed",
        "train_dataset": "test_one_run_in_three_modes",
        "eval_dataset": BEHAVIOUR + "test_several_evaluation_sets_are_told_apart",
        "processing_class": MIXIN + "test_a_tokenised_set_may_keep_its_texts_and_the_records_reach_the_logs",
        "model_init": BEHAVIOUR + "test_model_init_starts_each_training_anew",
        "compute_loss_func": MIXIN + "test_a_loss_function_of_trainers_is_called_whatever_the_network",
        "compute_metrics": "test_fields_work",
        "callbacks": BEHAVIOUR + "test_callbacks_hear_the_same_events_in_the_same_order",
        "optimizers": BEHAVIOUR + "test_optimizers_are_those_that_are_given",
        "optimizer_cls_and_kwargs": BEHAVIOUR + "test_optimizers_are_those_that_are_given",
        "preprocess_logits_for_metrics": BEHAVIOUR + "test_metrics_are_given_what_is_made_of_the_logits",
    },
    "train": {
        "resume_from_checkpoint": BEHAVIOUR + "test_a_run_goes_on_from_its_checkpoint",
        "trial": SEARCH,
        "ignore_keys_for_eval": BEHAVIOUR + "test_outputs_may_be_left_out_of_predictions",
    },
    "evaluate": {
        "eval_dataset": BEHAVIOUR + "test_several_evaluation_sets_are_told_apart",
        "ignore_keys": BEHAVIOUR + "test_outputs_may_be_left_out_of_predictions",
        "metric_key_prefix": BEHAVIOUR + "test_metrics_have_the_prefix_that_is_asked_for",
    },
    "predict": {
        "test_dataset": BEHAVIOUR + "test_metrics_have_the_prefix_that_is_asked_for",
        "ignore_keys": BEHAVIOUR + "test_outputs_may_be_left_out_of_predictions",
        "metric_key_prefix": BEHAVIOUR + "test_metrics_have_the_prefix_that_is_asked_for",
    },
    "save_model": {
        "output_dir": BEHAVIOUR + "test_a_model_is_saved_where_it_is_asked_for",
        "_internal_call": BEHAVIOUR + "test_a_model_is_saved_where_it_is_asked_for",
    },
    "create_model_card": dict.fromkeys(
        ("language", "license", "tags", "model_name", "finetuned_from", "tasks", "dataset_tags", "dataset",
         "dataset_args"), CARD,
    ),
    "push_to_hub": {
        "commit_message": PUSH + "test_a_push_takes_the_words_of_trainers",
        "blocking": PUSH + "test_the_last_checkpoint_of_another_run_goes_and_ones_own_stays",
        "token": PUSH + "test_a_private_repository_is_private_and_opens_with_a_token_alone",
        "revision": PUSH + "test_a_push_takes_the_words_of_trainers",
        "private": PUSH + "test_a_push_takes_the_words_of_trainers",
        "kwargs": PUSH + "test_a_push_takes_the_words_of_trainers",
    },
    "hyperparameter_search": dict.fromkeys(
        ("hp_space", "compute_objective", "n_trials", "direction", "backend", "hp_name", "kwargs"), SEARCH
    ),
    "add_callback": {"callback": BEHAVIOUR + "test_callbacks_come_and_go"},
    "pop_callback": {"callback": BEHAVIOUR + "test_callbacks_come_and_go"},
    "remove_callback": {"callback": BEHAVIOUR + "test_callbacks_come_and_go"},
}  # fmt: skip


# ---- The table is whole ----


def names_of_tests(path):
    return set(re.findall(r"^def (test_\w+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE))


def assert_there(test):
    path, _, name = test.rpartition("::")
    assert name in names_of_tests(path or "tests/trainer/test_trainer_contract.py"), test


def test_every_field_of_this_version_is_in_the_table():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert transformers.__version__ == "5.23.0", "look at what is new, and then at this line"
    assert fields == set(FIELDS), fields ^ set(FIELDS)
    for entry in FIELDS.values():
        for test in entry.tests if isinstance(entry, Elsewhere) else ():
            assert_there(test)


@pytest.mark.parametrize("method", PARAMETERS)
def test_every_parameter_is_in_the_table_and_spelled_out(method):
    """By the same name, in the same place, and typed; ours come after it, by name alone."""
    theirs = [*inspect.signature(getattr(Trainer, method)).parameters.values()][1:]
    table = PARAMETERS[method]
    assert {parameter.name for parameter in theirs} == set(table)
    for test in filter(None, table.values()):
        assert_there(test)
    for kind in (FaMUSTrainer, TwoNetworkTrainer, PairTrainer, BilateralBranchTrainer):
        ours = [*inspect.signature(getattr(kind, method)).parameters.values()][1:]
        positional = [parameter for parameter in theirs if parameter.kind is not parameter.VAR_KEYWORD]
        assert [parameter.name for parameter in ours[: len(positional)]] == [each.name for each in positional]
        assert [parameter.default for parameter in ours[: len(positional)]] == [each.default for each in positional]
        own = ours[len(positional) :]
        assert all(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in own)
        is_ours = getattr(kind, method) is not getattr(Trainer, method)
        assert not is_ours or all(parameter.annotation is not parameter.empty for parameter in ours)
        if method == "__init__":
            names = ["meta_dataset", "meta_learner", "layer_sampler", "base_loss"]
            assert [parameter.name for parameter in own] == names
            assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own)


# ---- Each entry ----


@pytest.fixture(scope="module")
def plain_runs(tmp_path_factory):
    """Of each mode a run by the shared settings alone, once trained and once not."""
    made = {}

    def of(mode, trains):
        if (mode, trains) not in made:
            folder = tmp_path_factory.mktemp(mode)
            made[mode, trains] = (run if trains else make)(mode, folder)
        return made[mode, trains]

    return of


SHOWN = [(name, mode) for name, entry in FIELDS.items() if isinstance(entry, Shown) for mode in entry.modes]
REFUSED = [(name, mode) for name, entry in FIELDS.items() if isinstance(entry, Refused) for mode in entry.modes]


@pytest.mark.parametrize("name, mode", SHOWN)
@pytest.mark.filterwarnings("ignore")
def test_fields_work(tmp_path, plain_runs, name, mode):
    entry, base = FIELDS[name], plain_runs(mode, FIELDS[name].trains)
    folder = tmp_path / "run"
    if entry.trains:
        found = run(mode, folder, entry.settings, entry.act, **entry.keywords())
    else:
        found = make(mode, folder, entry.settings, **entry.keywords())
    assert entry.seen(found, base), entry.settings
    assert not entry.seen(base, base), "a run without it shows the same"


@pytest.mark.parametrize("name, mode", REFUSED)
def test_fields_are_refused_in_one_sentence_before_training(tmp_path, name, mode):
    with pytest.raises((ValueError, ImportError), match=FIELDS[name].sentence) as error:
        run(mode, tmp_path, FIELDS[name].settings)
    assert "\n" not in str(error.value).strip()


def test_one_run_in_three_modes(tmp_path):
    """Plainly ours takes the very steps of Trainer's; with a meta-learner others, from the same start and batches."""
    control, plain, meta = (run(mode, tmp_path / mode) for mode in MODES)
    assert torch.equal(control.weights, plain.weights)
    assert not torch.allclose(plain.weights, meta.weights)
    assert control.collator.train == plain.collator.train == meta.collator.train
    assert all(torch.equal(control.before[name], meta.before[name]) for name in control.before)


def test_arguments_of_transformers_are_refused(tmp_path):
    with pytest.raises(TypeError, match="args is a TrainingArguments: FaMUSTrainer needs FaMUSTrainingArguments"):
        FaMUSTrainer(make_toy(), TrainingArguments(str(tmp_path)), train_dataset=examples(16, TRAIN))


# ---- What needs more than one run to be seen ----


@pytest.mark.parametrize("mode", MODES)
def test_examples_are_counted_over_all_processes(tmp_path, mode):
    """As `compute_loss_func` is told; where the field is off, over those of this process."""
    for asked, count in ((True, 8), (False, 4)):
        trainer = make(mode, tmp_path, {"average_tokens_across_devices": asked}).trainer
        trainer.compute_loss_func = lambda *_: None
        two = patch.object(type(trainer.args), "world_size", property(lambda self: 2))
        gathered = patch.object(trainer.accelerator, "gather", lambda number: torch.stack([number, number]))
        with two, gathered:
            found = trainer._get_num_items_in_batch([{"labels": torch.zeros(4)}], torch.device("cpu"))
        assert int(found) == count


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_batches_are_grouped_by_a_column_of_lengths(tmp_path, mode, strategy):
    """Each batch is sorted, its first example perhaps changed for the longest of all; or those of a step are divided.

    transformers 5.23 looks for the column only after it has dropped it, where unused ones are dropped.
    """
    rows = [
        {**row, "input_ids": row["input_ids"].tolist(), "width": 1 + row["index"] % 4} for row in examples(16, TRAIN)
    ]
    accumulated = 2 if strategy == "batch_rebalance" else 1
    settings = {"train_sampling_strategy": strategy, "length_column_name": "width", "max_steps": 4 // accumulated,
                "gradient_accumulation_steps": accumulated}  # fmt: skip
    found = run(mode, tmp_path, settings, train_dataset=Dataset.from_list(rows))
    widths = [[1 + row % 4 for row in batch] for batch in found.collator.train[:4]]
    if strategy == "group_by_length":
        assert all(batch[1:] == sorted(batch[1:], reverse=True) for batch in widths)
    else:
        pairs = (sorted(widths[:2], key=sum), sorted(widths[2:4], key=sum))
        assert all(max(short) <= min(long) or max(long) <= min(short) for short, long in pairs)


@pytest.mark.parametrize("mode", ["control", "plain", "meta"])
def test_the_cache_is_emptied_every_so_many_steps(tmp_path, mode):
    place = "famus_hf.trainer.trainer" if mode == "meta" else "transformers.trainer"
    with patch(f"{place}.clear_device_cache") as clear:
        run(mode, tmp_path, {"torch_empty_cache_steps": 2, "max_steps": 4})
    assert clear.call_count == 2


@pytest.mark.parametrize("mode", ["control", "plain"])
def test_a_batch_that_is_too_large_is_halved_in_plain_training(tmp_path, mode):
    found = make(mode, tmp_path, {"auto_find_batch_size": True, "per_device_train_batch_size": 8})
    found.trainer.model.largest_batch = 4
    found.trainer.train()
    assert set(sizes(found.collator.train[-3:])) <= {2, 3, 4} and found.trainer.state.global_step >= 3
    with pytest.raises(ValueError, match="auto_find_batch_size does not work with a meta-learner yet"):
        make("meta", tmp_path, {"auto_find_batch_size": True})


@pytest.mark.parametrize("mode", MODES)
def test_who_logs_and_saves_on_several_machines(tmp_path, mode):
    """On the second machine, its first process: on each node or on none but the first."""
    for asked in (True, False):
        args = make_args(mode, tmp_path, log_on_each_node=asked, save_on_each_node=asked, log_level_replica="error",
                         log_level="info")  # fmt: skip
        kind = type(args)
        places = {"process_index": 2, "local_process_index": 0}
        second = [patch.object(kind, name, property(lambda self, at=at: at)) for name, at in places.items()]
        with second[0], second[1]:
            assert args.should_log == args.should_save == asked
            assert args.get_process_log_level() == (20 if asked else 40)


@pytest.mark.parametrize("mode", MODES)
def test_examples_whose_loss_is_no_number_count_in_no_mean_unless_asked_for(tmp_path, mode):
    """In evaluation; in our training `nan_policy` says what becomes of them."""
    for asked in (True, False):
        trainer = make(mode, tmp_path, {"logging_nan_inf_filter": asked, "per_device_eval_batch_size": 1}).trainer
        trainer.model.embedding.weight.data[15] = float("nan")
        bad = {**examples(1, EVAL)[0], "input_ids": torch.full((5,), 15)}
        good = {**examples(1, EVAL)[0], "input_ids": torch.zeros(5, dtype=torch.long)}
        assert np.isfinite(trainer.evaluate([good, bad])["eval_loss"]) == asked


@pytest.mark.parametrize("mode", MODES)
def test_trackers_are_asked_for_by_name(tmp_path, mode):
    class Tracker(TrainerCallback):
        pass

    with patch.dict("transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK", {"mine": Tracker}):
        found = make(mode, tmp_path, {"report_to": ["mine"]})
    assert any(isinstance(callback, Tracker) for callback in found.trainer.callback_handler.callbacks)
    with pytest.raises((ValueError, RuntimeError), match="theirs is not supported"):
        make(mode, tmp_path, {"report_to": "theirs"})


@pytest.mark.parametrize("mode", MODES)
def test_predictions_leave_the_device_every_so_many_steps(tmp_path, mode):
    counts = []
    for every in (1, None):
        trainer = make(mode, tmp_path, {"eval_accumulation_steps": every, "per_device_eval_batch_size": 1}).trainer
        with patch("transformers.trainer.EvalLoopContainer.to_cpu_and_numpy", autospec=True) as move:
            trainer.evaluate()
        counts.append(move.call_count)
    assert counts[0] >= 6 and counts[1] < 6


@pytest.mark.parametrize("mode", MODES)
def test_a_signal_to_end_leaves_a_checkpoint(tmp_path, mode):
    ask = AskForCheckpoint()
    found = make(mode, tmp_path, {"enable_jit_checkpoint": True, "max_steps": 8}, callbacks=[ask])
    ask.handler = found.trainer.callback_handler
    found.trainer.train()
    assert found.trainer.state.global_step <= 3 and checkpoints(found) in (["checkpoint-2"], ["checkpoint-3"])
    assert not list(found.folder.rglob("checkpoint-is-incomplete.txt"))
    again = make(mode, tmp_path, {"max_steps": 4})
    again.trainer.train(resume_from_checkpoint=True)
    whole = run(mode, tmp_path / "whole", {"max_steps": 4})
    assert torch.equal(again.weights, whole.weights)


@pytest.mark.parametrize("mode", MODES)
def test_full_determinism_is_switched_on(tmp_path, mode):
    with patch("transformers.trainer.enable_full_determinism") as enable:
        make(mode, tmp_path, {"full_determinism": True})
    enable.assert_called_once_with(5)


@pytest.mark.parametrize("mode", MODES)
def test_backend_and_patience_of_processes_reach_accelerate(tmp_path, mode):
    given = []

    def state(**settings):
        given.append(settings.pop("backend"))
        return PartialState(**settings)

    with patch("transformers.training_args.PartialState", state):
        args = make_args(mode, tmp_path, ddp_backend="gloo", ddp_timeout=77)
    assert given == ["gloo"] and args.ddp_timeout_delta.total_seconds() == 77


def test_parallelism_is_handed_to_accelerate_or_refused(tmp_path):
    for mode in ("control", "plain"):
        found = make(mode, tmp_path, {"parallelism_config": ParallelismConfig()})
        assert accelerator_args(found)["parallelism_config"] is not None
    with pytest.raises(ValueError, match="parallelism_config does not work with a meta-learner yet"):
        make("meta", tmp_path, {"parallelism_config": ParallelismConfig()})


def test_meta_batches_are_loaded_as_the_settings_say(tmp_path):
    settings = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 3, "dataloader_in_order": False,
                "dataloader_multiprocessing_context": "fork"}  # fmt: skip
    with patch.object(meta_batches, "DataLoader", wraps=meta_batches.DataLoader) as made:
        run("meta", tmp_path, {**settings, "max_steps": 1})
    given = made.call_args.kwargs
    assert {f"dataloader_{name}": given[name] for name in
            ("num_workers", "prefetch_factor", "in_order", "multiprocessing_context")} == settings  # fmt: skip
