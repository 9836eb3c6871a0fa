"""BilateralBranchTrainer: each step against SGD by hand, partners of rare classes, exact resumes, what it refuses.

tests/processes/test_processes.py has its runs in two processes, tests/models/test_bilateral_branch.py the network.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from famus_hf import MWNet, load_famus
from famus_hf.core.cumulative_learning import conventional_share, cumulative_losses
from famus_hf.core.losses import CrossEntropyLoss, FocalLoss
from famus_hf.data.inputs.training_rows import PartneredRows
from tests.helpers.bilateral_runs import RUNS, SIZES, learned, long_tail, make, network
from tests.helpers.callbacks import SaveAt
from tests.helpers.trainers import Examples
from tests.helpers.two_network_runs import assert_equal

# ---- Formulas ----


def test_the_share_falls_from_one_by_the_square_of_the_epoch():
    assert [conventional_share(epoch, 4) for epoch in range(4)] == [1, 1 - 1 / 16, 1 - 1 / 4, 1 - 9 / 16]


def test_the_loss_is_shared_between_both_labels():
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    losses = cumulative_losses(CrossEntropyLoss(), logits, torch.tensor([0, 1]), torch.tensor([2, 1]), 0.7)
    p = [[np.exp(z) / sum(np.exp(row)) for z in row] for row in logits.tolist()]
    expected = [-0.7 * np.log(p[0][0]) - 0.3 * np.log(p[0][2]), -np.log(p[1][1])]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


# ---- The step ----


def recorded(trainer):
    """A trainer's batches as the network gets them, with the labels of the partners."""
    batches, compute_loss = [], trainer.compute_loss

    def record(model, inputs, *others, **named):
        batches.append({**inputs, "partner_labels": trainer._partner_labels})
        return compute_loss(model, inputs, *others, **named)

    trainer.compute_loss = record
    return batches


