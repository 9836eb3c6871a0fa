"""What a network makes of every example of a data set, in evaluation mode and on all processes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers.trainer_utils import has_length

from famus_hf.core.autodiff.forward_pass import model_logits, split_inputs
from famus_hf.core.last_hidden import last_hidden
from famus_hf.core.parallel.processes import Processes
from famus_hf.data.inputs.meta_batches import in_order
from famus_hf.errors import DataError
from famus_hf.training_args import FaMUSTrainingArguments


@dataclass
class PerExample:
    """What a network makes of each example, in the order of the data set and the same on every process.

    Attributes:
        labels: Shape (N,), the given labels; of soft targets the largest.
        losses: Shape (N,), what the meta-learner sees of an example.
        probabilities: Shape (N, C), the network's prediction; None where it was not asked for.
        clean_labels: Shape (N,), or None where they are not known.
        index: Shape (N,), rows in the source, or None where they are not known.
        features: Of the last hidden layer, shape (N, D); None where they were not asked for.
    """

    labels: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray | None
    clean_labels: np.ndarray | None
    index: np.ndarray | None
    features: np.ndarray | None = None

    @property
    def correct(self) -> np.ndarray | None:
        """Whether a given label is right, shape (N,), or None where that is not known."""
        return None if self.clean_labels is None else self.labels == self.clean_labels


class ExampleEvaluator:
    """Passes over data sets that yield model inputs.

    Args:
        args: Sizes of batches, and how they are loaded.
        collate: From examples to a batch.
        prepare: From a batch as it was loaded to one on the device, as the network takes it in evaluation.
        processes: That share the examples; all of them call this together.
        autocast: Returns a context for forward passes.
        judged_weights: Returns a context in which the network has the weights that it is to be judged by.
    """

    def __init__(
        self,
        args: FaMUSTrainingArguments,
        collate: Callable[[list[Any]], Any],
        prepare: Callable[[dict[str, Any]], dict[str, Any]],
        processes: Processes,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        judged_weights: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.args, self.collate, self.prepare = args, collate, prepare
        self.processes, self.autocast, self.judged_weights = processes, autocast, judged_weights

    def __call__(
        self,
        network: nn.Module,
        dataset: Any,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        with_probabilities: bool = False,
        with_features: bool = False,
        progress: str | None = None,
    ) -> PerExample:
        """Return what the network makes of a map-style data set.

        Args:
            network: Its mode is again what it was.
            dataset: Not empty.
            loss: Logits (n, C), labels → (n,).
            with_probabilities: They take 4·N·C bytes on every process.
            with_features: Likewise, 4·N·D bytes.
            progress: Words beside a progress bar; default: none.

        Raises:
            DataError: The data set is a stream, or empty, or has labels that the network has no class for.
        """
        if not has_length(dataset) or len(dataset) == 0:
            raise DataError("a data set that is empty, or a stream, can't be examined: give one whose size is known")
        columns: dict[str, list[np.ndarray]] = {}
        scale = self.logit_scale(network)
        for logits, labels, inputs, features in self._passes(network, dataset, progress, with_features):
            given = inputs["labels"] if inputs["labels"].dim() == 1 else inputs["labels"].argmax(1)
            if given.min() < 0 or given.max() >= logits.shape[1]:
                raise DataError(
                    f"the labels go from {int(given.min())} to {int(given.max())} and the network has "
                    f"{logits.shape[1]} classes: give data with the classes that it was trained on"
                )
            outputs = {"labels": given, "losses": loss(logits, labels).float()}
            if with_probabilities:
                outputs["probabilities"] = (scale * logits).softmax(1)
            if features is not None:
                outputs["features"] = features
            outputs |= {name: inputs[name] for name in ("clean_label", "index") if name in inputs}
            for name, values in outputs.items():
                columns.setdefault(name, []).append(values.cpu().numpy())
        whole = {
            name: np.concatenate(self.processes.objects(np.concatenate(batches)))[: len(dataset)]
            for name, batches in columns.items()
        }
        return PerExample(
            whole["labels"],
            whole["losses"],
            whole.get("probabilities"),
            whole.get("clean_label"),
            whole.get("index"),
            whole.get("features"),
        )

    def logit_scale(self, network: nn.Module) -> float:
        """Return the factor of logits before the softmax: LDAM's scale for cosines, which lie in [−1, 1], else 1."""
        cosines = getattr(getattr(network, "config", None), "cosine_classifier", False)
        return self.args.ldam_scale if cosines else 1.0

    @torch.no_grad()
    def _passes(
        self, network: nn.Module, dataset: Any, progress: str | None, with_features: bool
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Any], Tensor | None]]:
        """Yield logits (n, C) and labels of this process's share, batch by batch, the batch as it was loaded, features.

        Features are None where they are not asked for.
        """
        count, rank = self.processes.count, self.processes.rank
        was_training = network.training
        share = -(-len(dataset) // count)  # equal, as FSDP needs all processes in each of its passes
        # Past the end the last row repeats; `__call__` cuts it off.
        rows = np.arange(share * rank, share * (rank + 1)).clip(max=len(dataset) - 1)
        batches = in_order(Subset(dataset, rows.tolist()), self.args, self.collate)
        is_shown = progress is not None and rank == 0 and not self.args.disable_tqdm
        network.eval()
        try:
            with self.judged_weights(), last_hidden(network) if with_features else nullcontext() as features:
                for inputs in tqdm(batches, desc=progress, disable=not is_shown, leave=False):
                    batch, labels, _ = split_inputs(self.prepare(inputs))
                    with self.autocast():
                        logits = model_logits(network, batch).float()
                    yield logits, labels, inputs, None if features is None else features()
        finally:
            network.train(was_training)
