"""One training loop, written out in plain torch by double backward, that FaMUSTrainer equals for every option."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import get_scheduler

from famus_hf import L2R, MLC, FaMUSTrainer, LearnedSampler, MWNet
from famus_hf.core.layer_samplers import step_generator
from famus_hf.core.meta_learners.posterior import PosteriorTargets
from tests.helpers import brute_force
from tests.helpers.models import CLASSES, build_model
from tests.helpers.trainers import Examples, RecordingCollator, make_args

STEPS = 6
BETAS, EPSILON = (0.8, 0.95), 1e-6
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01, BETAS, EPSILON, weight_decay=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, BETAS, EPSILON, weight_decay=0.1),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, 0.01, BETAS, EPSILON, amsgrad=True),
}


class Odd(nn.Module):
    """Dropout, a state that counts passes, a layer that every other pass uses, and one that none does."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.sometimes, self.never = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout, self.classifier = nn.Dropout(0.2), nn.Linear(8, CLASSES)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, pixel_values, labels=None):
        self.passes += 1
        hidden = torch.tanh(self.norm(self.conv(pixel_values))).mean((2, 3)) * self.passes / (1 + self.passes)
        if self.passes % 2 == 0:
            hidden = hidden + torch.tanh(self.sometimes(hidden))
        return SimpleNamespace(logits=self.classifier(self.dropout(hidden)))


class Loop(nn.Module):
    """Its layer is called once in two passes, and twice in the next two."""

    def __init__(self):
        super().__init__()
        self.first, self.layer, self.classifier = nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, pixel_values, labels=None):
        self.passes += 1
        hidden = torch.tanh(self.first(pixel_values.flatten(1)))
        for _ in range(1 + int(self.passes) // 3 % 2):
            hidden = torch.tanh(self.layer(hidden))
        return SimpleNamespace(logits=self.classifier(hidden))


class Quantized(nn.Module):
    """Learns by a straight-through estimator, which has no forward mode."""

    def __init__(self):
        super().__init__()
        self.first, self.classifier = nn.Linear(192, 8), nn.Linear(8, CLASSES)

    def forward(self, pixel_values, labels=None):
        hidden = torch.tanh(self.first(pixel_values.flatten(1)))
        return SimpleNamespace(logits=self.classifier(torch.fake_quantize_per_tensor_affine(hidden, 0.2, 0, -8, 7)))


NETWORKS = {"odd": Odd, "loop": Loop, "quantized": Quantized}
POSTERIOR = {
    "meta_learner": "posterior", "network": "called group norm", "candidate_layers": "4", "virtual_scope": "candidates",
    "meta_batch_size": 8, "train_on_trusted": False,
}  # fmt: skip
MODES = {
    "plain settings": {},
    "forward": {"derivative": "forward"},
    "reverse": {"derivative": "reverse"},
    "finite": {"derivative": "finite"},
    "quantized": {"network": "quantized"},
    "group norm": {"network": "called group norm"},
    "batch norm": {"network": "batch norm"},
    "vit": {"network": "vit"},
    "top three": {"candidate_layers": "3"},
    "virtual scope": {"candidate_layers": "3", "virtual_scope": "candidates"},
    "reused": {"reuse_virtual_gradient": True},
    "scaled": {"scale_example_gradients": True, "network": "called group norm"},
    "scaled, varying depth": {"scale_example_gradients": True, "network": "loop"},
    "varying depth": {"network": "loop"},
    "interval": {"meta_interval": 2},
    "reused, interval": {"reuse_virtual_gradient": True, "meta_interval": 2},
    "accumulation": {"gradient_accumulation_steps": 2},
    "reused, accumulation": {"gradient_accumulation_steps": 2, "reuse_virtual_gradient": True},
    "scaled, accumulation": {
        "gradient_accumulation_steps": 2, "scale_example_gradients": True, "network": "called group norm"
    },
    "clipping": {"max_grad_norm": 0.01},
    "warm-up": {"lr_scheduler_type": "linear", "warmup_steps": 2},
    "virtual sgd": {"virtual_step": "sgd"},
    "divided by n": {"weight_normalization": "mean"},
    "losses not detached": {"detach_losses": False},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "focal": {"base_loss": "focal"},
    "small meta batch": {"meta_batch_size": 3},
    "random layers": {"layer_sampler": "random", "random_layers": 2},
    "learned": {"layer_sampler": "learned"},
    "learned, no auxiliary losses": {
        "layer_sampler": "learned", "sparsity_weight": 0.0, "gradient_match_weight": 0.0, "candidate_layers": "4"
    },
    "learned, virtual scope": {
        "layer_sampler": "learned", "candidate_layers": "4", "virtual_scope": "candidates", "gradient_match_weight": 0.3
    },
    "l2r": {"meta_learner": "l2r"},
    "l2r, warm-up": {"meta_learner": "l2r", "lr_scheduler_type": "linear", "warmup_steps": 2},
    "l2r, top three": {"meta_learner": "l2r", "candidate_layers": "3"},
    "mlc, logits": {"meta_learner": "mlc"},
    "mlc, probabilities": {"meta_learner": "mlc", "mlc_form": "probabilities", "mlc_reduction": "sum"},
    "mlc, afresh": {"meta_learner": "mlc", "mlc_keep_matrix": False},
    "beta follows": {"meta_optim": "adam", "lr_scheduler_type": "linear", "warmup_steps": 2},
    "beta constant": {
        "meta_optim": "adam", "lr_scheduler_type": "linear", "warmup_steps": 2, "meta_lr_schedule": "constant"
    },
    "posterior": POSTERIOR,
    "posterior, interval": {**POSTERIOR, "meta_interval": 2},
    "posterior, likelihood": {**POSTERIOR, "posterior_form": "likelihood"},
    "posterior, elr": {**POSTERIOR, "elr_weight": 2.0},
    "elr": {"elr_weight": 2.0, "network": "called group norm"},
    "elr, reused, accumulation": {
        "elr_weight": 2.0, "network": "called group norm", "gradient_accumulation_steps": 2,
        "reuse_virtual_gradient": True,
    },
    "l2r, elr": {"meta_learner": "l2r", "elr_weight": 2.0, "network": "called group norm"},
}  # fmt: skip
PLAIN_STEPS = 3  # of posterior targets: an epoch of their 24 examples
CASES = [(optimizer, "plain settings") for optimizer in OPTIMIZERS]
CASES += [(optimizer, mode) for mode in MODES for optimizer in ("momentum", "adamw") if mode != "plain settings"]


# ---- The loop ----


def losses_of(mode):
    """ℓ: logits, labels → (n,)."""
    if mode.get("base_loss") == "focal":
        return lambda z, y: -(((1 - z.softmax(1)) ** 2) * z.log_softmax(1)).gather(1, y[:, None]).squeeze(1)
    smoothing = mode.get("label_smoothing_factor", 0.0)
    return lambda z, y: F.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)


