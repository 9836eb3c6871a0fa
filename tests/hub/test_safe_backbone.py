"""Backbones of somebody else: refused in one sentence, nothing run, fetched or built at the size that is claimed."""

import json
import os
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ViTImageProcessor

from famus_hf import MWNet, TwoNetworksForImageClassification, load_famus
from famus_hf.hub.meta_net_files import save_meta_net
from tests.helpers.hostile import Canary, as_json, damaged, fuzz, is_a_sentence, mutated, peak_growth, refused
from tests.helpers.models import build_model
from tests.helpers.saved_runs import needs_timm, write_timm_folder


def network(kind):
    if kind != "two networks":
        return build_model(kind, torch.float32)
    return TwoNetworksForImageClassification.of(*(build_model(part, torch.float32) for part in ("vit", "batch norm")))


def write_backbone(folder, kind="vit", **shards):
    network(kind).save_pretrained(folder, **shards)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["vit", "batch norm", "two networks"])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "5KB"}], ids=str)
def test_a_sound_backbone_loads(tmp_path, kind, shards):
    write_backbone(tmp_path, kind, **shards)
    model, meta_learner, _, processor = load_famus(tmp_path)
    sound = network(kind).state_dict()
    assert all(torch.equal(tensor, sound[name]) for name, tensor in model.state_dict().items())
    assert meta_learner is None and processor is not None and not model.training


