"""What every meta-learner is: its training loss as a function of a batch and of θ, and how θ moves (torch only).

A meta-learner of your own is a subclass of `MetaLearner` that says its `training_loss` in terms of its parameters.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from famus_hf.core.autodiff.training_pass import TrainingPass
from famus_hf.core.losses import adjusted, as_targets, at_least_float32, early_learning_losses, with_row_weights
from famus_hf.core.pretrained import Pretrained

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]  # logits (n, C), labels (n,) or (n, C) → (n,)


@dataclass(frozen=True)
class LabelledBatch:
    """A training batch, all processes' rows, as a meta-learner sees it.

    Attributes:
        logits: z, shape (n, C).
        labels: y, shape (n,), or (n, C) for soft targets.
        per_example_loss: ℓ.
        beliefs: q, what the network believed of each example until now, shape (n, C), rows sum to 1; None where nobody
            remembers (`MetaLearner.needs_beliefs`).
        is_trusted: Whose label is known to be right, shape (n,); None: nobody's.
        mixture: Where examples are mixed (mixup): the partner of each and its own share, both of shape (n,).
        label_losses: ℓ of the examples themselves by their given labels, detached, shape (n,).
        elr_targets: Of the examples themselves in early-learning regularization, shape (n, C).
        sample_weights: How much each example counts, shape (n,); None: all alike. The gradient by a row of the logits
            of `of` has this factor already.
        rows: Of the examples in the training set, shape (n,), where `MetaLearner.needs_rows`; those of trusted ones
            come after the training examples'.
    """

    logits: Tensor
    labels: Tensor
    per_example_loss: PerExampleLoss
    beliefs: Tensor | None = None
    is_trusted: Tensor | None = None
    mixture: tuple[Tensor, Tensor] | None = None
    label_losses: Tensor | None = None
    elr_targets: Tensor | None = None
    sample_weights: Tensor | None = None
    rows: Tensor | None = None

    @classmethod
    def of(cls, training_pass: TrainingPass, per_example_loss: PerExampleLoss) -> "LabelledBatch":
        """Return the batch of a training pass, its logits with the graph of this process's rows."""
        train = training_pass
        logits = with_row_weights(adjusted(train.all_logits, train.logit_shift), train.sample_weights)
        described = (
            train.beliefs, train.is_trusted, train.mixture, train.label_losses, train.elr_targets, train.sample_weights,
            train.rows,
        )  # fmt: skip
        return cls(logits, train.all_labels, per_example_loss, *described)

    @cached_property
    def losses(self) -> Tensor:
        """ℓ of each row by its given label, or by two where examples are mixed; shape (n,), with graph."""
        return self.losses_of(self.logits)

    def losses_of(self, logits: Tensor) -> Tensor:
        """Return the same of other logits than the network's. (n, C) → (n,)"""
        if self.mixture is None:
            return self.per_example_loss(logits, self.labels)
        return self.per_example_loss(logits, self.mixed(as_targets(self.labels, at_least_float32(logits))))

    @property
    def losses_of_labels(self) -> Tensor:
        """ℓ of each example itself by its given label, shape (n,), detached."""
        return self.losses.detach() if self.label_losses is None else self.label_losses

    def early_learning_losses(self, scale: float = 1.0) -> Tensor:
        """Return `early_learning_losses` of the rows, shape (n,). scale: Of logits in the softmax of the targets."""
        assert self.elr_targets is not None
        return early_learning_losses(scale * self.logits, self.mixed(self.elr_targets))

    def by_trust(self, of_trusted: Tensor, of_others: Tensor) -> Tensor:
        """Return the rows of the one where a label is trusted, and of the other elsewhere; all of shape (n, …)."""
        if self.is_trusted is None:
            return of_others
        return torch.where(self.is_trusted.view(-1, *[1] * (of_others.dim() - 1)), of_trusted, of_others)

    def mixed(self, targets: Tensor) -> Tensor:
        """Return the targets of the rows, as mixed as these are, from those of the examples; both (n, C)."""
        if self.mixture is None:
            return targets
        partner, share = self.mixture[0], self.mixture[1].to(targets)[:, None]
        return share * targets + (1 - share) * targets[partner]