def weights_of(mw_net, losses, mode):
    raw = mw_net(losses if mode.get("detach_losses") is False else losses.detach())
    return raw / len(raw) if mode.get("weight_normalization") == "mean" else raw / raw.sum()


def posterior_loss(learner, q):
    """J of posterior targets: logits, labels → scalar. q: What is believed of the batch."""

    def loss(z, y):
        scores = learner.goes.clamp_min(1e-12).log() + learner.transitions
        scores = torch.where(torch.eye(CLASSES, dtype=torch.bool), -torch.inf, scores)
        wrong, own = scores.softmax(1)[:, y].t(), F.one_hot(y, CLASSES)  # T_ky by example and class k
        stays, of_label = learner.stays[y].clamp(0.3, 0.98), q.gather(1, y[:, None])[:, 0]
        with torch.no_grad():
            columns = [
                F.cross_entropy(z, y, reduction="none"), -of_label.log(), q.max(1)[0], -(q * q.log()).sum(1),
                (q * wrong).sum(1).log(), (of_label * stays).log(),
            ]  # fmt: skip
        residual = learner.output(torch.relu(learner.hidden(torch.stack(columns, 1))))[:, 0]
        v = torch.sigmoid((stays / (1 - stays)).log() + residual)[:, None]
        evidence = v * own + (1 - v) * wrong
        if learner.form == "likelihood":
            return -(z.softmax(1) * evidence).sum(1).log().mean()
        targets = q * evidence / (q * evidence).sum(1, keepdim=True)
        return -(targets * z.log_softmax(1)).sum(1).mean()

    return loss


class Beliefs:
    """Running predictions of all training examples, in float32."""

    def __init__(self, size):
        self.sums, self.visits, self.labels = torch.zeros(size, CLASSES), torch.zeros(size), torch.zeros(size).long()

    def note(self, rows, logits, labels):
        self.sums[rows] = 0.8 * self.sums[rows] + 0.2 * logits.detach().float().softmax(1)
        self.visits[rows] += 1
        self.labels[rows] = labels
        return SimpleNamespace(q=self.of(rows).double(), sums=self.sums[rows].double())

    def of(self, rows):
        return self.sums[rows] / (1 - 0.8 ** self.visits[rows])[:, None]


