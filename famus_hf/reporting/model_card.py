"""The model card of a run, from the trainer's own records."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import jinja2.meta
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import TrainerState
from transformers.training_args import OptimizerNames, SchedulerType

from famus_hf.core.meta_learners.base import MetaLearner
from famus_hf.core.meta_update import MetaUpdate
from famus_hf.core.parallel.dtensor import class_of
from famus_hf.data.labels.pseudo_clean import PseudoCleanSet
from famus_hf.data.media.modalities import AUDIO, IMAGE, TEXT, Modality
from famus_hf.hub.safe_adapter import HUB_NAME
from famus_hf.reporting.figures.label_report import OF_REPORT
from famus_hf.reporting.figures.run_records import RunRecords
from famus_hf.reporting.figures.runs import PICTURES, draw_runs
from famus_hf.storage.model_folder import adapted_network
from famus_hf.storage.run_folder import FIGURES
from famus_hf.training_args import FaMUSTrainingArguments

ON_CARD = tuple(name for name in PICTURES if name not in ("test_loss", "clean_weights"))
TEMPLATE = Path(__file__).with_name("model_card_template.md")
OUR_TAGS = ("famus", "noisy-labels", "meta-learning")
NOT_SHOWN = {  # facts that the text does not show as they are
    "language", "tags", "tasks", "dataset_id", "dataset_args", "metrics", "baselines", "seconds_per_step", "compared",
    "estimated_true_accuracy",
}  # fmt: skip
MADE_HERE = {"card_data", "results_table", "ratio", "better", "teachers"}  # fields of the template that are no facts


def render_model_card(facts: dict[str, Any]) -> ModelCard:
    """Fill model_card_template.md.

    Args:
        facts: The fields of the template, among them `metrics`: `last` and `best`, accuracies in [0, 1], and where
            there are any `baselines`: rows with `method`, `last`, `best` and `seconds_per_step`; besides, for the
            metadata, `modality` (default: images), `license`, `base_model`, `adapters`, whether only adapters of PEFT
            on `base_model` are there, and one word or several each of `language`, `tags`, `tasks`, `dataset_id` (on the
            Hub) and `dataset_args` (of each of these, its configuration).
    """
    modality = facts.get("modality", IMAGE)
    tasks = listed(facts.get("tasks")) or [modality.task]
    names, ids = listed(facts["dataset_name"]), listed(facts.get("dataset_id"))
    sets = zip_longest(names, ids, listed(facts.get("dataset_args")))
    split = "test, with labels not known to be right" if facts.get("true_accuracy") else "test"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=repository or "unknown",
            dataset_name=shown or names[-1],
            dataset_config=configuration,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(value, 6),
        )
        for task, (shown, repository, configuration), (name, value) in product(tasks, sets, facts["metrics"].items())
    ]
    facts = {**facts, "dataset_name": " and ".join(names)}
    data = ModelCardData(
        language=facts.get("language"),
        library_name="peft" if facts.get("adapters") else "transformers",
        pipeline_tag=tasks[0],
        license=facts.get("license"),
        base_model=facts.get("base_model"),
        datasets=ids or None,
        metrics=["accuracy"],
        tags=[*dict.fromkeys([*OUR_TAGS, *(["peft"] if facts.get("adapters") else []), *listed(facts.get("tags"))])],
        model_name=facts["model_name"] if results else None,
        eval_results=results or None,
    )
    shown = {"baselines": [], "seconds_per_step": None, "modality": modality, "label_report_doubt": None,
             "true_accuracy": None, "network_choice": None, **facts}  # fmt: skip
    shown["ratio"] = _ratio_to_plain(shown)
    last = shown["metrics"].get("last", 1.0)
    shown["better"] = [row["method"] for row in shown["baselines"] if row.get("last", 0.0) > last]
    return ModelCard.from_template(data, template_path=str(TEMPLATE), results_table=_results_table(shown), **shown)


def listed(value: Any) -> list[Any]:
    """Return one thing, or several, or None for none, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def names_of_facts() -> set[str]:
    """Return the names of what a card can say."""
    template = jinja2.Environment().parse(TEMPLATE.read_text(encoding="utf-8"))
    return (jinja2.meta.find_undeclared_variables(template) - MADE_HERE) | NOT_SHOWN


