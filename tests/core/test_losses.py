"""Per-example losses by hand, under every meta-learner and alone."""

import math

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, default_data_collator

from famus_hf import FaMUSTrainer
from famus_hf.core.losses import (
    IGNORED,
    ActivePassiveLoss,
    ClassBalancedLoss,
    CrossEntropyLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    LDAMLoss,
    SymmetricCrossEntropyLoss,
    class_balanced_weights,
    cross_entropy,
    early_learning_losses,
    mean_loss,
    reverse_cross_entropy,
)
from famus_hf.metrics import compute_accuracy
from tests.helpers.models import CLASSES, PlainModule, build_model
from tests.helpers.trainers import Examples, make_args, make_trainer

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 3.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])
COUNTS = [1000, 100, 10]


def probabilities():
    return LOGITS.exp() / LOGITS.exp().sum(1, keepdim=True)


def test_cross_entropy_by_hand_hard_smoothed_and_soft():
    p = probabilities()
    hard = torch.stack([-p[0, 0].log(), -p[1, 1].log(), -p[2, 2].log()])
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), hard)
    torch.testing.assert_close(CrossEntropyLoss(0.3)(LOGITS, LABELS), 0.7 * hard - 0.3 * p.log().mean(1))
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(LOGITS, targets), -(targets * p.log()).sum(1))


def test_focal_loss_by_hand_and_its_limits():
    p = probabilities()[torch.arange(3), LABELS]
    torch.testing.assert_close(FocalLoss(2.0)(LOGITS, LABELS), (1 - p) ** 2 * -p.log())
    torch.testing.assert_close(FocalLoss(0.0)(LOGITS, LABELS), cross_entropy(LOGITS, LABELS))
    torch.testing.assert_close(
        FocalLoss(0.0, 0.2)(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, reduction="none", label_smoothing=0.2)
    )
    soft = F.one_hot(LABELS, 3).double()
    torch.testing.assert_close(FocalLoss(1.5)(LOGITS, soft), FocalLoss(1.5)(LOGITS, LABELS))


def test_focal_loss_of_a_certain_prediction_has_a_finite_gradient():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    FocalLoss(0.5)(logits, torch.tensor([0])).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_generalized_cross_entropy_by_hand_and_its_limits():
    p = probabilities()[torch.arange(3), LABELS]
    torch.testing.assert_close(GeneralizedCrossEntropyLoss(0.7)(LOGITS, LABELS), (1 - p**0.7) / 0.7)
    torch.testing.assert_close(GeneralizedCrossEntropyLoss(1.0)(LOGITS, LABELS), 1 - p)
    torch.testing.assert_close(GeneralizedCrossEntropyLoss(1e-9)(LOGITS, LABELS), cross_entropy(LOGITS, LABELS))
    logits = torch.tensor([[-500.0, 0.0]], requires_grad=True)  # a prediction of exactly 0
    loss = GeneralizedCrossEntropyLoss(0.7)(logits, torch.tensor([0]))
    torch.testing.assert_close(loss.detach(), torch.tensor([1 / 0.7]))
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


SOFT = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.005, 0.395, 0.6]], dtype=torch.float64)


def by_hand(targets, kind, alpha, beta):
    """Of each example, one number after the other: α CE + β RCE, or α NCE + β RCE."""
    losses = []
    for row, target in zip(probabilities().tolist(), targets.tolist(), strict=True):
        ce = -sum(t * math.log(p) for t, p in zip(target, row, strict=True))
        rce = -sum(p * (-4 if t == 0 else max(math.log(t), -4)) for t, p in zip(target, row, strict=True))
        active = ce if kind == "sce" else ce / -sum(math.log(p) for p in row)
        losses.append(alpha * active + beta * rce)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize(
    "kind, loss, smoothed",
    [
        ("sce", SymmetricCrossEntropyLoss(0.3, 0.9), SymmetricCrossEntropyLoss(0.3, 0.9, 0.2)),
        ("nce-rce", ActivePassiveLoss(0.3, 0.9), ActivePassiveLoss(0.3, 0.9, 0.2)),
    ],
)
def test_losses_with_reverse_cross_entropy_by_hand_hard_smoothed_and_soft(kind, loss, smoothed):
    hard = F.one_hot(LABELS, 3).double()
    torch.testing.assert_close(loss(LOGITS, LABELS), by_hand(hard, kind, 0.3, 0.9))
    torch.testing.assert_close(loss(LOGITS, SOFT), by_hand(SOFT, kind, 0.3, 0.9))
    torch.testing.assert_close(smoothed(LOGITS, LABELS), by_hand(0.8 * hard + 0.2 / 3, kind, 0.3, 0.9))
    p = probabilities()
    torch.testing.assert_close(reverse_cross_entropy(p.log(), hard), 4 * (1 - p[torch.arange(3), LABELS]))


