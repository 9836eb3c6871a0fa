"""The ensemble of two networks: a mean of logits in memory, a folder with two folders in it on disk and on the Hub."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    pipeline,
)

from famus_hf import MLC, MWNet, TwoNetworksForImageClassification, load_famus
from famus_hf.errors import SaveError
from famus_hf.hub.load import files_to_push
from famus_hf.models.preact_resnet import PreActResNetForImageClassification
from famus_hf.models.two_networks import TwoNetworksConfig
from famus_hf.storage.model_folder import atomic_write_model, save_networks_apart
from famus_hf.storage.run_folder import NETWORKS_APART
from tests.helpers.clean_process import run_python
from tests.helpers.hostile import refused
from tests.helpers.models import GroupNormNet
from tests.helpers.saved_runs import (
    OF_A_FOLDER,
    PAIRS,
    PUSHED,
    SMALL_BACKBONES,
    THREE_CLASSES,
    assert_same_parameters,
    bert,
    images,
    preact,
    save_run,
    trained_ensemble,
    vit,
)

# ---- In memory ----


def test_the_output_is_the_mean_of_both_logits_and_their_cross_entropy():
    model_a, model_b = preact().eval(), vit().eval()
    ensemble = TwoNetworksForImageClassification.of(model_a, model_b)
    labels = torch.arange(8) % 3
    with torch.no_grad():
        output = ensemble(pixel_values=images(), labels=labels)
        expected = (model_a(images()).logits + model_b(images()).logits) / 2
    assert torch.equal(output.logits, expected)
    assert torch.equal(output.loss, torch.nn.functional.cross_entropy(expected, labels))
    assert ensemble.model_a is model_a and ensemble.model_b is model_b and ensemble.config.id2label[2] == "owl"


ALONE = preact()
REFUSED = {
    "one network twice": ((ALONE, ALONE), "are the same network: give two that were initialised each by itself"),
    "other class names": (
        (ALONE, preact(id2label={0: "cat", 1: "owl", 2: "dog"})),
        r"with different names \(\['cat', 'dog', 'owl'\] …, \['cat', 'owl', 'dog'\] …\): give both the same id2label",
    ),
    "more classes": (
        (ALONE, SMALL_BACKBONES["preact-resnet"](num_labels=4)),
        "have 3 and 4 classes with different names",
    ),
    "a module of torch": ((ALONE, GroupNormNet()), "model_b is a GroupNormNet: give a classifier of images"),
    "an ensemble": (
        (TwoNetworksForImageClassification.of(preact(), preact()), ALONE),
        "network_a holds two networks itself: give a single network",
    ),
    "a classifier of text": ((ALONE, bert()), "network_b has the model_type 'bert', of which there is no classifier"),
    "other code": (
        (ALONE, type("OwnNet", (PreActResNetForImageClassification,), {})(preact().config)),
        "model_b is a OwnNet of .* would come back as a PreActResNetForImageClassification",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_makes_no_ensemble_is_refused_in_one_sentence(kind):
    models, words = REFUSED[kind]
    refused(words, TwoNetworksForImageClassification.of, *models)


def test_configurations_that_make_no_ensemble_are_refused_in_one_sentence():
    config = trained_ensemble().config
    settings = config.network_a
    for changes, words in (
        ({"network_b": None}, "network_b is a NoneType and no object: two configurations are needed"),
        ({"network_a": {**settings, "model_type": "evil"}}, "'evil', which transformers does not know"),
        ({"network_a": {**settings, "id2label": {"0": "x", "1": "y"}}}, "2 and 3 classes with different names"),
        ({"id2label": {0: "x", 1: "y"}}, "names 2 classes and its networks have 3"),
    ):
        both = {"network_a": settings, "network_b": settings, **THREE_CLASSES, **changes}
        refused(words, TwoNetworksForImageClassification, TwoNetworksConfig(**both))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_new_ensemble_starts_as_its_networks_start_alone(kind):
    config = trained_ensemble(kind).config
    torch.manual_seed(3)
    ensemble = TwoNetworksForImageClassification(config)
    torch.manual_seed(3)
    for name, make in zip(NETWORKS_APART, PAIRS[kind], strict=True):
        assert_same_parameters(ensemble.get_submodule(name), make())


def test_layers_that_stay_whole_are_those_of_both_networks_and_checkpointing_takes_both():
    mixed, vits = (TwoNetworksForImageClassification.of(make(), vit()) for make in (preact, vit))
    assert set(mixed._no_split_modules) == {"PreActResNetBlock", *vit()._no_split_modules}
    assert vits.supports_gradient_checkpointing and not mixed.supports_gradient_checkpointing
    vits.gradient_checkpointing_enable()
    assert vits.model_a.is_gradient_checkpointing and vits.model_b.is_gradient_checkpointing


# ---- On disk ----


@pytest.mark.parametrize("kind", PAIRS)
def test_an_ensemble_and_each_of_its_networks_come_back_bit_for_bit(tmp_path, kind):
    ensemble = trained_ensemble(kind)
    save_run(tmp_path, ensemble)
    assert_same_parameters(AutoModelForImageClassification.from_pretrained(tmp_path), ensemble)
    found = load_famus(tmp_path)
    assert_same_parameters(found[0], ensemble)
    assert found[1:3] == (None, None) and found[3] is not None and not found[0].training
    assert torch.equal(found[0](images()).logits, ensemble(images()).logits)
    for name in NETWORKS_APART:
        network = ensemble.get_submodule(name)
        assert_same_parameters(AutoModelForImageClassification.from_pretrained(tmp_path, subfolder=name), network)
        for found in (load_famus(tmp_path / name), load_famus(tmp_path, subfolder=name)):
            assert_same_parameters(found[0], network)
            assert type(found[1]) is {"model_a": MWNet, "model_b": MLC}[name]
            assert (found[2] is None) == (name == "model_b") and found[3] is not None
    assert MWNet.from_pretrained(tmp_path, subfolder="model_a/meta_net").hidden_size == 11


def test_the_pipeline_gives_the_class_names_of_an_ensemble_and_of_one_network(tmp_path):
    ensemble = trained_ensemble()
    save_run(tmp_path, ensemble)
    from PIL import Image

    for folder in (tmp_path, tmp_path / "model_b"):
        answer = pipeline("image-classification", str(folder), device="cpu")(Image.new("RGB", (16, 16)))
        assert {entry["label"] for entry in answer} == {"cat", "dog", "owl"}


def test_an_ensemble_loads_in_the_kind_of_numbers_that_is_asked_for(tmp_path):
    trained_ensemble("two of transformers").save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_weights_that_are_not_there_start_as_their_network_starts_them(tmp_path):
    trained_ensemble().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in ("model_b.bn.running_var", "model_b.blocks.7.conv2.weight"):
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.model_b.bn.running_var, torch.ones(4))
    kernel = loaded.model_b.blocks[7].conv2.weight  # transformers' own rule would give a deviation of 0.02
    assert kernel.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)


def test_saving_networks_apart_leaves_their_meta_nets_alone(tmp_path):
    ensemble = trained_ensemble()
    for _ in range(2):
        save_run(tmp_path, ensemble)
    save_networks_apart(tmp_path, ensemble, None)
    assert load_famus(tmp_path, subfolder="model_a")[1].hidden_size == 11
    assert {path.name for path in (tmp_path / "model_b").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "preact_resnet.py", "meta_net",
    }  # fmt: skip


def test_no_path_of_the_machine_is_in_what_is_saved(tmp_path):
    trained_ensemble().save_pretrained(tmp_path / "first")
    save_run(tmp_path / "again", AutoModelForImageClassification.from_pretrained(tmp_path / "first"))
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_a_subfolder_that_is_none_or_leads_out_is_refused(tmp_path):
    save_run(tmp_path / "run", trained_ensemble())
    with pytest.raises(ValueError, match=r"has no config\.json in 'model_c': a run's output folder"):
        load_famus(tmp_path / "run", subfolder="model_c")
    for name in ("..", "../run2", str(tmp_path)):
        with pytest.raises(ValueError, match=r"leads out of .*: give the name of a folder in it"):
            load_famus(tmp_path / "run", subfolder=name)
    (tmp_path / "run" / "linked").symlink_to(tmp_path / "run2")
    (tmp_path / "run" / "model_a").rename(tmp_path / "run2")
    with pytest.raises(ValueError, match="leads out of"):
        load_famus(tmp_path / "run", subfolder="linked")


# ---- Saved over an earlier model ----


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def save_beside(folder, model):
    with atomic_write_model(folder) as beside:
        save_run(beside, model) if hasattr(model, "model_a") else model.save_pretrained(beside)


def test_a_save_replaces_the_networks_of_an_earlier_run_of_two_and_of_one(tmp_path):
    save_beside(tmp_path, trained_ensemble("ours and one of transformers"))
    second = trained_ensemble()
    save_beside(tmp_path, second)
    assert_same_parameters(load_famus(tmp_path, subfolder="model_b")[0], second.model_b)
    save_beside(tmp_path, preact())
    assert not (tmp_path / "model_a").exists() and not (tmp_path / "model_b").exists()
    assert load_famus(tmp_path)[0].config.model_type == "preact_resnet"


def test_a_save_that_was_killed_half_way_is_no_obstacle_to_the_next(tmp_path):
    save_beside(tmp_path, trained_ensemble())
    (tmp_path / "config.json").unlink()
    second = trained_ensemble("two kinds of ours")
    save_beside(tmp_path, second)
    assert_same_parameters(load_famus(tmp_path, subfolder="model_a")[0], second.model_a)


def test_a_folder_of_the_users_own_stays_and_stops_only_a_run_that_needs_its_place(tmp_path):
    (tmp_path / "model_a" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / "model_a" / "config.json").write_text("{}")
    save_beside(tmp_path, preact())
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    with pytest.raises(SaveError, match="'model_a' is there already and holds more than a network: move it away"):
        save_beside(tmp_path, trained_ensemble())
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before
    assert (tmp_path / "model_a" / "checkpoint-7").is_dir()


# ---- Pushed ----


def test_a_push_takes_the_ensemble_both_networks_and_nothing_else(tmp_path):
    save_run(tmp_path, trained_ensemble())
    others = ("training_args.bin", "notes.json", "evil.py", "meta_net/optimizer.pt", "more/config.json", "README.md")
    for name in (*(f"model_a/{name}" for name in others), "model_c/config.json", "evil.py", "optimizer.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert set(files_to_push(tmp_path)) == PUSHED


def test_a_push_of_one_network_leaves_folders_of_an_earlier_run_of_two_behind(tmp_path):
    save_run(tmp_path, trained_ensemble())
    preact().save_pretrained(tmp_path)
    assert set(files_to_push(tmp_path)) == set(OF_A_FOLDER)


def test_files_that_a_networks_code_imports_are_pushed_and_code_that_is_not_there_is_no_obstacle(tmp_path):
    auto_map = {"AutoConfig": "own.Config", "AutoModel": "gone.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    (tmp_path / "own.py").write_text("from .blocks import Block\n")
    (tmp_path / "blocks.py").write_text("")
    (tmp_path / "other.py").write_text("")
    assert set(files_to_push(tmp_path)) == {"config.json", "own.py", "blocks.py"}


# ---- From the Hub ----

WITHOUT_FAMUS = """
import sys
sys.modules["famus_hf"] = None  # as if it were not installed
from pathlib import Path
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
folder = snapshot_download("user/two", token="hf_reader", local_dir=FOLDER)
for place in ("user/two", folder, folder + "/model_a", "user/vits"):
    keywords = {"trust_remote_code": True, "token": "hf_reader"}
    model = AutoModelForImageClassification.from_pretrained(place, **keywords)
    classify = pipeline("image-classification", place, device="cpu", **keywords)
    assert len(classify(Image.new("RGB", (16, 16)))) == 3
    print(model(torch.ones(1, 3, 16, 16)).logits[0, 0].item())