def _results_table(facts: dict[str, Any]) -> str:
    """Return a table in Markdown: the baselines, and then this model."""
    this_model = {"method": "**this model**", "seconds_per_step": facts["seconds_per_step"], **facts["metrics"]}
    names = {"last": "last", "best": "best"}
    if facts["true_accuracy"]:
        names["true"], this_model["true"] = "true accuracy, as estimated", facts.get("estimated_true_accuracy")
    rows = [*facts["baselines"], *([this_model] if facts["metrics"] else [])]
    if not rows:
        return "No accuracy was recorded."
    lines = [f"| | {' | '.join(names.values())} | seconds a step |", f"|{'---|' * (len(names) + 2)}"]
    for row in rows:
        seconds = row.get("seconds_per_step")
        accuracies = [row.get(name) for name in names]
        cells = [row["method"], *("–" if value is None else f"{100 * value:.2f} %" for value in accuracies)]
        lines.append(f"| {' | '.join([*cells, '–' if seconds is None else f'{seconds:.4f}'])} |")
    return "\n".join(lines)


def _ratio_to_plain(facts: dict[str, Any]) -> float | None:
    """Return the seconds of a step, in those of the baseline `plain`; None where either is not known."""
    plain = [row["seconds_per_step"] for row in facts["baselines"] if row["method"] == "plain"]
    return facts["seconds_per_step"] / plain[0] if plain and plain[0] and facts["seconds_per_step"] else None


def draw_records(
    folder: Path, records: RunRecords, beside: Sequence[RunRecords], is_of_this_run: Callable[[Path], bool]
) -> dict[str, str]:
    """Draw what a run has logged into `figures/` of its folder.

    Args:
        folder: Of the run.
        records: What it has logged.
        beside: Those of runs that it is compared with.
        is_of_this_run: Whether a file was not left by an earlier training.

    Returns:
        File → caption, of these pictures and of those of the label report of this training.
    """
    drawn = draw_runs([*beside, records], folder / FIGURES, ("png",), ON_CARD)
    captions = {f"{name}.png": caption for name, caption in drawn.items()} | OF_REPORT
    pictures = {f"{FIGURES}/{name}": caption for name, caption in captions.items()}
    return {name: caption for name, caption in pictures.items() if is_of_this_run(folder / name)}


def source_of_network(network: Any) -> str | None:
    """Return the repository that a network was loaded from; None for a folder of this machine, or none."""
    source = str(getattr(getattr(network, "config", None), "_name_or_path", ""))
    return source if is_repository(source) else None


def is_repository(name: str) -> bool:
    """Return whether this may be a repository on the Hub, and is no folder of this machine."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def describe_selection(args: FaMUSTrainingArguments) -> str:
    """Return what has selected the weights that are saved."""
    judge = str(args.metric_for_best_model).removeprefix("eval_")
    if args.load_best_model_at_end and not judge.startswith(("meta_", "validation_")):
        return f"The checkpoint was selected by {args.metric_for_best_model} on the evaluation set;"
    return "Test accuracy was recorded while training and selected nothing;"


def recorded_accuracies(log: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Return step → accuracy of the first evaluation there on the evaluation set, or on `test` of several.

    After the last step comes one of the weights that are saved, which `load_best_model_at_end` takes from another step.
    """
    accuracies: dict[int, float] = {}
    for entry in log:
        for name in ("eval_accuracy", "eval_test_accuracy"):
            if name in entry:
                accuracies.setdefault(int(entry["step"]), entry[name])
    return accuracies


def metrics_of(args: FaMUSTrainingArguments, state: TrainerState) -> dict[str, float]:
    """Return `last`, of the weights that are saved, and `best`."""
    accuracies = recorded_accuracies(state.log_history)
    if not accuracies:
        return {}
    chosen = state.best_global_step if args.load_best_model_at_end else None
    return {"last": accuracies.get(chosen or 0, list(accuracies.values())[-1]), "best": max(accuracies.values())}