def test_targets_of_zero_have_a_finite_gradient():
    targets = F.one_hot(LABELS, 3).double().requires_grad_()
    loss = reverse_cross_entropy(F.log_softmax(LOGITS, 1), targets).sum()
    assert torch.autograd.grad(loss, targets)[0].isfinite().all()


@pytest.mark.parametrize("loss", [GeneralizedCrossEntropyLoss(), SymmetricCrossEntropyLoss(0), ActivePassiveLoss()])
def test_losses_that_bear_wrong_labels_are_bounded(loss):
    """Of a prediction of e^-200 cross-entropy is 200; the normalized one is at most 1, the reverse one 4."""
    logits = torch.tensor([[-200.0, 0.0, 0.0]], dtype=torch.float64)
    assert 1 < loss(logits, torch.tensor([0])).item() <= 5


def test_early_learning_losses_by_hand_their_gradient_and_their_limit():
    p, logits = probabilities(), LOGITS.clone().requires_grad_()
    q = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 0.0, 0.0]], dtype=torch.float64)
    losses, agreement = early_learning_losses(logits, q), (p * q).sum(1, keepdim=True)
    torch.testing.assert_close(losses, (1 - agreement[:, 0]).log())
    assert losses[2] == 0, "nothing was predicted before"
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, -p * (q - agreement) / (1 - agreement))
    sure = torch.tensor([[200.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    limited = early_learning_losses(sure, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(limited, torch.tensor([1e-4, 0.5]).log(), rtol=1e-3, atol=0)
    assert torch.autograd.grad(limited.sum(), sure)[0].tolist() == [[0, 0], [-0.5, 0.5]]


def test_soft_labels_of_one_class_are_hard_ones():
    for loss in (GeneralizedCrossEntropyLoss(0.5, 0.1), SymmetricCrossEntropyLoss(), ActivePassiveLoss(2.0)):
        torch.testing.assert_close(loss(LOGITS, F.one_hot(LABELS, 3).double()), loss(LOGITS, LABELS))


NAMED = {
    "gce": ({"gce_q": 0.5}, GeneralizedCrossEntropyLoss(0.5, 0.1)),
    "sce": ({"sce_alpha": 2.0, "sce_beta": 0.3}, SymmetricCrossEntropyLoss(2.0, 0.3, 0.1)),
    "nce-rce": ({"nce_alpha": 2.0, "nce_beta": 0.3}, ActivePassiveLoss(2.0, 0.3, 0.1)),
}


@pytest.mark.parametrize("name", NAMED)
def test_settings_reach_the_loss_that_they_name(tmp_path, name):
    settings, expected = NAMED[name]
    trainer = make_trainer(tmp_path, base_loss=name, label_smoothing_factor=0.1, **settings)
    torch.testing.assert_close(trainer.base_loss(LOGITS, LABELS), expected(LOGITS, LABELS))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]|not both 0"):
        make_trainer(tmp_path, base_loss=name, **({"gce_q": 1.5} if name == "gce" else dict.fromkeys(settings, 0.0)))


def test_class_balanced_weights_by_hand():
    weights = class_balanced_weights(COUNTS, 0.99)
    effective = [(1 - 0.99**n) / (1 - 0.99) for n in COUNTS]
    inverse = [1 / e for e in effective]
    assert weights.tolist() == pytest.approx([3 * i / sum(inverse) for i in inverse], rel=1e-5)
    assert class_balanced_weights([0, 5], 0.9).isfinite().all()
    losses = ClassBalancedLoss(COUNTS, 0.99)(LOGITS, LABELS)
    torch.testing.assert_close(losses, weights.double() * cross_entropy(LOGITS, LABELS))
    soft = ClassBalancedLoss(COUNTS, 0.99)(LOGITS, F.one_hot(LABELS, 3).double())
    torch.testing.assert_close(soft, losses)
    p = LOGITS.softmax(1)[range(3), LABELS]
    focal = ClassBalancedLoss(COUNTS, 0.99, gamma=2.0)(LOGITS, LABELS)
    torch.testing.assert_close(focal, weights.double() * (1 - p) ** 2 * -p.log())


def test_ldam_by_hand_before_and_after_reweighting():
    loss = LDAMLoss(COUNTS, max_margin=0.5, scale=4.0, reweight_from=0.8, beta=0.99)
    margins = [0.5 * (10 / n) ** 0.25 for n in COUNTS]
    assert loss.margins.tolist() == pytest.approx(margins, rel=1e-5)
    expected = []
    for row, label, margin in zip(LOGITS.tolist(), LABELS.tolist(), margins, strict=True):
        z = [4 * (value - margin * (c == label)) for c, value in enumerate(row)]
        expected.append(math.log(sum(math.exp(v) for v in z)) - z[label])
    torch.testing.assert_close(loss(LOGITS, LABELS), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    loss.progress = 0.8
    weighted = class_balanced_weights(COUNTS, 0.99).double() * torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(loss(LOGITS, LABELS), weighted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="LDAM needs class indices"):
        loss(LOGITS, F.one_hot(LABELS, 3).double())


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLoss(0.1), FocalLoss(), GeneralizedCrossEntropyLoss(), SymmetricCrossEntropyLoss(),
        ActivePassiveLoss(), ClassBalancedLoss(COUNTS), LDAMLoss(COUNTS),
    ],
    ids=lambda loss: type(loss).__name__,
)  # fmt: skip
def test_half_precision_logits_give_float32_losses(loss):
    losses = loss(LOGITS.bfloat16(), LABELS)
    assert losses.shape == (3,) and losses.dtype == torch.float32


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: CrossEntropyLoss(1.0), "must lie in"),
        (lambda: FocalLoss(-1.0), "must not be negative"),
        (lambda: GeneralizedCrossEntropyLoss(0.0), "must lie in"),
        (lambda: SymmetricCrossEntropyLoss(-1.0), "must not be negative"),
        (lambda: ActivePassiveLoss(0.0, 0.0), "not both 0"),
        (lambda: ClassBalancedLoss(COUNTS, 1.0), "must lie in"),
        (lambda: LDAMLoss(COUNTS, scale=0.0), "greater than 0"),
    ],
)
def test_impossible_settings_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