@pytest.mark.parametrize("name", ["plain", "focal"])
def test_steps_equal_sgd_by_hand(tmp_path, name):
    trainer = make(tmp_path, lr_milestones=[], **RUNS[name])
    model, batches = copy.deepcopy(trainer.model), recorded(trainer)
    trainer.train()
    loss = FocalLoss(2.0) if name == "focal" else CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    shares = []
    for step, batch in enumerate(batches):
        shares.append(1 - ((step // 8) / (20 / 8)) ** 2)
        logits = model(batch["pixel_values"], None, batch["partner_pixel_values"], shares[-1]).logits
        of_own, of_partners = (loss(logits, batch[key]).mean() for key in ("labels", "partner_labels"))
        optimizer.zero_grad()
        (shares[-1] * of_own + (1 - shares[-1]) * of_partners).backward()
        optimizer.step()
    assert len(batches) == 20
    assert_equal(trainer.model.state_dict(), model.state_dict(), 1e-12)
    logged = [entry["conventional_share"] for entry in trainer.state.log_history if "conventional_share" in entry]
    assert logged == pytest.approx([sum(shares[step : step + 2]) / 2 for step in range(0, 20, 2)])


def test_an_epoch_takes_each_example_once_with_a_partner_that_is_itself_whole(tmp_path):
    trainer, train = make(tmp_path, max_steps=9), long_tail()
    batches = recorded(trainer)
    trainer.train()
    images = torch.stack([train[row]["pixel_values"] for row in range(len(train))])

    def rows_of(found):
        return [int((images == image).flatten(1).all(1).nonzero()) for image in found]

    own = rows_of(torch.cat([batch["pixel_values"] for batch in batches[:8]]))
    assert len(set(own)) == 64
    for batch in batches:
        partners = rows_of(batch["partner_pixel_values"])
        assert batch["partner_labels"].tolist() == [train[row]["labels"] for row in partners]


def test_evaluation_takes_both_branches_alike_and_rare_classes_are_found(tmp_path):
    test = Examples(40, dtype=torch.float64)
    labels = torch.arange(40) % 4
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    images += 3 * F.one_hot(labels, 4)[:, :3, None, None]
    test.batch = {"pixel_values": images, "labels": labels}
    trainer = make(tmp_path, max_steps=80)
    trainer.train()
    predictions = trainer.predict(test)
    found = predictions.predictions.argmax(1)
    assert (found == labels.numpy()).mean() > 0.8 and len(np.unique(found)) == 4
    with torch.no_grad():
        expected = trainer.model.eval()(images).logits
    np.testing.assert_allclose(predictions.predictions, expected.numpy(), rtol=1e-6)


# ---- Runs ----

CROPS = {"augmentation": "pad-crop"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Name of a run → a trainer that nothing happened to."""
    found = {}
    for name in ("plain", "accumulation"):
        keywords = {"callbacks": [SaveAt(3, 9)]}
        found[name] = make(
            tmp_path_factory.mktemp("whole"), "batch norm", torch.float32, keywords=keywords, **RUNS[name], **CROPS
        )
        found[name].train()
    return found


@pytest.mark.parametrize(("name", "stop"), [("plain", 3), ("plain", 9), ("accumulation", 3)])
def test_a_resumed_run_is_bit_identical(tmp_path, whole, name, stop):
    again = make(tmp_path, "batch norm", torch.float32, **RUNS[name], **CROPS)
    again.train(resume_from_checkpoint=f"{whole[name].args.output_dir}/checkpoint-{stop}")
    assert again.state.global_step == whole[name].state.global_step
    assert_equal(learned(again), learned(whole[name]))


def test_a_run_is_saved_as_one_network_with_a_card_that_says_how(whole):
    trainer = whole["plain"]
    trainer.save_model()
    trainer.create_model_card()
    folder = trainer.args.output_dir
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loaded, learner, _, _ = load_famus(folder)
    torch.testing.assert_close(loaded(x).logits, trainer.model.eval()(x).logits)
    card = (Path(folder) / "README.md").read_text(encoding="utf-8")
    assert learner is None and "by two branches on one trunk, of which one sees the rarer classes more often" in card
    assert trainer.beliefs is None, "what it makes of a training batch is of two images each"


# ---- What it refuses ----


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"meta_learner": "mentornet"}, "two branches learn without a meta-learner, and one is asked for: set meta_l"),
        ({"keywords": {"meta_learner": MWNet()}}, "two branches learn without a meta-learner, and one is asked for"),
        ({"mixup_alpha": 1.0}, "mixup_alpha=1.0 does not go with two branches: leave it out"),
        ({"logit_adjustment": 1.0}, "logit_adjustment does not go with two branches"),
        ({"base_loss": "ldam"}, "base_loss 'ldam' does not go with two branches"),
        ({"balanced_batches_per_epoch": 3}, "balanced_batches_per_epoch=3 does not go with two branches"),
        ({"max_steps": 8}, "0.94 epochs leave two branches none in which the re-balancing one learns"),
        ({"max_steps": -1, "num_train_epochs": 1}, "1 epochs leave two branches none"),
        ({"train": Examples(40)}, "drawn by class, and this train_dataset does not tell the class of every example"),
        ({"model": network("batch norm", torch.float32)}, "a WideResNetForImageClassification has no two branches: gi"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_go_is_refused_in_one_sentence(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **changes)


def test_examples_that_can_have_no_partners_are_refused(tmp_path):
    texts = long_tail().with_format(None).remove_columns("index").rename_column("pixel_values", "input_ids")
    with pytest.raises(ValueError, match="two branches take images, and the examples hold input_ids, labels: give"):
        make(tmp_path, train=texts)

    def collate(examples):
        names = ("pixel_values", "labels")
        return {name: torch.stack([torch.as_tensor(each[name]) for each in examples]) for name in names}

    with pytest.raises(ValueError, match="need the column 'partner_labels' in each training batch, which the data_"):
        make(tmp_path, keywords={"data_collator": collate})


def test_pairs_have_the_columns_of_the_first_and_image_and_label_of_the_second():
    (pair,) = PartneredRows(long_tail()).__getitems__([(2, sum(SIZES) - 1)])
    assert set(pair) == {"pixel_values", "labels", "index", "partner_pixel_values", "partner_labels"}
    assert (pair["index"], pair["labels"], pair["partner_labels"]) == (2, 0, 3)
