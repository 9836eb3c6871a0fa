"""The model card of a run, from the trainer's own records."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from famus_hf.pseudo_clean import PseudoCleanSet
from famus_hf.shards import class_of

if TYPE_CHECKING:
    from famus_hf.trainer import FaMUSTrainer

TEMPLATE = Path(__file__).with_name("model_card_template.md")


def render_model_card(facts: dict[str, Any]) -> ModelCard:
    """Fills model_card_template.md.

    Args:
        facts: The fields of the template; besides, for the metadata, `dataset_id`, `license`, `tags`, and `metrics`:
            a name → accuracy in [0, 1].
    """
    results = [
        EvalResult(
            task_type="image-classification",
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
        pipeline_tag="image-classification",
        license=facts.get("license"),
        datasets=[facts["dataset_id"]] if facts.get("dataset_id") else None,
        metrics=["accuracy"],
        tags=["famus", "noisy-labels", "meta-learning", *facts.get("tags", [])],
        model_name=facts["model_name"] if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(data, template_path=str(TEMPLATE), **facts)


def facts_of_run(trainer: "FaMUSTrainer") -> dict[str, Any]:
    """What the trainer knows of its run; the caller adds what only it knows (`dataset_name`, …)."""
    args, meta, train = trainer.args, trainer.meta, trainer.train_dataset
    accuracies = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    rate = getattr(train, "realised_noise_rate", None)
    realised = "unknown" if rate is None else f"{100 * rate:.2f} %"
    name = Path(str(args.output_dir)).absolute().name
    learner = "none" if meta is None else type(meta.meta_learner).__name__
    selection = "Test accuracy was recorded while training and selected nothing;"
    judge = str(args.metric_for_best_model).removeprefix("eval_")
    if args.load_best_model_at_end and not judge.startswith(("meta_", "validation_")):
        selection = f"The checkpoint was selected by {args.metric_for_best_model} on the evaluation set;"
    settings: dict[str, Any] = {"backbone": class_of(trainer.model).__name__, "meta-learner": learner}
    if meta is not None:
        settings["layer sampler"] = type(meta.layer_sampler).__name__
        settings["layers on, mean"] = f"{meta.mean_active_layers:.2f} of {len(meta.candidates)}"
    if args.base_loss != "ce":
        settings["loss of an example"] = args.base_loss
    settings |= {
        "optimizer": f"{args.optim} {args.optim_args or ''}".strip(),
        "learning rate": args.learning_rate,
        "weight decay": args.weight_decay,
        "batch": args.per_device_train_batch_size,
        "steps": trainer.state.global_step,
        "seed": args.seed,
    }
    return {
        "model_name": name,
        "repo_id": trainer.hub_model_id or args.hub_model_id or name,
        "dataset_name": "the training data",
        "noise_description": "not stated",
        "realised_noise": realised,
        "num_train": 0 if train is None else len(train) if hasattr(train, "__len__") else "a stream",
        "meta_set": _describe_meta_set(trainer.meta_dataset),
        "training_mode": learner,
        "selection": selection,
        "metrics": {"last": accuracies[-1], "best": max(accuracies)} if accuracies else {},
        "settings": settings,
    }


def _describe_meta_set(meta: Any) -> str:
    if meta is None:
        return "none"
    if not isinstance(meta, PseudoCleanSet):
        return f"{len(meta)} trusted examples, held out of the training split"
    purity = "" if meta.purity is None else f", {100 * meta.purity:.1f} % of them with the right label"
    return f"pseudo-clean: {len(meta)} training examples with small losses (as last chosen){purity}"