COUNTS_OF_4 = [9, 3, 1, 5]


class Unlabelled(Examples):
    """The second example has no label."""

    def __getitem__(self, row):
        return {**super().__getitem__(row), **({"labels": IGNORED} if row == 1 else {})}


def counts_of_training_set():
    return torch.bincount(Examples(40).batch["labels"], minlength=CLASSES).tolist()


@pytest.mark.parametrize("meta_learner", ["none", "mw-net", "l2r", "mlc"])
@pytest.mark.parametrize(
    "loss",
    [
        FocalLoss(),
        GeneralizedCrossEntropyLoss(),
        SymmetricCrossEntropyLoss(),
        ActivePassiveLoss(),
        ClassBalancedLoss(counts_of_training_set()),
        LDAMLoss(counts_of_training_set(), scale=5.0),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_every_loss_trains_alone_and_under_every_meta_learner(tmp_path, meta_learner, loss):
    trainer = make_trainer(
        tmp_path, meta_learner=meta_learner, max_steps=10, learning_rate=0.1, keywords={"base_loss": loss}
    )
    seen = []
    original = type(loss).__call__

    def spy(self, logits, labels):
        seen.append(getattr(self, "progress", None))
        return original(self, logits, labels)

    start = trainer.model.classifier.weight.detach().clone()
    type(loss).__call__ = spy
    try:
        trainer.train()
    finally:
        type(loss).__call__ = original
    assert len(seen) >= 10, "the loss must be the one that trains"
    assert (trainer.model.classifier.weight - start).norm() > 1e-3
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    if isinstance(loss, LDAMLoss):
        assert {0.0, 0.5, 0.9} <= {round(progress, 6) for progress in seen}, "deferred re-weighting needs the progress"


def test_training_with_soft_targets_equals_hard_ones(tmp_path):
    class SoftExamples(Examples):
        def __getitem__(self, row):
            example = super().__getitem__(row)
            return {**example, "labels": F.one_hot(torch.tensor(example["labels"]), CLASSES).float()}

    for meta_learner in ("none", "mw-net"):
        trained = []
        for kind in (Examples, SoftExamples):
            trainer = FaMUSTrainer(
                build_model("batch norm", torch.float32), make_args(tmp_path, meta_learner=meta_learner, max_steps=4),
                train_dataset=kind(40), meta_dataset=Examples(11, 1000),
            )  # fmt: skip
            trainer.train()
            trained.append(trainer.model.classifier.weight.detach())
        torch.testing.assert_close(*trained)


def test_a_class_without_examples_changes_nothing_for_the_others():
    present, absent = [500, 50, 5], [500, 50, 5, 0]
    torch.testing.assert_close(class_balanced_weights(absent, 0.99)[:3], class_balanced_weights(present, 0.99))
    torch.testing.assert_close(LDAMLoss(absent).margins[:3], LDAMLoss(present).margins)
    with pytest.raises(ValueError, match="all zero"):
        class_balanced_weights([0, 0], 0.99)


def test_smoothing_of_a_loss_object_reaches_plain_training(tmp_path):
    losses = []
    for loss in (CrossEntropyLoss(), CrossEntropyLoss(0.5)):
        trainer = make_trainer(
            tmp_path, meta_learner="none", max_steps=1, logging_steps=1, keywords={"base_loss": loss}
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] != losses[1]
    with pytest.raises(ValueError, match="smooth in the object itself"):
        make_trainer(tmp_path, label_smoothing_factor=0.1, keywords={"base_loss": FocalLoss()})


@pytest.mark.parametrize("meta_learner", ["mw-net", "none"])
@pytest.mark.parametrize("base_loss", ["ce", "focal"])
def test_evaluation_smooths_as_transformers_trainer_does_for_its_own_networks_and_for_plain_modules(
    tmp_path, base_loss, meta_learner
):
    settings = {"label_smoothing_factor": 0.3, "base_loss": base_loss, "meta_learner": meta_learner, "max_steps": 2}
    data = {"eval_dataset": Examples(19, 2000, seed=7), "train_dataset": Examples(40)}
    if meta_learner != "none":
        data["meta_dataset"] = Examples(11, 1000)
    for network in (build_model("vit", torch.float32), PlainModule()):
        trainer = FaMUSTrainer(network, make_args(tmp_path, **settings), **data)
        assert trainer.args.label_smoothing_factor == 0.3
        trainer.train()
        batch = default_data_collator([data["eval_dataset"][row] for row in range(19)])
        with torch.no_grad():
            outputs = network.eval()(pixel_values=batch["pixel_values"])
        logits = outputs["logits"]
        found = trainer.evaluate()["eval_loss"]
        expected = F.cross_entropy(logits, batch["labels"], label_smoothing=0.3).item()
        assert found == pytest.approx(expected, rel=1e-5)
        if isinstance(network, PlainModule):
            continue
        args = TrainingArguments(str(tmp_path), label_smoothing_factor=0.3, report_to="none", use_cpu=True)
        theirs = Trainer(network, args, eval_dataset=data["eval_dataset"])
        assert theirs.evaluate()["eval_loss"] == pytest.approx(found, rel=1e-5)


def test_evaluation_on_soft_targets_is_cross_entropy_and_leaves_the_configuration(tmp_path):
    trainer = make_trainer(tmp_path, kind="vit")
    batch = next(iter(trainer.get_eval_dataloader()))
    soft = {**batch, "labels": F.one_hot(batch["labels"], CLASSES).float()}
    trainer.model.eval()
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model, dict(inputs)) for inputs in (batch, soft)]
    torch.testing.assert_close(*losses)
    assert trainer.model.config.problem_type in (None, "single_label_classification")


