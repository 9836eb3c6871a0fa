"""What FaMUSTrainingArguments makes of its values, and what it refuses: each in one sentence, what was seen, what is
allowed."""

from collections.abc import Callable
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from accelerate.utils import DistributedType, is_deepspeed_available, parse_flag_from_env
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, SchedulerType

from famus_hf.core.layer_samplers import LAYER_SAMPLERS
from famus_hf.core.meta_learners.registry import META_LEARNERS, WITH_TRANSITIONS
from famus_hf.core.pair_methods.registry import PAIR_METHODS
from famus_hf.core.validation import check_bound, check_choice
from famus_hf.errors import SettingsError

AugmentationName = Literal["none", "pad-crop", "random-crop", "resized-crop"]
PaddingMode = Literal["zero", "reflect"]
MetaSet = Literal["clean", "pseudo-clean"]
AUGMENTATIONS, PADDING_MODES, META_SETS = map(get_args, (AugmentationName, PaddingMode, MetaSet))
SHARDING = {  # set by `accelerate launch` → the flag that asks for it
    "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm",
}
# Names that transformers 5.23 reads in `optim_args`, of optimizers of torch; it passes over others without a word.
READ_OPTIM_ARGS: dict[OptimizerNames, tuple[str, ...]] = {
    OptimizerNames.SGD: ("momentum", "dampening", "nesterov"),
    OptimizerNames.ADAGRAD: ("lr_decay", "eps"),
    OptimizerNames.RMSPROP: ("momentum", "alpha", "eps", "centered"),
    OptimizerNames.ADAMW_TORCH: (),
    OptimizerNames.ADAMW_TORCH_FUSED: (),
    OptimizerNames.ADAFACTOR: (),
}
OF_SGD = "momentum=0.9"  # optim_args where SGD is given none; copies of settings have it with other optimizers too
WITHOUT_SETTINGS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
LOW_RANK = ("galore", "apollo")  # optimizers whose names begin so take `optim_target_modules`
DIAGNOSTICS = ("log_stage_times", "log_meta_gradient", "log_weights", "log_layers")
# Optimizers that step within the backward pass, before anybody knows whether the step is sound; their own step does
# nothing, and has no groups of parameters.
WITHIN_BACKWARD = ("lomo", "adalomo", *(name.value for name in OptimizerNames if name.value.endswith("_layerwise")))


def convert_fields(args: Any) -> None:
    """Make every setting what its annotation says: a number may come as a word or from numpy, a list as a tuple.

    Raises:
        SettingsError: It can't be made that.
    """
    hints = get_type_hints(type(args))
    for name in (field.name for field in fields(args)):
        value, kinds = _without_numpy(getattr(args, name)), set(_members_of(hints[name]))
        kind = next(iter(kinds - {NoneType})) if len(kinds - {NoneType}) == 1 else None
        if value is None and kind == list[float] and NoneType not in kinds:
            value = []
        elif value is not None and kind in CONVERTED:
            value = CONVERTED[kind](name, value)
        setattr(args, name, value)
    layers = _number_in(args.candidate_layers)  # a number or "all"
    args.candidate_layers = args.candidate_layers if layers is None else _as_word("candidate_layers", layers)


def _without_numpy(value: Any) -> Any:
    """Return numbers and arrays of numpy, and those in a list, as Python's, which JSON takes."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return [_without_numpy(entry) for entry in value] if isinstance(value, list | tuple) else value


def _number_in(value: Any) -> int | float | None:
    """Return a number, or the one that a word stands for; None where there is none."""
    if isinstance(value, str):
        try:
            return int(value) if value.strip().isdecimal() else float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _as_number(name: str, value: Any) -> int | float:
    number = _number_in(value)
    if number is None:
        raise SettingsError(f"{name}={value!r} must be a number")
    return number


def _as_whole(name: str, value: Any) -> int:
    number = _number_in(value)
    if number is None or number % 1 != 0:
        raise SettingsError(f"{name}={value!r} must be a whole number")
    return int(number)


def _as_flag(name: str, value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in words:
        raise SettingsError(f"{name}={value!r} must be True or False")
    return words[str(value).lower()]


def _as_word(name: str, value: Any) -> Any:
    """Return a number as it stands on the command line, and anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return str(int(value) if value % 1 == 0 else value)


