"""What FaMUSTrainer refuses of what any method may have beside itself: beliefs, trusted rows, mixup, class shares."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from famus_hf.core.autodiff.forward_pass import RECORD_COLUMNS
from famus_hf.core.losses import IGNORED, CrossEntropyLoss, LDAMLoss
from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_learners.corrections import Correction
from famus_hf.core.meta_learners.posterior import PosteriorTargets
from famus_hf.data.inputs.model_inputs import known_labels
from famus_hf.data.inputs.training_rows import HELD_OUT, INSTEAD, LABELS, TrainingRows, columns_of
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.errors import DataError, FaMUSError, SettingsError
from famus_hf.training_args import FaMUSTrainingArguments

BELIEFS_LIMIT = 4 * 2**30  # bytes of beliefs that training itself looks at

Collate = Callable[[list[Any]], dict[str, Any]]


def needs_beliefs(args: FaMUSTrainingArguments, learner: MetaLearner | None) -> bool:
    """Return whether training itself looks at beliefs: the meta-learner, or logit adjustment where labels are wrong, or
    early-learning regularization with any learner or none."""
    return args.elr_weight > 0 or (learner is not None and (learner.needs_beliefs or args.logit_adjustment > 0))


def class_labels(train: Any) -> list[int]:
    """Return the class indices of a training set that can tell them without being read through; else none."""
    return [label for label in known_labels(train) if isinstance(label, int) and label != IGNORED]


def check_base_loss(base_loss: Any, learner: MetaLearner | None) -> None:
    """Raise SettingsError on a base loss that the targets or the likelihood of a meta-learner would pass over."""
    if learner is None or not learner.takes_probabilities:
        return
    name = type(learner).__name__
    if isinstance(base_loss, LDAMLoss):
        raise SettingsError(
            f"base_loss 'ldam' has margins for class indices, and {name} learns from probabilities: choose another"
        )
    is_plain = isinstance(base_loss, CrossEntropyLoss) and base_loss.label_smoothing == 0
    is_likelihood = isinstance(learner, PosteriorTargets) and learner.form == "likelihood"
    if (isinstance(learner, Correction) or is_likelihood) and not is_plain:
        raise SettingsError(
            f"{name}'s loss is the likelihood of a label, in which another base_loss or label_smoothing_factor does "
            "nothing: leave it out, or choose meta_learner 'posterior' with posterior_form 'posterior'"
        )


def settle_trusted(args: FaMUSTrainingArguments, train: Any, meta: Any) -> None:
    """Train on no trusted examples where that can't be, if the user left it open.

    Raises:
        FaMUSError: The user asked for it.
    """
    if args.train_on_trusted:
        try:
            _check_trusted(args, train, meta)
        except FaMUSError:
            if args.asks_for_trusted:
                raise
            args.train_on_trusted = False


def check_rows(
    args: FaMUSTrainingArguments, model: Any, train: Any, learner: MetaLearner | None, collate: Collate
) -> None:
    """Raise FaMUSError where examples can't be told apart or remembered, though settings ask for it."""
    others = [name for name in ("train_on_trusted", "sample_weight_column") if getattr(args, name)]
    if not (others or needs_beliefs(args, learner)):
        return
    name = _who_believes(args, learner) if needs_beliefs(args, learner) else others[0]
    if isinstance(train, IterableDataset) or not (has_length(train) and hasattr(train, "__getitem__")):
        raise SettingsError(
            f"{name} needs to know which example is which, and a stream does not tell: load it without streaming, or "
            "leave that out"
        )
    if needs_beliefs(args, learner):
        _check_memory(args, model, len(train), learner)
    first = train[0]
    if isinstance(first, tuple | list | str | Tensor):
        raise DataError(
            f"{name} gives each training example the column 'row', and an example is a {type(first).__name__}: give "
            "mappings from names to values"
        )
    batch = collate([TrainingRows(train)[row] for row in range(min(2, len(train)))])
    if "row" not in batch:
        raise SettingsError(
            f"{name} needs the column 'row' in each training batch, which the data_collator drops (it leaves "
            f"{', '.join(batch)}): have it keep that column, whose values are whole numbers, or choose another method"
        )


