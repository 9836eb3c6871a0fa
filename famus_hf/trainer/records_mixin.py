"""What a Trainer leaves beside its model: label report, noise file, model card."""

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer_utils import has_length

from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import PerExampleLoss
from famus_hf.core.true_accuracy import TrueAccuracy, estimate_true_accuracy
from famus_hf.data.inputs.convert import as_model_inputs
from famus_hf.data.inputs.model_inputs import ModelInputs
from famus_hf.data.inputs.raw_data import DataForm
from famus_hf.data.labels.noise_file import write_noise_file
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.media.modalities import Modality
from famus_hf.data.per_example import PerExample
from famus_hf.errors import SettingsError
from famus_hf.metrics import MeanPredictions
from famus_hf.reporting import model_card
from famus_hf.reporting.judged_splits import (
    BY_HEART,
    NO_TRUSTED,
    NOT_SEEN,
    WRONG_ON_TRUSTED,
    JudgedRun,
    judge_alone,
    judge_run,
)
from famus_hf.reporting.label_report import TEST, TRAIN, details_of, report_of, save_report
from famus_hf.storage.atomic import atomic_write
from famus_hf.storage.model_folder import adapted_network
from famus_hf.storage.run_folder import CARD, NOISE_FILE, REPORT_FILE
from famus_hf.trainer.beliefs_mixin import BeliefsMixin
from famus_hf.trainer.hub_mixin import HubMixin
from famus_hf.trainer.learning_mixin import LearningMixin

logger = logging.getLogger("famus_hf")

OF_ONE_TRAINING = (
    "metrics",
    "suspects",
    "label_report_doubt",
    "true_accuracy",
    "seconds_per_step",
    "baselines",
    "compared",
)  # facts of the model card


