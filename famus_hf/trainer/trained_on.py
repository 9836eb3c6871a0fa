"""`trained_on.json` of a checkpoint: by which data and settings it was trained, and what is other in a resume."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from famus_hf.data.fingerprint import FIELDS, differences, fingerprint_of
from famus_hf.errors import LoadError
from famus_hf.storage.run_folder import TRAINED_ON
from famus_hf.storage.saved_state import check_state, is_dict, is_list, is_word
from famus_hf.storage.untrusted import read_json
from famus_hf.training_args import FaMUSTrainingArguments

DATA_SETS = {"train": "training", "meta": "meta"}  # key → what an error calls its examples
# Settings of transformers that a training depends on; of ours these are all but those that only evaluate or write.
OF_TRANSFORMERS = {
    "max_steps", "lr_scheduler_kwargs", "warmup_steps", "optim_args", "optim_target_modules", "adam_beta1",
    "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "label_smoothing_factor", "bf16", "fp16", "seed",
    "data_seed", "train_sampling_strategy", "neftune_noise_alpha", "ignore_data_skip",
}  # fmt: skip
WITHOUT_EFFECT = {
    "per_device_eval_batch_size", "remove_unused_columns", "restore_callback_states_from_checkpoint",
    "ddp_find_unused_parameters", "label_report", "allow_other_data", "preset", "log_stage_times", "log_meta_gradient",
    "meta_gradient_draws", "log_weights", "log_layers",
}  # fmt: skip
# Settings that the optimizers bring back from the checkpoint, whatever they are now.
OF_OPTIMIZERS = {
    "learning_rate", "weight_decay", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "meta_learning_rate",
    "sampler_learning_rate",
}  # fmt: skip


def describe(data: Mapping[str, Any], args: FaMUSTrainingArguments) -> dict[str, Any]:
    """Return what `trained_on.json` holds.

    Args:
        data: `train` and, where anything learns from it, `meta`; None where it is a part of train.
        args: Settings.
    """
    values = args.to_dict()
    names = (OF_TRANSFORMERS | set(FaMUSTrainingArguments.__annotations__)) - WITHOUT_EFFECT
    settings = {**{name: values[name] for name in sorted(names)}, "number of processes": args.world_size}
    facts = {"data": {key: fingerprint_of(dataset) for key, dataset in data.items()}, "settings": settings}
    return json.loads(json.dumps(facts, default=str))


def write(folder: Path, facts: dict[str, Any]) -> None:
    (folder / TRAINED_ON).write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")


def read(checkpoint: Path) -> dict[str, Any] | None:
    """Return what `write` wrote; None of a version that wrote no such file.

    Raises:
        LoadError: The file holds something else.
    """
    path = checkpoint / TRAINED_ON
    if not path.exists():
        return None
    try:
        facts = read_json(checkpoint, path)
        check_state(
            TRAINED_ON,
            facts,
            {
                "data": (is_dict(_is_fingerprint), "data that are no fingerprints"),
                "settings": (is_dict(lambda value: True), "settings that are none"),
                **({"frozen": (is_list(is_word), "frozen parameters that are no names")} if "frozen" in facts else {}),
            },
        )
    except LoadError as error:
        raise LoadError(f"checkpoint {str(checkpoint)!r} can't be compared with this run: {error}") from error
    return facts


def _is_fingerprint(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, dict) and value.keys() == FIELDS.keys() and all(FIELDS[key](value[key]) for key in FIELDS)


def other_data(saved: dict[str, Any], present: dict[str, Any]) -> str:
    """Return in words in what the data differ; empty where nothing is known to."""
    before, now = saved["data"], present["data"]
    sets = [(before[key], now[key], name) for key, name in DATA_SETS.items() if key in before and key in now]
    return " and ".join(words for one, other, name in sets for words in differences(one, other, name))


def other_settings(saved: dict[str, Any], present: dict[str, Any]) -> str:
    """Return in words which settings differ, and which of them a resumed run does not take; empty where none does."""
    before, now = saved["settings"], present["settings"]
    differing = [name for name in now if name in before and before[name] != now[name]]
    taken = [
        f"{name}={_word(now[name])} (was {_word(before[name])})" for name in differing if name not in OF_OPTIMIZERS
    ]
    kept = [f"{name}={_word(before[name])} (not {_word(now[name])})" for name in differing if name in OF_OPTIMIZERS]
    parts = [", ".join(taken)] if taken else []
    return "; ".join([*parts, f"the optimizers bring back {', '.join(kept)}"] if kept else parts)


def _word(value: Any) -> str:
    return "default" if value is None else json.dumps(value)[:80]
