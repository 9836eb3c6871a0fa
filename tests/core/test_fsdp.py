"""The meta gradient by whole passes and changes in place: one process, and two under FSDP2."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from famus_hf import L2R, MLC, FaMUSTrainer, FaMUSTrainingArguments, MWNet, meta_gradient, sharded_meta_gradient
from famus_hf.cli import run as run_famus
from famus_hf.core.layers import parameters_by_layer
from famus_hf.core.virtual_train import virtual_step_of
from tests.helpers import brute_force
from tests.helpers.models import CLASSES, build_batch, build_model
from tests.helpers.spawned import run_in_two_processes

KINDS = ["batch norm", "group norm", "vit", "bert"]
LEARNING_RATE = 0.3
PASSES = ["training pass", "meta pass", "pass at w + εd", "pass at w - εd"]


def setting(kind, dtype=torch.float64, rows=6):
    """Model, meta-learner, training and meta batch, with the random state that the first pass starts from."""
    model = build_model(kind, dtype)
    torch.manual_seed(3)
    batches = [
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
        for batch in (build_batch(kind, rows, seed=1), build_batch(kind, 6, seed=2))
    ]
    return model, MWNet().to(dtype), *batches


def upper_half(model):
    names = list(parameters_by_layer(model))
    return names[len(names) // 2 :]


def flat(gradient):
    return torch.cat([tensor.double().flatten() for tensor in gradient.values()])


def relative_error(found, expected):
    assert found.keys() == expected.keys()
    assert flat(expected).norm() > 1e-6, "the reference must say something"
    return ((flat(found) - flat(expected)).norm() / flat(expected).norm()).item()


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def state_of(model):
    """Everything that must stay: weights, `.grad` (the very tensors), buffers, random state."""
    return {
        "weights": [local(parameter).clone() for parameter in model.parameters()],
        "grad": [(parameter.grad, local(parameter.grad).clone()) for parameter in model.parameters()],
        "buffers": [buffer.clone() for buffer in model.buffers()],
        "random": torch.get_rng_state(),
    }


def is_unchanged(model, before):
    after = state_of(model)
    return {
        "grad": all(new[0] is old[0] and torch.equal(new[1], old[1]) for new, old in
                    zip(after["grad"], before["grad"], strict=True)),
        "random": torch.equal(after["random"], before["random"]),
        **{name: all(map(torch.equal, after[name], before[name])) for name in ("weights", "buffers")},
    }  # fmt: skip


def give_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


class Fault(nn.Module):
    """Raises in the middle of the network when it is called for the last time."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def forward(self, module, arguments, output):
        self.calls -= 1
        if self.calls == 0:
            raise ArithmeticError("broken")


def middle_of(model):
    called = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.LayerNorm)]
    return called[len(called) // 2]


# ---- One process ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_whole_passes_equals_double_backward_and_leaves_no_trace(kind, dtype):
    model, mw_net, train, meta = setting(kind, dtype)
    give_gradients(model)
    before = state_of(model)
    for layers in (None, upper_half(model)):
        found = sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE, layers=layers)
        assert is_unchanged(model, before) == dict.fromkeys(before, True)
        assert all(parameter.grad is None for parameter in mw_net.parameters())
        expected = brute_force.mw_net_gradient(model, mw_net, train, meta, LEARNING_RATE, layers)
        assert relative_error(found, expected) < (1e-6 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize("calls, where", list(enumerate(PASSES, 1)))
@pytest.mark.parametrize("kind", ["batch norm", "vit"])
def test_a_pass_that_raises_leaves_no_trace(kind, calls, where):
    model, mw_net, train, meta = setting(kind)
    give_gradients(model)
    before = state_of(model)
    handle = middle_of(model).register_forward_hook(Fault(calls))
    with pytest.raises(ArithmeticError):
        sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE)
    handle.remove()
    assert is_unchanged(model, before) == dict.fromkeys(before, True)


