"""Runs that train adapters of PEFT: what they leave loads with its base, and hostile adapters are refused."""

import json
import pickle

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ViTImageProcessor,
    pipeline,
)

from famus_hf import load_famus
from famus_hf.cli import label_report
from famus_hf.hub.load import files_to_push
from tests.helpers.clean_process import run_python
from tests.helpers.datasets import IMAGE_CLASSES, TEXT_CLASSES, pictures, write_texts
from tests.helpers.hostile import Canary, as_json, damaged, fuzz, is_a_sentence, mutated, peak_growth, refused
from tests.helpers.models import build_batch, build_model, build_tokenizer
from tests.helpers.saved_runs import write_audio_model, write_text_model
from tests.helpers.trainers import make_image_trainer, make_text_trainer

LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2, "modules_to_save": ["classifier"]}


def adapted(auto, base, names, **settings):
    """A network whose head is new, as it is where a pretrained one is adapted to other classes."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    network = auto.from_pretrained(base, num_labels=len(names), ignore_mismatched_sizes=True, **labels)
    network = get_peft_model(network, LoraConfig(**{**LORA, **settings}))
    torch.manual_seed(3)
    for parameter in network.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter) * parameter.requires_grad)
    return network.eval()


def write_base(folder):
    build_model("vit", torch.float32).save_pretrained(folder)  # of four classes
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def write_adapter(folder, **settings):
    """An image run's folder, and its base beside it; the base's name is its path."""
    network = adapted(AutoModelForImageClassification, write_base(folder / "base"), IMAGE_CLASSES, **settings)
    trainer = make_image_trainer(folder / "run", network)
    trainer.save_model()
    return trainer


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def logits(network, batch):
    with torch.no_grad():
        return network.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True, "use_rslora": True}, {"bias": "all"}, {"target_modules": "all-linear"},
     {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}, "layers_to_transform": [1]}],
    ids=str,
)  # fmt: skip
def test_a_run_with_adapters_loads_with_its_base(tmp_path, settings):
    trainer = write_adapter(tmp_path, **settings)
    trainer.train()
    trainer.save_model()
    model, meta_learner, layer_sampler, processor = load_famus(tmp_path / "run")
    batch = build_batch("vit", 4, torch.float32)
    assert torch.equal(logits(model, batch), logits(trainer.model, batch))
    assert model.config.id2label == dict(enumerate(IMAGE_CLASSES)) and not model.training
    assert type(meta_learner).__name__ == "MWNet" and layer_sampler is not None and processor is not None
    image = pictures(1, 4)[0]["image"]
    merged = pipeline("image-classification", model.merge_and_unload(), image_processor=processor)(image)
    assert {answer["label"] for answer in merged} == set(IMAGE_CLASSES)
    again = make_image_trainer(tmp_path / "again", load_famus(tmp_path / "run")[0], meta_learner="none")
    again.save_model()
    assert torch.equal(logits(load_famus(tmp_path / "again")[0], batch), logits(trainer.model, batch))


def test_the_pipeline_takes_the_folder_where_the_base_has_the_same_classes(tmp_path):
    base = AutoModelForImageClassification.from_pretrained(
        write_base(tmp_path / "base"), id2label=dict(enumerate(IMAGE_CLASSES)), ignore_mismatched_sizes=True
    )
    base.save_pretrained(tmp_path / "base")
    trainer = make_image_trainer(
        tmp_path / "run", adapted(AutoModelForImageClassification, tmp_path / "base", IMAGE_CLASSES)
    )
    trainer.save_model()
    network = pipeline("image-classification", str(tmp_path / "run"), device="cpu").model
    batch = build_batch("vit", 4, torch.float32)
    assert torch.equal(logits(network, batch), logits(trainer.model, batch))
    assert torch.equal(logits(load_famus(tmp_path / "run")[0], batch), logits(trainer.model, batch))


def test_the_labels_of_texts_are_judged_by_a_run_with_adapters(tmp_path, capsys):
    base = write_text_model(tmp_path / "base")
    network = adapted(
        AutoModelForSequenceClassification, base, TEXT_CLASSES, target_modules=["query", "value"], task_type="SEQ_CLS"
    )
    trainer = make_text_trainer(tmp_path / "run", network)
    trainer.save_model()
    flags = ["--dataset_name", str(write_texts(tmp_path / "texts")), "--output_dir", str(tmp_path / "report")]
    label_report.main(["--model", str(tmp_path / "run"), *flags, "--use_cpu"])
    assert "of 150 labels are more likely wrong than right" in capsys.readouterr().out
    processor = load_famus(tmp_path / "run")[3]
    assert processor("rain").input_ids == build_tokenizer()("rain").input_ids


def test_recordings_too(tmp_path):
    base = write_audio_model(tmp_path / "base")
    network = adapted(AutoModelForAudioClassification, base, ["a", "b"], modules_to_save=["classifier", "projector"])
    network.save_pretrained(tmp_path / "run")
    network.get_base_model().config.save_pretrained(tmp_path / "config")
    (tmp_path / "config" / "config.json").rename(tmp_path / "run" / "base_config.json")
    model = load_famus(tmp_path / "run")[0]
    values = {"input_values": torch.randn(2, 400)}
    assert torch.equal(logits(model, values), logits(network, values))


def test_a_whole_model_takes_the_place_of_an_adapter_and_an_adapter_that_of_a_whole_model(tmp_path):
    trainer = write_adapter(tmp_path)
    whole = make_image_trainer(tmp_path / "run")
    whole.save_model()
    assert type(load_famus(tmp_path / "run")[0]).__name__ == type(whole.model).__name__
    assert not list((tmp_path / "run").glob("adapter_*"))
    trainer.save_model()
    assert type(load_famus(tmp_path / "run")[0]).__name__ == "PeftModel"
    assert not (tmp_path / "run" / "config.json").exists() and not (tmp_path / "run" / "README.md").exists()


# ---- On the Hub ----

LOAD = """
import torch
from famus_hf import load_famus
model, meta_learner, _, processor = load_famus("user/adapters")
print(model.peft_config["default"].base_model_name_or_path, model.config.id2label[0], type(meta_learner).__name__)
print(" ".join(str(x) for x in model(torch.ones(1, 3, 8, 8)).logits[0].tolist()))
for name in ("a-path", "above"):
    try:
        load_famus("user/" + name)
    except ValueError as error:
        print(error)