def describe_hardware(args: FaMUSTrainingArguments) -> str:
    """Return what a run trained on: GPUs by name, or the number of CPU cores."""
    if args.device.type == "cuda":
        return f"{args.world_size} × {torch.cuda.get_device_name(args.device)}"
    return f"{args.world_size} process{'es' if args.world_size > 1 else ''} on {os.cpu_count()} CPU cores"


def describe_network(network: Any) -> str:
    """Return its class and size, and where only adapters are trained how much that is."""
    sizes = {p: p.numel() for p in network.parameters()}
    base = adapted_network(network)
    words = f"{class_of(network if base is None else base).__name__}, {sum(sizes.values()) / 1e6:.2f} M parameters"
    trained = sum(size for parameter, size in sizes.items() if parameter.requires_grad)
    return words if base is None else f"{words}, of which {trained / 1e6:.3g} M are adapters and head"


def settings_of(args: FaMUSTrainingArguments, state: TrainerState, backbone: str, batch: int) -> dict[str, Any]:
    """Return hyper-parameters, by the words that the card uses.

    Args:
        args: Of the run.
        state: At its end.
        backbone: Of `describe_network`.
        batch: Examples of a step and process.
    """
    return {
        "backbone": backbone,
        "loss of an example": args.base_loss,
        "optimizer": f"{OptimizerNames(args.optim).value} {args.optim_args or ''}".strip(),
        "learning rate": f"{args.learning_rate:g}{_describe_schedule(args)}",
        "weight decay": args.weight_decay,
        "batch": _times_processes(batch, args.world_size)
        + (f", {args.gradient_accumulation_steps} accumulated" if args.gradient_accumulation_steps > 1 else ""),
        "steps": f"{state.global_step} ({state.epoch or 0:g} epochs)",
        **({} if args.ema_decay is None else {"averaged weights": f"decay {args.ema_decay:g}"}),
    }


def input_settings_of(args: FaMUSTrainingArguments, modality: Modality, processor: Any) -> dict[str, Any]:
    """Return how the network's inputs are made."""
    if modality is IMAGE:
        return {"augmentation": args.augmentation}
    name, place, unit = {
        TEXT: ("texts are cut after", "model_max_length", "tokens"),
        AUDIO: ("recordings are cut after", "max_length_seconds", "seconds"),
    }[modality]
    limit = getattr(processor, place, None)
    return {} if limit is None else {name: f"{limit:g} {unit}"}


def meta_settings_of(args: FaMUSTrainingArguments, learner: MetaLearner, metas: Sequence[MetaUpdate]) -> dict[str, Any]:
    """Return the settings of Meta-Train, of one network or of two whose settings are the same."""
    meta = metas[0]
    optimizer = meta.learner_optimizer
    layers_on = " and ".join(f"{update.mean_active_layers:.2f}" for update in metas)
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


def _describe_schedule(args: FaMUSTrainingArguments) -> str:
    kind = SchedulerType(args.lr_scheduler_type).value
    rise = f", warm-up {args.warmup_steps:g}" if args.warmup_steps else ""
    if kind != "constant":
        return f"{rise}, {kind}"
    return f"{rise}, a tenth from each of {', '.join(map(str, args.lr_milestones))} on" if args.lr_milestones else rise


def _times_processes(size: int, count: int) -> str:
    return str(size) if count == 1 else f"{size} on each of {count} processes"


def _with_config(component: Any) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in component.config().items())
    return f"{type(component).__name__}({settings})"


def describe_meta_set(meta: Any) -> str:
    """Return its size and, of a pseudo-clean one, how many of its labels are right."""
    if meta is None:
        return "none"
    if not isinstance(meta, PseudoCleanSet):
        return f"{len(meta)} examples with trusted labels, none of them among the training examples"
    purity = "" if meta.purity is None else f", {100 * meta.purity:.1f} % of them with the right label"
    return f"pseudo-clean: {len(meta)} training examples with small losses (as last chosen){purity}"
