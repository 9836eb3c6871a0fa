"""FaMUSTrainingArguments: transformers' TrainingArguments with the paper's defaults and its own settings."""

import logging
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, SchedulerType

from famus_hf.core.autodiff.training_pass import Derivative
from famus_hf.core.losses import BaseLoss
from famus_hf.core.non_finite import NanPolicy
from famus_hf.core.validation import Above, AtLeast, Below, Between
from famus_hf.core.virtual_train import VirtualStepKind
from famus_hf.errors import SettingsError
from famus_hf.training_args_checks import (
    OF_SGD,
    AugmentationName,
    MetaSet,
    PaddingMode,
    check_arguments,
    check_fields,
    check_fsdp_engages,
    check_preset,
    convert_fields,
    who_asks_for_fsdp,
)

logger = logging.getLogger("famus_hf")

FAST = {"layer_sampler": "all", "candidate_layers": "4", "virtual_scope": "candidates"}
RECOMMENDED, UNTRUSTED, OF_PAPER = "posterior", "forward", "mw-net"  # meta-learners
WITH_PRESET_FAST = ("posterior", "soft")  # where the user names none
OF_THE_STEP = (  # settings that say which layers are moved, or how: who gives one is given no preset
    "layer_sampler", "sampler_block", "candidate_layers", "meta_budget", "virtual_scope", "reuse_virtual_gradient",
    "scale_example_gradients",
)  # fmt: skip
WITH_TRUSTED = (
    "posterior",
    "soft",
    "forward",
    "backward",
)  # which learn from trusted examples as from others, likewise