def is_remembered(learner, mode):
    """Whether anybody looks at what was predicted before."""
    return isinstance(learner, PosteriorTargets) or "elr_weight" in mode


def regularizer(mode, believed):
    """What is added to J: logits → scalar."""
    weight = mode.get("elr_weight")
    return lambda z: weight * (1 - (z.softmax(1) * believed.sums).sum(1)).log().mean() if weight else 0


def training_loss(learner, mode, believed=None):
    """J: logits, labels → scalar, with a graph to the meta-learner. believed: Of the batch."""
    loss, added = learners_loss(learner, mode, believed), regularizer(mode, believed)
    return lambda z, y: loss(z, y) + added(z)


def learners_loss(learner, mode, believed):
    losses = losses_of(mode)
    if isinstance(learner, PosteriorTargets):
        return posterior_loss(learner, believed.q)
    if isinstance(learner, MLC):
        return brute_force.mlc_loss(learner.matrix, learner.form, learner.reduction)
    return lambda z, y: (weights_of(learner, losses(z, y), mode) * losses(z, y)).sum()


def preconditioners_of(model, optimizer, mode):
    """P of each parameter: the derivative of the coming step by the gradient, denominators as they were last.

    Where no gradient came by yet, there is no denominator, and 1 in its place.
    """
    found, group = {}, optimizer.param_groups[0]
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        found[name] = torch.ones_like(parameter)
        if group.get("nesterov") and mode.get("virtual_step") != "sgd":
            found[name] *= 1 + group["momentum"]
        if "exp_avg_sq" in state and mode.get("virtual_step") != "sgd":
            steps = float(state["step"])
            square = state["max_exp_avg_sq"] if "max_exp_avg_sq" in state else state["exp_avg_sq"]
            second = square / (1 - BETAS[1] ** steps)
            denominator = torch.where(second == 0, 1, second.sqrt() + EPSILON)
            found[name] = (1 - BETAS[0]) / (1 - BETAS[0] ** (steps + 1)) / denominator
    return found


def pooled(gradients):
    return torch.cat([g.flatten(1).mean(1) if g.dim() > 1 else g for g in gradients])


def gates_of(sampler, mode, candidates, gradients, seed, step):
    """r of each candidate, with a graph to η where it is learned."""
    names = [layer.name for layer in candidates]
    if mode.get("layer_sampler") == "random":
        chosen = torch.randperm(len(names), generator=step_generator(seed, step))[: mode["random_layers"]].tolist()
        return torch.tensor([float(place in chosen) for place in range(len(names))])
    if mode.get("layer_sampler") != "learned":
        return torch.ones(len(names))
    values = {layer.name: pooled([gradients[name].detach() for name in layer.parameters]) for layer in candidates}
    return sampler(values, step_generator(seed, step))


def meta_step(state, train, meta, rate, mode, believed):
    """θ and η after Eq. (12), by one backward pass through the virtual step. Returns the weights of L2R."""
    model, learner, sampler = state.model, state.learner, state.sampler
    scope = None if mode.get("virtual_scope") != "candidates" else [layer.name for layer in state.candidates]
    if isinstance(learner, L2R):
        epsilon = torch.zeros(len(train["labels"]), dtype=torch.float64, requires_grad=True)
        on, loss = [layer.name for layer in state.candidates], lambda z, y: (epsilon * losses_of(mode)(z, y)).sum()
        value, _, _ = brute_force.meta_loss(
            model,
            loss,
            train,
            meta,
            1.0,
            on,
            keeps_buffers=True,
        )
        help_of = (-torch.autograd.grad(value, epsilon)[0]).clamp(min=0)
        return help_of / help_of.sum() if help_of.sum() > 0 else help_of
    loss, preconditioners = training_loss(learner, mode, believed), preconditioners_of(model, state.optimizer, mode)
    random_state = torch.get_rng_state()
    _, gradients, _ = brute_force.meta_loss(model, loss, train, meta, rate, keeps_buffers=True)
    torch.set_rng_state(random_state)
    gates = gates_of(sampler, mode, state.candidates, gradients, state.seed, state.meta_steps)
    on = [layer.name for layer, gate in zip(state.candidates, gates.tolist(), strict=True) if gate > 0]
    value, gradients, virtual = brute_force.meta_loss(
        model, loss, train, meta, rate, on, {layer.name: g for layer, g in zip(state.candidates, gates, strict=True)},
        preconditioners, scope, keeps_buffers=True,
    )  # fmt: skip
    total = value if on else torch.zeros((), dtype=torch.float64)
    if mode.get("layer_sampler") == "learned":
        total = total + mode.get("sparsity_weight", 0.1) * (gates.sum() - 4.0) ** 2
        last, weight = state.last, mode.get("gradient_match_weight", 0.1)
        if weight > 0:
            validation = torch.autograd.grad(value, [virtual[name] for name in last.parameters], retain_graph=True)
            ours = pooled([gradients[name] for name in last.parameters])
            total = total + weight * (ours - pooled(validation).detach()).square().sum()
    theta = dict(learner.named_parameters())
    found = torch.autograd.grad(total, [*theta.values(), *sampler.parameters()], allow_unused=True)
    move(learner, found[: len(theta)], state.learner_optimizer)
    if state.sampler_optimizer is not None:
        for parameter, gradient in zip(sampler.parameters(), found[len(theta) :], strict=True):
            parameter.grad = gradient
        state.sampler_optimizer.step()
    return None