"""


def test_adapters_are_pushed_and_loaded_with_a_base_on_the_hub(hub, tmp_path):
    trainer = write_adapter(tmp_path)
    run = tmp_path / "run"
    config = trainer.model.get_base_model().config
    config._name_or_path = "user/base-of-adapters"
    trainer.create_model_card()
    card = ModelCard.load(run / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", "user/base-of-adapters")
    assert "peft" in card.data.tags and "user/base-of-adapters" in card.text and "merge_and_unload()" in card.text
    names = files_to_push(run)
    assert {"adapter_config.json", "adapter_model.safetensors", "base_config.json", "README.md"} <= set(names)
    assert not any(name.endswith((".bin", ".pt")) for name in names)
    path = json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert path == str(tmp_path / "base"), "what no other machine may be asked for"
    for repo, base in {"adapters": "user/base-of-adapters", "a-path": path, "above": "../base"}.items():
        change(run / "adapter_config.json", base_model_name_or_path=base)
        hub.files[f"user/{repo}"] = {name: (run / name).read_bytes() for name in names}
    hub.files["user/base-of-adapters"] = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    first, second, *errors = run_python(LOAD, hub.environment(tmp_path / "home")).splitlines()[-4:]
    assert first == "user/base-of-adapters ant MWNet"
    expected = logits(trainer.model, {"pixel_values": torch.ones(1, 3, 8, 8)})[0].tolist()
    assert [float(word) for word in second.split()] == pytest.approx(expected, abs=1e-5)
    assert all("and a repository on the Hub is needed" in error for error in errors)


def test_pushing_adapters_of_a_base_that_nobody_has_is_said_before_training(tmp_path, caught, monkeypatch):
    monkeypatch.setattr("famus_hf.hub.push.prepare_repository", lambda name, **keywords: name)
    write_adapter(tmp_path).init_hf_repo()
    assert "adapters of a network that is on no Hub" in caught.text


# ---- Hostile ones ----

SETTINGS = {
    "another method": ({"peft_type": "IA3"}, "choose one of LORA"),
    "no method": ({"peft_type": None}, "choose one of LORA"),
    "a rank of 10^12": ({"r": 10**12}, "beyond 1048576"),
    "a rank that the file does not warrant": ({"r": 10**6}, "more memory than|in another shape"),
    "another rank": ({"r": 3}, "in another shape"),
    "a rank for some": ({"rank_pattern": {"q_proj": 10**7}}, "beyond 1048576"),
    "no number": ({"lora_alpha": float("nan")}, "must be a finite number"),
    "a pattern that never ends": ({"target_modules": "(a+)+$"}, "list of modules' names is needed"),
    "a pattern in a rank": ({"rank_pattern": {"(a+)+$": 2}}, "list of modules' names is needed"),
    "a pattern of layers": ({"layers_pattern": ["(a+)+$"]}, "list of modules' names is needed"),
    "thousands of names": ({"target_modules": ["q_proj"] * 5000}, "5000 target_modules, and the adapter has"),
    "other modules": ({"target_modules": ["nothing"]}, "."),
    "more modules": ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "lacks"),
    "fewer modules": ({"target_modules": ["q_proj"]}, "beside those of the adapter"),
    "a start by data": ({"init_lora_weights": "eva"}, "choose one of gaussian, orthogonal"),
    "code": ({"megatron_config": {"a": 1}}, "has a 'megatron_config', which is not supported"),
    "layers doubled": ({"layer_replication": [[0, 9]]}, "has a 'layer_replication', which is not supported"),
    "something new": ({"run_this": "os.system"}, "has a 'run_this', which is not supported"),
    "another task": ({"task_type": "CAUSAL_LM"}, "choose one of SEQ_CLS"),
    "no base": ({"base_model_name_or_path": None}, "a local folder, or a repository on the Hub is needed"),
    "a base that is no name": ({"base_model_name_or_path": "../.."}, "holds no backbone|is needed|holds no adapter"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_adapter(folder)
    return folder


@pytest.fixture
def run(sound):
    """The folder of a run whose files come back after the test."""
    files = {
        path: path.read_bytes() for path in (*(sound / "run").iterdir(), *(sound / "base").iterdir()) if path.is_file()
    }
    yield sound / "run"
    for path, content in files.items():
        path.write_bytes(content)


@pytest.mark.parametrize("case", SETTINGS)
def test_hostile_settings_of_an_adapter_are_refused(run, case):
    changes, words = SETTINGS[case]
    change(run / "adapter_config.json", **changes)
    assert peak_growth(lambda: refused(words, load_famus, run)) < 150


def change_tensors(path, changes):
    tensors = load_file(path)
    changes(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


HEAD, DOWN = "base_model.model.classifier.bias", "base_model.model.vit.layers.0.attention.q_proj.lora_A.weight"
BELOW = "vit.encoder.layer.0.output.dense.bias"
TENSORS = {
    "one missing": (lambda tensors: tensors.pop(DOWN), "adapter_model.safetensors lacks"),
    "the head missing": (lambda tensors: tensors.pop(HEAD), "adapter_model.safetensors lacks"),
    "one more": (lambda tensors: tensors.update(more=torch.zeros(1)), "beside those of the adapter more"),
    "another shape": (lambda tensors: tensors.update({HEAD: torch.zeros(9)}), "in another shape"),
    "not finite": (lambda tensors: tensors.update({DOWN: tensors[DOWN] / 0}), "not finite"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_of_an_adapter_that_do_not_fit_are_refused(run, case):
    change_tensors(run / "adapter_model.safetensors", TENSORS[case][0])
    refused(TENSORS[case][1], load_famus, run)


def test_a_base_that_is_hostile_or_an_adapter_itself_is_refused(run, sound):
    (sound / "base" / "adapter_config.json").write_text("{}")
    refused("give the whole network and no adapter", load_famus, run)
    (sound / "base" / "adapter_config.json").unlink()
    change_tensors(
        sound / "base" / "model.safetensors", lambda tensors: tensors.pop("vit.encoder.layer.0.output.dense.bias")
    )
    refused("its weights lack", load_famus, run)
    change(run / "base_config.json", intermediate_size=10**12)
    refused("beyond 1048576", load_famus, run)


def test_an_adapter_of_pickles_is_refused_and_nothing_runs(run, tmp_path):
    (run / "adapter_model.safetensors").unlink()
    (run / "adapter_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    refused("no file adapter_model.safetensors", load_famus, run)
    (run / "adapter_model.bin").unlink()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("count", [pytest.param(30, id="30"), pytest.param(1500, id="1500", marks=pytest.mark.slow)])
def test_no_mutation_of_an_adapter_does_more_than_being_refused(run, count):
    path = run / "adapter_config.json"
    text = path.read_bytes()
    config = json.loads(text)

    @fuzz(count)
    @given(st.one_of(mutated(config).map(as_json), damaged(text)))
    def check(content):
        path.write_bytes(content)
        try:
            load_famus(run)
        except ValueError as error:
            assert is_a_sentence(str(error)), str(error)

    assert peak_growth(check) < 400