"""
WITH_FAMUS = """
import os
import torch
from transformers import AutoModelForImageClassification, pipeline
from famus_hf import MWNet, load_famus
def fetched():
    snapshots = os.environ["HF_HOME"] + "/hub/models--user--guarded/snapshots"
    return [name for _, _, names in os.walk(snapshots) for name in names].count("model.safetensors")
def show(model):
    print(model(torch.ones(1, 3, 16, 16)).logits[0, 0].item())
parts = load_famus("user/guarded", token="hf_reader")
show(parts[0])
print([type(part).__name__ for part in parts[1:3]], fetched())
parts = load_famus("user/guarded", subfolder="model_a", revision="main", token="hf_reader")
show(parts[0])
print([type(part).__name__ for part in parts[1:3]], fetched())
print(MWNet.from_pretrained("user/guarded", subfolder="model_a/meta_net", token="hf_reader").hidden_size)
show(AutoModelForImageClassification.from_pretrained("user/guarded", token="hf_reader"))
show(AutoModelForImageClassification.from_pretrained("user/guarded", subfolder="model_a", token="hf_reader"))
show(pipeline("image-classification", "user/guarded", device="cpu", token="hf_reader").model)
"""


@pytest.fixture(scope="module")
def ensembles(hub, tmp_path_factory):
    """Repository → its ensemble.

    Private repositories have a run of two networks of ours, and a public one has two of transformers' own. In
    `user/guarded` the code ends whatever process runs it.
    """
    ensembles = {}
    for repository, kind in (("user/two", "two of one kind of ours"), ("user/vits", "two of transformers")):
        folder, ensembles[repository] = tmp_path_factory.mktemp("run"), trained_ensemble(kind)
        save_run(folder, ensembles[repository])
        hub.files[repository] = {name: (folder / name).read_bytes() for name in files_to_push(folder)}
    trap = b"raise SystemExit('the code of the repository was run')"
    hub.files["user/guarded"] = {
        name: trap if name.endswith(".py") else content for name, content in hub.files["user/two"].items()
    }
    hub.private |= {"user/two", "user/guarded"}
    hub.tokens["hf_reader"] = "read"
    return ensembles


def first_logit(model):
    return pytest.approx(model(torch.ones(1, 3, 16, 16)).logits[0, 0].item(), abs=1e-5)


def test_two_networks_load_from_the_hub_where_famus_hf_is_not_installed(hub, tmp_path, ensembles):
    environment = {**hub.environment(tmp_path / "home"), "HF_TOKEN": "hf_nobody"}
    own = f"FOLDER = {str(tmp_path / 'local')!r}"
    numbers = [float(line) for line in run_python(own + WITHOUT_FAMUS, environment).split()]
    two = ensembles["user/two"]
    assert numbers == [first_logit(model) for model in (two, two, two.model_a, ensembles["user/vits"])]


def test_two_networks_load_from_the_hub_with_famus_hf_and_none_of_their_code_runs(client, ensembles):
    lines = client.done("execute", code=WITH_FAMUS, environment={"HF_TOKEN": "hf_nobody"}).output.splitlines()
    two = ensembles["user/two"]
    assert [float(lines[number]) for number in (0, 2, 5, 6, 7)] == [
        first_logit(model) for model in (two, two.model_a, two, two.model_a, two)
    ]
    assert lines[1] == "['NoneType', 'NoneType'] 1"  # the ensemble's weights alone were fetched
    assert lines[3] == "['MWNet', 'LearnedSampler'] 3" and lines[4] == "11"
    assert not [path for path in client.home.rglob("*.py") if "guarded" in str(path)]