def _as_numbers(name: str, value: Any) -> list[int | float]:
    """Return a list of numbers, also of a single one."""
    return [_as_number(name, number) for number in (value if isinstance(value, (list, tuple)) else [value])]


CONVERTED: dict[Any, Callable[[str, Any], Any]] = {
    int: _as_whole, float: _as_number, bool: _as_flag, str: _as_word, list[float]: _as_numbers
}  # fmt: skip


def check_fields(args: Any) -> None:
    """Raise SettingsError on a word that its field does not allow, or a number outside of the field's bounds.

    Both stand in the annotations of the fields, as `Literal[…]` and `Annotated[…, bound]`.
    """
    hints, bare = get_type_hints(type(args), include_extras=True), get_type_hints(type(args))
    for name in {field.name for field in fields(args)} - {field.name for field in fields(TrainingArguments)}:
        value = getattr(args, name)
        if value is None and NoneType not in _members_of(bare[name]):
            raise SettingsError(f"{name}=None is no value for it: leave it out for its default")
        for member in _members_of(hints[name]):
            if get_origin(member) is Annotated:
                for bound in member.__metadata__:
                    check_bound(name, value, bound)
            elif get_origin(member) is Literal and value is not None:
                check_choice(name, value, get_args(member))
    check_choice("meta_learner", args.meta_learner, (*META_LEARNERS, "none"))
    check_choice("layer_sampler", args.layer_sampler, LAYER_SAMPLERS)
    if args.pair_method is not None:
        check_choice("pair_method", args.pair_method, PAIR_METHODS)


def _members_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union; of another hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def check_preset(args: Any) -> None:
    """Raise SettingsError on a preset that is of no use."""
    if not has_meta_step(args):
        raise SettingsError(
            f"preset={args.preset!r} is about the meta step, and meta_learner {args.meta_learner!r} has none"
        )


def has_meta_step(args: Any) -> bool:
    """Return whether the meta-learner that the settings name learns from meta batches."""
    return args.meta_learner != "none" and META_LEARNERS[args.meta_learner].has_meta_step


def check_arguments(args: Any) -> None:
    """Raise SettingsError on settings that contradict each other, before they take effect; no setting is changed.

    `check_fields` comes before, and `check_fsdp_engages` follows once the devices are known.
    """
    if args.meta_learner == "mlc" and args.mlc_form == "probabilities" and args.base_loss == "ldam":
        raise SettingsError("base_loss 'ldam' scales logits and does not go with mlc_form 'probabilities': use logits")
    has_transitions = args.meta_learner in WITH_TRANSITIONS
    are_counted = args.transitions in (None, "counts", "calibrated", "anchors")
    if has_transitions and args.transition_counts == "each-epoch" and not are_counted:
        raise SettingsError(
            f"transition_counts='each-epoch' counts transitions anew, and transitions={args.transitions!r} gives them: "
            "leave one of the two out"
        )
    for name, usual in (("transitions", None), ("transition_counts", "once")):
        if args.meta_learner == "lccn" and getattr(args, name) != usual:
            raise SettingsError(
                f"lccn counts transitions once, and then draws them with its latent classes: leave {name} out"
            )
    _check_pair_method(args)
    _check_virtual_step(args)
    _check_data_settings(args)
    _check_sampler(args)
    _check_diagnostics(args)
    if args.meta_learner != "none":
        check_meta_learning_is_supported(args)
    _check_transformers_settings(args)


def check_meta_learning_is_supported(args: Any) -> None:
    """Raise SettingsError on settings that do not go with a meta-learner."""
    refused = {
        "deepspeed": "leave it out",
        "parallelism_config": "leave it out",
        "auto_find_batch_size": "set per_device_train_batch_size",
    }
    for name, advice in refused.items():
        if getattr(args, name):
            raise SettingsError(f"{name} does not work with a meta-learner yet: {advice}")
    for variable, flag in SHARDING.items():
        if parse_flag_from_env(variable):
            raise SettingsError(
                f"{variable} does not work with a meta-learner yet: unset it, or start accelerate without {flag}"
            )
    if (args.bf16 or args.fp16) and args.derivative == "finite":
        raise SettingsError(
            f"derivative='finite' does not work with {'bf16' if args.bf16 else 'fp16'}, in whose rounding "
            "differences drown: use auto"
        )
    optimizer = OptimizerNames(args.optim).value
    if optimizer in WITHIN_BACKWARD:
        raise SettingsError(
            f"optim={optimizer!r} moves the network within the backward pass, where the meta step can't foresee it: "
            "choose another optimizer, or meta_learner 'none'"
        )
    if args.label_names not in (None, ["labels"]):
        raise SettingsError(f"label_names={args.label_names} can't be used: rename the column to 'labels'")


