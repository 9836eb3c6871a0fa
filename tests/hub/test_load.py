"""What a run leaves on disk and on the Hub, and how it comes back."""

import json
import shutil

import pytest
import torch

from famus_hf import (
    L2R,
    MLC,
    AllLayers,
    BlockSampler,
    LayerSampler,
    LearnedSampler,
    MetaLearner,
    MWNet,
    RandomLayers,
    load_famus,
    load_noisy_dataset,
    register_layer_sampler,
    register_meta_learner,
)
from famus_hf.core.layer_samplers import LAYER_SAMPLERS
from famus_hf.core.layers import Layer
from famus_hf.core.meta_learners.registry import META_LEARNERS
from famus_hf.hub.load import files_to_push
from famus_hf.hub.meta_net_files import load_meta_net, save_meta_net
from tests.helpers.clean_process import run_python
from tests.helpers.hostile import refused
from tests.helpers.saved_runs import SMALL_BACKBONES, assert_same_parameters, built_sampler
from tests.helpers.trainers import make_trainer


def test_a_saved_run_loads_again(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    model, meta_learner, layer_sampler, processor = load_famus(tmp_path)
    assert_same_parameters(model, trainer.model)
    assert_same_parameters(meta_learner, trainer.meta_learner)
    assert_same_parameters(layer_sampler, trainer.layer_sampler)
    assert layer_sampler.layers == trainer.layer_sampler.layers
    assert processor is None and not model.training


def test_a_plain_run_loads_without_meta_net(tmp_path):
    trainer = make_trainer(tmp_path, meta_learner="none")
    trainer.save_model()
    model, meta_learner, layer_sampler, _ = load_famus(tmp_path)
    assert model is not None and meta_learner is None and layer_sampler is None


def test_settings_of_meta_net_survive(tmp_path):
    sampler = LearnedSampler(hidden_size=7, temperature=2.0, initial_bias=-1.0)
    sampler.build([Layer("a", ("a.weight", "a.bias"), 5, 0.5, 1), Layer("", ("weight",), 9000)])
    settings = {
        "hidden_size": 11,
        "weight_normalization": "mean",
        "initial_scale": 1.0,
        "initial_bias": -1.0,
        "detach_losses": False,
    }
    save_meta_net(tmp_path, MWNet(**settings), sampler)
    meta_learner, loaded = load_meta_net(tmp_path)
    assert meta_learner.config() == settings
    assert loaded.config() == sampler.config() and loaded.layers == sampler.layers
    assert_same_parameters(loaded, sampler)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04."),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text(json.dumps({"meta_learner": {"type": "os.system"}})),
        lambda folder: (folder / "config.json").write_text(
            json.dumps({"meta_learner": {"type": "mw-net", "hidden_size": 3}})
        ),
    ],
)
def test_damaged_meta_nets_are_refused_in_one_sentence(tmp_path, damage):
    save_meta_net(tmp_path, MWNet(), None)
    damage(tmp_path / "meta_net")
    with pytest.raises(ValueError, match="is no meta-net of famus_hf"):
        load_meta_net(tmp_path)
    with pytest.raises(ValueError, match="is no meta-net of famus_hf"):
        MWNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("subfolder", ["meta_net", "", "runs/first"])
def test_meta_learner_and_layer_sampler_load_by_themselves(tmp_path, subfolder):
    meta_learner, sampler = MWNet(hidden_size=11), built_sampler()
    save_meta_net(tmp_path / "saved", meta_learner, sampler)
    shutil.copytree(tmp_path / "saved" / "meta_net", tmp_path / "run" / subfolder)
    for kind in (MWNet, MetaLearner):
        assert_same_parameters(kind.from_pretrained(tmp_path / "run", subfolder=subfolder), meta_learner)
    for kind in (LearnedSampler, LayerSampler):
        loaded = kind.from_pretrained(str(tmp_path / "run"), subfolder=subfolder)
        assert_same_parameters(loaded, sampler)
        assert loaded.layers == sampler.layers


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (L2R, "holds a meta-learner of the kind MWNet, and L2R was asked for: call from_pretrained"),
        (AllLayers, "holds a layer sampler of the kind LearnedSampler, and AllLayers was asked for"),
    ],
)
def test_a_part_of_another_kind_is_refused(tmp_path, kind, words):
    save_meta_net(tmp_path, MWNet(), built_sampler())
    refused(words, kind.from_pretrained, tmp_path)


