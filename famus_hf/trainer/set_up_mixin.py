"""SetUpMixin: what learns beside a Trainer's network is checked and made here, and follows what changes in a run."""

import copy
import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.forward_pass import preserve_rng_state
from famus_hf.core.fsdp import ShardedStages
from famus_hf.core.layer_samplers import LayerSampler
from famus_hf.core.losses import cross_entropy
from famus_hf.core.meta_learners.base import MetaLearner, PerExampleLoss
from famus_hf.core.non_finite import NonFiniteGuard
from famus_hf.core.three_stages import Precision, StepSettings, ThreeStages, trained_parameters
from famus_hf.data.inputs.image_processors import make_augmentation
from famus_hf.data.inputs.meta_batches import MetaBatches
from famus_hf.data.inputs.streamed_inputs import StreamedInputs
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.per_example import ExampleEvaluator
from famus_hf.errors import SettingsError
from famus_hf.reporting.diagnostics.callback import Diagnostics
from famus_hf.reporting.diagnostics.mean_metrics import MeanMetrics
from famus_hf.trainer import factory, preflight, preflight_rows
from famus_hf.trainer.batches_mixin import BatchesMixin
from famus_hf.trainer.classifier_mixin import ClassifierMixin
from famus_hf.trainer.comparison_mixin import ComparisonMixin

logger = logging.getLogger("famus_hf")


