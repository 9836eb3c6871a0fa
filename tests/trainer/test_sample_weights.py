"""Weights of single examples from a column: against losses by hand, in plain training and in the meta step."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, MWNet, load_noisy_dataset
from famus_hf.errors import FaMUSError

COUNT, CLASSES = 12, 3


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, x):
        return {"logits": self.layer(x)}


def examples(weights=None, count=COUNT):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (count,), generator=generator)
    weights = [None] * count if weights is None else weights
    return [
        {"x": x[row], "labels": int(y[row])} | ({} if weights[row] is None else {"w": weights[row]})
        for row in range(count)
    ]


def collate(rows):
    batch = {"x": torch.stack([row["x"] for row in rows]), "labels": torch.tensor([row["labels"] for row in rows])}
    return batch | ({"row": torch.tensor([row["row"] for row in rows])} if "row" in rows[0] else {})


def make(folder, weights, network, learner=None, batch=COUNT, **settings):
    args = FaMUSTrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", max_steps=1,
        weight_decay=0.0, learning_rate=0.5, per_device_train_batch_size=batch, optim_args="momentum=0.0",
        lr_milestones=[], **{"meta_learner": "none" if learner is None else "mw-net", "layer_sampler": "all",
                             "sample_weight_column": None if weights is None else "w", **settings},
    )  # fmt: skip
    meta = examples(count=9) if learner is not None else None
    return FaMUSTrainer(
        network, args, data_collator=collate, train_dataset=examples(weights), meta_dataset=meta, meta_learner=learner
    )


WEIGHTS = [0.0, 1.0, 3.0, 0.5, 2.0, 0.0, 1.5, 4.0, 1.0, 0.25, 2.75, 2.0]


def normalised(weights):
    weights = torch.tensor(weights, dtype=torch.float64)
    return (weights / weights.mean()).float().double()  # as they are kept


@pytest.mark.parametrize("accumulated", [1, 3])
def test_plain_training_takes_the_weighted_mean_of_losses(tmp_path, accumulated):
    torch.manual_seed(0)
    network = Linear().double()
    expected = copy.deepcopy(network)
    make(
        tmp_path, WEIGHTS, network, batch=COUNT // accumulated, gradient_accumulation_steps=accumulated
    ).train()  # fmt: skip
    rows = examples()
    x, y = torch.stack([row["x"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    loss = (normalised(WEIGHTS) * cross_entropy(expected(x)["logits"], y, reduction="none")).sum() / COUNT
    loss.backward()
    for own, other in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.data, other.data - 0.5 * other.grad, rtol=0, atol=1e-12)


def test_the_meta_step_differentiates_the_weighted_loss(tmp_path):
    """θ moves by the derivative of the meta loss at ŵ, and w by that of Σ V̂ᵢ sᵢ ℓᵢ; both by hand, in float64."""
    torch.manual_seed(0)
    network, learner = Linear().double(), MWNet(hidden_size=5).double()
    by_hand, psi = copy.deepcopy(network), copy.deepcopy(learner)
    make(tmp_path, WEIGHTS, network, learner, meta_batch_size=9, meta_optim="sgd", meta_learning_rate=0.3).train()
    rows, meta_rows = examples(), examples(count=9)
    x, y = torch.stack([row["x"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    meta_x, meta_y = torch.stack([r["x"] for r in meta_rows]), torch.tensor([r["labels"] for r in meta_rows])
    weights, parameters = normalised(WEIGHTS), dict(by_hand.named_parameters())

    def training_loss():
        losses = cross_entropy(by_hand(x)["logits"], y, reduction="none")
        return (psi.example_weights(losses.detach()) * weights * losses).sum()

    gradients = torch.autograd.grad(training_loss(), list(parameters.values()), create_graph=True)
    virtual = {name: p - 0.5 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    meta_loss = cross_entropy(torch.func.functional_call(by_hand, virtual, (meta_x,))["logits"], meta_y)
    of_theta = torch.autograd.grad(meta_loss, list(psi.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(psi.parameters(), of_theta, strict=True):
            parameter -= 0.3 * gradient
    for own, other in zip(learner.parameters(), psi.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)
    moved = torch.autograd.grad(training_loss(), list(parameters.values()))
    for own, parameter, gradient in zip(network.parameters(), parameters.values(), moved, strict=True):
        torch.testing.assert_close(own.data, parameter.data - 0.5 * gradient, rtol=0, atol=1e-12)


def test_an_example_of_weight_0_changes_nothing(tmp_path):
    networks = []
    for label in (0, 1):
        torch.manual_seed(0)
        network = Linear().double()
        trainer = make(tmp_path, WEIGHTS, network, MWNet())
        trainer.train_dataset[0]["labels"] = label
        weigh = trainer.meta_learner.example_weights
        trainer.meta_learner.example_weights = lambda losses, weigh=weigh: torch.ones_like(weigh(losses)) / COUNT
        trainer.train()
        networks.append(network)
    assert torch.equal(networks[0].layer.weight, networks[1].layer.weight)


BAD = {
    "a column that is not there": ([None] * COUNT, "'w' is not in the training set, which has x, labels"),
    "a negative weight": ([1.0] * 11 + [-1.0], r"1 of 12 weights in column 'w' are negative or not finite \(row 11\)"),
    "NaN": ([float("nan")] + [1.0] * 11, r"negative or not finite \(row 0\)"),
    "all 0": ([0.0] * COUNT, "all weights in column 'w' are 0"),
    "words": (["much"] * COUNT, "holds 'much', and weights are numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_are_no_weights_is_refused_in_one_sentence(tmp_path, case):
    weights, message = BAD[case]
    with pytest.raises(FaMUSError, match=message):
        make(tmp_path, weights, Linear())


def test_weights_do_not_go_with_mixed_images(tmp_path):
    with pytest.raises(FaMUSError, match="which mixup_alpha mixes"):
        make(tmp_path, WEIGHTS, Linear(), mixup_alpha=0.5)


def test_a_table_keeps_the_column_of_weights(tmp_path):
    (tmp_path / "data").mkdir()
    lines = [f"{word} {n},{word},{1 + n % 3}" for n in range(30) for word in ("yes", "no")]
    (tmp_path / "data" / "train.csv").write_text("text,label,clean_probability\n" + "\n".join(lines) + "\n")
    data = load_noisy_dataset(
        str(tmp_path / "data"), text_column_name="text", label_column_name="label", num_meta=0,
        sample_weight_column="clean_probability",
    )  # fmt: skip
    assert sorted(set(data["train"]["clean_probability"][:])) == [1, 2, 3]