def check_mixup(args: FaMUSTrainingArguments, train: Any, batch: dict[str, Any], base_loss: Any) -> None:
    """Raise FaMUSError on training examples that mixup can't mix. batch: The first ones, as they reach the network."""
    inputs = sorted(set(batch) - {"labels", *RECORD_COLUMNS})
    if inputs != ["pixel_values"] or not batch["pixel_values"].is_floating_point():
        kind = f"pixel_values of type {batch['pixel_values'].dtype}" if inputs == ["pixel_values"] else None
        raise DataError(
            f"mixup_alpha mixes images, and the examples hold {kind or ', '.join(inputs)}: give pixel_values of "
            "floating-point numbers alone, or leave it out"
        )
    if isinstance(base_loss, LDAMLoss):
        raise SettingsError("base_loss 'ldam' has margins for class indices: it does not go with mixup_alpha")
    labels = batch.get("labels")
    seen = [] if labels is None or labels.dim() > 1 else labels.tolist()
    if IGNORED in seen or IGNORED in known_labels(train):
        raise DataError(
            f"mixup_alpha mixes labels, and some examples have none ({IGNORED}): leave these examples out, or mixup"
        )


def check_beliefs_of_mixed(args: FaMUSTrainingArguments, learner: MetaLearner | None, is_sharded: bool) -> None:
    """Raise SettingsError on mixed images of a sharded network that is to be asked of the unmixed ones beside."""
    if args.mixup_alpha and is_sharded and needs_beliefs(args, learner):
        raise SettingsError(
            f"mixup_alpha and {_who_believes(args, learner)} under FSDP would need a pass of the unmixed images within "
            "the step, which FSDP does not allow: leave one of them out, or start without FSDP"
        )


def check_mixture(args: FaMUSTrainingArguments, learner: MetaLearner | None, alpha: float, is_sharded: bool) -> None:
    """Raise SettingsError where images are mixed that a meta-learner takes as they are, or not as it would mix them.

    Args:
        args: The settings.
        learner: Ψ.
        alpha: α of mixup; 0: nothing is mixed.
        is_sharded: Whether FSDP shards the network.
    """
    if learner is None:
        return
    name = type(learner).__name__
    if learner.needs_rows and alpha:
        raise SettingsError(f"{name} asks for the class of each image, and mixup_alpha mixes them: leave it out")
    if not learner.mixes_by_losses:
        return
    if not alpha:
        raise SettingsError(f"{name} mixes images, and mixup_alpha={args.mixup_alpha} mixes none: raise it")
    if args.sample_weight_column is not None:
        raise SettingsError(f"sample_weight_column weighs single examples, which {name} mixes: leave it out")
    if is_sharded:
        raise SettingsError(
            f"{name} under FSDP would need a pass of the unmixed images within the step, which FSDP does not allow: "
            "start without FSDP, or choose meta_learner 'mentornet'"
        )


def check_features(train: Any, learner: MetaLearner | None, is_sharded: bool) -> None:
    """Raise SettingsError on a meta-learner that looks back on epochs, where there are none, or weights are spread."""
    if learner is None or not learner.observed_features:
        return
    name = type(learner).__name__
    if isinstance(train, IterableDataset) or not (has_length(train) and hasattr(train, "__getitem__")):
        raise SettingsError(
            f"{name} looks at training examples after each epoch, and a stream tells of neither: load it without "
            "streaming, or choose another meta_learner"
        )
    if is_sharded:
        raise SettingsError(
            f"{name} goes back to weights of an earlier epoch, which FSDP spreads over processes: start without FSDP"
        )