def who_asks_for_fsdp(args: Any) -> str | None:
    """Return the setting, or the variable of `accelerate launch`, that asks for FSDP; None where none does."""
    return "fsdp" if args.fsdp else "ACCELERATE_USE_FSDP" if parse_flag_from_env("ACCELERATE_USE_FSDP") else None


def check_fsdp_engages(args: Any) -> None:
    """Raise SettingsError on FSDP that shards nothing.

    accelerate 1.15 shards nothing on CPU or outside of a distributed run, and says so in some cases only.
    """
    asked = who_asks_for_fsdp(args)
    state = args.distributed_state
    if asked and state is not None and state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise SettingsError(
            f"{asked} asks for FSDP, which does not engage on CPU or without a launcher, so that parameters would "
            "stay whole: leave it out, or start GPU processes with accelerate launch --use_fsdp"
        )


def _check_pair_method(args: Any) -> None:
    method = args.pair_method
    if method is not None and args.meta_learner != "none":
        raise SettingsError(
            f"pair_method={method!r} chooses examples without a meta-learner, and meta_learner is "
            f"{args.meta_learner!r}: leave one of them out"
        )
    needed = {
        "noise_rate": ("forgets", "leaves examples out"),
        "forget_ramp_epochs": ("forgets", "leaves examples out"),
        "cross_validation_epochs": ("cross_validates", "selects by cross-validation"),
    }
    for name, (ability, words) in needed.items():
        if getattr(args, name) is not None and not (method is not None and getattr(PAIR_METHODS[method], ability)):
            able = ", ".join(known for known, kind in PAIR_METHODS.items() if getattr(kind, ability))
            raise SettingsError(
                f"{name}={getattr(args, name)} does nothing without a pair_method that {words} ({able}): leave it out"
            )


def _check_virtual_step(args: Any) -> None:
    if args.virtual_scope == "candidates" and args.reuse_virtual_gradient:
        raise SettingsError(
            "reuse_virtual_gradient takes the gradient of all layers: leave virtual_scope at 'all', or leave it out"
        )
    if args.scale_example_gradients and (args.reuse_virtual_gradient or args.virtual_scope != "all"):
        raise SettingsError(
            "scale_example_gradients makes the actual backward cheaper that reuse_virtual_gradient saves and "
            "virtual_scope 'candidates' needs whole: choose one of the three"
        )
    if args.scale_example_gradients and args.elr_weight:
        raise SettingsError(
            "scale_example_gradients scales the gradients of example losses, to which "
            f"elr_weight={args.elr_weight} adds one that no example weight scales: leave one of the two out"
        )


def _check_data_settings(args: Any) -> None:
    if args.sample_weight_column is not None and args.mixup_alpha:
        raise SettingsError(
            "sample_weight_column weighs single examples, which mixup_alpha mixes: leave one of them out"
        )
    for name, lowest in (("image_mean", 0.0), ("image_std", 1e-3)):
        value = getattr(args, name)
        if value is not None and (len(value) != 3 or not all(lowest <= number <= 1 for number in value)):
            raise SettingsError(f"{name}={value} must be three numbers in [{lowest:g}, 1], for red, green and blue")
    if args.augmentation in ("random-crop", "resized-crop") and (args.image_size is None or not args.resize_size):
        raise SettingsError(f"augmentation {args.augmentation!r} crops image_size out of resize_size: give both")
    if args.image_size and args.resize_size and args.image_size > args.resize_size:
        raise SettingsError(
            f"image_size={args.image_size} can't be cropped out of resize_size={args.resize_size}: make it smaller"
        )


