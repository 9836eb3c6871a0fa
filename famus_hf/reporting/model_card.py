"""The model card of a run, from the trainer's own records."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.training_args import OptimizerNames, SchedulerType

from famus_hf.core.parallel.dtensor import class_of
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.media.modalities import AUDIO, IMAGE, TEXT
from famus_hf.reporting.label_report import REPORT_FILE
from famus_hf.two_networks.model_card import describe_networks, facts_of_two_networks, pipeline_settings_of

if TYPE_CHECKING:
    from famus_hf.core.meta_learners import MetaLearner
    from famus_hf.core.meta_update import MetaUpdate
    from famus_hf.trainer.trainer import FaMUSTrainer
    from famus_hf.training_args import FaMUSTrainingArguments
    from famus_hf.two_networks.trainer import TwoNetworkTrainer

TEMPLATE = Path(__file__).with_name("model_card_template.md")


def render_model_card(facts: dict[str, Any]) -> ModelCard:
    """Fills model_card_template.md.

    Args:
        facts: The fields of the template, among them `metrics`: `last` and `best`, accuracies in [0, 1], and where
            there are any `baselines`: rows with `method`, `last`, `best` and `seconds_per_step`; besides, for the
            metadata, `modality` (default: images), `dataset_id`, `license`, `base_model`, `tags`.
    """
    modality = facts.get("modality", IMAGE)
    results = [
        EvalResult(
            task_type=modality.task,
            dataset_type=facts.get("dataset_id") or "unknown",
            dataset_name=facts["dataset_name"],
            dataset_split="test",
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in facts["metrics"].items()
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=modality.task,
        license=facts.get("license"),
        base_model=facts.get("base_model"),
        datasets=[facts["dataset_id"]] if facts.get("dataset_id") else None,
        metrics=["accuracy"],
        tags=["famus", "noisy-labels", "meta-learning", *facts.get("tags", [])],
        model_name=facts["model_name"] if results else None,
        eval_results=results or None,
    )
    shown = {
        "baselines": [],
        "seconds_per_step": None,
        "modality": modality,
        **facts,
    }  # what else is left out, the template leaves out
    shown = {"baselines": [], "seconds_per_step": None, "modality": modality, **facts}
    shown["ratio"] = _ratio_to_plain(shown)
    own = shown["metrics"].get("last", 1.0)
    shown["better"] = [row["method"] for row in shown["baselines"] if row.get("last", 0.0) > own]
    return ModelCard.from_template(data, template_path=str(TEMPLATE), results_table=_results_table(shown), **shown)


def _results_table(facts: dict[str, Any]) -> str:
    """Markdown: the baselines, and then this model."""
    own = {"method": "**this model**", "seconds_per_step": facts["seconds_per_step"], **facts["metrics"]}
    rows = [*facts["baselines"], *([own] if facts["metrics"] else [])]
    if not rows:
        return "No accuracy was recorded."
    lines = ["| | last | best | seconds a step |", "|---|---|---|---|"]
    for row in rows:
        seconds = row.get("seconds_per_step")
        accuracies = [row.get(name) for name in ("last", "best")]
        cells = [row["method"], *("–" if value is None else f"{100 * value:.2f} %" for value in accuracies)]
        lines.append(f"| {' | '.join([*cells, '–' if seconds is None else f'{seconds:.4f}'])} |")
    return "\n".join(lines)


def _ratio_to_plain(facts: dict[str, Any]) -> float | None:
    """Seconds of a step, in those of the baseline `plain`; None where either is not known."""
    plain = [row["seconds_per_step"] for row in facts["baselines"] if row["method"] == "plain"]
    return facts["seconds_per_step"] / plain[0] if plain and plain[0] and facts["seconds_per_step"] else None


def facts_of_run(trainer: "FaMUSTrainer", pictures: dict[str, str]) -> dict[str, Any]:
    """What the trainer knows of its run; the caller adds what only it knows (`dataset_name`, …).

    Args:
        trainer: After its training.
        pictures: File → caption.
    """
    args, learner, train = trainer.args, trainer.meta_learner, trainer.train_dataset
    rate = getattr(train, "realised_noise_rate", None)
    folder = Path(str(args.output_dir)).absolute()
    network: Any = trainer.model.get_submodule("model_a") if has_two_networks(trainer) else trainer.model
    source = str(getattr(getattr(network, "config", None), "_name_or_path", ""))
    selection = "Test accuracy was recorded while training and selected nothing;"
    judge = str(args.metric_for_best_model).removeprefix("eval_")
    if args.load_best_model_at_end and not judge.startswith(("meta_", "validation_")):
        selection = f"The checkpoint was selected by {args.metric_for_best_model} on the evaluation set;"
    return {
        "model_name": folder.name,
        "modality": trainer.modality,
        "base_model": source if source.count("/") == 1 and not Path(source).exists() else None,  # none of this machine
        "repo_id": trainer.hub_model_id or args.hub_model_id or folder.name,
        "dataset_name": "the training data",
        "noise_description": "not stated",
        "realised_noise": "unknown" if rate is None else f"{100 * rate:.2f} %",
        "num_train": 0 if train is None else len(train) if hasattr(train, "__len__") else "a stream",
        "meta_set": _describe_meta_set(trainer.meta_dataset) if trainer.meta and learner else "none",
        "training_mode": "none" if learner is None else type(learner).__name__,
        "pseudo_clean": isinstance(trainer.meta_dataset, PseudoCleanSet),
        "noisy": rate is None or rate > 0,
        "selection": selection,
        "metrics": _metrics_of(trainer),
        "train_seconds": trainer.training_time.seconds,
        "hardware": describe_hardware(args),
        "settings": _settings_of(trainer),
        "figures": pictures,
        "label_report": trainer.is_of_this_run(folder / REPORT_FILE),
        **(facts_of_two_networks(cast("TwoNetworkTrainer", trainer)) if has_two_networks(trainer) else {}),
    }


def has_two_networks(trainer: "FaMUSTrainer") -> bool:
    """Whether it is a TwoNetworkTrainer, by which this module is imported."""
    return bool(getattr(trainer, "sides", ()))


def recorded_accuracies(trainer: "FaMUSTrainer") -> dict[int, float]:
    """Step → accuracy of each evaluation on the evaluation set, or on the one called `test` where there are several."""
    names = ("eval_accuracy", "eval_test_accuracy")
    log = trainer.state.log_history
    return {int(entry["step"]): entry[name] for entry in log for name in names if name in entry}


def _metrics_of(trainer: "FaMUSTrainer") -> dict[str, float]:
    """`last`, of the weights that are saved, and `best`."""
    found = recorded_accuracies(trainer)
    if not found:
        return {}
    chosen = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return {"last": found.get(chosen or 0, list(found.values())[-1]), "best": max(found.values())}


def describe_hardware(args: "FaMUSTrainingArguments") -> str:
    """What a run trained on: GPUs by name, or the number of CPU cores."""
    if args.device.type == "cuda":
        return f"{args.world_size} × {torch.cuda.get_device_name(args.device)}"
    return f"{args.world_size} process{'es' if args.world_size > 1 else ''} on {os.cpu_count()} CPU cores"


def _settings_of(trainer: "FaMUSTrainer") -> dict[str, Any]:
    """Hyper-parameters, by the words that the card uses."""
    args, two_networks = trainer.args, has_two_networks(trainer)
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    alone = f"{class_of(trainer.model).__name__}, {size / 1e6:.2f} M parameters"
    settings: dict[str, Any] = {
        "backbone": describe_networks(cast(Any, trainer.model)) if two_networks else alone,
        "loss of an example": args.base_loss,
        "optimizer": f"{OptimizerNames(args.optim).value} {args.optim_args or ''}".strip(),
        "learning rate": f"{args.learning_rate:g}{_describe_schedule(args)}",
        "weight decay": args.weight_decay,
        "batch": _times_processes(args.per_device_train_batch_size * (1 + two_networks), args.world_size)
        + (f", {args.gradient_accumulation_steps} accumulated" if args.gradient_accumulation_steps > 1 else ""),
        "steps": f"{trainer.state.global_step} ({trainer.state.epoch or 0:g} epochs)",
        **_input_settings_of(trainer),
        "precision": trainer.accelerator.mixed_precision.replace("no", "float32"),
        "seed": args.seed,
    }
    if two_networks:
        settings |= pipeline_settings_of(args, cast("TwoNetworkTrainer", trainer).num_views)
    learner = trainer.meta_learner
    if trainer.meta is None or learner is None:
        return settings
    metas = [side.meta for side in cast("TwoNetworkTrainer", trainer).peers] if two_networks else [trainer.meta]
    return {**settings, **_meta_settings_of(args, learner, metas)}


def _input_settings_of(trainer: "FaMUSTrainer") -> dict[str, Any]:
    """How the network's inputs are made."""
    if trainer.modality is IMAGE:
        return {"augmentation": trainer.args.augmentation}
    name, place, unit = {
        TEXT: ("texts are cut after", "model_max_length", "tokens"),
        AUDIO: ("recordings are cut after", "max_length_seconds", "seconds"),
    }[trainer.modality]
    limit = getattr(trainer.processing_class, place, None)
    return {} if limit is None else {name: f"{limit:g} {unit}"}


