"""Networks with attention: their meta gradient is exact, and the kernel that it takes is reported."""

import pytest
import torch

from famus_hf import MWNet, meta_gradient
from tests.helpers import brute_force
from tests.helpers.models import build_text_model, build_text_network, build_tokenizer
from tests.helpers.trainers import make_text_trainer

KINDS = ("bert", "distilbert", "gpt2", "tied encoder and decoder", "frozen embeddings", "lora")


def token_batch(seed, size=5):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (size, 1), generator=generator)
    mask = (torch.arange(8) < lengths).long()
    ids = torch.randint(4, 40, (size, 8), generator=generator) * mask + (1 - mask)  # 1 pads
    ids[torch.arange(size), lengths[:, 0] - 1] = 3  # where BART reads its answer
    labels = torch.randint(3, (size,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("derivative", ["forward", "reverse", "finite"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_gradient_is_that_of_double_backward_through_one_dropout_mask(kind, derivative):
    model, mw_net = build_text_network(kind), MWNet(initial_scale=1.0).double()
    train, meta = token_batch(1), token_batch(2)
    torch.manual_seed(7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = meta_gradient(model, mw_net, train, meta, learning_rate=0.1, derivative=derivative)
    expected = brute_force.mw_net_gradient(model, mw_net, train, meta, 0.1)
    size = max(gradient.abs().max() for gradient in expected.values())
    assert size > 1e-7
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < (1e-5 if derivative == "finite" else 1e-11) * size, name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_attention_kernel_and_its_cost_are_reported_and_only_the_passes_that_need_it_take_it(
    tmp_path, caught, monkeypatch, kind
):
    tokenizer = build_tokenizer(*(["[UNK] [EOS]"] if kind == "gpt2" else []))
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def recorded(*arguments, **keywords):
        seen.append((torch.backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled()))
        return attention(*arguments, **keywords)

    trainer = make_text_trainer(
        tmp_path, build_text_model(kind), processing_class=tokenizer, layer_sampler="all", max_steps=1
    )
    assert "attention is computed by torch's math kernel" in caught.text
    assert "a forward pass of 8 examples takes" in caught.text
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    trainer.train()
    assert seen == [(False, True)] * 2 + [(True, True)] * 2 + [(False, True)] * 2  # of two layers: training, meta, ż
    caught.clear()
    make_text_trainer(tmp_path, build_text_model(kind), processing_class=tokenizer, derivative="finite")
    make_text_trainer(tmp_path, build_text_model(kind, attn_implementation="eager"), processing_class=tokenizer)
    assert "math kernel" not in caught.text