@pytest.mark.parametrize(
    "loss",
    [CrossEntropyLoss(), CrossEntropyLoss(0.3), FocalLoss(), ClassBalancedLoss(COUNTS_OF_4), LDAMLoss(COUNTS_OF_4)],
    ids=["ce", "smoothed", "focal", "class-balanced", "ldam"],
)
@pytest.mark.parametrize("kind", ["plain module", "vit"])
def test_examples_without_a_label_count_neither_in_plain_training_nor_in_evaluation(tmp_path, loss, kind):
    model = PlainModule() if kind == "plain module" else build_model(kind, torch.float32)
    args = make_args(tmp_path, meta_learner="none", per_device_train_batch_size=4)
    trainer = FaMUSTrainer(model, args, train_dataset=Unlabelled(4), base_loss=loss, compute_metrics=compute_accuracy)
    whole, valid = (
        default_data_collator([trainer.train_dataset[i] for i in rows]) for rows in ([0, 1, 2, 3], [0, 2, 3])
    )
    for is_training in (True, False):
        losses, gradients = [], []
        for batch in (whole, valid):
            torch.manual_seed(0)
            model.train(is_training)
            for module in model.modules():
                module.training = is_training and not isinstance(module, torch.nn.Dropout)
            losses.append(trainer.compute_loss(model, {name: batch[name] for name in ("pixel_values", "labels")}))
            gradients.append(torch.autograd.grad(losses[-1], [p for p in model.parameters() if p.requires_grad][-1]))
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients)
    metrics = trainer.evaluate(trainer.train_dataset)
    torch.testing.assert_close(metrics["eval_loss"], losses[1].item())
    assert metrics["eval_accuracy"] in [pytest.approx(right / 3) for right in range(4)]
    trainer.train()


