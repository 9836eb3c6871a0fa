"""Kinds of networks × ways of the derivative × sets of layers, against double backward in float64.

A network's own backward is what is meant: of one that rounds with a straight-through estimator, or whose gradients a
hook changes, the derivative of its values is another one, and `"auto"` must not take that.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from famus_hf import MWNet, meta_gradient
from famus_hf.core.autodiff.agreement import BackwardReference
from famus_hf.core.autodiff.forward_pass import differentiable_attention, split_inputs
from famus_hf.core.autodiff.training_pass import training_pass_without_trace
from tests.helpers import brute_force
from tests.helpers.exact_meta_gradients import LEARNING_RATE, flat, relative_error, subsets
from tests.helpers.models import CLASSES, build_audio_model, build_batch, build_text_network

FEATURES, WORDS, PADDING = 10, 12, 3
EXACT = ("forward", "reverse", "auto")


class Around(nn.Module):
    """Linear, what is tried, linear; `middle` takes and gives (n, 8)."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(FEATURES, 8), middle, nn.Linear(8, CLASSES)

    def forward(self, x, labels=None):
        return SimpleNamespace(logits=self.last(self.middle(torch.tanh(self.first(x)))))


class Middle(nn.Module):
    """A linear map around which something is tried."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)


class StraightThrough(Middle):
    def forward(self, x):
        x = self.linear(x)
        return torch.tanh(x + ((2 * x).round() / 2 - x).detach())


class Quantized(Middle):
    def forward(self, x):
        return torch.fake_quantize_per_tensor_affine(self.linear(x), 0.1, 0, -8, 7)


class Observed(Middle):
    """Quantization aware training: the range is a moving average of what has come by."""

    def __init__(self):
        super().__init__()
        self.quantize = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=15)

    def forward(self, x):
        return self.quantize(self.linear(x).float()).to(x)


class Reversal(torch.autograd.Function):
    """Ganin and Lempitsky's: the backward is no derivative at all, and has no forward mode."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return -0.5 * gradient


class Reversed(Middle):
    def forward(self, x):
        return x + Reversal.apply(self.linear(x))


class RunningCentre(Middle):
    """Its state is moved before it is used."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(8))

    def forward(self, x):
        x = self.linear(x)
        if self.training:
            self.centre.lerp_(x.detach().mean(0), 0.3)
        return torch.tanh(3 * (x - self.centre) ** 2)


class WarmingUp(Middle):
    """Its state counts its passes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return torch.tanh(self.linear(x) * self.passes / (1 + self.passes))


class Recurrent(Middle):
    def __init__(self, kind):
        super().__init__()
        self.recurrent = kind(4, 8, batch_first=True)

    def forward(self, x):
        return self.recurrent(self.linear(x).unflatten(1, (2, 4)))[0][:, -1]


class AsksForGrad(Middle):
    """Another path where no gradients are asked for, as code that caches or checkpoints has it."""

    def forward(self, x):
        return torch.tanh(self.linear(x)) if torch.is_grad_enabled() else self.linear(self.linear(x))


class DropPath(Middle):
    def forward(self, x):
        keep = torch.bernoulli(torch.full((len(x), 1), 0.6, dtype=x.dtype))
        return x + F.dropout(torch.tanh(self.linear(x)), 0.3) * keep / 0.6


class LayerDrop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))

    def forward(self, x):
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.5:
                x = x + torch.tanh(layer(x))
        return x


class Twice(Middle):
    def forward(self, x):
        return self.linear(torch.tanh(self.linear(x)))


class Overwritten(Middle):
    """Part of what a layer gives out is replaced in place, as Wav2Vec2 masks its frames."""

    def __init__(self):
        super().__init__()
        self.linear, self.mask = nn.Linear(4, 8), nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = self.linear(x.unflatten(1, (2, 4)))
        later = x + 1
        x[::2, 0] = self.mask
        return torch.tanh(x + 0.3 * later).mean(1)


class Rooted(Middle):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x):
        return self.scale * torch.tanh(self.linear(x))


class FrozenNorm(Middle):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_var.mul_(0.3)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return torch.tanh(self.norm(self.linear(x)))


