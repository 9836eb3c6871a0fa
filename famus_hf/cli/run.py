"""Trains a classifier on noisy labels with FaMUS, evaluates it and leaves a folder ready for the Hub.

    famus-hf train --dataset_name digits --noise 0.4 --compare

The data are images, texts or recordings. Every flag of transformers' TrainingArguments works, and those listed by
--help. `--config file.yaml` sets defaults, as does `--recipe NAME` (the paper's tables, in recipes/); flags win. With
--two_networks, two networks divide the training set for each other, and no clean label is needed. With --compare, plain
training and the base method (all layers) run first, and with two networks DivideMix: same data, schedule and seed.
"""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import EarlyStoppingCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from famus_hf import (
    BilateralBranchTrainer,
    FaMUSTrainer,
    FaMUSTrainingArguments,
    PairTrainer,
    TwoNetworkTrainer,
)
from famus_hf.cli.arguments import DataArguments, ModelArguments, parse_arguments, short_name
from famus_hf.cli.freed_memory import keep_freed_memory
from famus_hf.cli.measurements import StepTimer, peak_memory_mb, start_measuring_memory
from famus_hf.cli.program import fail, started_as
from famus_hf.cli.results import (
    as_baseline,
    command_of,
    data_facts,
    divisions_of,
    layers_of,
    release_command,
    summary_of,
)
from famus_hf.cli.run_setup import (
    baselines_of,
    build_model,
    check_checkpoint,
    check_data_of,
    faster,
    load_data,
    method_name,
    resolve_checkpoint,
    select_on_meta_set,
    settings_for,
)
from famus_hf.data.labels.noise_file import write_noise_file
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.sources.benchmarks import BUILDERS
from famus_hf.errors import PushError, SettingsError
from famus_hf.hub.push import is_hub_id
from famus_hf.metrics import MeanPredictions
from famus_hf.reporting.diagnostics.console import ConsoleProgress
from famus_hf.reporting.diagnostics.time_estimate import CHEAP_STEP, META_STEP, TimeEstimate
from famus_hf.reporting.figures.run_records import read_run
from famus_hf.reporting.model_card import recorded_accuracies
from famus_hf.reporting.tables import format_notes, format_table
from famus_hf.reporting.true_accuracy import ACCURACY, AGREEMENT, facts_of, in_words
from famus_hf.storage import checkpoints
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.run_folder import NOISE_FILE, RESULTS

VERBOSE = ("debug", "info")  # values of --log_level with which everything is said, as transformers says it
STAYED_PLAIN = (
    "training stayed plain: the network disagrees with the labels no more than with trusted examples, but for chance"
)
GO_ON = "--resume_from_checkpoint true goes on from the newest checkpoint"


