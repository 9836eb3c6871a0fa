"""The published computation, written out once more: double backward through the virtual step, nothing saved.

Nothing here is shared with the package but MWNet's weights as a function of losses.
"""

import numpy as np
import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def copies_of_buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def logits_of(model, inputs, parameters, buffers=None):
    """buffers: moved by the pass; default: copies of the model's."""
    buffers = copies_of_buffers(model) if buffers is None else buffers
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(model, {**parameters, **buffers}, (), inputs).logits


def mw_net_loss(mw_net, detach=True):
    """Logits, labels → Σ V̂_i ℓ_i."""

    def loss(logits, labels):
        losses = F.cross_entropy(logits, labels, reduction="none")
        raw = mw_net(losses.detach() if detach else losses)
        return (raw / raw.sum() * losses).sum()

    return loss


def mlc_loss(matrix, form, reduction="mean"):
    """Logits, labels → the loss of logits z·T, or of probabilities softmax(z)·T."""

    def loss(logits, labels):
        if form == "logits":
            losses = -(logits @ matrix).log_softmax(1).gather(1, labels[:, None])
        else:
            losses = -(logits.softmax(1) @ matrix).gather(1, labels[:, None]).log()
        return losses.sum() if reduction == "sum" else losses.mean()

    return loss


def is_on(parameter_name, layers):
    return layers is None or parameter_name.rpartition(".")[0] in layers


def meta_loss(
    model,
    training_loss,
    train_inputs,
    meta_inputs,
    learning_rate,
    layers=None,
    gates=None,
    preconditioners=None,
    moved=None,
    keeps_buffers=False,
):
    """L_c at ŵ with the graph back to θ through the layers that are on; random states and buffers stay.

    training_loss: logits, labels → J, with a graph to θ.
    gates: layer name → r_l with a graph of its own, entering as ŵ_l = w_l − α(g_l + (r_l − sg(r_l))·sg(g_l)).
    preconditioners: parameter name → P, constant, entering as ŵ = w − α·P·g.
    moved: the layers that the virtual step moves (default: all).
    keeps_buffers: whether the meta pass begins with the buffers that the training pass leaves.
    """
    state, numpy_state = torch.get_rng_state(), np.random.get_state()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    buffers = copies_of_buffers(model)
    loss = training_loss(logits_of(model, train_inputs, parameters, buffers), train_inputs["labels"])
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, materialize_grads=True)
    virtual = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        if not is_on(name, layers):
            gradient = gradient.detach()
        elif gates is not None:
            gate = gates[name.rpartition(".")[0]]
            gradient = gradient + (gate - gate.detach()) * gradient.detach()
        if preconditioners is not None:
            gradient = preconditioners[name] * gradient
        virtual[name] = parameter - learning_rate * gradient if is_on(name, moved) else parameter
    left = {name: buffer.clone() for name, buffer in buffers.items()} if keeps_buffers else None
    logits = logits_of(model, meta_inputs, virtual, left)
    value = F.cross_entropy(logits, meta_inputs["labels"])
    torch.set_rng_state(state)
    np.random.set_state(numpy_state)
    return value, dict(zip(parameters, gradients, strict=True)), virtual


def gradient_of(theta, model, training_loss, train_inputs, meta_inputs, learning_rate, layers=None, **options):
    """∂L_c/∂θ. theta: name → tensor that training_loss reaches."""
    value, _, _ = meta_loss(model, training_loss, train_inputs, meta_inputs, learning_rate, layers, **options)
    gradients = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(theta.items(), gradients, strict=True)
    }


def mw_net_gradient(model, mw_net, train_inputs, meta_inputs, learning_rate, layers=None, **options):
    theta = dict(mw_net.named_parameters())
    return gradient_of(theta, model, mw_net_loss(mw_net), train_inputs, meta_inputs, learning_rate, layers, **options)


def l2r_weights(model, train_inputs, meta_inputs, learning_rate, layers=None):
    """Autograd through ε = 0, as published: ŵ(ε) = w − α Σ ε_i ∇ℓ_i, u = max(0, −∂L_c/∂ε), u / Σ u."""
    epsilon = torch.zeros(len(train_inputs["labels"]), dtype=torch.float64, requires_grad=True)

    def loss(logits, labels):
        return (epsilon * F.cross_entropy(logits, labels, reduction="none")).sum()

    found = gradient_of({"epsilon": epsilon}, model, loss, train_inputs, meta_inputs, learning_rate, layers)
    weights = (-found["epsilon"]).clamp(min=0)
    return weights / weights.sum() if weights.sum() > 0 else weights