def move(learner, gradients, optimizer):
    for parameter, gradient in zip(learner.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
    if isinstance(learner, MLC):
        with torch.no_grad():
            positive = learner.matrix.clamp(min=0)
            learner.matrix.copy_(positive / positive.sum(0 if learner.form == "logits" else 1, keepdim=True))


def train_by_hand(state, batches, meta_batches, random_states, mode):
    """Six steps of the optimizer."""
    schedule = get_scheduler(
        mode.get("lr_scheduler_type", "constant"), state.optimizer, mode.get("warmup_steps", 0), STEPS
    )
    accumulated, state.meta_steps = mode.get("gradient_accumulation_steps", 1), 0
    batches, meta_batches, random_states = iter(batches), iter(meta_batches), iter(random_states)
    rows = iter(state.rows)
    losses = losses_of(mode)
    for step in range(STEPS):
        state.optimizer.zero_grad()
        for _ in range(accumulated):
            train, random_state = next(batches), next(random_states)
            if isinstance(state.learner, MLC) and not state.learner.keep_matrix:
                state.learner.matrix.data.copy_(torch.eye(CLASSES))
            believed, is_plain = None, False
            if isinstance(state.learner, PosteriorTargets):
                is_plain = step < PLAIN_STEPS
                if step == PLAIN_STEPS:
                    state.learner.observe_beliefs(state.beliefs.of(slice(None)), state.beliefs.labels, None)
            if is_remembered(state.learner, mode):
                believed = state.beliefs.note(next(rows), state.model(**train).logits, train["labels"])
            before, weights = copy.deepcopy(state.learner), None
            is_meta_step = step % mode.get("meta_interval", 1) == 0 and not is_plain
            first = schedule.base_lrs[0]
            for group in state.learner_optimizer.param_groups if mode.get("meta_optim") == "adam" else ():
                follows = mode.get("meta_lr_schedule") != "constant"
                group["lr"] = 0.05 * (schedule.get_last_lr()[0] / first if follows else 1)
            if is_meta_step:
                torch.set_rng_state(random_state)
                weights = meta_step(state, train, next(meta_batches), schedule.get_last_lr()[0], mode, believed)
                state.meta_steps += 1
            learner = before if is_meta_step and mode.get("reuse_virtual_gradient") else state.learner
            torch.set_rng_state(random_state)
            logits = state.model(train["pixel_values"]).logits
            if is_plain:
                loss = losses(logits, train["labels"]).mean() + regularizer(mode, believed)(logits)
            elif weights is not None:
                loss = (weights * losses(logits, train["labels"])).sum() + regularizer(mode, believed)(logits)
            else:
                loss = training_loss(learner, mode, believed)(logits, train["labels"])
            (loss / accumulated).backward()
        if mode.get("max_grad_norm"):
            nn.utils.clip_grad_norm_(state.model.parameters(), mode["max_grad_norm"])
        state.optimizer.step()
        schedule.step()


# ---- The Trainer ----


def learner_of(mode):
    kind = mode.get("meta_learner", "mw-net")
    if kind == "l2r":
        return L2R()
    if kind == "posterior":
        return PosteriorTargets(
            CLASSES, mode.get("posterior_form", "posterior"), hidden_size=12, transition_rate=20
        ).double()
    if kind == "mlc":
        return MLC(
            CLASSES,
            mode.get("mlc_form", "logits"),
            mode.get("mlc_keep_matrix", True),
            mode.get("mlc_reduction", "mean"),
        ).double()
    return MWNet(
        weight_normalization=mode.get("weight_normalization", "sum"), detach_losses=mode.get("detach_losses", True)
    ).double()


@pytest.mark.parametrize("optimizer, name", CASES)
def test_the_trainer_takes_the_steps_of_a_loop_written_by_hand(tmp_path, monkeypatch, optimizer, name):
    mode = {"layer_sampler": "all", **MODES[name]}
    torch.manual_seed(2)
    network = mode.get("network", "odd")
    model = NETWORKS[network]().double().train() if network in NETWORKS else build_model(network)
    learner, collator = learner_of(mode), RecordingCollator()
    is_posterior, remembers = isinstance(learner, PosteriorTargets), is_remembered(learner, mode)
    size = 24 if remembers and "gradient_accumulation_steps" not in mode else 48  # each comes by twice
    flags = {key: value for key, value in mode.items() if key not in ("network", "detach_losses")}
    settings = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "lr_milestones": [], **flags}
    steps = OPTIMIZERS[optimizer](model.parameters())
    rates = get_scheduler(settings["lr_scheduler_type"], steps, settings.get("warmup_steps", 0), STEPS)
    trainer = FaMUSTrainer(
        model,
        make_args(tmp_path, max_steps=STEPS, **settings),
        train_dataset=Examples(size, dtype=torch.float64),
        meta_dataset=Examples(11, 1000, seed=8, dtype=torch.float64),
        meta_learner=learner,
        layer_sampler=LearnedSampler() if mode["layer_sampler"] == "learned" else None,
        optimizers=(steps, rates),
        data_collator=collator,
    )
    mine = copy.deepcopy((trainer.model, trainer.meta_learner, trainer.layer_sampler))
    state = SimpleNamespace(
        model=mine[0], learner=mine[1], sampler=mine[2], optimizer=OPTIMIZERS[optimizer](mine[0].parameters()),
        candidates=trainer.meta.candidates, last=trainer.meta.layers[-1], seed=trainer.args.seed,
        learner_optimizer=None, sampler_optimizer=None, beliefs=Beliefs(size), rows=collator.rows,
    )  # fmt: skip
    if mode.get("meta_optim") == "adam":
        state.learner_optimizer = torch.optim.Adam(state.learner.parameters(), 0.05)
    elif is_posterior:
        network = [*state.learner.hidden.parameters(), *state.learner.output.parameters()]
        groups = [{"params": network}, {"params": [state.learner.transitions], "lr": 20 * 0.05}]
        state.learner_optimizer = torch.optim.SGD(groups, 0.05, momentum=0.9)
    elif list(state.learner.parameters()):
        is_mlc = isinstance(state.learner, MLC)
        state.learner_optimizer = torch.optim.SGD(state.learner.parameters(), 0.05, momentum=0.0 if is_mlc else 0.9)
    if list(state.sampler.parameters()):
        state.sampler_optimizer = torch.optim.SGD(state.sampler.parameters(), 0.1, momentum=0.9)
    start = copy.deepcopy(mine[0].state_dict())
    collator.train.clear()  # of the set-up
    collator.meta.clear()
    collator.rows.clear()
    random_states, training_step = [], trainer.training_step
    monkeypatch.setattr(
        trainer, "training_step", lambda *given: (random_states.append(torch.get_rng_state()), training_step(*given))[1]
    )
    trainer.train()
    state.model.train()
    meta_batches = [batch for batch in collator.meta if len(batch["labels"]) < 11]  # beliefs are compared with all
    train_by_hand(state, collator.train, meta_batches, random_states, mode)
    exact = 1e-4 if name == "finite" else 1e-6 if remembers else 1e-8  # beliefs are of 32 bits
    for ours, by_hand, tolerance in (
        (trainer.model, state.model, exact),
        (trainer.meta_learner, state.learner, exact),
        (trainer.layer_sampler, state.sampler, 1e-4),  # its numbers are of 32 bits
    ):
        for key, expected in by_hand.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], expected, rtol=tolerance, atol=tolerance / 100, msg=key)
    if is_posterior:
        assert learner.is_counted and learner.transitions.norm() > 1e-4, "θ has moved, too"
    moved = trainer.model.state_dict()["classifier.weight"] - start["classifier.weight"]
    assert moved.norm() > 1e-3, "the run must have gone somewhere"
    if "never.weight" in start:
        assert torch.equal(trainer.model.state_dict()["never.weight"], start["never.weight"])
