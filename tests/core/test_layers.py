"""Layers in order of their first call, their residual blocks, and the pooling of their gradients."""

import torch
from transformers import ResNetConfig, ResNetForImageClassification

from famus_hf.core.autodiff.forward_pass import split_inputs
from famus_hf.core.layers import find_layers, pool_gradient, unpool_gradient
from tests.helpers.models import build_audio_model, build_batch, build_model


def test_pooling_averages_all_but_the_first_dimension_and_keeps_biases():
    weight, bias, scale = torch.arange(24.0).reshape(2, 3, 2, 2), torch.tensor([5.0, 6.0]), torch.tensor(7.0)
    pooled = pool_gradient([weight, bias, scale])
    assert pooled.tolist() == [5.5, 17.5, 5.0, 6.0, 7.0]


def test_unpooling_is_the_transpose_of_pooling():
    tensors = [torch.randn(4, 3, 2), torch.randn(5), torch.randn(())]
    pooled = torch.randn(10)
    spread = unpool_gradient(pooled, tensors)
    assert [s.shape for s in spread] == [t.shape for t in tensors]
    left = pooled @ pool_gradient(tensors)
    torch.testing.assert_close(left, sum((s * t).sum() for s, t in zip(spread, tensors, strict=True)))


def test_layers_stand_in_order_of_their_first_call_and_frozen_ones_are_none():
    model = build_model("batch norm")
    model.blocks[1].conv1.weight.requires_grad_(False)
    inputs, _, _ = split_inputs(build_batch("batch norm"))
    names = [layer.name for layer in find_layers(model, inputs)]
    assert names[0] == "stem" and names[-2:] == ["bn", "classifier"]
    assert names.index("blocks.1.bn1") < names.index("blocks.1.shortcut") < names.index("blocks.1.bn2")
    assert "blocks.1.conv1" not in names
    shares = [layer.share for layer in find_layers(model, inputs)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True)


def test_layer_drop_changes_neither_the_order_nor_the_modes():
    expected = [layer.name for layer in find_layers(*recordings(0.0))]
    assert expected.index("wav2vec2.encoder.layers.1.layer_norm") < expected.index("classifier")
    for seed in range(10):
        model, inputs = recordings(0.5)
        model.wav2vec2.feature_extractor.eval()
        modes = [module.training for module in model.modules()]
        torch.manual_seed(seed)
        assert [layer.name for layer in find_layers(model, inputs)] == expected
        assert [module.training for module in model.modules()] == modes


def recordings(layerdrop):
    return build_audio_model(layerdrop=layerdrop).train(), {"input_values": torch.randn(2, 400)}


def layers_of(kind):
    inputs, _, _ = split_inputs(build_batch(kind))
    return find_layers(build_model(kind), inputs)


def test_residual_blocks_are_found_in_different_architectures():
    def blocks(layers):
        return {layer.name: layer.block for layer in layers if layer.block is not None}

    found = blocks(layers_of("batch norm"))
    assert {block for block in found.values()} == {1, 2, 3}
    assert found["blocks.0.bn1"] == 1 and found["blocks.2.shortcut"] == 3 and "stem" not in found and "bn" not in found
    found = blocks(layers_of("vit"))
    assert set(found.values()) == {1, 2} and all(name.startswith("vit.layers.") for name in found)
    found = blocks(layers_of("bert"))
    assert set(found.values()) == {1, 2} and all(name.startswith("bert.encoder.layer.") for name in found)
    assert blocks(layers_of("group norm")) == {}


def test_resnet_blocks_are_its_basic_layers_and_not_their_parts():
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 2], layer_type="basic", num_channels=3, num_labels=2
    )
    model = ResNetForImageClassification(config)
    layers = find_layers(model, {"pixel_values": torch.randn(2, 3, 32, 32)})
    assert sorted({layer.block for layer in layers if layer.block is not None}) == [1, 2, 3]