def check_logit_adjustment(args: FaMUSTrainingArguments, model: Any, train: Any, base_loss: Any) -> None:
    """Raise SettingsError where logit adjustment does not know the shares of the classes, or there are margins, too."""
    if not args.logit_adjustment:
        return
    if isinstance(base_loss, LDAMLoss):
        raise SettingsError(
            "base_loss 'ldam' has margins against long tails already: it does not go with logit_adjustment"
        )
    if not class_labels(train):
        raise SettingsError(
            "logit_adjustment needs the labels of all training examples, which this train_dataset does not tell "
            "without being read through: leave it out, or give a data set of datasets"
        )
    if not getattr(getattr(model, "config", None), "num_labels", 0):
        raise SettingsError(
            f"logit_adjustment needs to know the number of classes, and the {type(model).__name__} has no "
            "config.num_labels: give it one"
        )


def check_own_loss(args: FaMUSTrainingArguments, kind: type) -> None:
    """Raise SettingsError on a `compute_loss` of the user's, which would pass over settings. kind: The trainer's."""
    owner = next(owner for owner in kind.__mro__ if "compute_loss" in vars(owner))
    for name in ("mixup_alpha", "logit_adjustment", "elr_weight", "sample_weight_column"):
        if getattr(args, name) and owner.__module__.partition(".")[0] != "famus_hf":
            raise SettingsError(
                f"{owner.__name__}.compute_loss is the whole loss, so that {name} does nothing: drop one"
            )


def _who_believes(args: FaMUSTrainingArguments, learner: MetaLearner | None) -> str:
    if args.elr_weight:
        return "elr_weight"
    is_own = learner is not None and learner.needs_beliefs
    return type(learner).__name__ if is_own else "logit_adjustment with a meta-learner"


def _check_memory(args: FaMUSTrainingArguments, model: Any, examples: int, learner: MetaLearner | None) -> None:
    classes: Any = getattr(learner, "num_labels", 0) or getattr(getattr(model, "config", None), "num_labels", 0)
    needed = 4 * examples * classes
    if needed > BELIEFS_LIMIT:
        raise SettingsError(
            f"{_who_believes(args, learner)} remembers what is believed of {examples} examples in {classes} classes, "
            f"{needed} bytes on each device, of at most {BELIEFS_LIMIT}: choose meta_learner 'mw-net' without "
            "logit_adjustment and elr_weight, or train on fewer examples or classes"
        )


def _check_trusted(args: FaMUSTrainingArguments, train: Any, meta: Any) -> None:
    if meta is None or isinstance(meta, PseudoCleanSet):
        raise SettingsError(
            "train_on_trusted needs trusted examples, and there are none: give a meta_dataset (--num_meta), or leave "
            "it out"
        )
    if not (has_length(meta) and hasattr(meta, "__getitem__")):
        raise SettingsError("train_on_trusted needs to know which trusted example is which: give a map-style data set")
    if len(meta) < HELD_OUT:
        raise SettingsError(
            f"train_on_trusted holds one in {HELD_OUT} trusted examples out, and there are {len(meta)}: give at "
            f"least {HELD_OUT}, or leave it out"
        )
    counted = "balanced_batches_per_epoch" if args.balanced_batches_per_epoch is not None else ""
    counted = "logit_adjustment" if args.logit_adjustment else counted
    if counted and len(class_labels(meta)) < len(meta):
        raise SettingsError(
            f"{counted} with train_on_trusted needs the labels of all trusted examples, which this meta_dataset does "
            "not tell without being read through: give a data set of datasets"
        )
    if isinstance(train, IterableDataset):
        raise SettingsError(
            "train_on_trusted needs to know which training example is which, and a stream does not tell: load it "
            "without streaming, or leave that out"
        )
    if isinstance(train[0], tuple | list | str | Tensor):
        return  # said of the training set
    own, trusted = (set(columns_of(dataset[0])) for dataset in (train, meta))
    missing = sorted(own - trusted - set(INSTEAD))
    if missing:
        is_label = missing[0] in LABELS and trusted & set(LABELS)
        raise DataError(
            f"train_on_trusted needs the columns of the training examples in the trusted ones, too, which lack "
            f"{', '.join(missing)}" + (f" (they have {', '.join(trusted & set(LABELS))})" if is_label else "")
        )
