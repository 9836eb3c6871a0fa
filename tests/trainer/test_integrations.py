"""torch.compile, gradient checkpointing and PEFT: the meta step finds what it finds without them, or says why not."""

import pytest
import torch
from accelerate.utils import is_compiled_module
from peft import LoraConfig, get_peft_model

from famus_hf import FaMUSTrainer, MWNet
from famus_hf.core.autodiff.forward_pass import differentiable_attention
from famus_hf.trainer.preflight import is_compiled
from tests.helpers.models import build_model
from tests.helpers.trainers import Examples, make_args, make_trainer


def learned(trainer):
    parts = (trainer.model, trainer.meta_learner, trainer.layer_sampler)
    return [tensor.double() for part in parts for tensor in part.state_dict().values()]


def largest_difference(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(learned(found), learned(expected), strict=True))


def in_float64(folder, kind, **settings):
    keywords = {"meta_learner": MWNet().double()}
    torch.manual_seed(0)
    trainer = make_trainer(folder, kind, torch.float64, keywords, layer_sampler="all", **settings)
    trainer.meta_learner.load_state_dict(MWNet().double().state_dict() | fixed_theta())
    return trainer


def fixed_theta():
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in MWNet().state_dict().items()
    }


@pytest.mark.parametrize("derivative", ["forward", "reverse"])
def test_gradient_checkpointing_changes_nothing(tmp_path, derivative):
    """With dropout, whose masks the layers that run again must draw again, and in Meta-Train at the virtual weights."""
    trainers = []
    for settings in ({}, {"activation_checkpointing": True}):
        trainers.append(in_float64(tmp_path, "vit", derivative=derivative, **settings))
        with differentiable_attention():  # torch's fused kernel for CPUs is off by 1e-7, even in float64
            trainers[-1].train()
    plain, checkpointed = trainers
    assert checkpointed.model.is_gradient_checkpointing and not plain.model.is_gradient_checkpointing
    assert largest_difference(checkpointed, plain) < 1e-10


def test_reentrant_checkpointing_is_refused(tmp_path):
    for name in ("activation", "gradient"):
        settings = {f"{name}_checkpointing": True, f"{name}_checkpointing_kwargs": {"use_reentrant": True}}
        with pytest.raises(ValueError, match=r"^activation_checkpointing with .* in activation_checkpointing_kwargs$"):
            make_trainer(tmp_path, "vit", **settings)


@pytest.mark.parametrize("settings", [{}, {"derivative": "reverse"}, {"meta_interval": 2}], ids=str)
@pytest.mark.parametrize("kind", ["called group norm", "group norm"])
def test_torch_compile_changes_nothing(tmp_path, kind, settings):
    """With dropout, too, where it draws as uncompiled code does: what is compiled has no part in a meta step."""
    plain = in_float64(tmp_path, kind, **settings)
    plain.train()
    assert not is_compiled(plain.accelerator)
    compiled = in_float64(tmp_path, kind, torch_compile=True, torch_compile_backend="aot_eager", **settings)
    compiled.train()
    assert is_compiled(compiled.accelerator) and is_compiled_module(compiled.model_wrapped)
    assert largest_difference(compiled, plain) < 1e-10
    by_the_user = in_float64(tmp_path, kind, **settings)
    by_the_user.model.compile(backend="aot_eager")
    by_the_user.train()
    assert largest_difference(by_the_user, plain) < 1e-10


def lora(folder, **settings):
    config = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, modules_to_save=["classifier"])
    model = get_peft_model(build_model("vit", torch.float32), config)
    args = make_args(folder, max_steps=6, save_strategy="steps", save_steps=3, **settings)
    return FaMUSTrainer(model, args, train_dataset=Examples(40), meta_dataset=Examples(11, 1000, seed=8))


def test_of_a_lora_model_only_the_adapters_are_layers_and_move(tmp_path):
    trainer = lora(tmp_path)
    names = [layer.name for layer in trainer.meta.layers]
    assert names and all("lora_" in name or name.endswith("modules_to_save.default") for name in names)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def test_a_lora_model_resumes_bit_for_bit(tmp_path):
    whole, again = lora(tmp_path), lora(tmp_path)
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert largest_difference(again, whole) == 0
