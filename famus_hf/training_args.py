"""FaMUSTrainingArguments: transformers' TrainingArguments with the paper's defaults and its own settings."""

from dataclasses import dataclass, field, fields

from accelerate.utils import DistributedType, is_deepspeed_available, parse_flag_from_env
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, SchedulerType

from famus_hf.data.augmentation import AUGMENTATIONS, PADDING_MODES
from famus_hf.data.meta_set import META_SETS
from famus_hf.derivatives import DERIVATIVES
from famus_hf.faults import NAN_POLICIES
from famus_hf.losses import BASE_LOSSES
from famus_hf.virtual_step import VIRTUAL_STEPS

VIRTUAL_SCOPES = ("all", "candidates")
PRESETS = {"fast": {"layer_sampler": "all", "candidate_layers": "4", "virtual_scope": "candidates"}}
META_LEARNERS = ("mw-net", "l2r", "mlc", "none")
LAYER_SAMPLERS = ("learned", "all", "block", "random")
META_OPTIMIZERS = ("adam", "sgd")
SHARDING = {  # set by `accelerate launch` → the flag that asks for it
    "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm",
}
# optimizers whose step `virtual_step="optimizer"` knows
KNOWN_STEPS = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED, OptimizerNames.SGD)


@dataclass
class FaMUSTrainingArguments(TrainingArguments):
    """Every argument of transformers' TrainingArguments, and FaMUS's own.

    Defaults that differ from transformers': SGD with momentum 0.9 on all parameters, a constant learning rate divided
    by ten at `lr_milestones`, no gradient clipping, batches of 100, the last incomplete batch dropped, no column
    removed from the data.

    Raises:
        ValueError: One sentence: what was seen, what is allowed.
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
        metadata={"help": "Learning rate schedule; constant is divided by ten at each of lr_milestones."},
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last incomplete training batch (a batch of one breaks batch norm)."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: the trainer itself keeps index and clean_label apart."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resume callbacks too, so that early stopping goes on counting."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "See transformers' TrainingArguments."}
    )
    lr_milestones: list[float] = field(
        default_factory=lambda: [0.5, 0.75],
        metadata={
            "help": "With the constant schedule, when the learning rate is divided by ten: below 1 a share of the run, "
            "else a number of steps. Give the flag without values for a truly constant rate."
        },
    )
    meta_learner: str = field(
        default="mw-net",
        metadata={
            "help": "Ψ: mw-net (weights from losses), l2r (weights afresh in each step), mlc (corrects the loss by a "
            "matrix of wrong labels), or none for plain training."
        },
    )
    mlc_form: str = field(
        default="logits",
        metadata={"help": "What mlc multiplies by its matrix: logits (its authors' code) or probabilities."},
    )
    mlc_reduction: str = field(
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
    random_layers: int = field(default=4, metadata={"help": "Layers of layer_sampler random."})
    expected_layers: float = field(default=4.0, metadata={"help": "K of Eq. 10: layers to be on, on average."})
    candidate_layers: str = field(
        default="all", metadata={"help": "Layers that the sampler may switch on: all, or a number N for the top N."}
    )
    meta_budget: float | None = field(
        default=None,
        metadata={
            "help": "Instead of expected_layers: what the sampler's choice may cost, in plain steps (0.2: a fifth of "
            "one), on average. Costs of layers are measured at the start."
        },
    )
    sparsity_weight: float | None = field(
        default=None, metadata={"help": "λ1 of Eq. 12. Default: 0.1 for the learned sampler, else 0."}
    )
    gradient_match_weight: float | None = field(
        default=None, metadata={"help": "λ2 of Eq. 12. Default: 0.1 for the learned sampler, else 0."}
    )
    meta_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate β of the meta-learner. Default: 1e-3 for mw-net; for mlc 1, or 0.11 if not kept."
        },
    )
    meta_optim: str | None = field(
        default=None,
        metadata={"help": "Optimizer of the meta-learner, adam or sgd. Default: adam for mw-net, sgd for mlc."},
    )
    sampler_learning_rate: float = field(
        default=0.1, metadata={"help": "Learning rate δ of the layer sampler (SGD, momentum 0.9)."}
    )
    sampler_temperature: float = field(
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
    weight_normalization: str = field(
        default="sum",
        metadata={"help": "Example weights divided by their sum over the batch (sum) or by its size (mean)."},
    )
    meta_batch_size: int | None = field(
        default=None, metadata={"help": "Meta examples per step and device. Default: per_device_train_batch_size."}
    )
    meta_set: str | None = field(
        default=None,
        metadata={
            "help": "clean: held out examples with trusted labels; pseudo-clean: training examples with small losses, "
            "chosen anew in each epoch. Default: clean where there are any, else pseudo-clean."
        },
    )
    plain_warmup_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Epochs of plain training before the first meta step. Default: 0; with a pseudo-clean meta set a "
            "tenth of the run, at least two epochs and at most half of the run."
        },
    )
    balanced_batches_per_epoch: int | None = field(
        default=None,
        metadata={
            "help": "An epoch is so many batches, with the same number of examples of each class (Clothing1M: 1000)."
        },
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "Random crops and flips of training and meta images: pad-crop (4 pixels around, cropped back), "
            "random-crop (image_size out of resize_size), resized-crop (a random box, made image_size) or none."
        },
    )
    augmentation_padding_mode: str = field(
        default="zero", metadata={"help": "What pad-crop pads with: zero (black) or reflect."}
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Height and width that the network sees. Default: of the pretrained model, or of the data."},
    )
    resize_size: int | None = field(
        default=None, metadata={"help": "Shorter side that images are resized to before image_size is cropped out."}
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each colour channel, of values in [0, 1]. Default: as image_size."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each colour channel. Default: as image_size."}
    )
    virtual_step: str | None = field(
        default=None,
        metadata={
            "help": "Virtual-Train's step: sgd (the plain gradient step of the paper) or optimizer (preconditioned as "
            "the optimizer's own). Default: the latter for torch's Adam and AdamW, else sgd."
        },
    )
    virtual_scope: str = field(
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
    meta_interval: int = field(
        default=1,
        metadata={
            "help": "Steps from one meta step to the next (paper: 1); between them the meta-learner stays as it is."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "fast: settings for a step of little more than a plain one, in place of those that are left at "
            "their defaults: layer_sampler all, candidate_layers 4, virtual_scope candidates, meta_batch_size a "
            "quarter of the training batch."
        },
    )
    nan_policy: str = field(
        default="stop",
        metadata={
            "help": "Where logits, a loss or a gradient is not finite: stop, or skip the step, in which then nothing "
            "moves (the log says so once, and the run stops after 100 in a row)."
        },
    )
    label_report: bool = field(
        default=True,
        metadata={
            "help": "Examine the training labels before a push, and at the end of run_famus.py: label_report.parquet "
            "and pictures in figures/."
        },
    )
    clean_threshold: float = field(
        default=0.5,
        metadata={"help": "Two networks: examples are labelled whose probability of a right label is above it."},
    )
    division_history: int = field(
        default=1, metadata={"help": "Two networks: epochs whose losses are averaged before examples are divided."}
    )
    sharpening_temperature: float = field(
        default=0.5, metadata={"help": "Two networks: temperature T of refined and guessed labels."}
    )
    mixup_alpha: float = field(
        default=4.0, metadata={"help": "Two networks: α of the Beta(α, α) by which examples are mixed; 0 mixes none."}
    )
    unlabelled_weight: float = field(
        default=25.0, metadata={"help": "Two networks: weight λ_u of the unlabelled half of the loss."}
    )
    ramp_up_epochs: float = field(
        default=16.0, metadata={"help": "Two networks: epochs after the warm-up in which λ_u grows linearly from zero."}
    )
    warmup_confidence_penalty: bool = field(
        default=False,
        metadata={
            "help": "Two networks: the warm-up also penalises confident predictions (DivideMix, on asymmetric noise)."
        },
    )
    base_loss: str = field(
        default="ce",
        metadata={
            "help": f"Loss of an example, with or without a meta-learner: {', '.join(BASE_LOSSES)}. "
            "label_smoothing_factor goes with all but ldam."
        },
    )
    focal_gamma: float = field(default=2.0, metadata={"help": "γ of the focal loss."})
    class_balance_beta: float = field(
        default=0.9999, metadata={"help": "β of class-balanced weights (class-balanced, and ldam's re-weighting)."}
    )
    ldam_max_margin: float = field(default=0.5, metadata={"help": "Margin of the rarest class in ldam."})
    ldam_scale: float = field(default=30.0, metadata={"help": "Scale s of the logits in ldam."})
    ldam_reweight_from: float = field(
        default=0.8,
        metadata={"help": "Share of the run after which ldam weighs classes (deferred re-weighting); 1 is never."},
    )
    derivative: str = field(
        default="auto",
        metadata={"help": "How the directional derivative is taken: auto, forward, reverse or finite (differences)."},
    )

    def __post_init__(self) -> None:
        self._apply_preset()
        self._check_choice("meta_learner", META_LEARNERS)
        self._check_choice("layer_sampler", LAYER_SAMPLERS)
        self._check_choice("base_loss", BASE_LOSSES)
        self._check_choice("mlc_form", ("logits", "probabilities"))
        self._check_choice("mlc_reduction", ("mean", "sum"))
        if self.meta_learner == "mlc" and self.mlc_form == "probabilities" and self.base_loss == "ldam":
            raise ValueError("base_loss 'ldam' scales logits and does not go with mlc_form 'probabilities': use logits")
        if self.meta_optim is not None:
            self._check_choice("meta_optim", META_OPTIMIZERS)
        self._check_choice("virtual_scope", VIRTUAL_SCOPES)
        self._check_choice("nan_policy", NAN_POLICIES)
        self._check_virtual_step()
        self._check_choice("derivative", DERIVATIVES)
        self._check_data_settings()
        self._check_choice("weight_normalization", ("sum", "mean"))
        self._check_numbers()
        self._check_sampler()
        if self.meta_learner != "none":
            self.check_meta_learning_is_supported()
        self._check_transformers_settings()
        if OptimizerNames(self.optim) == OptimizerNames.SGD and self.optim_args is None:
            self.optim_args = "momentum=0.9"
        if self.data_seed is None:
            self.data_seed = self.seed  # else the order of the data hangs on whoever last seeded torch
        if self.meta_batch_size is None:
            self.meta_batch_size = self.per_device_train_batch_size
        super().__post_init__()
        self._check_fsdp_engages()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False

    @property
    def num_candidate_layers(self) -> int | None:
        """N of the top N candidate layers; None means all."""
        return None if self.candidate_layers == "all" else int(self.candidate_layers)

    def _apply_preset(self) -> None:
        if self.preset is None:
            return
        self._check_choice("preset", tuple(PRESETS))
        if self.meta_learner == "none":
            raise ValueError(f"preset={self.preset!r} is about the meta step, and meta_learner 'none' has none")
        defaults = {setting.name: setting.default for setting in fields(self)}
        quarter = max(1, self.per_device_train_batch_size // 4)
        for name, value in {**PRESETS[self.preset], "meta_batch_size": quarter}.items():
            if getattr(self, name) == defaults[name]:
                setattr(self, name, value)

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(allowed)}")

    def _check_numbers(self) -> None:
        if self.candidate_layers != "all" and not (self.candidate_layers.isdigit() and int(self.candidate_layers) > 0):
            raise ValueError(f"candidate_layers={self.candidate_layers!r} must be 'all' or a whole number from 1")
        at_least_zero = (
            "sparsity_weight",
            "gradient_match_weight",
            "meta_learning_rate",
            "sampler_learning_rate",
            "focal_gamma",
            "ldam_reweight_from",
            "plain_warmup_epochs",
        )
        for name in at_least_zero:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}={value} must not be negative")
        for name in (
            "expected_layers",
            "sampler_temperature",
            "meta_batch_size",
            "meta_interval",
            "random_layers",
            "meta_budget",
            "ldam_max_margin",
            "ldam_scale",
            "balanced_batches_per_epoch",
            "image_size",
            "resize_size",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be greater than 0")
        if any(not milestone > 0 for milestone in self.lr_milestones):
            raise ValueError(f"lr_milestones={self.lr_milestones} must all be greater than 0")

    def _check_data_settings(self) -> None:
        if self.meta_set is not None:
            self._check_choice("meta_set", META_SETS)
        self._check_choice("augmentation", AUGMENTATIONS)
        self._check_choice("augmentation_padding_mode", PADDING_MODES)
        for name, lowest in (("image_mean", 0.0), ("image_std", 1e-3)):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or not all(lowest <= number <= 1 for number in value)):
                raise ValueError(f"{name}={value} must be three numbers in [{lowest:g}, 1], for red, green and blue")
        if self.augmentation in ("random-crop", "resized-crop") and (self.image_size is None or not self.resize_size):
            raise ValueError(f"augmentation {self.augmentation!r} crops image_size out of resize_size: give both")
        if self.image_size and self.resize_size and self.image_size > self.resize_size:
            raise ValueError(
                f"image_size={self.image_size} can't be cropped out of resize_size={self.resize_size}: make it smaller"
            )

    def _check_virtual_step(self) -> None:
        optimizer = OptimizerNames(self.optim)
        if self.virtual_step is not None:
            self._check_choice("virtual_step", VIRTUAL_STEPS)
        if self.virtual_step == "optimizer" and optimizer not in KNOWN_STEPS:
            raise ValueError(
                f"virtual_step='optimizer' does not know the step of optim={optimizer.value!r}: choose virtual_step "
                f"'sgd' or one of {', '.join(name.value for name in KNOWN_STEPS)}"
            )
        if self.virtual_scope == "candidates" and self.reuse_virtual_gradient:
            raise ValueError(
                "reuse_virtual_gradient takes the gradient of all layers: leave virtual_scope at 'all', or leave it out"
            )
        if self.scale_example_gradients and (self.reuse_virtual_gradient or self.virtual_scope != "all"):
            raise ValueError(
                "scale_example_gradients makes the actual backward cheaper that reuse_virtual_gradient saves and "
                "virtual_scope 'candidates' needs whole: choose one of the three"
            )

    def _check_sampler(self) -> None:
        if self.meta_budget is not None and self.layer_sampler != "learned":
            raise ValueError(f"meta_budget needs layer_sampler 'learned': {self.layer_sampler!r} chooses by itself")
        if self.meta_budget is not None and self.meta_learner == "none":
            raise ValueError("meta_budget needs a meta_learner: plain training has no meta step")
        if self.meta_budget is not None and self.sparsity_weight is not None:
            raise ValueError("meta_budget takes the place of Eq. 10: leave out sparsity_weight")
        for name in ("gradient_match_weight", "meta_learning_rate", "meta_optim"):
            if self.meta_learner == "l2r" and getattr(self, name):
                raise ValueError(f"{name} does not go with meta_learner 'l2r', which has no parameters: leave it out")
        if (self.layer_sampler == "block") != (self.sampler_block is not None):
            raise ValueError(
                f"layer_sampler={self.layer_sampler!r} with sampler_block={self.sampler_block}: layer_sampler 'block' "
                "and a number for sampler_block belong together"
            )

    def check_meta_learning_is_supported(self) -> None:
        """Raises ValueError on settings that do not go with a meta-learner."""
        refused = {
            "deepspeed": "leave it out",
            "parallelism_config": "leave it out",
            "auto_find_batch_size": "set per_device_train_batch_size",
        }
        for name, advice in refused.items():
            if getattr(self, name):
                raise ValueError(f"{name} does not work with a meta-learner yet: {advice}")
        for variable, flag in SHARDING.items():
            if parse_flag_from_env(variable):
                raise ValueError(
                    f"{variable} does not work with a meta-learner yet: unset it, or start accelerate without {flag}"
                )
        if (self.bf16 or self.fp16) and self.derivative == "finite":
            raise ValueError(
                f"derivative='finite' does not work with {'bf16' if self.bf16 else 'fp16'}, in whose rounding "
                "differences drown: use auto"
            )
        if self.label_names not in (None, ["labels"]):
            raise ValueError(f"label_names={self.label_names} can't be used: rename the column to 'labels'")

    def _check_fsdp_engages(self) -> None:
        """accelerate 1.15 shards nothing on CPU or outside of a distributed run, and says so in some cases only."""
        asked = "fsdp" if self.fsdp else "ACCELERATE_USE_FSDP" if parse_flag_from_env("ACCELERATE_USE_FSDP") else None
        state = self.distributed_state
        if asked and state is not None and state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
            raise ValueError(
                f"{asked} asks for FSDP, which does not engage on CPU or without a launcher, so that parameters would "
                "stay whole: leave it out, or start GPU processes with accelerate launch --use_fsdp"
            )

    def _check_transformers_settings(self) -> None:
        deepspeed = self.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
        if deepspeed and not is_deepspeed_available():
            raise ValueError("DeepSpeed was asked for and is not installed: leave it out, or pip install deepspeed")
        if self.fsdp_config and not self.fsdp:
            raise ValueError("fsdp_config does nothing without fsdp: add fsdp, or leave it out")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the columns that hold images: leave it False")
        if self.hub_strategy == "all_checkpoints":
            raise ValueError(
                "hub_strategy='all_checkpoints' would push the pickles of local checkpoints: choose 'every_save', or "
                "'checkpoint', with which a run can be resumed from the Hub"
            )
        if self.hub_strategy == "checkpoint" and self.save_only_model:
            raise ValueError("hub_strategy='checkpoint' needs optimizers to resume with: leave save_only_model out")
