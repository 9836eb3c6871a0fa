"""What version 0.1.0 wrote, before its modules moved into folders, loads and goes on: folders, checkpoints, the Hub's.

written_by_0_1_0.zip holds `run/` (a ViT of 1 500 parameters after six steps with a pseudo-clean set and every kind of
record, and its checkpoint of step 3), `repository/` (what a push made of it, `last-checkpoint/` included), `two/` (the
checkpoint of step 8 of two networks), `ensemble/` (two networks whole and apart), and in `run.safetensors` and
`two.safetensors` all that the two runs had learned at their ends.
"""

import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTForImageClassification

from famus_hf import FaMUSTrainer, LearnedSampler, MWNet, TwoNetworksForImageClassification, load_famus
from famus_hf.metrics import compute_accuracy
from famus_hf.reporting.figures.run_records import read_run
from famus_hf.storage.portable import unpack
from tests.helpers import two_network_runs as two_networks
from tests.helpers.trainers import Examples, learned, make_args


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    with zipfile.ZipFile(Path(__file__).with_name("written_by_0_1_0.zip")) as archive:
        archive.extractall(folder)
    return folder


def as_it_was_started(folder):
    args = make_args(
        folder, candidate_layers="3", expected_layers=2, save_strategy="steps", save_steps=3, learning_rate=0.05,
        meta_optim="adam", meta_set="pseudo-clean", plain_warmup_epochs=0.2, log_layers=2, log_weights=3,
        log_stage_times=2, eval_strategy="steps", eval_steps=3, meta_lr_schedule="constant",
    )  # fmt: skip
    model = ViTForImageClassification.from_pretrained(folder)
    tests = Examples(19, 2000, seed=7)
    return FaMUSTrainer(model, args, train_dataset=Examples(40), eval_dataset=tests, compute_metrics=compute_accuracy)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_run_and_what_was_pushed_of_it_load(written):
    expected = load_file(written / "run.safetensors")
    for name in ("run", "repository"):
        model, meta_learner, layer_sampler, processor = load_famus(written / name)
        assert model.config.id2label == {0: "ant", 1: "bee", 2: "cat", 3: "dog"} and processor is None
        assert type(meta_learner) is MWNet and type(layer_sampler) is LearnedSampler
        parts = {"w": model, "theta": meta_learner, "eta": layer_sampler}
        found = {f"{part}.{key}": tensor for part, own in parts.items() for key, tensor in own.state_dict().items()}
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_records_of_a_run_are_read(written):
    run = written / "run"
    report = pq.read_table(run / "label_report.parquet").to_pandas()
    assert len(report) == 40 and {"index", "label", "weight", "clean_probability", "clean_label"} <= set(report)
    records = read_run(run, "earlier")
    assert set(records.tables) == {"layers", "stage_times", "weights"} and records.log[-1]["step"] == 6


def test_a_run_goes_on_from_its_checkpoint_and_ends_where_it_ended(written):
    trainer = as_it_was_started(written / "run")
    trainer.train(resume_from_checkpoint=str(written / "run" / "checkpoint-3"))
    assert trainer.state.global_step == 6 and trainer.diagnostics.counted[""][0] == trainer.meta.steps == 5
    assert_close(learned(trainer), load_file(written / "run.safetensors"))


def test_a_checkpoint_of_the_hub_unpacks_and_goes_on(written):
    folder = written / "repository"
    checkpoint = unpack(folder / "last-checkpoint", folder, processes=1)
    trainer = as_it_was_started(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert_close(learned(trainer), load_file(written / "run.safetensors"))


def test_two_networks_go_on_from_their_checkpoint_and_end_where_they_ended(written):
    settings = {"save_strategy": "steps", "save_steps": 8, "candidate_layers": "2", "expected_layers": 1}
    trainer = two_networks.make(written / "two", dtype=torch.float32, **settings)
    trainer.train(resume_from_checkpoint=str(written / "two" / "checkpoint-8"))
    assert_close(two_networks.learned(trainer), load_file(written / "two.safetensors"))


def test_two_networks_load_together_and_apart(written):
    images = torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
    model, *others = load_famus(written / "ensemble")
    assert type(model) is TwoNetworksForImageClassification and others == [None, None, None]
    torch.testing.assert_close(model(images).logits, torch.tensor([[0.5845, 0.1365]]), rtol=0, atol=1e-4)
    assert type(AutoModelForImageClassification.from_pretrained(written / "ensemble")) is type(model)
    for name in ("model_a", "model_b"):
        own, meta_learner, layer_sampler, _ = load_famus(written / "ensemble", subfolder=name)
        assert type(meta_learner) is MWNet and layer_sampler is None
        for key, tensor in own.state_dict().items():
            assert torch.equal(tensor, model.get_submodule(name).state_dict()[key]), key