class Checkpointed(Middle):
    """What runs again in backward would not see the weights that the reference puts in the place of the network's."""

    is_on = True

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False) if self.is_on else self.block(x)

    def block(self, x):
        return F.dropout(torch.tanh(self.linear(x)), 0.3)


class Hooked(Middle):
    """Gradients that a hook changes, of an activation and of a pruned weight."""

    def __init__(self):
        super().__init__()
        self.linear.weight.register_hook(lambda gradient: gradient * (torch.arange(8) % 2))

    def forward(self, x):
        x = torch.tanh(self.linear(x))
        if x.requires_grad:
            x.register_hook(lambda gradient: 0.3 * gradient)
        return x


class Read(nn.Module):
    """Words to classes; the table of embeddings is the output layer of a second path, too."""

    def __init__(self, **settings):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8, **settings)
        self.linear, self.last = nn.Linear(8, 8), nn.Linear(8 + WORDS, CLASSES)

    def forward(self, x, labels=None):
        hidden = torch.tanh(self.linear(self.embedding(x).mean(1)))
        return SimpleNamespace(logits=self.last(torch.cat([hidden, hidden @ self.embedding.weight.t()], 1)))


def compiled(how):
    def build():
        torch._dynamo.reset()
        model = Around(nn.Sequential(DropPath(), nn.Dropout(0.2), nn.Linear(8, 8)))
        if how == "block":
            model.middle.compile(backend="aot_eager")
        elif how == "itself":
            model.compile(backend="aot_eager")
        elif how == "function":
            model.middle[1].forward = torch.compile(model.middle[1].forward, backend="aot_eager")
        else:
            model = torch.compile(model, backend="aot_eager")
        return model

    return build


ZOO = {  # kind → how it is made, which ways are exact, how far finite differences may be off (None: they mean nothing)
    "compiled": (compiled("wrapped"), EXACT, 1e-4),
    "compiled itself": (compiled("itself"), EXACT, 1e-4),
    "compiled block": (compiled("block"), EXACT, 1e-4),
    "compiled function": (compiled("function"), EXACT, 1e-4),
    "straight through": (lambda: Around(StraightThrough()), EXACT, None),
    "fake quantize": (lambda: Around(Quantized()), ("reverse", "auto"), None),
    "moving observer": (lambda: Around(Observed()), ("reverse", "auto"), None),
    "gradient reversal": (lambda: Around(Reversed()), ("reverse", "auto"), None),
    "hooks": (lambda: Around(Hooked()), ("reverse", "auto"), None),
    "running centre": (lambda: Around(RunningCentre()), EXACT, None),
    "warming up": (lambda: Around(WarmingUp()), EXACT, 1e-4),
    "spectral norm": (lambda: Around(parametrizations.spectral_norm(nn.Linear(8, 8))), ("reverse", "auto"), 1e-4),
    "weight norm": (lambda: Around(parametrizations.weight_norm(nn.Linear(8, 8))), ("reverse", "auto"), 1e-4),
    "lstm": (lambda: Around(Recurrent(nn.LSTM)), ("reverse", "auto"), 1e-4),
    "gru": (lambda: Around(Recurrent(nn.GRU)), ("reverse", "auto"), 1e-4),
    "asks for grad": (lambda: Around(AsksForGrad()), EXACT, 1e-4),
    "drop path": (lambda: Around(DropPath()), EXACT, 1e-4),
    "layer drop": (lambda: Around(LayerDrop()), EXACT, 1e-4),
    "called twice": (lambda: Around(Twice()), EXACT, 1e-4),
    "overwritten": (lambda: Around(Overwritten()), EXACT, 1e-4),
    "on the root": (lambda: Around(Rooted()), EXACT, 1e-4),
    "frozen batch norm": (lambda: Around(FrozenNorm()), EXACT, 1e-4),
    "checkpointing": (lambda: Around(Checkpointed()), EXACT, 1e-4),
    "tied embedding": (lambda: Read(), EXACT, 1e-4),
    "tied, padding": (lambda: Read(padding_idx=PADDING), EXACT, 1e-4),
    "tied, padding from the end": (lambda: Read(padding_idx=PADDING - WORDS), EXACT, 1e-4),
    "lora": (lambda: build_text_network("lora"), EXACT, 1e-4),
    "wav2vec2": (lambda: build_audio_model(layerdrop=0.5, num_labels=CLASSES), ("reverse", "auto"), 1e-3),
}  # fmt: skip


