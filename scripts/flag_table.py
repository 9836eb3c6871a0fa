"""`python scripts/flag_table.py` writes the table of our flags into docs/command_line.md.

It comes from the dataclasses that parse them; each new flag needs one of TOPICS.
"""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from famus_hf import FaMUSTrainingArguments
from famus_hf.cli.arguments import DataArguments, ModelArguments

PAGE = Path(__file__).parents[1] / "docs" / "command_line.md"
BEGIN, END = "<!-- flags: written by scripts/flag_table.py -->\n", "<!-- flags: end -->"
TOPICS = {  # each of our flags stands in one of them
    "Data": """dataset_name dataset_config_name data_dir train_dir validation_dir image_column_name text_column_name
        text_pair_column_name audio_column_name label_column_name clean_label_column_name max_train_samples
        max_eval_samples streaming balanced_batches_per_epoch""",
    "Wrong labels": "noise noise_type noise_exact_count noise_file imbalance_factor",
    "Meta set": "meta_set num_meta meta_batch_size plain_warmup_epochs",
    "Network": "backbone model_name_or_path model_revision trust_remote_code freeze_feature_encoder",
    "Images, texts, recordings": """augmentation augmentation_padding_mode image_size resize_size image_mean image_std
        max_seq_length max_length_seconds""",
    "Meta-learner": """meta_learner meta_learning_rate meta_optim weight_normalization mlc_form mlc_reduction
        mlc_keep_matrix""",
    "Layer sampler": """layer_sampler expected_layers candidate_layers meta_budget sampler_block random_layers
        sparsity_weight gradient_match_weight sampler_learning_rate sampler_temperature sampler_initial_bias
        sampler_relative_slopes""",
    "The step and its speed": """preset virtual_step virtual_scope reuse_virtual_gradient scale_example_gradients
        meta_interval derivative nan_policy""",
    "Loss of an example": "base_loss focal_gamma class_balance_beta ldam_max_margin ldam_scale ldam_reweight_from",
    "Two networks": """two_networks clean_threshold calibrate_division unlabelled_share division_history
        sharpening_temperature mixup_alpha unlabelled_weight ramp_up_epochs warmup_confidence_penalty""",
    "The run": "lr_milestones protocol early_stopping_patience compare label_report",
    "Looking inside": "log_stage_times log_meta_gradient meta_gradient_draws log_weights log_layers",
}
CHANGED = "Transformers' flags with another default"


def default_of(setting: Field[Any]) -> Any:
    """Return the value that a field has where nobody names one."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def flags_by_topic() -> dict[str, list[Field[Any]]]:
    """Return our flags, and transformers' with a default of ours. Raises ValueError where one has no topic, or two."""
    theirs = {setting.name: default_of(setting) for setting in fields(TrainingArguments)}
    every = [setting for kind in (DataArguments, ModelArguments, FaMUSTrainingArguments) for setting in fields(kind)]
    ours = {setting.name: setting for setting in every if setting.name not in theirs}
    listed = [name for names in TOPICS.values() for name in names.split()]
    if sorted(listed) != sorted(ours):
        astray = {*listed} ^ {*ours} or {name for name in listed if listed.count(name) > 1}
        raise ValueError(f"TOPICS of flag_table.py must name each of our flags once: see {', '.join(sorted(astray))}")
    found = {topic: [ours[name] for name in names.split()] for topic, names in TOPICS.items()}
    changed = [setting for setting in every if default_of(setting) != theirs.get(setting.name, default_of(setting))]
    return {**found, CHANGED: changed}


def row_of(setting: Field[Any]) -> str:
    """Return a flag's row in Markdown."""
    value = default_of(setting)
    words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    shown = "–" if value is None else f"`{words.lower() if isinstance(value, bool) else words}`"
    return f"| `--{setting.name}` | {shown} | {setting.metadata['help'].replace('|', chr(92) + '|')} |"


def rewritten(page: str) -> str:
    """Return the page with the present flags between its two comments."""
    before, _, rest = page.partition(BEGIN)
    head = "| flag | default | what it does |\n|---|---|---|\n"
    tables = [f"### {topic}\n\n{head}" + "\n".join(map(row_of, flags)) for topic, flags in flags_by_topic().items()]
    return f"{before}{BEGIN}\n" + "\n\n".join(tables) + f"\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