def _meta_settings_of(
    args: "FaMUSTrainingArguments", learner: "MetaLearner", metas: "list[MetaUpdate]"
) -> dict[str, Any]:
    """Of one network, or of two whose settings are the same."""
    meta = metas[0]
    optimizer = meta.learner_optimizer
    layers_on = " and ".join(f"{own.mean_active_layers:.2f}" for own in metas)
    settings = {
        "meta-learner": _with_config(learner),
        "layer sampler": _with_config(meta.layer_sampler),
        "layers on, mean": f"{layers_on} of {len(meta.candidates)}",
        "meta batch": _times_processes(args.meta_batch_size or 0, args.world_size),
        "layers moved by Virtual-Train": args.virtual_scope,
    }
    if optimizer is not None:
        settings["optimizer of the meta-learner"] = f"{type(optimizer).__name__}, {optimizer.param_groups[0]['lr']:g}"
    if meta.sampler_optimizer is not None:
        target = f"K = {args.expected_layers:g}" if args.meta_budget is None else f"budget {args.meta_budget:g}"
        settings["learning of the sampler"] = (
            f"{target}, rate {args.sampler_learning_rate:g}, temperature {args.sampler_temperature:g}, "
            f"λ1 {meta.objective.sparsity_weight:g}, λ2 {meta.objective.gradient_match_weight:g}"
        )
    if args.meta_interval > 1 or args.reuse_virtual_gradient:
        settings["departures"] = f"meta step every {args.meta_interval}, gradient reused {args.reuse_virtual_gradient}"
    return settings


def _describe_schedule(args: "FaMUSTrainingArguments") -> str:
    kind = SchedulerType(args.lr_scheduler_type).value
    if kind != "constant":
        return f", {kind}"
    return f", a tenth from each of {', '.join(map(str, args.lr_milestones))} on" if args.lr_milestones else ""


def _times_processes(size: int, count: int) -> str:
    return str(size) if count == 1 else f"{size} on each of {count} processes"


def _with_config(part: Any) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in part.config().items())
    return f"{type(part).__name__}({settings})"


def _describe_meta_set(meta: Any) -> str:
    if meta is None:
        return "none"
    if not isinstance(meta, PseudoCleanSet):
        return f"{len(meta)} examples with trusted labels, none of them among the training examples"
    purity = "" if meta.purity is None else f", {100 * meta.purity:.1f} % of them with the right label"
    return f"pseudo-clean: {len(meta)} training examples with small losses (as last chosen){purity}"