class SetUpMixin(BatchesMixin, ComparisonMixin, ClassifierMixin):
    """What a Trainer needs to check its settings and data, and to make the three stages of its networks.

    Attributes:
        guard: What is done about numbers that are not finite.
        metrics: Means for the log.
        evaluate_examples: Network, data set, loss → what the network makes of each example.
    """

    meta_dataset: Any
    guard: NonFiniteGuard
    metrics: MeanMetrics
    evaluate_examples: ExampleEvaluator
    takes_pair_method = False  # whether `pair_method` says what it learns
    _learns_from_meta_set = False
    _set_up_from: tuple[PerExampleLoss | None, Any] = (None, None)  # base loss and meta set, as they were given

    @property
    def _judges_by_losses(self) -> bool:
        return isinstance(self.meta_dataset, PseudoCleanSet)

    def _set_up(self, base_loss: PerExampleLoss | None) -> None:
        """Check everything that training needs, and make what learns beside the network."""
        args, train = self.args, self.train_dataset
        self._set_up_from = (base_loss, self.meta_dataset)
        if self.form.renames:
            with preserve_rng_state(args.device):  # examples may draw
                preflight.check_examples(train, self.meta_dataset, self.eval_dataset, self.label_name)
        preflight.check_problem_type(self.model)
        preflight.check_recordings(self.model, train, self.meta_dataset, self.eval_dataset)
        preflight.check_takes_pair_method(args, type(self), self.takes_pair_method)
        preflight.check_batch_size(args, train)
        preflight.check_balanced_epochs(args, train)
        preflight.check_precision(self.accelerator)
        preflight.check_averaging(args, self.accelerator)
        preflight.check_loss_function(args, self.compute_loss_func, base_loss)
        if base_loss is None:
            self.base_loss = factory.make_base_loss(args, self.model, train)
        elif args.label_smoothing_factor > 0:
            raise SettingsError("label_smoothing_factor does not reach a base_loss object: smooth in the object itself")
        self._set_up_meta_learning()
        self._check_additions()
        if self.diagnostics.is_on:
            learners = [stages.meta.meta_learner for stages in self.networks.values()]
            preflight.check_diagnostics(args, train, learners)
            if self.diagnostics not in self.callback_handler.callbacks:
                self.add_callback(self.diagnostics)

    def _check_additions(self) -> None:
        """Check what any method may have beside itself."""
        args, train, learner = self.args, self.train_dataset, self.meta_learner
        with preserve_rng_state(args.device):  # examples may draw
            preflight_rows.check_base_loss(self.base_loss, learner)
            preflight_rows.check_own_loss(args, type(self))
            preflight_rows.settle_trusted(args, train, self.meta_dataset)
            try:
                preflight_rows.check_rows(args, self.model, train, learner, self._labelled_collate)
            except SettingsError as error:
                if args.elr_weight or not args.use_paper_where_open():
                    raise
                logger.warning(f"meta_learner mw-net is taken, as {error}")
                self._set_up_meta_learning()
            preflight_rows.check_logit_adjustment(args, self.model, train, self.base_loss)
            preflight_rows.check_beliefs_of_mixed(args, self.meta_learner, self.is_fsdp_enabled)
            preflight_rows.check_mixture(args, self.meta_learner, self.mixup_alpha, self.is_fsdp_enabled)
            preflight_rows.check_features(train, self.meta_learner, self.is_fsdp_enabled)
            if self.mixup_alpha:
                batch = self._first_batch(self.model, train, args.train_batch_size)
                preflight_rows.check_mixup(args, train, batch, self.base_loss)

    def _hp_search_setup(self, trial: Any) -> None:
        """Make what learns beside a network that `model_init` has made anew; by a trial's settings, if it is of one."""
        before = dict(vars(self.args))
        super()._hp_search_setup(trial)
        if self.hp_search_backend is not None and trial is not None:
            self._take_settings(before)
        elif self.stages is not None and self.model_init is not None:
            self._make_stages()

    def _take_settings(self, before: dict[str, Any]) -> None:
        """Take the settings as they are now. before: As they were."""
        args = self.args
        preflight.check_searched(args.take_changes(before))
        self.create_accelerator_and_postprocess()  # again: transformers does so before data_seed follows the seed
        augmentation = make_augmentation(args, self.processing_class)
        if augmentation.size != self.augmentation.size:
            preflight.check_searched(["image_size"])
        self.augmentation, self.guard.policy = augmentation, args.nan_policy
        if isinstance(self.train_dataset, StreamedInputs):
            self.train_dataset.shuffle_seed = args.data_seed
        base_loss, self.meta_dataset = self._set_up_from
        self.base_loss, self.stages = cross_entropy if base_loss is None else base_loss, None
        self._set_up(base_loss)
        self._trained_on = self._describe()

    def _set_up_meta_learning(self) -> None:
        """Make the meta set and what learns from it, unless training is plain."""
        if self._given[0] is None and self.args.meta_learner == "none":
            if self.compute_loss_func is None:
                self._check_labels(may_be_ignored=True)
            self._check_batches_of_one(self.train_dataset, None)
            return
        self._learns_from_meta_set = factory.has_meta_step(self.args, self._given[0])
        if self._learns_from_meta_set:
            preflight.check_meta_set(self.args, self.train_dataset, self.meta_dataset)
            if self.meta_dataset is None:
                self.meta_dataset = PseudoCleanSet(self.train_dataset)
            self.schedule.judges_by_losses = self._judges_by_losses
            self._meta_batches = MetaBatches(self.meta_dataset, self.args, self._collate, self.processes)
        self._check_meta_learning()
        self._make_stages()
        assert self.meta_learner is not None
        preflight.check_trusted(self.meta_learner, self.has_trusted)
        learner, schedule = self.meta_learner, self.schedule
        schedule.plain_share, schedule.plain_epochs = learner.plain_share, learner.plain_epochs
        schedule.plain_steps = learner.plain_steps

    def _check_meta_learning(self) -> None:
        args, train = self.args, self.train_dataset
        meta = self.meta_dataset if self._learns_from_meta_set else None
        preflight.check_meta_learning_is_possible(args, self.model, train, meta, self.accelerator)
        preflight.check_loss_of_meta_steps(type(self), self.compute_loss_func)
        self._check_labels()
        self._check_batches_of_one(train, meta)

    def _check_batches_of_one(self, train: Any, meta: Any) -> None:
        examples = partial(self._first_batch, self.model, self.train_dataset)
        takes_one = partial(factory.takes_one_example, self.model, examples, self.accelerator.autocast)
        preflight.check_batches_of_one(self.args, train, meta, self.accelerator.even_batches, takes_one)

    def _check_labels(self, may_be_ignored: bool = False) -> None:
        train, meta = self.train_dataset, self.meta_dataset
        with preserve_rng_state(self.args.device):  # examples may draw, and plain training sees the same batches
            labels = self._first_batch(self.model, train, 2).get("labels")
            if labels is not None and labels.dim() > 1:  # of several classes an example may have one all the same
                labels = self._first_batch(self.model, train, self.args.train_batch_size)["labels"]
        preflight.check_labels(labels, self.model, self.base_loss, train, meta, may_be_ignored=may_be_ignored)

    def _make_stages(self) -> None:
        # With model_init each training begins anew, and so from what was given as it was.
        given = self._given if self.model_init is None else copy.deepcopy(self._given)
        self.stages = self._stages_of(self.model, *given)

    def _stages_of(
        self,
        network: nn.Module,
        meta_learner: MetaLearner | None,
        layer_sampler: LayerSampler | None,
        seed: int | None = None,
    ) -> ThreeStages:
        """Return the step of a network with the meta-learner and layer sampler given, else those of the settings."""
        args, accelerator = self.args, self.accelerator
        environment = self._environment_of(network)
        settings = StepSettings(
            virtual_step=args.virtual_step or "optimizer",
            reuse_virtual_gradient=args.reuse_virtual_gradient,
            scale_example_gradients=args.scale_example_gradients,
            can_be_left_out=args.nan_policy == "skip",
            elr_weight=args.elr_weight,
            logit_scale=self.evaluate_examples.logit_scale(network),
        )
        meta = factory.make_meta_update(network, environment, meta_learner, layer_sampler, seed)
        return (ShardedStages if environment.is_sharded else ThreeStages)(
            network,
            meta,
            self.base_loss,
            processes=self.processes,
            precision=Precision(self.compute_loss_context_manager, self._loss_scale, accelerator.backward),
            settings=settings,
        )

    def _loss_scale(self) -> float:
        """Return what fp16's GradScaler multiplies losses by; 1 without it."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.scale(torch.ones((), device=self.args.device)))

    def _environment_of(self, network: nn.Module) -> factory.Environment:
        accelerator = self.accelerator
        return factory.Environment(
            self.args,
            partial(self._first_batch, network, self.train_dataset),
            partial(self._first_batch, network, self.meta_dataset),
            self.processes,
            accelerator.autocast,
            accelerator.mixed_precision,
            is_sharded=self.is_fsdp_enabled,
            train=self.train_dataset,
        )

    def _first_batch(self, network: nn.Module, dataset: Any, count: int) -> dict[str, Any]:
        """Return the first examples as a batch where the network is."""
        batch = self._evaluation_batch(self._labelled_collate(factory.first_examples(dataset, count)))
        device = next(network.parameters()).device  # with FSDP the network goes to its own when training starts
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def _make_evaluator(self) -> ExampleEvaluator:
        return ExampleEvaluator(
            self.args,
            self._labelled_collate,
            self._evaluation_batch,
            self.processes,
            self.compute_loss_context_manager,
            self._judged_weights,
        )

    def _make_diagnostics(self) -> Diagnostics:
        return Diagnostics(
            self.args,
            self.processes,
            self.train_dataset,
            networks=lambda: self.networks,
            redrawn_meta_batch=self.redrawn_meta_batch,
            evaluate=self.evaluate_examples,
            callbacks=lambda: self.callback_handler.callbacks,
            metrics=self.metrics,
            training_time=self.training_time,
        )

    def _prepare_for_training(self, *arguments: Any, **keywords: Any) -> Any:
        prepared = super()._prepare_for_training(*arguments, **keywords)
        self._follow_network()
        return prepared

    def _follow_network(self) -> None:
        """Have the stages train the network that there is now, which model_init has made anew, or FSDP has sharded."""
        if self.stages is not None:
            self.stages.network = self.model
            self.stages.watch(self.optimizer)

    def _find_layers_again(self, stages: ThreeStages) -> None:
        """Tell the meta-learner of a network which layers are trained now."""
        factory.follow_layers(stages.network, self._environment_of(stages.network), stages.meta)
        stages.trained = trained_parameters(stages.network)

    def _follow_frozen(self, stages: ThreeStages) -> None:
        """Have layers and candidates follow what was frozen or set free since the last step, by a callback perhaps."""
        if stages.trained != trained_parameters(stages.network):
            with self.diagnostics.changing_layers():
                self._find_layers_again(stages)