class RecordsMixin(BeliefsMixin, HubMixin, LearningMixin):
    """What a Trainer needs to write label report, noise file and model card.

    Attributes:
        modality: Whether it learns from images, texts or recordings.
        form: How its data sets are taken: with which columns and classes.
    """

    train_dataset: Any
    meta_dataset: Any
    modality: Modality
    base_loss: PerExampleLoss
    form: DataForm

    def __init__(self, *arguments: Any, **keywords: Any):
        self._card: dict[str, Any] = {}  # facts that were given, see `create_model_card`
        super().__init__(*arguments, **keywords)

    def forget_earlier_training(self) -> None:
        """Forget what is of an earlier training: one begins, which the model card will be about."""
        for name in OF_ONE_TRAINING:
            self._card.pop(name, None)

    # ---- Suspect labels ----

    noise_rate_deviation: float = 0.0  # of the share of wrong labels by the last label report

    def label_report(
        self,
        dataset: Any = None,
        is_trained_on: bool = False,
        *,
        test_dataset: Any = None,
        split: str = TRAIN,
    ) -> Dataset:
        """Return which labels are probably wrong, the most suspect first. All processes call it.

        Args:
            dataset: In the form of `train_dataset`. Its labels are judged by the network as it is; those of
                `train_dataset`, the default, by what it believed before it learned them.
            is_trained_on: Whether the network has learned from these very labels of a data set, which then can't be
                told from wrong ones.
            test_dataset: Examples that were never learned from, whose labels go wrong as those of `train_dataset`: they
                are judged beside these, and tell whether the report holds where there are no trusted examples.
            split: What the column `split` says of a data set.

        Returns:
            Columns `split`, `index` (within its split), `file` (of what lies in folders) or `text` (its beginning),
            `label`, `predicted_label`, `suggested_label`, `suggestion_probability`, `reason`, `loss` (under
            `base_loss`; cross-entropy in a trainer without a training set), `weight` (V by the meta-learner; None where
            it has none for a loss alone), `clean_probability` (None where it can't be told, for the reason in
            `info.description`) and, where known, `clean_label`. `famus_hf.reporting.label_report` has more.

        Raises:
            DataError: The data set is a stream, or empty, or of other classes.
        """
        if dataset is not None:
            examined = self._examined(dataset, "the data set")
            run = judge_alone(split, *examined, NOT_SEEN if is_trained_on else "")
        else:
            run = self._judged_run(test_dataset)
        self.noise_rate_deviation = run.deviation
        return report_of(run.splits, self.model, self.meta_learner, run.doubt)

    def _judged_run(self, test_dataset: Any) -> JudgedRun:
        if not self.args.load_best_model_at_end:  # else the network is no longer the last one
            self.close_epoch_of_beliefs(is_over=True)
        train, details = self._examined(None, "the training set")
        test, details_of_test = (None, {}) if test_dataset is None else self._examined(test_dataset, "the test set")
        return judge_run(train, test, self.evidence, self._without_evidence(test is None), [details, details_of_test])

    def _without_evidence(self, is_alone: bool) -> str:
        """Return why labels can't be judged where beliefs of before they were learned by heart are not known."""
        if self.beliefs is not None:
            return WRONG_ON_TRUSTED if self.judges_by_early else BY_HEART
        return NO_TRUSTED if is_alone and not self.has_trusted else NOT_SEEN

    def _examined(self, dataset: Any, name: str) -> tuple[PerExample, dict[str, list[str | None]]]:
        """Return what the network makes of a data set (None: of the training set), and what tells its examples."""
        known = self.form.of(dataset, name)
        inputs = self.train_dataset if dataset is None else as_model_inputs(known, self.processing_class)
        examples = self.evaluate_examples(
            self.model, inputs, self.base_loss, with_probabilities=True, progress="Examining labels"
        )
        return examples, details_of(inputs)

    def save_label_report(
        self,
        dataset: Any = None,
        folder: str | Path | None = None,
        is_trained_on: bool = False,
        *,
        test_dataset: Any = None,
        split: str = TRAIN,
    ) -> Dataset:
        """Write `label_report` to label_report.parquet in the output folder or another; pictures in `figures/`.

        The pictures: the most suspect images, where they are at hand; the meta-learner's weights, if it has such. All
        processes call it.

        Raises:
            DataError: As `label_report`.
            SaveError: It can't be written.
        """
        report = self.label_report(dataset, is_trained_on, test_dataset=test_dataset, split=split)
        if self.is_world_process_zero():
            raw = {split: dataset} if dataset is not None else {TRAIN: self.train_dataset, TEST: test_dataset}
            save_report(report, raw, self.meta_learner, Path(folder or str(self.args.output_dir)))
        return report

    # ---- Accuracy on wrong labels ----

    def estimate_true_accuracy(self, predictions: MeanPredictions) -> TrueAccuracy | str:
        """Return how often the network is right on examples some of whose labels are wrong. All processes call it.

        Args:
            predictions: Of a data set that the network learned nothing from: the `compute_metrics` of this Trainer.

        Returns:
            The estimate, which trusted examples that the network did not learn from sharpen where there are any; or
            why it can't be told.
        """
        if predictions.last is None:
            return "the test set was not evaluated"
        trusted: tuple[Any, ...] = ()
        if self.has_trusted:
            found = self.evaluate_examples(self.model, self._trusted_sample, cross_entropy, with_probabilities=True)
            trusted = found.labels, found.probabilities
        return estimate_true_accuracy(predictions.labels, predictions.last, predictions.mean, *trusted)

    # ---- Files ----

    def save_records(self) -> None:
        """Write the noise and the label report of the training set, unless they are there already."""
        folder, train = Path(str(self.args.output_dir)), self.train_dataset
        is_there = self.processes.first_object(self.is_of_this_run(folder / REPORT_FILE))
        if self.args.label_report and has_length(train) and not is_there:
            self.save_label_report()
        noise = folder / NOISE_FILE
        if isinstance(train, ModelInputs) and self.is_world_process_zero() and not self.is_of_this_run(noise):
            index = train.records.get("index", list(range(len(train))))
            metadata = {"realised_noise_rate": train.realised_noise_rate, "class_names": train.class_names}
            write_noise_file(noise, index, train.records["labels"], train.records.get("clean_label"), metadata)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        **facts: Any,
    ) -> None:
        """Write README.md into the output folder. Facts given once are kept for later calls.

        Args:
            language: Of texts or speech, as in "en".
            license: Of the weights.
            tags: Beside ours.
            model_name: Default: the folder's.
            finetuned_from: The pretrained network's repository. Default: where the model was loaded from.
            tasks: Default: the classification of what it learns from.
            dataset_tags: Repositories of the data sets on the Hub.
            dataset: Their names.
            dataset_args: The configuration of each.
            facts: `noise_description`, `data_license`, `metrics` (`last` and `best`, accuracies in [0, 1]), `compared`
                (other runs, drawn beside this one, by `famus_hf.reporting.figures.run_records.read_run`), and what else
                `render_model_card` knows; `dataset_name`, `dataset_id` and `base_model` are other words for `dataset`,
                `dataset_tags` and `finetuned_from`.

        Raises:
            SettingsError: The card has no place for a fact.
        """
        given = {
            "language": language, "license": license, "tags": tags, "model_name": model_name,
            "base_model": finetuned_from, "tasks": tasks, "dataset_id": dataset_tags, "dataset_name": dataset,
            "dataset_args": dataset_args,
        }  # fmt: skip
        if finetuned_from is not None and not model_card.is_repository(finetuned_from):
            logger.warning(
                "finetuned_from=%r is no repository on the Hub: the model card leaves it out", finetuned_from
            )
            del given["base_model"]
        strange = sorted(set(facts) - model_card.names_of_facts())
        if strange:
            raise SettingsError(f"the model card has no place for {', '.join(strange)}: leave it out")
        if self.is_world_process_zero():
            self._card.update({name: value for name, value in {**given, **facts}.items() if value is not None})
            card = model_card.render_model_card({**self.model_card_facts(), **self._card_with_own_tags()})
            with atomic_write(Path(str(self.args.output_dir)) / CARD) as path:
                card.save(path)

    def _card_with_own_tags(self) -> dict[str, Any]:
        """Return the facts that were given, with the tags that the network brings along."""
        own = model_card.listed(getattr(self.model, "model_tags", None))
        return {**self._card, "tags": [*own, *model_card.listed(self._card.get("tags"))]}

    def model_card_facts(self) -> dict[str, Any]:
        """Return what this trainer knows of its run; the caller adds what only it knows (`dataset_name`, …)."""
        args, train, learner = self.args, self.train_dataset, self.meta_learner
        folder = Path(str(args.output_dir)).absolute()
        rate = getattr(train, "realised_noise_rate", None)
        records = self.diagnostics.records(self.state.log_history, self.model)
        return {
            "model_name": folder.name,
            "modality": self.modality,
            "base_model": model_card.source_of_network(self.model),
            "adapters": adapted_network(self.model) is not None,
            "repo_id": self.hub_model_id or args.hub_model_id or folder.name,
            "dataset_name": "the training data",
            "noise_description": "not stated",
            "realised_noise": "unknown" if rate is None else f"{100 * rate:.2f} %",
            "num_train": 0 if train is None else len(train) if hasattr(train, "__len__") else "a stream",
            "meta_set": model_card.describe_meta_set(self.meta_dataset) if self.networks and learner else "none",
            "training_mode": "none" if learner is None else type(learner).__name__,
            "pseudo_clean": isinstance(self.meta_dataset, PseudoCleanSet),
            "noisy": rate is None or rate > 0,
            "selection": model_card.describe_selection(args),
            "metrics": model_card.metrics_of(args, self.state),
            "train_seconds": self.training_time.seconds,
            "hardware": model_card.describe_hardware(args),
            "settings": self._settings_on_card(),
            "figures": model_card.draw_records(folder, records, self._card.get("compared", ()), self.is_of_this_run),
            "label_report": self.is_of_this_run(folder / REPORT_FILE),
        }

    def _settings_on_card(self) -> dict[str, Any]:
        args, learner = self.args, self.meta_learner
        backbone = model_card.describe_network(self.model)
        settings = {
            **model_card.settings_of(args, self.state, backbone, args.per_device_train_batch_size),
            **model_card.input_settings_of(args, self.modality, self.processing_class),
            "precision": self.accelerator.mixed_precision.replace("no", "float32"),
            "seed": args.seed,
        }
        metas = [stages.meta for stages in self.networks.values()]
        return {**settings, **(model_card.meta_settings_of(args, learner, metas) if metas and learner else {})}