def test_a_folder_without_the_part_is_refused(tmp_path):
    refused("has no folder 'meta_net': give a run's output folder", MWNet.from_pretrained, tmp_path)
    MWNet().save_pretrained(tmp_path)
    refused("holds no layer sampler: the run that wrote it had none", LearnedSampler.from_pretrained, tmp_path)


def test_a_saved_meta_learner_loads_again(tmp_path):
    meta_learner = MLC(3, "probabilities")
    save_meta_net(tmp_path, MWNet(), built_sampler())
    meta_learner.save_pretrained(tmp_path)
    loaded = MetaLearner.from_pretrained(tmp_path)
    assert_same_parameters(loaded, meta_learner)
    assert loaded.config() == meta_learner.config() and load_meta_net(tmp_path)[1] is None


def test_saving_a_plain_run_removes_the_meta_net_of_another(tmp_path):
    save_meta_net(tmp_path, MWNet(), None)
    save_meta_net(tmp_path, None, None)
    assert load_meta_net(tmp_path) == (None, None)


def test_a_push_takes_the_run_and_nothing_else_of_the_folder(tmp_path):
    kept = ["config.json", "model.safetensors", "README.md", "noise.parquet", "meta_net/config.json"]
    left = [".env.json", "training_args.bin", "trainer_state.json", "other/secrets.json", "checkpoint-5/config.json"]
    for name in (*kept, *left):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert sorted(files_to_push(tmp_path)) == sorted(kept)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_famus(tmp_path)


TRAIN_AND_PUSH = """
from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone, load_noisy_dataset
data = load_noisy_dataset("digits", noise=0.4, max_train_samples=400, max_eval_samples=50)
model = build_backbone("tiny", data["train"].features["label"].names)
args = FaMUSTrainingArguments(
    FOLDER, max_steps=2, save_steps=1, save_strategy="steps", hub_strategy="every_save", push_to_hub=True,
    hub_model_id="user/digits-famus", use_cpu=True, report_to="none", per_device_train_batch_size=20,
    meta_learner="mw-net",
)
trainer = FaMUSTrainer(
    model, args, train_dataset=data["train"], eval_dataset=data["test"], meta_dataset=data["meta"]
)
trainer.train()
trainer.push_to_hub(dataset_name="digits")
"""
LOAD = """
import torch
from famus_hf import load_famus, load_noisy_dataset
model, meta_learner, layer_sampler, processor = load_famus("user/digits-famus")
local = load_famus(FOLDER)
for part, other in zip((model, meta_learner, layer_sampler), local):
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
image = load_noisy_dataset("digits", num_meta=0)["test"][0]["image"]
from transformers import pipeline
print(len(pipeline("image-classification", "user/digits-famus", device="cpu")(image)))
"""
LOAD_WITHOUT_FAMUS = """
import sys
sys.modules["famus_hf"] = None  # as if it were not installed
from PIL import Image
from transformers import pipeline
classify = pipeline("image-classification", "user/digits-famus", trust_remote_code=True, device="cpu")
print(len(classify(Image.new("L", (8, 8)))))
"""