CONFIGS = {
    "a type that nobody knows": ({"model_type": "evil"}, "'evil', which transformers does not know: import"),
    "no type": ({"model_type": None}, "'None', which transformers does not know"),
    "code of its own": (
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
        "code of the folder is never run",
    ),
    "a negative size": ({"hidden_size": -16}, "."),
    "a size of 10^12": ({"intermediate_size": 10**12}, "beyond 1048576"),
    "sizes that multiply": ({"intermediate_size": 10**6, "num_hidden_layers": 10**6}, "more memory than"),
    "10^9 layers": ({"num_hidden_layers": 10**9}, "beyond 1048576"),
    "10^6 layers": ({"num_hidden_layers": 10**6}, "more memory than"),
    "thousands of tiny layers": (
        {"num_hidden_layers": 5000, "hidden_size": 2, "intermediate_size": 1},  # Python's objects are what fills memory
        "more memory than",
    ),
    "10^9 classes": ({"num_labels": 10**9}, "beyond 1048576"),
    "10^6 classes": ({"num_labels": 10**6}, "has 1000000 labels, and no tensor has a side of more than 32"),
    "another size": ({"intermediate_size": 64}, "in another shape"),
    "another layer": ({"num_hidden_layers": 3}, "its weights lack"),
    "a layer less": ({"num_hidden_layers": 1}, "have beside those of the network"),
    "a string for a number": ({"num_hidden_layers": "2; rm"}, "."),
    "a kernel from the Hub": ({"attn_implementation": "evil/kernel"}, "code from elsewhere is never run"),
    "a kernel for a part": ({"_attn_implementation": {"": "evil/kernel"}}, "code from elsewhere is never run"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "has a quantization_config"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_hostile_configurations_of_a_backbone_are_refused(tmp_path, kind):
    changes, words = CONFIGS[kind]
    write_backbone(tmp_path)
    change_json(tmp_path / "config.json", **changes)
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    assert peak_growth(lambda: refused(words, load_famus, tmp_path)) < 150
    assert not (tmp_path / "ran").exists()


OF_A_NETWORK = {  # of two; `network_a` is a ViT, and None leaves a key out
    "a type that nobody knows": (
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.M"}},
        "its network_a's model_type is 'evil', which transformers does not know, and code of the folder is never run",
    ),
    "no type": ({"model_type": None}, "its network_a's model_type is 'None'"),
    "a list for a type": ({"model_type": ["vit"]}, "its network_a's model_type is "),
    "two networks again": ({"model_type": "two_networks", "network_a": {}}, "its network_a is made of other netw"),
    "a classifier of text": ({"model_type": "bert"}, "network_a has the model_type 'bert', of which there is no"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "network_a of config.json has a quantization_con"),
    "weights from elsewhere": (
        {"use_pretrained_backbone": True},
        "network_a of config.json has a use_pretrained_backb",
    ),
    "a kernel from the Hub": ({"_attn_implementation": "evil/kernel"}, "code from elsewhere is never run"),
    "a size of 10^12": ({"intermediate_size": 10**12}, "beyond 1048576"),
    "sizes that multiply": ({"intermediate_size": 10**6, "num_hidden_layers": 10**6}, "more memory than"),
    "10^6 layers": ({"num_hidden_layers": 10**6}, "more memory than"),
    "10^6 classes": ({"num_labels": 10**6}, "has 1000000 labels, and no tensor has a side of more than"),
    "another number of classes": ({"num_labels": 3, "id2label": None}, "have 3 and 4 classes with different names"),
    "other class names": ({"id2label": {str(label): "x" for label in range(4)}}, "classes with different names"),
    "another size": ({"intermediate_size": 64}, "in another shape"),
    "another layer": ({"num_hidden_layers": 3}, "its weights lack"),
    "a string for a number": ({"num_hidden_layers": "2; rm"}, "."),
    "a network of timm by a repository": (
        {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/network"},
        "'hf-hub:evil/network': only names of timm's own",
    ),
}


@pytest.mark.parametrize("kind", OF_A_NETWORK)
def test_hostile_configurations_of_one_network_of_two_are_refused(tmp_path, kind):
    changes, words = OF_A_NETWORK[kind]
    write_backbone(tmp_path, "two networks")
    path = tmp_path / "config.json"
    changed = {**json.loads(path.read_text())["network_a"], **changes}
    change_json(path, network_a={key: value for key, value in changed.items() if value is not None})
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    assert peak_growth(lambda: refused(words, load_famus, tmp_path)) < 150
    assert not (tmp_path / "ran").exists()


OF_TWO = {
    "no second network": ({"network_b": None}, "its network_b is a NoneType and no object: a network is needed"),
    "a list for a network": ({"network_a": [1]}, "its network_a is a list and no object"),
    "a path for a network": ({"network_a": "../other"}, "its network_a is a str and no object"),
    "fewer classes": ({"id2label": {"0": "x"}}, "."),
    "10^9 classes": ({"num_labels": 10**9}, "beyond 1048576"),
    "quantized": ({"quantization_config": {"quant_method": "awq"}}, "config.json has a quantization_config"),
}


@pytest.mark.parametrize("kind", OF_TWO)
def test_hostile_configurations_of_two_networks_are_refused(tmp_path, kind):
    changes, words = OF_TWO[kind]
    write_backbone(tmp_path, "two networks")
    change_json(tmp_path / "config.json", **changes)
    assert peak_growth(lambda: refused(words, load_famus, tmp_path)) < 150


def test_code_that_one_network_of_two_names_runs_only_where_the_folder_is_trusted(tmp_path):
    """famus_hf knows the ensemble, so transformers asks nobody whether the code of its networks may run."""
    write_backbone(tmp_path, "two networks")
    changed = {"model_type": "evil", "auto_map": {"AutoModelForImageClassification": "evil.M", "AutoConfig": "evil.C"}}
    change_json(tmp_path / "config.json", network_b=changed)
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    with pytest.raises(ValueError, match="network_b has the model_type 'evil', which transformers does not know"):
        AutoModelForImageClassification.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_of_one_network_of_two_that_do_not_fit_are_refused(tmp_path):
    write_backbone(tmp_path, "two networks")
    change_weights(tmp_path, lambda w: w.pop("model_b.classifier.bias"))
    refused(r"its weights lack model_b\.classifier\.bias", load_famus, tmp_path)


OF_TIMM = {  # refused whether timm can be imported or not
    "another repository": ({"architecture": "hf-hub:evil/network"}, "'hf-hub:evil/network': only names of timm's own"),
    "another folder": ({"architecture": "local-dir:/etc"}, "'local-dir:/etc': only names of timm's own list"),
    "a repository without a prefix": (
        {"architecture": "evil/network"},
        "'evil/network': only names of timm's own list",
    ),
    "no name": ({"architecture": ["resnet18"]}, "only names of timm's own list"),
    "weights of its own": ({"model_args": {"checkpoint_path": "/x.pth"}}, "model_args hold checkpoint_path: only"),
    "pretrained": ({"model_args": {"pretrained": True}}, "model_args hold pretrained: only"),
    "a source": ({"model_args": {"pretrained_cfg": {"url": "http://x"}}}, "model_args hold pretrained_cfg: only"),
    "an overlay": ({"model_args": {"pretrained_cfg_overlay": {"hf_hub_id": "evil/x"}}}, "hold pretrained_cfg_overlay:"),
    "a cache": ({"model_args": {"cache_dir": "/tmp"}}, "model_args hold cache_dir: only"),
    "a path for a word": ({"model_args": {"global_pool": "../x"}}, "global_pool that is no number, word or list"),
    "an object for a number": ({"model_args": {"depth": {"a": 1}}}, "depth that is no number, word or list"),
    "a list of arguments": ({"model_args": ["pretrained"]}, "model_args are a list and no object"),
    "10^9 blocks": ({"model_args": {"depth": 10**9}}, "beyond 1048576"),
    "10^9 classes": ({"num_classes": 10**9}, "beyond 1048576"),
    "10^6 classes": ({"num_classes": 10**6}, "has 1000000 labels, and no tensor has a side of more than 2"),
}


@pytest.mark.parametrize("kind", OF_TIMM)
def test_hostile_configurations_of_timm_are_refused(tmp_path, kind):
    changes, words = OF_TIMM[kind]
    write_timm_folder(tmp_path, **changes)
    refused(words, load_famus, tmp_path)


@needs_timm
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "no_such_network"}, "no_such_network' is not supported in your version of timm"),
        ({"architecture": "test_resnet"}, "its weights lack"),
        ({"architecture": "vit_giant_patch14_dinov2"}, "more memory than"),
        ({"architecture": "test_vit", "model_args": {"depth": 10**6}}, "more memory than"),
        ({"model_args": {"no_such": 1}}, "model_args hold no_such"),
    ],
    ids=str,
)
def test_networks_of_timm_that_the_weights_do_not_fit_are_refused(tmp_path, changes, words):
    write_timm_folder(tmp_path, **changes)
    assert peak_growth(lambda: refused(words, load_famus, tmp_path)) < 150