def _check_sampler(args: Any) -> None:
    if args.candidate_layers != "all" and not (str(args.candidate_layers).isdigit() and int(args.candidate_layers) > 0):
        raise SettingsError(f"candidate_layers={args.candidate_layers!r} must be 'all' or a whole number from 1")
    if args.meta_budget is not None and args.layer_sampler != "learned":
        raise SettingsError(f"meta_budget needs layer_sampler 'learned': {args.layer_sampler!r} chooses by itself")
    if args.meta_budget is not None and not has_meta_step(args):
        whose = "plain training" if args.meta_learner == "none" else f"{args.meta_learner!r}"
        raise SettingsError(f"meta_budget needs a meta_learner: {whose} has no meta step")
    if args.meta_budget is not None and args.sparsity_weight is not None:
        raise SettingsError("meta_budget takes the place of Eq. 10: leave out sparsity_weight")
    learner = META_LEARNERS.get(args.meta_learner)
    learns = learner is None or (learner.keeps_theta and learner.has_meta_step)
    absent = {
        "gradient_match_weight": learner is not None and not (learner.has_virtual_step and learner.has_meta_step),
        "meta_learning_rate": not learns,
        "meta_optim": not learns,
    }
    for name, is_absent in absent.items():
        if is_absent and getattr(args, name):
            raise SettingsError(
                f"{name} does not go with meta_learner {args.meta_learner!r}, which has no parameters: leave it out"
            )
    if (args.layer_sampler == "block") != (args.sampler_block is not None):
        raise SettingsError(
            f"layer_sampler={args.layer_sampler!r} with sampler_block={args.sampler_block}: layer_sampler 'block' "
            "and a number for sampler_block belong together"
        )


def _check_diagnostics(args: Any) -> None:
    for name in DIAGNOSTICS:
        if getattr(args, name) and not has_meta_step(args):
            whose = "plain training" if args.meta_learner == "none" else f"{args.meta_learner!r}"
            raise SettingsError(f"{name} needs a meta_learner: {whose} has no meta step to look into")


def _check_transformers_settings(args: Any) -> None:
    deepspeed = args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    if deepspeed and not is_deepspeed_available():
        raise SettingsError("DeepSpeed was asked for and is not installed: leave it out, or pip install deepspeed")
    if args.fsdp_config and not args.fsdp:
        raise SettingsError("fsdp_config does nothing without fsdp: add fsdp, or leave it out")
    if args.label_names is not None and len(args.label_names) != 1:
        raise SettingsError(f"label_names={args.label_names} must hold one name: an example has one class")
    _check_optimizer_and_schedule(args)
    if args.optim_target_modules and not OptimizerNames(args.optim).value.startswith(LOW_RANK):
        raise SettingsError(
            f"optim_target_modules does nothing with optim={OptimizerNames(args.optim).value!r}: it is for GaLore and "
            "APOLLO, which take the gradients of these modules to a low rank; leave it out"
        )
    if args.liger_kernel_config and not args.use_liger_kernel:
        raise SettingsError("liger_kernel_config does nothing without use_liger_kernel: set that, or leave it out")
    if args.balanced_batches_per_epoch is not None and args.train_sampling_strategy != "random":
        raise SettingsError(
            f"balanced_batches_per_epoch draws its own batches, so that train_sampling_strategy="
            f"{args.train_sampling_strategy!r} does nothing: leave one of them out"
        )
    if args.hub_strategy == "all_checkpoints":
        raise SettingsError(
            "hub_strategy='all_checkpoints' would push the pickles of local checkpoints: choose 'every_save', or "
            "'checkpoint', with which a run can be resumed from the Hub"
        )
    if args.hub_strategy == "checkpoint" and args.save_only_model:
        raise SettingsError("hub_strategy='checkpoint' needs optimizers to resume with: leave save_only_model out")


def _check_optimizer_and_schedule(args: Any) -> None:
    """Raise SettingsError on what transformers would pass over without a word."""
    optimizer = OptimizerNames(args.optim)
    read = READ_OPTIM_ARGS.get(optimizer)
    given = [pair.partition("=")[0].strip() for pair in str(args.optim_args or "").split(",") if pair.strip()]
    strange = [name for name in given if read is not None and name not in read]
    if strange and args.optim_args != OF_SGD:
        allowed = f"it takes {', '.join(read)}" if read else "it takes none"
        raise SettingsError(f"optim_args {strange[0]!r} does nothing with optim={optimizer.value!r}: {allowed}")
    schedule = SchedulerType(args.lr_scheduler_type)
    if args.lr_scheduler_kwargs and schedule in WITHOUT_SETTINGS:
        raise SettingsError(
            f"lr_scheduler_kwargs does nothing with lr_scheduler_type={schedule.value!r}, which has no settings: leave "
            "it out, or choose another schedule"
        )