def test_push_and_load_over_http(hub, client, tmp_path):
    own = f"FOLDER = {str(tmp_path / 'run')!r}"
    output = client.done("execute", code=own + TRAIN_AND_PUSH).printed
    pushed = hub.files["user/digits-famus"]
    assert {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "wide_resnet.py",
        "meta_net/config.json", "meta_net/model.safetensors", "meta_net/layer_sampler.safetensors",
    } <= set(pushed)  # fmt: skip
    assert not [name for name in pushed if name.endswith((".bin", ".pt", ".pth", ".pkl")) or "checkpoint-" in name]
    assert not any(b"hf_loopback" in content for content in pushed.values())
    assert "hf_loopback" not in output
    assert client.done("execute", code=own + LOAD).output.strip().endswith("5")
    assert run_python(LOAD_WITHOUT_FAMUS, hub.environment(tmp_path / "home")).strip().endswith("5")


LOAD_PARTS = """
from famus_hf import LearnedSampler, MetaLearner, MWNet
print(type(MetaLearner.from_pretrained("user/run-with-parts", revision="main")).__name__)
print(MWNet.from_pretrained("user/run-with-parts").hidden_size)
print(LearnedSampler.from_pretrained("user/run-with-parts").layers[0].name)
print(MWNet.from_pretrained("user/parts-alone", subfolder="").hidden_size)
try:
    MWNet.from_pretrained("user/no-parts")
except ValueError as error:
    print(error)
"""


def test_parts_load_over_http_and_nothing_else_is_fetched(hub, client, tmp_path):
    save_meta_net(tmp_path / "saved", MWNet(hidden_size=11), built_sampler())
    parts = {path.name: path.read_bytes() for path in (tmp_path / "saved" / "meta_net").iterdir()}
    others = {"config.json": b"{}", "model.safetensors": b"", "meta_net/optimizer.pt": b""}
    repositories = {
        "user/run-with-parts": {**others, **{f"meta_net/{name}": content for name, content in parts.items()}},
        "user/parts-alone": {**parts, "more/config.json": b"{}"},
        "user/no-parts": {"config.json": b"{}"},
    }
    hub.files |= repositories
    lines = client.done("execute", code=LOAD_PARTS).output.splitlines()
    assert lines[:4] == ["MWNet", "11", "a", "11"] and "'user/no-parts' has no folder 'meta_net'" in lines[4]
    fetched = {path.relative_to(snapshot).as_posix() for snapshot in client.home.glob("hub/*parts*/snapshots/*")
               for path in snapshot.rglob("*") if path.is_file()}  # fmt: skip
    assert fetched == {*parts, *(f"meta_net/{name}" for name in parts)}


LOAD_BACKBONES = """
import sys
sys.modules["famus_hf"] = None  # as if it were not installed
import torch
from transformers import AutoModelForImageClassification
for name in ("wide-resnet", "preact-resnet", "cifar-resnet", "efficientnet-lite"):
    model = AutoModelForImageClassification.from_pretrained("user/" + name, trust_remote_code=True)
    print(type(model).__name__, model(torch.ones(1, 3, 16, 16)).logits[0, 0].item())
"""


def test_every_backbone_of_ours_loads_from_the_hub_where_famus_hf_is_not_installed(hub, tmp_path):
    expected = []
    for name in ("wide-resnet", "preact-resnet", "cifar-resnet", "efficientnet-lite"):
        model = SMALL_BACKBONES[name](num_labels=3).eval()
        model.save_pretrained(tmp_path / name)
        hub.files[f"user/{name}"] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        expected += [type(model).__name__, pytest.approx(model(torch.ones(1, 3, 16, 16)).logits[0, 0].item(), abs=1e-5)]
    words = run_python(LOAD_BACKBONES, hub.environment(tmp_path / "home")).split()
    assert [float(word) if place % 2 else word for place, word in enumerate(words)] == expected