WEIGHTS = {
    "NaN": (lambda w: w["classifier.bias"].fill_(float("nan")), r"not finite in classifier\.bias"),
    "infinity": (lambda w: w["classifier.bias"].fill_(float("inf")), r"not finite in classifier\.bias"),
    "a tensor missing": (lambda w: w.pop("classifier.bias"), r"its weights lack classifier\.bias"),
    "a tensor too many": (lambda w: w.update(more=torch.ones(3)), "have beside those of the network more"),
    "another shape": (lambda w: w.update({"classifier.bias": torch.ones(5)}), r"in another shape .*classifier\.bias"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_do_not_fit_or_are_not_finite_are_refused(tmp_path, kind):
    change, words = WEIGHTS[kind]
    write_backbone(tmp_path)
    change_weights(tmp_path, change)
    refused(words, load_famus, tmp_path)


def test_a_folder_of_pickles_is_refused_and_nothing_runs(tmp_path):
    write_backbone(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    refused(r"there is no model\.safetensors; weights in other formats", load_famus, tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    refused("can't be read as safetensors", load_famus, tmp_path)
    assert not (tmp_path / "ran").exists()


def link(path, target):
    path.unlink()
    path.symlink_to(target)


def write_index(run, part):
    (run / "model.safetensors").unlink()
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"classifier.bias": part}}))


