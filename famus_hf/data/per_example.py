"""What the network makes of every example of a data set, in evaluation mode and on all processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers.trainer_utils import has_length

from famus_hf.core.autodiff.forward_pass import model_logits, split_inputs
from famus_hf.data.inputs.meta_batches import in_order

if TYPE_CHECKING:
    from famus_hf.trainer.trainer import FaMUSTrainer


@dataclass
class PerExample:
    """In the order of the data set, the same on every process.

    Attributes:
        labels: Shape (N,), the given labels; of soft targets the largest.
        losses: Shape (N,), what the meta-learner sees of an example.
        probabilities: Shape (N, C), the network's prediction; None where it was not asked for.
        clean_labels: Shape (N,), or None where they are not known.
        index: Shape (N,), rows in the source, or None where they are not known.
    """

    labels: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray | None
    clean_labels: np.ndarray | None
    index: np.ndarray | None

    @property
    def correct(self) -> np.ndarray | None:
        """Whether a given label is right, shape (N,), or None where that is not known."""
        return None if self.clean_labels is None else self.labels == self.clean_labels


def evaluate_examples(
    trainer: "FaMUSTrainer",
    dataset: Any,
    loss: Any,
    *,
    with_probabilities: bool = False,
    progress: str | None = None,
    model: nn.Module | None = None,
) -> PerExample:
    """One pass over a data set that yields model inputs. All processes call it.

    Args:
        trainer: Its network, processes and settings.
        dataset: Map-style.
        loss: Logits (n, C), labels → (n,).
        with_probabilities: They take 4·N·C bytes on every process.
        progress: Words beside a progress bar; default: none.
        model: A network instead of the trainer's.

    Raises:
        ValueError: The data set is a stream, or empty, or has labels that the network has no class for.
    """
    if not has_length(dataset) or len(dataset) == 0:
        raise ValueError("a data set that is empty, or a stream, can't be examined: give one whose size is known")
    found: dict[str, list[np.ndarray]] = {}
    scale = _logit_scale(trainer)
    for logits, labels, inputs in _passes(trainer, model or trainer.model, dataset, progress):
        given = inputs["labels"] if inputs["labels"].dim() == 1 else inputs["labels"].argmax(1)
        if given.min() < 0 or given.max() >= logits.shape[1]:
            raise ValueError(
                f"the labels go from {int(given.min())} to {int(given.max())} and the network has {logits.shape[1]} "
                "classes: give data with the classes that it was trained on"
            )
        parts = {"labels": given, "losses": loss(logits, labels).float()}
        if with_probabilities:
            parts["probabilities"] = (scale * logits).softmax(1)
        parts |= {name: inputs[name] for name in ("clean_label", "index") if name in inputs}
        for name, part in parts.items():
            found.setdefault(name, []).append(part.cpu().numpy())
    whole = {
        name: np.concatenate(trainer.processes.objects(np.concatenate(parts)))[: len(dataset)]
        for name, parts in found.items()
    }
    return PerExample(
        whole["labels"], whole["losses"], whole.get("probabilities"), whole.get("clean_label"), whole.get("index")
    )


def _logit_scale(trainer: "FaMUSTrainer") -> float:
    """What makes probabilities of logits: LDAM's scale for cosines, which lie in [−1, 1]."""
    cosines = getattr(getattr(trainer.model, "config", None), "cosine_classifier", False)
    return trainer.args.ldam_scale if cosines else 1.0


@torch.no_grad()
def _passes(
    trainer: "FaMUSTrainer", model: nn.Module, dataset: Any, progress: str | None
) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Logits (n, C) and labels of this process's share, batch by batch, and the batch as it was loaded."""
    processes = trainer.processes
    was_training = model.training
    share = -(-len(dataset) // processes.count)  # equal, as FSDP needs all processes in each of its passes
    rows = np.arange(share * processes.rank, share * (processes.rank + 1)).clip(max=len(dataset) - 1)
    batches = in_order(Subset(dataset, rows.tolist()), trainer.args, trainer.data_collator)
    show = progress is not None and trainer.is_world_process_zero() and not trainer.args.disable_tqdm
    model.eval()
    try:
        for inputs in tqdm(batches, desc=progress, disable=not show):
            batch, labels, _ = split_inputs(trainer.central_crop(trainer._prepare_inputs(inputs)))
            with trainer.compute_loss_context_manager():
                logits = model_logits(model, batch).float()
            yield logits, labels, inputs
    finally:
        model.train(was_training)