class Run:
    """One training run: set up without training, then trained and written down."""

    def __init__(self, model_args: ModelArguments, data_args: DataArguments, args: FaMUSTrainingArguments, data: Any):
        self.name, self.data_args, self.args, self.data = method_name(model_args, args), data_args, args, data
        self.network = model_args.network_choice or model_args.backbone or str(model_args.model_name_or_path)
        set_seed(args.seed)
        model, processor = build_model(model_args, data, args)
        self.timer = StepTimer()
        self.predictions = MeanPredictions(np.asarray([] if data_args.streaming else data["test"]["label"][:]))
        self.unpushed: str | None = None  # why the push at the end failed, and how to repeat it
        self.trainer: FaMUSTrainer = trainer_class(model_args, args)(
            model,
            args,
            train_dataset=data["train"],
            eval_dataset=select_on_meta_set(args, data_args, data),
            processing_class=processor,
            meta_dataset=data.get("meta"),
            compute_metrics=self.predictions,
            callbacks=[self.timer],
        )
        self.predictions.scale = self.trainer.evaluate_examples.logit_scale(model)
        if data_args.early_stopping_patience is not None:
            self.trainer.add_callback(EarlyStoppingCallback(data_args.early_stopping_patience))
        if args.log_level not in VERBOSE:
            self._say_little(model_args)

    def _say_little(self, model_args: ModelArguments) -> None:
        """Have the training say how long it takes and how far it is, in so few lines that they fit one screen."""
        trainer, args = self.trainer, self.args
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        console = ConsoleProgress(ACCURACY if self.test_labels_are_known else AGREEMENT, has_bar=not args.disable_tqdm)
        has_meta_step = trainer.meta_learner is not None and trainer.meta_learner.has_meta_step
        trainer.add_callback(console)
        trainer.add_callback(
            TimeEstimate(
                trainer.training_time,
                trainer.schedule.warmup_steps,
                0 if self.data_args.streaming else len(self.data["test"]),
                faster(model_args, args, has_meta_step),
                console.write,
                CHEAP_STEP if args.is_fast or not has_meta_step else META_STEP,
            )
        )

    def train(
        self, checkpoint: str | None, with_label_report: bool = False, card: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train, evaluate on the test set and write the output folder. Return what all_results.json holds.

        Args:
            checkpoint: To go on from.
            with_label_report: Whether the labels of the training set are examined afterwards.
            card: Further facts of the model card.
        """
        trainer = self.trainer
        set_seed(self.args.seed)  # every run of a comparison sees the same batches
        start_measuring_memory(self.args.device)
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = trainer.evaluate(self.data["test"])
        truth = self.facts_of_test_labels()
        others = [split for split in self.data if split.startswith("test_")]  # further sets to test on
        for split in others:
            metrics |= trainer.evaluate(self.data[split], metric_key_prefix=split)
        seconds = trainer.training_time.seconds
        results = {
            "method": self.name,
            "eval_accuracy": metrics["eval_accuracy"],
            "best_eval_accuracy": max(recorded_accuracies(trainer.state.log_history).values()),
            "eval_loss": metrics["eval_loss"],
            **truth,
            **{f"{split}_accuracy": metrics[f"{split}_accuracy"] for split in others},
            "network": self.network,
            "dataset_name": short_name(self.data_args) if self.is_folder else self.data_args.dataset_name,
            "protocol": self.data_args.protocol,
            **self.meta_set_facts,
            "train_seconds_per_step": self.timer.seconds_per_step,
            "train_seconds": seconds,
            "seconds_per_epoch": seconds / trainer.state.epoch if seconds and trainer.state.epoch else None,
            "peak_memory_mb": peak_memory_mb(self.args.device),
            "realised_noise_rate": self.realised_noise_rate,
            **self.two_network_facts,
            **layers_of([stages.meta for stages in trainer.networks.values()]),
            "mean_meta_cost": trainer.mean_meta_cost,
            "mean_fixed_meta_cost": trainer.mean_fixed_meta_cost,
            "global_step": trainer.state.global_step,
            "seed": self.args.seed,
        }
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        if trainer.is_world_process_zero():
            self.write_records(results)
        if with_label_report:
            report = trainer.save_label_report(test_dataset=self.judged_test_set)
            results |= summary_of(report, trainer.noise_rate_deviation)
            signal = trainer.training_signal()
            if signal is not None:
                results |= {"right_share_of_labels": signal.of_labels, "right_share_of_targets": signal.of_targets}
                if self.is_first_process:
                    print(signal.in_words, flush=True)
            elif trainer.meta_learner is not None and trainer.meta_learner.waits and self.is_first_process:
                print(STAYED_PLAIN, flush=True)
            if trainer.is_world_process_zero():
                self.write_results(results)
        self.push_or_write_card(results, card or {})
        return results

    @property
    def is_first_process(self) -> bool:
        """Whether this process is the one of several that writes and prints."""
        return self.args.process_index == 0

    @property
    def two_network_facts(self) -> dict[str, Any]:
        """What all_results.json says of two networks; nothing of one."""
        trainer = self.trainer
        if isinstance(trainer, PairTrainer):
            estimated = {"estimated_noise_rate": trainer.noise_rate} if trainer.estimates_noise_rate else {}
            return {**estimated, **trainer.selection_facts}
        if not isinstance(trainer, TwoNetworkTrainer):
            return {}
        return {
            "estimated_noise_rate": trainer.noise_rate,
            "division": divisions_of(trainer.peers),
            "time_shares": trainer.time_shares,
        }

    @property
    def test_labels_are_known(self) -> bool:
        """Whether the labels of the test set count as right: a benchmark's, or those of a column of clean ones."""
        return "clean_label" in self.data["test"].features or self.data_args.dataset_name in BUILDERS

    def facts_of_test_labels(self) -> dict[str, Any]:
        """Return what all_results.json says of the labels of the test set, and of the accuracy by the true ones."""
        if self.test_labels_are_known:
            return {"test_labels_known": True}
        if self.data_args.streaming:
            return facts_of("the test set is a stream")
        return facts_of(self.trainer.estimate_true_accuracy(self.predictions))

    @property
    def can_report(self) -> bool:
        """Whether the labels are to be examined, and can be."""
        return self.args.label_report and not self.data_args.streaming

    @property
    def judged_test_set(self) -> Any:
        """The examples to test on, where their labels are not known to be right: they are judged as well."""
        return None if self.test_labels_are_known else self.data["test"]

    @property
    def is_folder(self) -> bool:
        """Whether the data lie on this machine."""
        return self.data_args.dataset_name is None or Path(self.data_args.dataset_name).is_dir()

    @property
    def realised_noise_rate(self) -> float | None:
        return self.trainer.train_dataset.realised_noise_rate

    @property
    def meta_set_facts(self) -> dict[str, Any]:
        """Kind and size of the meta set and, of a pseudo-clean one, the share of right labels, where it is known."""
        meta = self.trainer.meta_dataset if self.trainer.meta_learner else None
        is_pseudo_clean = isinstance(meta, PseudoCleanSet)
        return {
            "meta_set": None if meta is None else "pseudo-clean" if is_pseudo_clean else "clean",
            "meta_set_size": None if meta is None else len(meta),
            "meta_set_purity": meta.purity if isinstance(meta, PseudoCleanSet) else None,
        }

    @property
    def held_out_rows(self) -> list[int]:
        """Rows of trusted examples whose labels are those of the data; those of reviewed ones may be others."""
        return self.data["meta"]["index"][:] if "meta" in self.data and self.data_args.meta_from is None else []

    def write_results(self, results: dict[str, Any]) -> None:
        with atomic_write(Path(str(self.args.output_dir)) / RESULTS) as path:
            path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    def write_records(self, results: dict[str, Any]) -> None:
        self.write_results(results)
        folder, train = Path(str(self.args.output_dir)), self.data["train"]
        if self.data_args.streaming:
            return  # its labels are a function of seed and row
        write_noise_file(
            folder / NOISE_FILE,
            train["index"][:],
            train["label"][:],
            train["clean_label"][:] if "clean_label" in train.features else None,
            {
                "dataset_name": short_name(self.data_args),
                "noise": self.data_args.noise,
                "noise_type": self.data_args.noise_type,
                "noise_exact_count": self.data_args.noise_exact_count,
                "noise_file": self.data_args.noise_file and Path(self.data_args.noise_file).name,
                "imbalance_factor": self.data_args.imbalance_factor,
                "seed": self.args.seed,
                "class_names": train.features["label"].names,
                "realised_noise_rate": results["realised_noise_rate"],
                "meta_index": self.held_out_rows,
            },
        )

    def push_or_write_card(self, results: dict[str, Any], card: dict[str, Any]) -> None:
        data_args = self.data_args
        facts = {
            **data_facts(data_args, results["dataset_name"], self.data["train"]),
            "noise_description": self.noise_description,
            "metrics": {"last": results["eval_accuracy"], "best": results["best_eval_accuracy"]},
            "estimated_true_accuracy": results.get("estimated_true_accuracy"),
            "seconds_per_step": results["train_seconds_per_step"],
            "suspects": self.describe_suspects(results),
            "label_report_doubt": results.get("label_report_doubt"),
            "true_accuracy": in_words(results) or None,
            "network_choice": self.network,
            **card,
        }
        if not self.args.push_to_hub:
            self.trainer.create_model_card(**facts)
            return
        try:
            self.trainer.push_to_hub(**facts)
        except PushError as error:
            args = self.args
            again = release_command(data_args, str(args.output_dir), str(self.trainer.hub_model_id), args.hub_revision)
            self.unpushed = f"{error.failure}; the run is whole in {args.output_dir!r}, push it with: {again}"

    def describe_suspects(self, results: dict[str, Any]) -> str | None:
        if results.get("suspect_labels") is None:
            return None
        count, total = results["suspect_labels"], sum(results["judged_labels"].values())
        least, most = results["wrong_labels_interval"]
        return (
            f"{count} of {total} ({100 * count / total:.1f} %); about {results['wrong_labels']:.0f} labels are wrong "
            f"({least} to {most}, with 95 %)"
        )

    @property
    def noise_description(self) -> str:
        if self.data_args.noise:
            return f"{self.data_args.noise_type}, {100 * self.data_args.noise:g} %"
        if self.data_args.noise_file or self.realised_noise_rate is None or self.realised_noise_rate > 0:
            return "as the labels came"
        return "none"


def trainer_class(model_args: ModelArguments, args: FaMUSTrainingArguments) -> type[FaMUSTrainer]:
    """Return what trains one network, perhaps with two branches, or two networks, as the settings ask for."""
    if not model_args.two_networks:
        return BilateralBranchTrainer if model_args.bilateral_branch else FaMUSTrainer
    return TwoNetworkTrainer if args.pair_method is None else PairTrainer


def main(argv: list[str], program: str = "run_famus.py") -> None:
    """Train in this process, and what it is compared with before; print a table."""
    is_debugged = "--log_level=debug" in argv or ("--log_level", "debug") in pairwise(argv)
    with started_as(program, show_traceback=is_debugged):
        runs, checkpoint = set_up(argv)
        rows = train_all(runs, checkpoint, argv)
        last = runs[-1]
        if last.is_first_process:
            print(f"\n{short_name(last.data_args)}, {last.noise_description}, seed {last.args.seed}\n")
            print(f"{format_table(rows)}\n{format_notes(rows)}", flush=True)
        if last.unpushed is not None:
            fail(last.unpushed)


def set_up(argv: list[str], chosen: Callable[[Any], Any] | None = None) -> tuple[list[Run], str | None]:
    """Return the run that the flags ask for, behind those that it is compared with, and the checkpoint to go on from.

    Args:
        argv: The flags.
        chosen: Takes the data that they name and returns those that are used; None: all are.

    Raises:
        ValueError: One sentence on what is wrong with the flags, the data or the network; also OSError.
    """
    keep_freed_memory()
    try:
        model_args, data_args, args = parse_arguments(argv)
        if args.log_level not in VERBOSE:
            datasets.disable_progress_bars()
            logging.disable_progress_bar()
        checkpoint = resolve_checkpoint(model_args, args)
        data = load_data(data_args, args)
        data = data if chosen is None else chosen(data)
        model_args, data_args, args = settings_for(data, argv, (model_args, data_args, args))
        settings = [*(baselines_of(model_args, args, "meta" in data) if data_args.compare else []), (model_args, args)]
        runs = [Run(networks, data_args, run_args, data) for networks, run_args in settings]
    except TypeError as error:  # of a flag's value, in transformers
        raise SettingsError(str(error)) from error
    if checkpoint is not None and is_hub_id(checkpoint):
        checkpoint = check_checkpoint(runs[-1].trainer.fetch_checkpoint(checkpoint), model_args, args)
    if checkpoint is not None:
        check_data_of(checkpoint, runs[-1].trainer)
        if len(runs) > 1:  # else the others would be trained before it is found not to fit
            runs[-1].trainer.take_weights_of(checkpoint)
    return runs, checkpoint


def train_all(runs: list[Run], checkpoint: str | None, argv: list[str]) -> list[dict[str, Any]]:
    """Train one after the other, the last one from the checkpoint. Return their results."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        if run.is_first_process:
            print(f"\n=== {run.name} → {run.args.output_dir}", flush=True)
        try:
            if run is runs[-1]:
                rows.append(run.train(checkpoint, run.can_report, card_facts(runs, rows, argv)))
            else:
                rows.append(run.train(None))
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}; {GO_ON}") from error
        except KeyboardInterrupt:
            has_checkpoints = checkpoints.by_age(Path(str(runs[-1].args.output_dir)))
            raise KeyboardInterrupt(*[GO_ON] if has_checkpoints else []) from None
        except torch.OutOfMemoryError as error:
            raise SettingsError(
                f"the memory of {run.args.device} is full: lower --per_device_train_batch_size (and raise "
                "--gradient_accumulation_steps), or choose a smaller network"
            ) from error
    return rows


def card_facts(runs: list[Run], rows: list[dict[str, Any]], argv: list[str]) -> dict[str, Any]:
    """Return what the last run's card says of the others, whose results are `rows`, and of the command."""
    others = runs[:-1] if runs[-1].is_first_process else []
    return {
        "baselines": [as_baseline(row) for row in rows],
        "compared": [read_run(str(other.args.output_dir), other.name) for other in others],
        "command": command_of(argv),
    }
