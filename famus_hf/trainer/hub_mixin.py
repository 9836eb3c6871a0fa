"""HubMixin: for a Trainer that pushes single commits without pickles, and trains on where a push fails."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi
from safetensors import SafetensorError
from torch import nn

from famus_hf.core.parallel.processes import Processes
from famus_hf.errors import PushError, reason_of
from famus_hf.hub import load as hub
from famus_hf.hub import push as pushes
from famus_hf.reporting.model_card import source_of_network
from famus_hf.storage import checkpoints
from famus_hf.storage.model_folder import adapted_network
from famus_hf.storage.portable import pack
from famus_hf.storage.run_folder import LAST_CHECKPOINT
from famus_hf.training_args import FaMUSTrainingArguments

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

SPARE_BYTES = 2**28  # that a checkpoint on the Hub may have beside what the network's size explains

logger = logging.getLogger("famus_hf")


class UnpackableError(PushError):
    """A checkpoint that can't travel: something in it is no plain value."""


class HubMixin(Base):
    """What a Trainer does with the Hub."""

    args: FaMUSTrainingArguments
    model: nn.Module
    _run = ""  # name of the training, once there is one
    _started = 0.0  # when it was, in seconds as of time.time()

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, and find out before any training whether it can be pushed to.

        Raises:
            HubError: It can't, in every process.
        """
        if adapted_network(self.model) is not None and source_of_network(self.model) is None:
            logger.warning(
                "what is pushed are adapters of a network that is on no Hub, so that nobody else can load them: push "
                "that network first, and adapt it as it is loaded from there"
            )
        self.hub_model_id = Processes.present().of_first(
            lambda: pushes.prepare_repository(
                self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name,
                token=token or self.args.hub_token,
                private=self.args.hub_private_repo if private is None else private,
                revision=self.args.hub_revision,
            )
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ) -> Any:
        """Save the run and upload it: backbone, processor, `meta_net/`, noise, label report, model card.

        All processes call it.

        Checkpoints and pickles (`training_args.bin`) stay on disk, but for `last-checkpoint/`, where `hub_strategy` is
        "checkpoint". What an earlier run has left in the repository is removed. Arguments as in transformers; `facts`
        go to `create_model_card`.

        Raises:
            HubError: The repository can't be pushed to.
            PushError: The push failed.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        self.save_records()
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**facts)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not blocking:
            return HfApi().run_as_future(self._push, commit_message, token, revision)
        return self._push(commit_message, token, revision)

    def _push(self, commit_message: str | None, token: str | None, revision: str | None) -> CommitInfo:
        try:
            return self._push_folder(commit_message, token, revision)
        except UnpackableError as error:
            logger.warning("%s, and stays behind", error.failure)
            return self._push_folder(commit_message, token, revision, with_checkpoint=False)
        except PushError as error:
            folder = str(self.args.output_dir)
            raise PushError(
                error.failure, f"the run is whole in {folder!r}, and trainer.push_to_hub() tries again"
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push after a save. A Hub that does not take it is no reason to stop training."""
        is_untrained = self.state.global_step == 0 and self.args.hub_strategy != "checkpoint"
        if self.args.hub_strategy == "end" or is_untrained:
            return
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return
        self.create_model_card()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            self._push_folder(f"Training in progress, step {self.state.global_step}")
        except PushError as error:
            logger.warning("%s; training goes on, and the next save pushes again", error.failure)

    def _push_folder(
        self,
        commit_message: str | None,
        token: str | None = None,
        revision: str | None = None,
        with_checkpoint: bool = True,
    ) -> CommitInfo:
        folder = Path(str(self.args.output_dir))
        files = {name: folder / name for name in hub.files_to_push(folder, newer_than=self._started)}
        with self._packed_checkpoint(folder, with_checkpoint) as packed:
            return pushes.push_files(
                {**files, **packed},
                str(self.hub_model_id),
                message=commit_message or "End of training",
                token=token or self.args.hub_token,
                revision=revision or self.args.hub_revision,
            )

    @contextmanager
    def _packed_checkpoint(self, folder: Path, with_checkpoint: bool) -> Iterator[dict[str, Path]]:
        """Give name in the repository → file of this run's newest checkpoint, if checkpoints are to be pushed."""
        of_run = [path for path in checkpoints.by_age(folder) if self._run and checkpoints.run_of(path) == self._run]
        if self.args.hub_strategy != "checkpoint" or not of_run or not with_checkpoint:
            yield {}
            return
        with TemporaryDirectory(dir=folder, prefix=".push-") as name:  # a push in the background may take a while
            packed = Path(name)
            try:
                pack(of_run[-1], packed)
            except (OSError, RuntimeError, SafetensorError, ValueError) as error:
                raise UnpackableError(f"{of_run[-1].name} can't be pushed: {reason_of(error)}") from error
            files = [path for path in packed.rglob("*") if path.is_file()]
            yield {f"{LAST_CHECKPOINT}/{path.relative_to(packed).as_posix()}": path for path in files}

    def save_records(self) -> None:
        """Write what else is pushed at the end of a training. All processes call it."""

    def is_of_this_run(self, path: Path) -> bool:
        """Return whether a file is there and was not left by an earlier training in the same folder."""
        return path.is_file() and path.stat().st_mtime >= self._started

    def fetch_checkpoint(self, repo_id: str) -> str:
        """Download the checkpoint that a run with `hub_strategy="checkpoint"` has pushed, into `output_dir`.

        All processes call it. Return the folder, from which `train` resumes.

        Raises:
            HubError: There is none, it is damaged, or it belongs to another network or number of processes.
        """
        numbers = sum(tensor.numel() for tensor in self.model.state_dict().values())
        checkpoint = Processes.present().of_first(
            lambda: pushes.fetch_checkpoint(
                repo_id,
                Path(str(self.args.output_dir)),
                token=self.args.hub_token,
                revision=self.args.hub_revision,
                max_bytes=32 * numbers + SPARE_BYTES,  # weights and two moments in float64, and once more for FSDP
                processes=self.args.world_size,
            )
        )
        return str(checkpoint)