class MetaLearner(Pretrained, nn.Module):
    """What a meta-learner must say: its training loss as a function of a batch and of its own parameters θ.

    Attributes:
        keeps_theta: Whether θ lives on from step to step; where not, `begin_step` makes it afresh.
        weighs_examples: Whether ∇_w J = Σ_i V̂_i ∇_w ℓ_i with V̂ = `example_weights(ℓ)`.
        has_virtual_step: False where J does not move w before θ is known (L2R: its weights start at zero): then ŵ = w.
        only_ratios_count: Whether a positive factor of the gradient by θ changes nothing: then the learning rate of w,
            which is 0 at the start of a warm-up, is left out of it.
        needs_beliefs: Whether its training loss takes `LabelledBatch.beliefs`.
        needs_rows: Whether it takes `LabelledBatch.rows`, too.
        takes_probabilities: Whether its loss is of probabilities, and not of class indices and logits alone.
        mixes_by_losses: Whether images are mixed as `mixture` says, after a pass of the batch as it is.
        mixup_alpha: α of mixup where the user names none; 0: examples are not mixed.
        observes_trusted: Whether `observe_beliefs` gets predictions of trusted examples in place of beliefs of training
            examples.
        observes_each_epoch: Whether `observe_beliefs` is called in each epoch after the plain part, and not only before
            the first step after it, whatever `transition_counts` says.
        observed_features: Training examples whose features `observe_features` is shown after each epoch.
        has_posteriors: Whether its targets are posteriors of the true class, which wrong labels hardly get past.
        has_meta_step: Whether θ learns from meta batches; where not, no meta set is needed.
        plain_share: Of a run, that is plain training before the first meta step where the user says nothing else.
        plain_epochs: The most epochs of it.
        plain_steps: Steps of it, within that share, even where they are more epochs, as on few examples.
        waits: Whether training stays plain after that, too: no θ moves, and `observe_beliefs` is called again in the
            next epoch.
        default_optimizer: Of θ where the user names none, `"adam"` or `"sgd"`.
        default_learning_rate: β, likewise.
        momentum: Of `"sgd"`.
    """

    keeps_theta = True
    weighs_examples = False
    has_virtual_step = True
    only_ratios_count = False
    needs_beliefs = False
    needs_rows = False
    takes_probabilities = False
    mixes_by_losses = False
    mixup_alpha = 0.0
    observes_trusted = False
    observes_each_epoch = False
    observed_features = 0
    has_posteriors = False
    has_meta_step = True
    plain_share = 0.0
    plain_epochs = math.inf
    plain_steps = 0
    waits = False
    default_optimizer = "adam"
    default_learning_rate = 1e-3
    momentum = 0.9

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, for `meta_net/config.json`."""
        return {}

    def begin_step(self, logits: Tensor) -> None:
        """Begin a training step, where θ lives for one step only. logits: Of the training batch, shape (n, C)."""

    def observe_beliefs(self, beliefs: Tensor, labels: Tensor, trusted: tuple[Tensor, Tensor] | None = None) -> None:
        """Look at what is believed of all training examples, before the first meta step and perhaps in later epochs.

        Args:
            beliefs: q, shape (N, C).
            labels: Given ones, shape (N,).
            trusted: The same of the trusted examples that are trained on, too: shapes (m, C) and (m,); m may be 0.
        """

    def observe_features(self, features: Tensor, progress: float, is_plain: bool) -> bool:
        """Look at the last hidden features of `observed_features` training examples, after each epoch but the last.

        Args:
            features: Of other examples each time, in evaluation mode, shape (n, D).
            progress: Share of the run that is done.
            is_plain: Whether the epoch was one of the plain part.

        Returns:
            Whether the network is to go back to the weights after the epoch before.
        """
        return False

    @property
    def may_go_back(self) -> bool:
        """Whether it may want that after the next epoch, for which the weights are then kept."""
        return False

    def notes(self) -> dict[str, float]:
        """Return what is logged after `observe_features`."""
        return {}

    def mixture(self, losses: Tensor, shares: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the partner of each example in the batch and the example's own share, where `mixes_by_losses`.

        Args:
            losses: Of the examples themselves, before the step, shape (n,).
            shares: max(λ, 1 − λ), λ of Beta(α, α), drawn for each, shape (n,).
            generator: Of further draws, on the CPU.

        Returns:
            Both of shape (n,), on the CPU.
        """
        raise NotImplementedError

    def label_posteriors(self, beliefs: Tensor, labels: Tensor, losses: Tensor) -> Tensor | None:
        """Return how likely each class is of each example, shape (N, C), for reports; None where that is not learned.

        Args:
            beliefs: q, shape (N, C).
            labels: Given ones, shape (N,).
            losses: By given labels, from before the network learned from them last, shape (N,).
        """
        return None

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return θ in groups with learning rates, as an optimizer takes them. learning_rate: β."""
        parameters = list(self.parameters())
        return [{"params": parameters, "lr": learning_rate}] if parameters else []

    def theta(self) -> dict[str, Tensor]:
        """Return θ by name: what the meta gradient is taken of. Default: the module's parameters."""
        return dict(self.named_parameters())

    def example_weights(self, losses: Tensor) -> Tensor | None:
        """Return V̂ of a batch for the logs, shape (n,), from losses of shape (n,); None where there are none."""
        return None

    def raw_weights(self, losses: Tensor) -> Tensor | None:
        """Return V of single examples, for reports, shape (n,), from losses (n,); None where V depends on more."""
        return None

    def training_loss(self, batch: LabelledBatch) -> Tensor:
        """Return J(w, θ), a scalar that reaches w only through the batch's logits."""
        raise NotImplementedError

    def move(self, gradient: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        """Move θ ← θ − β·g' by the optimizer. gradient: g' by name in `theta()`."""
        if optimizer is None:
            return
        for name, parameter in self.named_parameters():
            parameter.grad = gradient[name]
        optimizer.step()
        optimizer.zero_grad()

    def outcome(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what `famus_hf.meta_gradient` returns. Default: the gradient itself."""
        return dict(gradient)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write `meta_net/` below the folder, in place of one that is there, its layer sampler included."""
        type(self).files().save_meta_net(folder, self, None)


def divided_by_sum(weights: Tensor) -> Tensor:
    """Return weights / Σ weights, all zero if the sum is zero. weights: Shape (n,), at least 0."""
    total = weights.sum()
    return weights / torch.where(total == 0, torch.ones_like(total), total)