@dataclass
class FaMUSTrainingArguments(TrainingArguments):
    """Every argument of transformers' TrainingArguments, and FaMUS's own.

    Defaults that differ from transformers': SGD with momentum 0.9 on all parameters, a constant learning rate divided
    by ten at `lr_milestones`, no gradient clipping, batches of 100, the last incomplete batch dropped, no column
    removed from the data. Numbers may be words or numpy's, as 6 or "6" for `candidate_layers`, and lists tuples.

    Raises:
        SettingsError: One sentence: what was seen, what is allowed.
    """

    per_device_train_batch_size: int = field(default=100, metadata={"help": "Training examples per step and device."})
    per_device_eval_batch_size: int = field(default=250, metadata={"help": "Evaluated examples at once and device."})
    num_train_epochs: float = field(default=40.0, metadata={"help": "Passes over the training set."})
    learning_rate: float = field(default=0.05, metadata={"help": "Initial learning rate α of the network."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay of the network's optimizer."})
    optim: OptimizerNames | str = field(
        default="sgd", metadata={"help": "The network's optimizer; sgd has momentum 0.9 unless optim_args says else."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping of the actual step; 0 is none."})
    lr_scheduler_type: SchedulerType | str = field(
        default="constant",
        metadata={
            "help": "Learning rate schedule; constant rises in warmup_steps, and is divided by ten at each of "
            "lr_milestones."
        },
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last incomplete training batch (a batch of one breaks batch norm)."}
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "Give a data_collator of your own only what the network takes, index and clean_label; False: "
            "everything. Collators of transformers are never given more than that."
        },
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resume callbacks too, so that early stopping goes on counting."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "See transformers' TrainingArguments."}
    )
    lr_milestones: Annotated[list[float], Above(0)] = field(
        default_factory=lambda: [0.5, 0.75],
        metadata={
            "help": "With the constant schedule, when the learning rate is divided by ten: below 1 a share of the run, "
            "else a number of steps. Give the flag without values for a truly constant rate."
        },
    )
    meta_learner: str | None = field(
        default=None,
        metadata={
            "help": "Ψ: posterior (targets from how likely each label is wrong, and for which class), mw-net (weights "
            "from losses), l2r (weights afresh in each step), mlc (corrects the loss by a matrix of wrong labels), "
            "forward (likewise, counted and without a meta step), backward (likewise, by its inverse), soft (between "
            "label and belief), l2b (l2r with the network's own class beside the label), jamal (class-balanced weights "
            "and a residual afresh in each step, for long tails), m-correction (labels and own classes mixed by a "
            "mixture of losses), mentornet (large losses wait), mentormix (likewise, mixed with others of small "
            "losses), d2l (own classes in the place of labels once features gain dimensions) and lccn (a latent class "
            "of each example, drawn anew each time), all of them without a meta step, or none for plain training. "
            "Default: posterior; without trusted examples forward; of streams, two networks and a "
            "pseudo-clean meta_set mw-net."
        },
    )
    posterior_form: Literal["posterior", "likelihood"] = field(
        default="posterior",
        metadata={
            "help": "posterior's loss: cross-entropy with posterior targets by what is believed of an example "
            "(posterior), or the likelihood of its label by the present prediction (likelihood)."
        },
    )
    transition_rate: Annotated[float, AtLeast(0)] = field(
        default=1.0,
        metadata={
            "help": "How many times β the learning rate of posterior's transitions is; 0 leaves them as counted."
        },
    )
    transitions: str | None = field(
        default=None,
        metadata={
            "help": "Where the transitions of posterior, forward and backward are from: counts (on what is believed "
            "of the training examples), calibrated (likewise, by how the trusted ones that are trained on, too, are "
            "taken; counts without five of a class), trusted (predictions of the trusted examples after the plain "
            "part: gold loss correction), anchors (what is believed of one example that is surely of its class), or "
            'a JSON file with {"class_names": [...], "transitions": [[...]]}, rows for true classes, '
            "columns for given labels. Default: calibrated for posterior, else counts."
        },
    )
    transition_counts: Literal["once", "each-epoch"] = field(
        default="once",
        metadata={
            "help": "When transitions between classes are counted (posterior, forward, backward): once, after the "
            "plain part, or anew in each epoch from then on."
        },
    )
    mentor_quantile: Annotated[float | None, Between(0, 1)] = field(
        default=None,
        metadata={
            "help": "mentornet, mentormix: examples whose losses are above this quantile wait. Default: 0.75; of "
            "mentormix 0.5 (authors, on CIFAR-100 with a noise of 0.4)."
        },
    )
    soft_input: Literal["loss", "beliefs"] = field(
        default="loss",
        metadata={
            "help": "What soft's network sees of an example: its loss, or beliefs (loss, −log q_y, max q, entropy of "
            "q, with q what is believed of it)."
        },
    )
    class_heads: Annotated[int, AtLeast(1)] = field(
        default=1,
        metadata={
            "help": "Outputs of soft's network, one for each group of classes with about as many examples (3 in "
            "CMW-Net)."
        },
    )
    belief_decay: Annotated[float | None, AtLeast(0), Below(1)] = field(
        default=None,
        metadata={
            "help": "Decay, at each visit, of the running prediction of an example (posterior, forward, soft, "
            "elr_weight, label report); 0 remembers the last one alone. Default: 0.8; for the report alone 0.5."
        },
    )
    train_on_trusted: bool | None = field(
        default=None,
        metadata={
            "help": "Train on four fifths of the trusted examples, too, with any meta-learner or none; the others "
            "judge what was learned. Default: with posterior, soft and forward."
        },
    )
    logit_adjustment: Annotated[float, AtLeast(0)] = field(
        default=0.0,
        metadata={
            "help": "τ of logit adjustment for long tails: τ·log π is added to the logits in training, π the shares of "
            "classes (1 is usual, 0 is off)."
        },
    )
    elr_weight: Annotated[float, AtLeast(0)] = field(
        default=0.0,
        metadata={
            "help": "λ of early-learning regularization, with any meta-learner or none: predictions are pulled to "
            "earlier ones of the example, whatever its label (authors: 3 with belief_decay 0.7 on CIFAR-10, 7 with 0.9 "
            "on CIFAR-100; 0 is off)."
        },
    )
    sample_weight_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the training set that says how much each example counts, with any meta-learner or none: "
            "numbers of at least 0, which are divided by their mean; 0 leaves an example out of the loss."
        },
    )
    mlc_form: Literal["logits", "probabilities"] = field(
        default="logits",
        metadata={"help": "What mlc multiplies by its matrix: logits (its authors' code) or probabilities."},
    )
    mlc_reduction: Literal["mean", "sum"] = field(
        default="mean", metadata={"help": "mlc's training loss: mean of the batch, or sum (its authors' code)."}
    )
    mlc_keep_matrix: bool = field(
        default=True,
        metadata={
            "help": "Whether mlc's matrix goes on learning; False starts it afresh in each step (authors' code)."
        },
    )
    layer_sampler: str = field(
        default="learned",
        metadata={
            "help": "Which layers carry the meta gradient: learned (FaMUS), all (the exact base method), block (one "
            "residual block, see sampler_block) or random (a few, drawn in each step, see random_layers)."
        },
    )
    sampler_block: int | None = field(
        default=None, metadata={"help": "Residual block of layer_sampler block, from 1 for the lowest."}
    )
    random_layers: Annotated[int, Above(0)] = field(default=4, metadata={"help": "Layers of layer_sampler random."})
    expected_layers: Annotated[float, Above(0)] = field(
        default=4.0, metadata={"help": "K of Eq. 10: layers to be on, on average."}
    )
    candidate_layers: str = field(
        default="all", metadata={"help": "Layers that the sampler may switch on: all, or a number N for the top N."}
    )
    meta_budget: Annotated[float | None, Above(0)] = field(
        default=None,
        metadata={
            "help": "Instead of expected_layers: what the sampler's choice may cost, in plain steps (0.2: a fifth of "
            "one), on average. Costs of layers are measured at the start."
        },
    )
    sparsity_weight: Annotated[float | None, AtLeast(0)] = field(
        default=None, metadata={"help": "λ1 of Eq. 12. Default: 0.1 for the learned sampler, else 0."}
    )
    gradient_match_weight: Annotated[float | None, AtLeast(0)] = field(
        default=None, metadata={"help": "λ2 of Eq. 12. Default: 0.1 for the learned sampler, else 0."}
    )
    meta_learning_rate: Annotated[float | None, AtLeast(0)] = field(
        default=None,
        metadata={
            "help": "Learning rate β of the meta-learner. Default: 1e-3 for mw-net and soft, 3e-3 for posterior; "
            "for mlc 1, or 0.11 if not kept."
        },
    )
    meta_lr_schedule: Literal["main", "constant"] | None = field(
        default=None,
        metadata={
            "help": "Whether β falls as the network's learning rate does (main) or not (constant, the paper). Default: "
            "main with adam, constant with sgd."
        },
    )
    meta_optim: Literal["adam", "sgd"] | None = field(
        default=None,
        metadata={"help": "Optimizer of the meta-learner, adam or sgd. Default: adam for mw-net, sgd for mlc."},
    )
    sampler_learning_rate: Annotated[float, AtLeast(0)] = field(
        default=0.1, metadata={"help": "Learning rate δ of the layer sampler (SGD, momentum 0.9)."}
    )
    sampler_temperature: Annotated[float, Above(0)] = field(
        default=1.0, metadata={"help": "Temperature of the sampler's Gumbel-softmax (not stated in the paper)."}
    )
    sampler_initial_bias: float | None = field(
        default=None,
        metadata={
            "help": "Log-odds of a layer being on at the start (not stated in the paper). Default: 0; 4 with a "
            "meta_budget, which lowers them as far as it must."
        },
    )
    sampler_relative_slopes: bool = field(
        default=False,
        metadata={
            "help": "Divide the gates' effects on the meta loss by their running mean size, so that they count beside "
            "Eq. 10 (paper: not)."
        },
    )
    weight_normalization: Literal["sum", "mean"] = field(
        default="sum",
        metadata={"help": "Example weights divided by their sum over the batch (sum) or by its size (mean)."},
    )
    meta_batch_size: Annotated[int | None, Above(0)] = field(
        default=None, metadata={"help": "Meta examples per step and device. Default: per_device_train_batch_size."}
    )
    meta_set: MetaSet | None = field(
        default=None,
        metadata={
            "help": "clean: held out examples with trusted labels; pseudo-clean: training examples with small losses, "
            "chosen anew in each epoch. Default: clean where there are any, else pseudo-clean."
        },
    )
    plain_warmup_epochs: Annotated[float | None, AtLeast(0)] = field(
        default=None,
        metadata={
            "help": "Epochs of plain training before the first meta step. Default: 0; with a pseudo-clean meta set, or "
            "a pair_method that needs it, a tenth of the run, at least two epochs and at most half of the run."
        },
    )
    balanced_batches_per_epoch: Annotated[int | None, Above(0)] = field(
        default=None,
        metadata={
            "help": "An epoch is so many batches, with the same number of examples of each class (Clothing1M: 1000)."
        },
    )
    augmentation: AugmentationName = field(
        default="none",
        metadata={
            "help": "Random crops and flips of training and meta images: pad-crop (4 pixels around, cropped back), "
            "random-crop (image_size out of resize_size), resized-crop (a random box, made image_size) or none."
        },
    )
    augmentation_padding_mode: PaddingMode = field(
        default="zero", metadata={"help": "What pad-crop pads with: zero (black) or reflect."}
    )
    image_size: Annotated[int | None, Above(0)] = field(
        default=None,
        metadata={"help": "Height and width that the network sees. Default: of the pretrained model, or of the data."},
    )
    resize_size: Annotated[int | None, Above(0)] = field(
        default=None, metadata={"help": "Shorter side that images are resized to before image_size is cropped out."}
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each colour channel, of values in [0, 1]. Default: as image_size."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each colour channel. Default: as image_size."}
    )
    max_seq_length: Annotated[int | None, Above(0)] = field(
        default=None,
        metadata={"help": "Tokens after which texts are cut. Default: what tokenizer and network take, or else 512."},
    )
    max_length_seconds: Annotated[float | None, Above(0)] = field(
        default=None, metadata={"help": "Seconds after which recordings are cut. Default: 20."}
    )
    virtual_step: VirtualStepKind | None = field(
        default=None,
        metadata={
            "help": "Virtual-Train's step: sgd (the plain gradient step of the paper) or optimizer (preconditioned as "
            "the step of torch's optimizers; for any other, a gradient step as long as the optimizer's own). Default: "
            "optimizer, which with sgd is the plain step."
        },
    )
    virtual_scope: Literal["all", "candidates"] = field(
        default="all",
        metadata={
            "help": "Layers that Virtual-Train moves: all (the paper), or only the candidates of the sampler (see "
            "candidate_layers), so that nothing below them is differentiated."
        },
    )
    reuse_virtual_gradient: bool = field(
        default=False,
        metadata={
            "help": "Take Virtual-Train's gradient for the actual step too: the weights are those from before the "
            "meta-learner's step (paper: from after it), and one of two backward passes is saved."
        },
    )
    scale_example_gradients: bool = field(
        default=False,
        metadata={
            "help": "Where nothing couples the examples of a batch (no batch norm): go back through the activations "
            "once for virtual and actual gradient. Exact, faster, takes the memory of all activations once more."
        },
    )
    meta_interval: Annotated[int, Above(0)] = field(
        default=1,
        metadata={
            "help": "Steps from one meta step to the next (paper: 1); between them the meta-learner stays as it is."
        },
    )
    preset: Literal["fast", "paper"] | None = field(
        default=None,
        metadata={
            "help": "fast: settings for a step of little more than a plain one, in place of those that are left at "
            "their defaults: layer_sampler all, candidate_layers 4, virtual_scope candidates, meta_batch_size a "
            "quarter of the training batch and at least 2. paper: all as they stand. Default: with posterior and soft "
            "fast, unless layers or the virtual step are chosen, else paper."
        },
    )
    ema_decay: Annotated[float | None, Between(0, 1)] = field(
        default=None,
        metadata={
            "help": "Judge, save and push an exponential moving average of the network's weights and running "
            "statistics, which keeps min(this, (1 + t)/(10 + t)) of itself after step t, so that a short run's average "
            "is of its last steps. Default: none."
        },
    )
    nan_policy: NanPolicy = field(
        default="stop",
        metadata={
            "help": "Where logits, a loss or a gradient is not finite: stop, or skip the step, in which then nothing "
            "moves (the log says so once, and the run stops after 100 in a row); where only the meta batch is to "
            "blame, the network alone moves."
        },
    )
    allow_other_data: bool = field(
        default=False,
        metadata={
            "help": "Go on from a checkpoint (--resume_from_checkpoint) with other data than those that it was trained "
            "on; a warning says what differs."
        },
    )
    label_report: bool = field(
        default=True,
        metadata={
            "help": "Examine the training labels before a push, and at the end of run_famus.py: label_report.parquet "
            "and pictures in figures/."
        },
    )
    clean_threshold: Annotated[float, Between(0, 1)] = field(
        default=0.5,
        metadata={"help": "Two networks: examples are labelled whose probability of a right label is above it."},
    )
    calibrate_division: bool = field(
        default=True,
        metadata={
            "help": "Two networks: leave out about as many labels as are wrong by the surest predictions after the "
            "warm-up, whatever share the mixture of losses finds (DivideMix: the mixture's)."
        },
    )
    unlabelled_share: Literal["division", "half"] = field(
        default="division",
        metadata={
            "help": "Two networks: share of unlabelled examples in a batch, and of λ_u that counts: division (in "
            "proportion to the division) or half (DivideMix)."
        },
    )
    division_history: Annotated[int, Above(0)] = field(
        default=1, metadata={"help": "Two networks: epochs whose losses are averaged before examples are divided."}
    )
    sharpening_temperature: Annotated[float, Above(0)] = field(
        default=0.5, metadata={"help": "Two networks: temperature T of refined and guessed labels."}
    )
    mixup_alpha: Annotated[float | None, AtLeast(0)] = field(
        default=None,
        metadata={
            "help": "Mixup: α of the Beta(α, α) by which images are mixed; 0 mixes none. Default: 0; mentormix 8; two "
            "networks 0.5 (DivideMix: 4 on CIFAR, 0.5 on WebVision and Clothing1M; short runs need little of it)."
        },
    )
    unlabelled_weight: Annotated[float, AtLeast(0)] = field(
        default=5.0, metadata={"help": "Two networks: weight λ_u of the loss of unlabelled examples."}
    )
    ramp_up_epochs: Annotated[float, AtLeast(0)] = field(
        default=16.0, metadata={"help": "Two networks: epochs after the warm-up in which λ_u grows linearly from zero."}
    )
    warmup_confidence_penalty: bool = field(
        default=False,
        metadata={
            "help": "Two networks: the warm-up also penalises confident predictions (DivideMix, on asymmetric noise)."
        },
    )
    pair_method: str | None = field(
        default=None,
        metadata={
            "help": "How two networks without a meta-learner choose the examples of a batch that they learn from: "
            "co-teaching (each those that the other one finds easiest), jocor (both those on which they agree with the "
            "label and each other most), decoupling (both those on which they disagree), incv (co-teaching on what "
            "cross-validation has selected before). Default: not, they divide the training set once an epoch."
        },
    )
    noise_rate: Annotated[float | None, AtLeast(0), Below(1)] = field(
        default=None,
        metadata={
            "help": "Share of wrong labels, which co-teaching and jocor leave out (authors: known). Default: estimated "
            "by the networks' surest predictions after plain_warmup_epochs, or by incv's cross-validation, at most "
            "one half."
        },
    )
    forget_ramp_epochs: Annotated[float | None, AtLeast(0)] = field(
        default=None,
        metadata={
            "help": "Epochs in which the share that co-teaching, jocor and incv leave out rises from zero to its "
            "value. Default: 10 (authors), at most a fifth of the run."
        },
    )
    cross_validation_rounds: Annotated[int, Above(0)] = field(
        default=4, metadata={"help": "Rounds of incv's cross-validation, in each of which both halves are judged."}
    )
    cross_validation_epochs: Annotated[float | None, Above(0)] = field(
        default=None,
        metadata={
            "help": "Epochs for which a network learns from a half and what is selected, twice in each round of incv's "
            "cross-validation; they come before num_train_epochs and count in the time of the run. Default: half of "
            "num_train_epochs."
        },
    )
    cross_validation_drop: Annotated[float, AtLeast(0), Below(1)] = field(
        default=0.25,
        metadata={
            "help": "Of the examples that incv's cross-validation does not select in a half, those with the largest "
            "losses take no further part: as many as this share of the selected ones."
        },
    )
    jocor_agreement: Annotated[float, AtLeast(0), Below(1)] = field(
        default=0.9,
        metadata={
            "help": "λ of jocor, the weight of agreement in its loss (authors: 0.9 on CIFAR-10, 0.85 on CIFAR-100)."
        },
    )
    base_loss: BaseLoss = field(
        default="ce",
        metadata={
            "help": "Loss of an example, with or without a meta-learner: ce, focal, class-balanced, cb-focal (both), "
            "ldam, or one that bears wrong labels by itself: gce, sce or nce-rce. label_smoothing_factor goes with all "
            "but ldam."
        },
    )
    gce_q: Annotated[float, Above(0)] = field(
        default=0.7,
        metadata={
            "help": "q of gce, at most 1: towards 0 it is ce, at 1 the mean absolute error, which learns slowly."
        },
    )
    sce_alpha: Annotated[float, AtLeast(0)] = field(
        default=0.1, metadata={"help": "Weight of cross-entropy in sce (authors: 0.1 on CIFAR-10, 6 on CIFAR-100)."}
    )
    sce_beta: Annotated[float, AtLeast(0)] = field(
        default=1.0,
        metadata={"help": "Weight of reverse cross-entropy in sce (authors: 1 on CIFAR-10, 0.1 on CIFAR-100)."},
    )
    nce_alpha: Annotated[float, AtLeast(0)] = field(
        default=1.0,
        metadata={"help": "Weight of normalized cross-entropy in nce-rce (authors: 1 on CIFAR-10, 10 on CIFAR-100)."},
    )
    nce_beta: Annotated[float, AtLeast(0)] = field(
        default=1.0,
        metadata={"help": "Weight of reverse cross-entropy in nce-rce (authors: 1 on CIFAR-10, 0.1 on CIFAR-100)."},
    )
    focal_gamma: Annotated[float, AtLeast(0)] = field(default=2.0, metadata={"help": "γ of focal and cb-focal."})
    class_balance_beta: float = field(
        default=0.9999,
        metadata={"help": "β of class-balanced weights (class-balanced, cb-focal, and ldam's re-weighting)."},
    )
    ldam_max_margin: Annotated[float, Above(0)] = field(
        default=0.5, metadata={"help": "Margin of the rarest class in ldam."}
    )
    ldam_scale: Annotated[float, Above(0)] = field(default=30.0, metadata={"help": "Scale s of the logits in ldam."})
    ldam_reweight_from: Annotated[float, AtLeast(0)] = field(
        default=0.8,
        metadata={"help": "Share of the run after which ldam weighs classes (deferred re-weighting); 1 is never."},
    )
    log_stage_times: Annotated[int, AtLeast(0, "a number of steps, or 0 for never")] = field(
        default=0,
        metadata={
            "help": "Every so many steps: seconds of each stage of a step (diagnostics/stage_times.parquet); 0 is off."
        },
    )
    log_meta_gradient: Annotated[int, AtLeast(0, "a number of steps, or 0 for never")] = field(
        default=0,
        metadata={
            "help": "Every so many steps: mean and variance of the meta gradient over re-drawn meta batches, and how "
            "far it is from the exact one (diagnostics/meta_gradient.parquet); 0 is off."
        },
    )
    meta_gradient_draws: Annotated[int, AtLeast(2, "at least 2, as one has no variance")] = field(
        default=8, metadata={"help": "Re-drawn meta batches of log_meta_gradient."}
    )
    log_weights: Annotated[int, AtLeast(0, "a number of steps, or 0 for never")] = field(
        default=0,
        metadata={
            "help": "Every so many steps and at the end: weights of clean and of wrong training examples, of each "
            "class, and as a function of the loss (diagnostics/weights.parquet); 0 is off."
        },
    )
    log_layers: Annotated[int, AtLeast(0, "a number of steps, or 0 for never")] = field(
        default=0,
        metadata={
            "help": "Every so many steps: in which share of them each layer was on (diagnostics/layers.parquet); 0 is "
            "off."
        },
    )
    derivative: Derivative = field(
        default="auto",
        metadata={"help": "How the directional derivative is taken: auto, forward, reverse or finite (differences)."},
    )

    def __post_init__(self) -> None:
        self._leaves_learner_open = self.meta_learner is None and self.pair_method is None
        self._chooses_step = any(getattr(self, name) != self._default_of(name) for name in OF_THE_STEP)
        if self.meta_learner is None:
            self.meta_learner = RECOMMENDED if self.pair_method is None else "none"
        convert_fields(self)
        check_fields(self)
        names = ("optim_args", "data_seed", "meta_batch_size", "train_on_trusted")
        self._given = {name: getattr(self, name) for name in names}
        self._apply_preset()
        check_arguments(self)
        self._fill_in()
        super().__post_init__()
        check_fsdp_engages(self)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # without an accelerator torch only warns about it

    @property
    def num_candidate_layers(self) -> int | None:
        """N of the top N candidate layers; None means all."""
        return None if self.candidate_layers == "all" else int(self.candidate_layers)

    @property
    def asked_meta_batch_size(self) -> int | None:
        """The size of meta batches that the user named, if any."""
        size: int | None = self._given["meta_batch_size"]
        return size

    @property
    def asks_for_trusted(self) -> bool:
        """Whether the user wants trusted examples to be trained on, and not only where there are any."""
        return bool(self._given["train_on_trusted"])

    def take_changes(self, before: dict[str, Any]) -> list[str]:
        """Check settings that were changed, as a search does, and have those follow that were left to follow them.

        Args:
            before: All settings as they were.

        Returns:
            The names of those that were changed.

        Raises:
            SettingsError: As of the constructor.
        """
        changed = [setting.name for setting in fields(self) if getattr(self, setting.name) != before[setting.name]]
        self._given |= {name: getattr(self, name) for name in changed if name in self._given}
        convert_fields(self)
        self._fill_in()
        check_fields(self)
        check_arguments(self)
        return changed

    def _fill_in(self) -> None:
        """Have the settings that were left out follow others."""
        for name, value in self._given.items():
            setattr(self, name, value)
        if OptimizerNames(self.optim) == OptimizerNames.SGD and self.optim_args is None:
            self.optim_args = OF_SGD
        if self.data_seed is None:
            self.data_seed = self.seed  # else the order of the data depends on whoever last seeded torch
        if self.meta_batch_size is None:
            self.meta_batch_size = self._quarter if self.is_fast else self.per_device_train_batch_size
        if self.train_on_trusted is None:
            self.train_on_trusted = self.meta_learner in WITH_TRUSTED

    @property
    def _quarter(self) -> int:
        """A quarter of a training batch, and at least 2, as batch norm may not take a single example."""
        return max(2, self.per_device_train_batch_size // 4)

    @property
    def is_fast(self) -> bool:
        """Whether the step is that of preset fast, asked for or by default."""
        by_default = self.preset is None and self.meta_learner in WITH_PRESET_FAST and not self._chooses_step
        return self.preset == "fast" or by_default

    @property
    def leaves_learner_open(self) -> bool:
        """Whether the user names no meta-learner, and the recommended one is still to be taken."""
        return self._leaves_learner_open and self.meta_learner == RECOMMENDED

    def use_untrusted_where_open(self) -> None:
        """Take forward correction where the user named no meta-learner, and no example is trusted.

        It needs none. The paper's learner is taken where a setting asks for a meta set or concerns a meta step.
        """
        if not self.leaves_learner_open:
            return
        if self.meta_set is None and self.preset is None and not self._chooses_step:
            try:
                return self._take(UNTRUSTED)
            except SettingsError:  # another setting concerns a meta step
                pass
        self._take(OF_PAPER)

    def use_paper_where_open(self) -> bool:
        """Take mw-net and the paper's step where the user named no meta-learner. Return whether that changed anything.

        For what the recommended one is not made for. A preset that the user named stays.
        """
        if not self._leaves_learner_open or self.meta_learner == OF_PAPER:
            return False
        self._take(OF_PAPER)
        return True

    def _take(self, meta_learner: str) -> None:
        if self.preset is None and self.is_fast:
            for name in FAST:
                setattr(self, name, self._default_of(name))
        self.meta_learner = meta_learner
        self._fill_in()
        check_arguments(self)

    def _default_of(self, name: str) -> Any:
        return next(setting.default for setting in fields(self) if setting.name == name)

    def _apply_preset(self) -> None:
        if self.preset is not None:
            check_preset(self)
        if not self.is_fast:
            return
        if self.meta_batch_size is None and self._quarter * 4 > self.per_device_train_batch_size:
            logger.warning(
                "preset 'fast' takes meta batches of 2, more than a quarter of per_device_train_batch_size=%s",
                self.per_device_train_batch_size,
            )
        settings = dict(FAST)
        if self.preset is None and who_asks_for_fsdp(self) is not None:
            del settings["virtual_scope"]  # FSDP has whole backward passes alone
        for name, value in settings.items():
            if getattr(self, name) == self._default_of(name):
                setattr(self, name, value)