def batches_of(kind, model):
    generator = torch.Generator().manual_seed(5)
    draws = []
    for size in (6, 5):
        labels = torch.randint(CLASSES, (size,), generator=generator)
        if kind.startswith("tied"):
            draws.append({"x": torch.randint(WORDS, (size, 4), generator=generator), "labels": labels})
            draws[-1]["x"][0] = PADDING
        elif kind == "lora":
            draws.append({**build_batch("bert", size, seed=size), "labels": labels % 3})
        elif kind == "wav2vec2":
            values = torch.randn(size, 400, generator=generator, dtype=torch.float64)
            draws.append({"input_values": values, "labels": labels})
        else:
            draws.append({"x": torch.randn(size, FEATURES, generator=generator, dtype=torch.float64), "labels": labels})
    return draws


@pytest.mark.parametrize("kind", ZOO)
def test_every_way_that_a_network_has_is_exact_for_every_set_of_layers(kind, monkeypatch):
    build, exact, finite_error = ZOO[kind]
    torch.manual_seed(0)
    model = build().double().train()
    meta_learner = MWNet().double()
    train, meta = batches_of(kind, model)
    before = copy.deepcopy(model.state_dict())
    ways = {**dict.fromkeys(exact, 1e-9), **({} if finite_error is None else {"finite": finite_error})}
    for layers in subsets(model):
        torch.manual_seed(7)
        monkeypatch.setattr(Checkpointed, "is_on", False)
        with torch.compiler.set_stance("force_eager"):
            expected = brute_force.mw_net_gradient(model, meta_learner, train, meta, LEARNING_RATE, layers)
        monkeypatch.setattr(Checkpointed, "is_on", True)
        assert flat(expected).norm() > 1e-12 or layers, "the reference must say something"
        for way, tolerance in ways.items():
            torch.manual_seed(7)
            found = meta_gradient(
                model, meta_learner, train, meta, learning_rate=LEARNING_RATE, layers=layers, derivative=way
            )
            if flat(expected).norm() > 0:
                assert relative_error(found, expected) < tolerance, (way, layers)
            else:
                assert flat(found).norm() == 0, (way, layers)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "no trace"


@pytest.mark.parametrize("kind", ["lstm", "gru", "weight norm", "spectral norm", "fake quantize"])
def test_in_float32_too_an_exact_way_is_taken(kind):
    torch.manual_seed(0)
    model, meta_learner = ZOO[kind][0](), MWNet()
    train, meta = batches_of(kind, model)
    torch.manual_seed(7)
    expected = brute_force.mw_net_gradient(
        copy.deepcopy(model).double(), copy.deepcopy(meta_learner).double(), train, meta, LEARNING_RATE
    )
    torch.manual_seed(7)
    train, meta = ({**batch, "x": batch["x"].float()} for batch in (train, meta))
    found = meta_gradient(model, meta_learner, train, meta, learning_rate=LEARNING_RATE)
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("kind", ["called twice", "tied embedding", "frozen batch norm", "overwritten"])
def test_both_exact_ways_agree_with_the_backward_pass_in_bf16(kind):
    torch.manual_seed(0)
    model = ZOO[kind][0]()
    with torch.autocast("cpu", torch.bfloat16):
        inputs, labels, _ = split_inputs(batches_of(kind, model)[0])
        training_pass = training_pass_without_trace(
            model,
            {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()},
            labels,
        )
        assert fault_of(training_pass, "forward") is None and fault_of(training_pass, "reverse") is None


def fault_of(training_pass, way):
    return BackwardReference(training_pass).fault_of(way)


def pass_of(model, kind):
    inputs, labels, _ = split_inputs(batches_of(kind, model)[0])
    with differentiable_attention():
        return training_pass_without_trace(model, inputs, labels)