@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_mlc_equals_double_backward_through_its_matrix(form):
    model, _, train, meta = setting("batch norm")
    mlc = MLC(CLASSES, form=form).double()
    loss, theta = brute_force.mlc_loss(mlc.matrix, form), {"matrix": mlc.matrix}
    expected = brute_force.gradient_of(theta, model, loss, train, meta, LEARNING_RATE)
    found = sharded_meta_gradient(model, mlc, train, meta, learning_rate=LEARNING_RATE)
    assert relative_error(found, expected) < 1e-6


def test_l2r_weights_equal_autograd_through_epsilon():
    model, _, train, meta = setting("vit")
    expected = brute_force.l2r_weights(model, train, meta, LEARNING_RATE)
    assert 0 < (expected > 0).sum() < len(expected), "some examples help and some do not"
    found = sharded_meta_gradient(model, L2R(), train, meta, learning_rate=LEARNING_RATE)
    torch.testing.assert_close(found["weights"], expected, rtol=1e-5, atol=1e-7)


def test_without_layers_the_gradient_is_zero_and_unknown_layers_are_refused():
    model, mw_net, train, meta = setting("group norm")
    found = sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE, layers=[])
    assert found.keys() == dict(mw_net.named_parameters()).keys() and not flat(found).any()
    with pytest.raises(ValueError, match="'nowhere' is not a module"):
        sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE, layers=["nowhere"])


def test_half_precision_in_which_differences_drown_is_refused():
    model, mw_net, train, meta = setting("vit", torch.float32)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="in half precision"):
        sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE)
    with pytest.raises(ValueError, match="in half precision"):
        sharded_meta_gradient(
            model.bfloat16(), mw_net, {**train, "pixel_values": train["pixel_values"].bfloat16()}, meta,
            learning_rate=LEARNING_RATE,
        )  # fmt: skip


# ---- Two processes ----


class InHalves(nn.Module):
    """One process that computes what two do: each half of a batch by itself, from the same random state."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, **inputs):
        state, logits = torch.get_rng_state(), []
        for rank in range(2):
            torch.set_rng_state(state)
            logits.append(self.network(**own_half(inputs, rank)).logits)
        return SimpleNamespace(logits=torch.cat(logits))


def own_half(batch, rank):
    return {name: value.chunk(2)[rank] for name, value in batch.items()}


def shard(model, **options):
    """Blocks, if there are any, else convolutions; then the root."""
    blocks = [child for module in model.modules() if isinstance(module, nn.ModuleList) for child in module]
    for block in blocks or [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def gradients(rank, kind, wrap=shard, dtype=torch.float64, rows=6, prefix=""):
    """For all layers and for some, and whether everything stayed, the network's next output among it."""
    model, mw_net, train, meta = setting(kind, dtype, rows)
    train, meta = own_half(train, rank), own_half(meta, rank)
    layers = [prefix + name for name in upper_half(model)]
    model = wrap(model)
    give_gradients(model)
    inputs = {name: value for name, value in train.items() if name != "labels"}
    outcome = {}
    for name, chosen in (("all layers", None), ("some layers", layers)):
        torch.manual_seed(3)
        before = state_of(model)
        logits = output(model, inputs)  # leaves the root's parameters gathered
        outcome[name] = sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE, layers=chosen)
        outcome[f"{name} unchanged"] = is_unchanged(model, before)
        outcome[f"{name} unchanged"]["output"] = torch.equal(output(model, inputs), logits)
        reshard(model)
    return outcome


def reshard(model):
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def output(model, inputs):
    model.eval()
    logits = model(**inputs).logits
    model.train()
    return logits


def faults(rank):
    """For each pass that may break: whether everything stayed, and whether the next call finds the same gradient."""
    model, mw_net, train, meta = setting("batch norm")
    train, meta = own_half(train, rank), own_half(meta, rank)
    shard(model)
    give_gradients(model)
    before = state_of(model)
    expected = sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE)
    outcome = {}
    for calls, where in enumerate(PASSES, 1):
        handle = middle_of(model).register_forward_hook(Fault(calls))
        with pytest.raises(ArithmeticError):
            sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE)
        handle.remove()
        outcome[where] = is_unchanged(model, before)
        found = sharded_meta_gradient(model, mw_net, train, meta, learning_rate=LEARNING_RATE)
        outcome[where]["next call"] = torch.equal(flat(found), flat(expected))
    return outcome


