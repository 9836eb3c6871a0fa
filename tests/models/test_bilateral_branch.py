"""A network with two branches: its logits by two networks of one branch, its folder, what can't be split.

tests/trainer/test_bilateral_branch_trainer.py has its training.
"""

import copy
import functools
import json

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTImageProcessorPil, pipeline

from famus_hf import BilateralBranchForImageClassification, TwoNetworksForImageClassification, load_famus
from famus_hf.hub.load import files_to_push
from famus_hf.models.bilateral_branch import BilateralBranchConfig, Branches
from famus_hf.models.preact_resnet import PreActResNetForImageClassification
from tests.helpers.hostile import refused
from tests.helpers.models import GroupNormNet
from tests.helpers.saved_runs import SMALL_BACKBONES, THREE_CLASSES, assert_same_parameters, images, preact, resnet, vit

NETWORKS = {**SMALL_BACKBONES, "resnet": resnet}
DOUBLED = {  # what is there twice
    "wide-resnet": ["blocks.2", "bn", "classifier"],
    "preact-resnet": ["blocks.7", "classifier"],
    "preact-resnet, norm at its end": ["blocks.7", "bn", "classifier"],
    "cifar-resnet": ["blocks.2", "classifier"],
    "efficientnet-lite": ["blocks.15", "head", "head_bn", "classifier"],
    "resnet": ["resnet.encoder.stages.1.layers.0", "classifier"],
}


@functools.cache
def build(name):
    """A network, and it with two branches that have come apart, both in float64 with statistics of their own."""
    torch.manual_seed(0)
    network = NETWORKS[name](**({} if name == "resnet" else THREE_CLASSES)).double()
    split = BilateralBranchForImageClassification.of(network)
    for _ in range(2):
        split.train()(images().double())
    for parameter in split.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network, split.eval()


def branch(network, split, side):
    """The network with the trunk and one branch."""
    state = {
        name.replace("network.", "", 1).replace(f".{side}.", "."): value for name, value in split.state_dict().items()
    }
    alone = copy.deepcopy(network).eval()
    alone.load_state_dict({name: value for name, value in state.items() if name in alone.state_dict()})
    return alone


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_both_branches_on_one_trunk(name):
    network, split = build(name)
    conventional, rebalancing = (branch(network, split, side) for side in ("conventional", "rebalancing"))
    x, partners, labels = images().double(), images().double().flip(0), torch.arange(8) % 3
    with torch.no_grad():
        alike = split(x, labels=labels)
        apart = split(x, partner_pixel_values=partners, conventional_share=0.8).logits
        expected = conventional(x).logits + rebalancing(x).logits
        assert not torch.allclose(conventional(x).logits, rebalancing(x).logits, atol=1e-3)
        torch.testing.assert_close(alike.logits, expected, rtol=1e-10, atol=1e-10)
        of_two = 2 * (0.8 * conventional(x).logits + 0.2 * rebalancing(partners).logits)
        torch.testing.assert_close(apart, of_two, rtol=1e-10, atol=1e-10)
    assert alike.loss == torch.nn.functional.cross_entropy(alike.logits.float(), labels)
    assert torch.equal(split(x).logits, alike.logits), "partners are forgotten"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_block_and_what_has_weights_behind_it_are_there_twice(name):
    network, split = build(name)
    doubled = [path for path, module in split.network.named_modules() if isinstance(module, Branches)]
    assert sorted(doubled) == sorted(DOUBLED[name])
    sizes = [sum(p.numel() for p in network.get_submodule(path).parameters()) for path in doubled]
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in network.parameters()) + sum(sizes)
    assert not any(isinstance(module, Branches) for module in network.modules()), "the one given stays as it is"


@pytest.mark.parametrize("name", NETWORKS)
def test_it_comes_back_bit_for_bit_with_what_its_network_says_of_images(tmp_path, name):
    split = copy.deepcopy(build(name)[1]).float()
    split.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    for loaded in (AutoModelForImageClassification.from_pretrained(tmp_path), load_famus(tmp_path)[0]):
        assert_same_parameters(loaded, split)
        torch.testing.assert_close(loaded(images()).logits, split(images()).logits)
        assert getattr(loaded.config, "image_mean", None) == getattr(split.network.config, "image_mean", None)
    if name == "preact-resnet":
        from PIL import Image

        answer = pipeline("image-classification", str(tmp_path), device="cpu")(Image.new("RGB", (16, 16)))
        assert {entry["label"] for entry in answer} == {"cat", "dog", "owl"}
        own = ("bilateral_branch.py", "preact_resnet.py", "cifar_resnet.py", "efficientnet_lite.py", "wide_resnet.py")
        names = {"config.json", "model.safetensors", "preprocessor_config.json", *own}
        assert set(files_to_push(tmp_path)) == names
        assert str(tmp_path) not in (tmp_path / "config.json").read_text()


def test_a_new_one_starts_with_two_branches_alike_as_its_network_starts():
    torch.manual_seed(3)
    network = preact()
    settings = BilateralBranchForImageClassification.of(network).config.network
    torch.manual_seed(3)
    split = BilateralBranchForImageClassification(BilateralBranchConfig(settings, **THREE_CLASSES))
    for side in ("conventional", "rebalancing"):
        assert_same_parameters(branch(network, split, side), network)


OTHER = type("OwnNet", (PreActResNetForImageClassification,), {})


@pytest.mark.parametrize(
    "make",
    [
        vit,
        GroupNormNet,
        lambda: OTHER(preact().config),
        lambda: TwoNetworksForImageClassification.of(preact(), preact()),
        lambda: BilateralBranchForImageClassification.of(preact()),
    ],
)
def test_what_can_not_be_split_is_refused_in_one_sentence(make):
    network = make()
    words = f"a {type(network).__name__} has no last block that is known, to be split into two branches: give one of"
    refused(words, BilateralBranchForImageClassification.of, network)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": None}, "its network is a NoneType and no object: a network is needed"),
        ({"network": {"model_type": "evil"}}, "its network's model_type is 'evil', which transformers does not know"),
        ({"network": {"model_type": "bilateral_branch"}}, "its network is made of other networks itself"),
        ({"network": {"model_type": ["vit"]}}, "its network's model_type is "),
        ({"network": {"model_type": "vit"}}, "network has the model_type 'vit', whose last block is not known"),
        ({"network": {"model_type": "preact_resnet", "width": 10**12}}, "beyond 1048576"),
        ({"id2label": {"0": "x"}}, "."),
    ],
)
def test_hostile_configurations_are_refused(tmp_path, changes, words):
    BilateralBranchForImageClassification.of(preact()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(words, load_famus, tmp_path)


def test_configurations_of_other_classes_or_networks_are_refused():
    settings = BilateralBranchForImageClassification.of(preact()).config.network
    for own, names, words in (
        (None, THREE_CLASSES, "network is a NoneType and no object: a configuration is needed"),
        ({**settings, "model_type": ["vit"]}, THREE_CLASSES, r"\['vit'\]\", whose last block is not known"),
        ({**settings, "model_type": "vit"}, THREE_CLASSES, "'vit', whose last block is not known: give one of wide_"),
        (settings, {"id2label": {0: "x", 1: "y"}}, "names 2 classes and its network has 3: give the network's id2la"),
    ):
        refused(words, BilateralBranchForImageClassification, BilateralBranchConfig(own, **names))
