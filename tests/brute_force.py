"""The published computation, written out once more: double backward through the virtual step, nothing saved.

Nothing here is shared with the package but MWNet's weights as a function of losses.
"""

import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def logits_of(model, inputs, parameters):
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(model, {**parameters, **buffers}, (), inputs).logits


def weighted_loss(model, meta_learner, inputs, parameters):
    losses = F.cross_entropy(logits_of(model, inputs, parameters), inputs["labels"], reduction="none")
    raw = meta_learner(losses.detach())
    return (raw / raw.sum() * losses).sum()


def is_on(parameter_name, layers):
    return layers is None or parameter_name.rpartition(".")[0] in layers


def meta_loss(model, meta_learner, train_inputs, meta_inputs, learning_rate, layers=None, gates=None):
    """L_c at ŵ with the graph back to θ through the layers that are on; random state and buffers stay.

    gates: layer name → r_l with a graph of its own, entering as ŵ_l = w_l − α(g_l + (r_l − sg(r_l))·sg(g_l)).
    """
    state = torch.get_rng_state()
    parameters = dict(model.named_parameters())
    loss = weighted_loss(model, meta_learner, train_inputs, parameters)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    virtual = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if not is_on(name, layers):
            gradient = gradient.detach()
        elif gates is not None:
            gate = gates[name.rpartition(".")[0]]
            gradient = gradient + (gate - gate.detach()) * gradient.detach()
        virtual[name] = parameter - learning_rate * gradient
    value = F.cross_entropy(logits_of(model, meta_inputs, virtual), meta_inputs["labels"])
    torch.set_rng_state(state)
    return value, dict(zip(parameters, gradients, strict=True)), virtual


def meta_gradient(model, meta_learner, train_inputs, meta_inputs, learning_rate, layers=None):
    value, _, _ = meta_loss(model, meta_learner, train_inputs, meta_inputs, learning_rate, layers)
    named = dict(meta_learner.named_parameters())
    gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True)
    }