def refusals(rank):
    """Name → what was said."""

    def message(wrap, function=sharded_meta_gradient):
        model, mw_net, train, meta = setting("group norm", torch.float32)
        with pytest.raises(ValueError) as error:
            function(
                wrap(model), mw_net, own_half(train, rank), own_half(meta, rank), learning_rate=LEARNING_RATE
            )  # fmt: skip
        return str(error.value)

    def unreduced(model):
        shard(model).set_requires_gradient_sync(False)
        return model

    def in_bf16(model):
        return shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32))

    return {
        "bf16 policy": message(in_bf16),
        "no reduction": message(unreduced),
        "FSDP1": message(lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu"))),
        "meta_gradient": message(shard, meta_gradient),
    }


def still_gathered(model):
    """FSDP keeps the parameters together after a backward pass, too."""
    shard(model, reshard_after_forward=False).set_reshard_after_backward(False)
    return model


def message_of_accelerate(rank):
    """Plain training in two CPU processes, with FSDP asked for as `accelerate launch` does."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
            patch.setenv(name, str(value))
        FaMUSTrainingArguments("unused", meta_learner="none", use_cpu=True, report_to="none")
        assert PartialState().distributed_type == DistributedType.MULTI_CPU
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError) as error:
            FaMUSTrainingArguments("unused", meta_learner="none", use_cpu=True, report_to="none")
        return str(error.value)


def adam_displacements(wrap):
    """−α·P·1 by name, after two steps of AdamW on batches that every process has whole."""
    model = wrap(build_model("group norm").eval())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for seed in (5, 6):
        batch = build_batch("group norm", seed=seed)
        torch.nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    reshard(model)
    step = virtual_step_of(model, optimizer, "optimizer")
    assert step.preconditioners.keys() == dict(model.named_parameters()).keys()
    found = {name: step.displacement(name, torch.ones_like(p)) for name, p in model.named_parameters()}
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in found.items()}


def cases(rank):
    return {
        **{kind: gradients(rank, kind) for kind in KINDS},
        "float32": gradients(rank, "batch norm", dtype=torch.float32),
        "still gathered": gradients(rank, "batch norm", wrap=still_gathered),
        "unequal rows": gradients(rank, "called group norm", rows=5),
        "replicated": gradients(rank, "batch norm", wrap=lambda model: model),
        "DDP": gradients(rank, "batch norm", wrap=DistributedDataParallel, prefix="module."),
        "faults": faults(rank),
        "refusals": refusals(rank),
        "AdamW": adam_displacements(shard),
        "accelerate": message_of_accelerate(rank),
        "processes": distributed.get_world_size(),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    found = run_in_two_processes(cases, tmp_path_factory.mktemp("two_processes"))
    assert [outcome["processes"] for outcome in found] == [2, 2]
    return found


@pytest.mark.parametrize(
    "case, kind, dtype, rows",
    [(kind, kind, torch.float64, 6) for kind in KINDS]
    + [
        ("float32", "batch norm", torch.float32, 6),
        ("still gathered", "batch norm", torch.float64, 6),
        ("unequal rows", "called group norm", torch.float64, 5),
        ("replicated", "batch norm", torch.float64, 6),
        ("DDP", "batch norm", torch.float64, 6),
    ],
)
def test_sharded_gradient_is_that_of_one_process_on_the_whole_batch_and_the_same_in_both(both, case, kind, dtype, rows):
    model, mw_net, train, meta = setting(kind, dtype, rows)
    whole = InHalves(model)
    some = [f"network.{name}".rstrip(".") for name in upper_half(model)]
    for name, layers in (("all layers", None), ("some layers", some)):
        torch.manual_seed(3)
        expected = brute_force.mw_net_gradient(whole, mw_net, train, meta, LEARNING_RATE, layers)
        found = [outcome[case][name] for outcome in both]
        assert torch.equal(flat(found[0]), flat(found[1]))
        assert relative_error(found[0], expected) < (1e-6 if dtype == torch.float64 else 1e-2)
        for outcome in both:
            unchanged = outcome[case][f"{name} unchanged"]
            assert len(unchanged) == 5 and all(unchanged.values()), unchanged


@pytest.mark.parametrize("where", PASSES)
def test_shards_are_restored_and_fsdp_goes_on_when_a_pass_raises(both, where):
    for outcome in both:
        unchanged = outcome["faults"][where]
        assert len(unchanged) == 5 and all(unchanged.values()), unchanged


@pytest.mark.parametrize(
    "name, words",
    [
        ("bf16 policy", "in half precision"),
        ("no reduction", "set_requires_gradient_sync(False)"),
        ("FSDP1", "shard it with fully_shard (FSDP2)"),
        ("meta_gradient", "call famus_hf.sharded_meta_gradient"),
    ],
)
def test_what_would_silently_go_wrong_on_shards_is_refused(both, name, words):
    for outcome in both:
        assert words in outcome["refusals"][name]


def test_virtual_step_of_adam_is_the_same_on_shards(both):
    expected = adam_displacements(lambda model: model)
    for outcome in both:
        torch.testing.assert_close(outcome["AdamW"], expected)


# ---- What FaMUSTrainer refuses ----

PLAIN = ["--meta_learner", "none", "--num_meta", "0"]


@pytest.mark.parametrize(
    "environment, flags, words",
    [
        (None, ["--fsdp", "full_shard"], "does not engage on CPU"),
        (None, ["--fsdp"], "does not engage on CPU"),
        (None, ["--fsdp_config", '{"version": 2}'], "fsdp_config does nothing without fsdp"),
        (None, ["--deepspeed", "config.json"], "deepspeed does not work with a meta-learner yet"),
        ("ACCELERATE_USE_FSDP", [], "does not engage on CPU"),
        ("ACCELERATE_USE_DEEPSPEED", [], "start accelerate without --use_deepspeed"),
        ("ACCELERATE_USE_MEGATRON_LM", [], "start accelerate without --use_megatron_lm"),
        (None, ["--fsdp", "full_shard", *PLAIN], "does not engage on CPU"),
        ("ACCELERATE_USE_FSDP", PLAIN, "does not engage on CPU"),
        (None, ["--deepspeed", "config.json", *PLAIN], "DeepSpeed was asked for and is not installed"),
        ("ACCELERATE_USE_DEEPSPEED", PLAIN, "DeepSpeed was asked for and is not installed"),
    ],
)
def test_sharding_that_would_not_work_is_refused_in_one_sentence(
    environment, flags, words, monkeypatch, capsys, tmp_path
):
    if environment is not None:
        monkeypatch.setenv(environment, "true")
    monkeypatch.setattr(run_famus, "load_data", lambda *arguments: pytest.fail("refused too late"))
    with pytest.raises(SystemExit) as end:
        run_famus.main(["--dataset_name", "digits", "--use_cpu", "--output_dir", str(tmp_path), *flags])
    assert end.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert words in errors[-1] and errors[-1].startswith("run_famus.py: error: ")
    assert not any("Traceback" in line for line in errors)


def test_fsdp_that_accelerate_silently_leaves_out_on_cpu_processes_is_refused(both):
    for outcome in both:
        assert outcome["accelerate"].startswith("ACCELERATE_USE_FSDP asks for FSDP, which does not engage on CPU")


def test_a_model_that_is_sharded_already_is_refused_by_the_trainer(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        examples = [{"pixel_values": torch.randn(3, 8, 8), "labels": row % CLASSES} for row in range(8)]
        args = FaMUSTrainingArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none")
        with pytest.raises(ValueError, match=r"sharded already \(DTensor\): give it whole"):
            FaMUSTrainer(
                shard(build_model("batch norm", torch.float32)), args, train_dataset=examples, meta_dataset=examples
            )  # fmt: skip
    finally:
        distributed.destroy_process_group()