def jacobian_times(training_pass, direction):
    """ż, one backward pass for each logit."""
    tangent = torch.zeros_like(training_pass.logits)
    parameters = [training_pass.model.get_parameter(name) for name in direction]
    for place in range(tangent.numel()):
        gradients = torch.autograd.grad(
            training_pass.logits.flatten()[place], parameters, retain_graph=True, materialize_grads=True
        )
        terms = zip(gradients, direction.values(), strict=True)
        tangent.view(-1)[place] = sum((gradient * moved).sum() for gradient, moved in terms)
    return tangent


def test_embeddings_whose_gradient_is_divided_by_frequency_move_as_their_backward_says():
    """torch's own second backward forgets the division."""
    torch.manual_seed(0)
    training_pass = pass_of(Read(padding_idx=PADDING, scale_grad_by_freq=True).double(), "tied")
    direction = {name: torch.randn_like(parameter) for name, parameter in training_pass.model.named_parameters()}
    expected = jacobian_times(training_pass, direction)
    for way, tolerance in (("forward", 1e-10), ("finite", 1e-4)):
        found = training_pass.logit_tangent(direction, way)
        assert (found - expected).norm() < tolerance * expected.norm(), way
    assert fault_of(training_pass, "forward") is None and "it is off by" in fault_of(training_pass, "reverse")


@pytest.mark.parametrize("kind", ["straight through", "hooks", "lstm", "drop path", "layer drop", "wav2vec2"])
def test_what_is_measured_of_a_way_is_its_error(kind):
    torch.manual_seed(0)
    training_pass = pass_of(ZOO[kind][0]().double().train(), kind)
    direction = {
        name: torch.randn_like(parameter)
        for name, parameter in training_pass.model.named_parameters()
        if parameter.requires_grad
    }
    expected = jacobian_times(training_pass, direction)
    for way in ("forward", "reverse", "finite"):
        try:
            tangent = training_pass.logit_tangent(direction, way)
        except RuntimeError as error:
            assert type(error).__name__ in fault_of(training_pass, way)
            continue
        true = ((tangent - expected).norm() / expected.norm()).item()
        measured = BackwardReference(training_pass).error(direction, tangent)
        assert measured == pytest.approx(true, rel=2, abs=1e-9), way  # of two projections
        assert (true > 0.01) == (fault_of(training_pass, way) is not None), way


def test_a_layer_without_its_tangent_is_noticed_among_forty():
    torch.manual_seed(0)
    model = Around(nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(20)])).double()
    training_pass = pass_of(model, "")
    assert fault_of(training_pass, "forward") is None
    for lost in (model.first, model.middle[7][0], model.middle[13][1], model.last):
        names = {id(parameter) for parameter in lost.parameters()}

        class Losing(type(training_pass)):
            def logit_tangent(self, direction, way, names=names):
                kept = {name: d for name, d in direction.items() if id(model.get_parameter(name)) not in names}
                return super().logit_tangent(kept, way)

        losing = Losing(training_pass.model, training_pass.inputs, training_pass.labels, training_pass.logits,
                        training_pass.random_state)  # fmt: skip
        assert "it is off by" in fault_of(losing, "forward")


class TakesAnotherPath(nn.Module):
    """In a second pass, known by what is no state of the network: more calls, fewer, or of other rows."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.last, self.how, self.passes = (
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, CLASSES),
            how,
            0,
        )

    def forward(self, x, labels=None):
        self.passes += 1
        if self.passes > 1 and self.how == "more":
            x = torch.tanh(self.linear(x))
        if self.passes > 1 and self.how == "other rows":
            x = torch.cat([self.linear(x[:2]), x[2:]])
        elif self.passes == 1 or self.how != "fewer":
            x = self.linear(x)
        return SimpleNamespace(logits=self.last(torch.tanh(x)))


@pytest.mark.parametrize("how", ["more", "fewer", "other rows"])
def test_values_of_a_pass_that_took_another_path_are_not_taken_for_those_of_this_one(how):
    torch.manual_seed(0)
    model = TakesAnotherPath(how).double()
    training_pass = pass_of(model, "")
    direction = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    found = training_pass.logit_tangent(direction, "forward")
    whole = pass_of(model, "")  # of the path that the second pass takes
    torch.testing.assert_close(found, jacobian_times(whole, direction))
    assert "it is off by" in fault_of(training_pass, "forward") and fault_of(training_pass, "reverse") is None