def test_the_pipeline_classifies_like_the_trainer(tmp_path):
    from transformers import pipeline

    from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone

    data = load_noisy_dataset("digits", noise=0.4, max_train_samples=300, max_eval_samples=20)
    names = data["train"].features["label"].names
    args = FaMUSTrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, save_strategy="no", report_to="none")
    trainer = FaMUSTrainer(build_backbone("tiny", names), args, train_dataset=data["train"], meta_dataset=data["meta"])
    trainer.train()
    trainer.save_model()
    expected = trainer.predict(data["test"]).predictions.argmax(1)
    classify = pipeline("image-classification", str(tmp_path), device="cpu")
    found = [prediction[0]["label"] for prediction in classify(list(data["test"]["image"]))]
    assert found == [names[label] for label in expected]


def test_evaluate_finds_the_accuracy_that_the_run_claims(tmp_path):
    """The saved checkpoint, judged once more through its pipeline by evaluate."""
    import evaluate

    from famus_hf import FaMUSTrainer, FaMUSTrainingArguments, build_backbone
    from famus_hf.metrics import Accuracy, compute_accuracy

    data = load_noisy_dataset("digits", noise=0.4, max_train_samples=300, max_eval_samples=40)
    model = build_backbone("tiny", data["train"].features["label"].names)
    args = FaMUSTrainingArguments(str(tmp_path), max_steps=6, use_cpu=True, save_strategy="no", report_to="none")
    trainer = FaMUSTrainer(
        model, args, train_dataset=data["train"], meta_dataset=data["meta"], compute_metrics=compute_accuracy
    )
    trainer.train()
    trainer.save_model()
    found = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=str(tmp_path), data=data["test"], metric=Accuracy(), label_mapping=model.config.label2id
    )
    assert found["accuracy"] == trainer.evaluate(data["test"])["eval_accuracy"] > 0.1


def test_a_meta_learner_of_the_users_own_loads_once_it_is_registered(tmp_path):
    class Shifted(MLC):
        pass

    save_meta_net(tmp_path, Shifted(3, "probabilities"), None)
    with pytest.raises(ValueError, match=r"type 'Shifted'; import that class and call famus_hf\.register_meta_learner"):
        load_meta_net(tmp_path)
    try:
        register_meta_learner(Shifted)
        meta_learner, _ = load_meta_net(tmp_path)
        own = Shifted.from_pretrained(tmp_path)
    finally:
        META_LEARNERS.pop("Shifted", None)
    assert type(meta_learner) is type(own) is Shifted and meta_learner.form == "probabilities"


@pytest.mark.parametrize("meta_learner", [L2R(), MLC(3, "probabilities", keep_matrix=False, reduction="sum")])
@pytest.mark.parametrize("sampler", [BlockSampler(1), RandomLayers(2), AllLayers()])
def test_every_meta_learner_and_sampler_survives(tmp_path, meta_learner, sampler):
    sampler.build([Layer("a", ("a.weight",), 5, 0.5, 1), Layer("b", ("b.weight",), 3, 0.2)])
    save_meta_net(tmp_path, meta_learner, sampler)
    loaded, loaded_sampler = load_meta_net(tmp_path)
    assert type(loaded) is type(meta_learner) and loaded.config() == meta_learner.config()
    assert type(loaded_sampler) is type(sampler) and loaded_sampler.config() == sampler.config()
    assert loaded_sampler.layers == sampler.layers
    assert (tmp_path / "meta_net" / "model.safetensors").exists() == isinstance(meta_learner, MLC)


def test_a_layer_sampler_of_the_users_own_loads_once_it_is_registered(tmp_path):
    class Other(RandomLayers):
        pass

    sampler = Other(1)
    sampler.build([Layer("a", ("a.weight",), 5)])
    save_meta_net(tmp_path, MWNet(), sampler)
    with pytest.raises(ValueError, match=r"type 'Other'; import that class and call famus_hf\.register_layer_sampler"):
        load_meta_net(tmp_path)
    try:
        register_layer_sampler(Other)
        assert type(load_meta_net(tmp_path)[1]) is Other
    finally:
        LAYER_SAMPLERS.pop("Other", None)