ELSEWHERE = {
    "weights": (
        lambda run, other: link(run / "model.safetensors", other / "model.safetensors"),
        "is a link that leaves",
    ),
    "config": (lambda run, other: link(run / "config.json", other / "config.json"), "is a link that leaves"),
    "what transformers alone reads": (
        lambda run, other: (run / "generation_config.json").symlink_to(other / "config.json"),
        "is a link that leaves",
    ),
    "adapter": (lambda run, other: (run / "adapter_config.json").write_text("{}"), "give the whole network"),
    "part": (lambda run, other: write_index(run, "../other/model.safetensors"), "no safetensors of this folder"),
    "absolute part": (lambda run, other: write_index(run, str(other / "model.safetensors")), "no safetensors of this"),
    "pickled part": (lambda run, other: write_index(run, "pytorch_model.bin"), "no safetensors of this folder"),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_files_that_lead_elsewhere_are_refused(tmp_path, kind):
    hostile, words = ELSEWHERE[kind]
    for name in ("run", "other"):
        write_backbone(tmp_path / name)
    hostile(tmp_path / "run", tmp_path / "other")
    refused(words, load_famus, tmp_path / "run")


def test_a_processor_with_code_of_its_own_is_refused(tmp_path):
    write_backbone(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    change_json(path, image_processor_type="Evil", auto_map={"AutoImageProcessor": "evil.Evil"})
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    refused("no image processor that can be loaded", load_famus, tmp_path)
    path.write_text("[" * 10**5)
    refused("nested too deeply", load_famus, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["vit", "two networks"])
@pytest.mark.parametrize("count", [pytest.param(60, id="60"), pytest.param(1500, id="1500", marks=pytest.mark.slow)])
def test_no_mutation_of_a_backbone_does_more_than_being_refused(tmp_path, count, kind):
    write_backbone(tmp_path, kind)
    path = tmp_path / "config.json"
    config, text = json.loads(path.read_text()), path.read_bytes()

    @fuzz(count)
    @given(st.one_of(mutated(config).map(as_json), damaged(text)))
    def check(content):
        path.write_bytes(content)
        try:
            load_famus(tmp_path)
        except ValueError as error:
            assert is_a_sentence(str(error)), str(error)

    assert peak_growth(check) < 400


LOAD_HOSTILE = """
import pathlib
from famus_hf import load_famus
print(type(load_famus("user/sound")[1]).__name__)
for name in ("pickles", "code", "outside"):
    try:
        load_famus("user/" + name)
    except ValueError as error:
        print(name, str(error).count(chr(10)), error)
"""


def test_hostile_repositories_are_refused_over_http(hub, client, tmp_path):
    write_backbone(tmp_path / "sound")
    save_meta_net(tmp_path / "sound", MWNet(), None)
    sound = {
        path.relative_to(tmp_path / "sound").as_posix(): path.read_bytes()
        for path in (tmp_path / "sound").rglob("*")
        if path.is_file()
    }
    pickled = pickle.dumps(Canary(tmp_path / "ran"))
    config = {**json.loads(sound["config.json"]), "model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}
    hub.files |= {
        "user/sound": {**sound, "meta_net/optimizer.pt": pickled},  # not fetched
        "user/pickles": {**{n: c for n, c in sound.items() if n != "model.safetensors"}, "pytorch_model.bin": pickled},
        "user/code": {**sound, "config.json": as_json(config), "evil.py": b"open('ran', 'w')"},
        "user/outside": {**sound, "../../../../evil.json": b"{}"},
    }
    lines = client.done("execute", code=LOAD_HOSTILE).output.splitlines()
    found = dict(line.split(" ", 1) for line in lines[-3:])
    assert lines[-4] == "MWNet" and list(found) == ["pickles", "code", "outside"]
    assert all(line.startswith("0 ") for line in found.values()), found
    assert not (tmp_path / "ran").exists() and not os.path.exists("ran")
    for folder in (tmp_path, client.home):
        assert not list(folder.rglob("evil.json")) and not list(folder.rglob("evil.py"))