def test_a_batch_without_any_label_has_a_loss_of_zero():
    logits = torch.randn(2, CLASSES, requires_grad=True)
    loss = mean_loss(CrossEntropyLoss(), logits, torch.tensor([IGNORED, IGNORED]))
    assert loss == 0 and torch.autograd.grad(loss, logits)[0].eq(0).all()


def test_the_counts_of_classes_leave_out_examples_without_a_label(tmp_path):
    data = Dataset.from_dict({"pixel_values": torch.randn(6, 3, 8, 8).tolist(), "labels": [0, -100, 1, 2, 3, 0]})
    args = make_args(tmp_path, meta_learner="none", base_loss="class-balanced", per_device_train_batch_size=2)
    trainer = FaMUSTrainer(PlainModule(), args, train_dataset=data)
    torch.testing.assert_close(trainer.base_loss.class_weights, class_balanced_weights([2, 1, 1, 1], 0.9999))


def test_losses_that_need_class_counts_say_so(tmp_path):
    with pytest.raises(ValueError, match="give FaMUSTrainer a base_loss object"):
        make_trainer(tmp_path, base_loss="ldam")


def test_impossible_soft_targets_are_refused(tmp_path):
    class Wrong(Examples):
        def __getitem__(self, row):
            return {**super().__getitem__(row), "labels": torch.full((CLASSES,), 0.5)}

    with pytest.raises(ValueError, match="rows of probabilities"):
        FaMUSTrainer(
            build_model("batch norm", torch.float32), make_args(tmp_path), train_dataset=Wrong(40),
            meta_dataset=Examples(11, 1000),
        )  # fmt: skip
