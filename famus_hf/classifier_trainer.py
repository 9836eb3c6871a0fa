"""ClassifierTrainer: what transformers' Trainer needs around the training step to train image classifiers well."""

from bisect import bisect_right
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from famus_hf import hub
from famus_hf.backbone import read_network
from famus_hf.data.model_inputs import as_model_inputs
from famus_hf.training_args import FaMUSTrainingArguments
from famus_hf.wording import reason_of


def step_decay(milestones: list[int], step: int) -> float:
    """Factor of the learning rate at a step: a tenth for each milestone that is reached."""
    return 0.1 ** bisect_right(milestones, step)


class ClassifierTrainer(Trainer):
    """A Trainer with the paper's schedule, whole evaluation sets, exact checkpoints and pushes without pickles.

    The training step, and what belongs to the method, is `FaMUSTrainer`'s.
    """

    args: FaMUSTrainingArguments
    model: nn.Module

    # ---- Optimizer and schedule ----

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """With SGD all parameters decay, as in the paper's recipes; otherwise transformers' rule."""
        if OptimizerNames(self.args.optim) == OptimizerNames.SGD:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        constant = SchedulerType(self.args.lr_scheduler_type) == SchedulerType.CONSTANT
        if self.lr_scheduler is None and constant and self.args.lr_milestones:
            steps = [round(m * num_training_steps) if m < 1 else round(m) for m in self.args.lr_milestones]
            target: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(target, partial(step_decay, sorted(steps)))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- Evaluation ----

    def _get_dataloader(self, dataset: Any, *arguments: Any, **keywords: Any) -> DataLoader:
        """transformers drops the last batch of evaluation sets too, and so would judge on a part of the test set."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and keywords.get("is_training", False)
        try:
            return super()._get_dataloader(dataset, *arguments, **keywords)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(self, eval_dataset: Any = None, *arguments: Any, **keywords: Any) -> dict[str, float]:
        return super().evaluate(as_model_inputs(eval_dataset, self.processing_class), *arguments, **keywords)

    def predict(self, test_dataset: Any, *arguments: Any, **keywords: Any) -> Any:
        return super().predict(as_model_inputs(test_dataset, self.processing_class), *arguments, **keywords)

    # ---- Checkpoints ----

    def _load_network(self, network: PreTrainedModel, checkpoint: str) -> None:
        """Reads the weights as `from_pretrained` does.

        transformers 5.23 saves some networks (ViT among them) under names that only `from_pretrained` translates back;
        its own Trainer leaves those weights as they are, with a warning. Weights that are missing, of other shapes or
        not finite are refused.
        """
        if not (Path(checkpoint) / "config.json").is_file():
            raise ValueError(f"{checkpoint!r} holds no checkpoint (it has no config.json)")
        try:
            saved = read_network(type(network), checkpoint, network.config)
        except Exception as error:  # transformers raises anything on a damaged file
            raise ValueError(f"checkpoint {checkpoint!r} can't be loaded: {reason_of(error)}") from error
        network.load_state_dict(saved.state_dict())

    # ---- Hub ----

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ) -> Any:
        """Saves the run and uploads the output folder: backbone, processor, `meta_net/`, noise.parquet, model card.

        Checkpoints and pickles (`training_args.bin`) stay on disk. Arguments as in transformers; `facts` go to
        `create_model_card`.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token or self.args.hub_token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**facts)
        self._finish_current_push()
        return self._upload(commit_message, blocking, token, revision)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy == "every_save":
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}", blocking=True)

    def _upload(self, commit_message: str | None, blocking: bool, token: str | None, revision: str | None) -> Any:
        return HfApi().upload_folder(
            repo_id=str(self.hub_model_id),
            folder_path=str(self.args.output_dir),
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=not blocking,  # type: ignore[call-overload]
            allow_patterns=hub.files_to_push(str(self.args.output_dir)),
        )
