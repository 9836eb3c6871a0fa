"""Other people's ways to take one meta step on a network, as Trainers that scripts/benchmark.py can time.

published: MW-Net's double backward through a virtual step, written out as its authors do.
betty: Betty's data re-weighting example (betty-ml): implicit differentiation by finite differences. Its iteration moves
    the weights first, with the present θ, and then θ by a gradient at the moved weights.
torchopt: TorchOpt's learning to reweight: double backward through torchopt.MetaSGD, a fresh weight for each example.

TorchOpt comes with `pip install -e .[bench]`. No version of betty-ml can be an extra: 0.2.1 declares Python < 3.11,
though it runs on 3.11, and pip since 24.1 rejects the metadata of 0.1.1.
"""

import copy
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import Trainer

from famus_hf import MWNet, meta_gradient

META_LEARNING_RATE = 1e-3
MOMENTUM = 0.9


def peer_trainers() -> "dict[str, type[PeerTrainer]]":
    """Return the peers whose packages can be imported, by name. Print a line for each of the others."""
    trainers: dict[str, type[PeerTrainer]] = {"published": PublishedTrainer}
    needed = [
        ("betty", BettyTrainer, "betty.problems", "--no-deps --ignore-requires-python betty-ml==0.2.1"),
        ("torchopt", TorchOptTrainer, "torchopt", "-e .[bench]"),
    ]
    for name, trainer, module, package in needed:
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{name} is left out ({error}): pip install {package}")
        else:
            trainers[name] = trainer
    return trainers


class PeerTrainer(Trainer):
    """A Trainer with one meta batch, of which `training_step` is a meta step."""

    model: nn.Module

    def __init__(self, *arguments: Any, meta_dataset: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.model_accepts_loss_kwargs = False
        rows = [meta_dataset[row] for row in range(self.args.per_device_train_batch_size)]
        self.meta_batch = self._prepare_inputs(self.data_collator(rows))

    def cosine_to_exact(self, batch: dict[str, Any]) -> float:
        """Return the cosine between this peer's meta gradient at the present weights and the exact one."""
        self.model.train()
        batch = self._prepare_inputs(batch)
        taken, exact = (
            torch.cat([tensor.double().flatten() for tensor in tensors])
            for tensors in (self.own_meta_gradient(batch), self.exact_meta_gradient(batch))
        )
        return F.cosine_similarity(taken, exact, dim=0).item()

    def own_meta_gradient(self, batch: dict[str, Any]) -> Iterable[Tensor]:
        raise NotImplementedError

    def exact_meta_gradient(self, batch: dict[str, Any]) -> Iterable[Tensor]:
        raise NotImplementedError


class MWNetPeer(PeerTrainer):
    """A peer that trains MW-Net."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.meta_learner = MWNet().to(self.args.device)

    def exact_meta_gradient(self, batch: dict[str, Any]) -> Iterable[Tensor]:
        learning_rate = self.args.learning_rate
        gradient = meta_gradient(self.model, self.meta_learner, batch, self.meta_batch, learning_rate=learning_rate)
        return [gradient[name] for name, _ in self.meta_learner.named_parameters()]


class PublishedTrainer(MWNetPeer):
    """MW-Net as published: the meta gradient by double backward through a virtual step over all layers."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.meta_optimizer = torch.optim.SGD(self.meta_learner.parameters(), META_LEARNING_RATE, MOMENTUM)

    def weighted_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        weights = self.meta_learner(losses.detach())
        return (weights / weights.sum() * losses).sum()

    def own_meta_gradient(self, batch: dict[str, Any]) -> Iterable[Tensor]:
        parameters = dict(self.model.named_parameters())
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        logits = functional_call(self.model, {**parameters, **buffers}, (batch["pixel_values"],)).logits
        loss = self.weighted_loss(logits, batch["labels"])
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        virtual = {
            name: parameter - self.args.learning_rate * gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
        meta_logits = functional_call(self.model, {**virtual, **buffers}, (self.meta_batch["pixel_values"],)).logits
        meta_loss = F.cross_entropy(meta_logits, self.meta_batch["labels"])
        return torch.autograd.grad(meta_loss, list(self.meta_learner.parameters()))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        self.meta_optimizer.zero_grad()
        for parameter, gradient in zip(self.meta_learner.parameters(), self.own_meta_gradient(inputs), strict=True):
            parameter.grad = gradient
        self.meta_optimizer.step()
        loss = self.weighted_loss(model(inputs["pixel_values"]).logits, inputs["labels"])
        self.accelerator.backward(loss)
        return loss.detach()


def betty_engine(model: nn.Module, meta_learner: nn.Module, learning_rate: float, device: torch.device) -> Any:
    """Return Betty's engine over `upper` (MW-Net) and `lower` (the network), each of which reads its own `batch`."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.logging.logger_base import get_logger
    from betty.problems import ImplicitProblem

    class OnGivenBatch(ImplicitProblem):
        batch: dict[str, Any]

        def get_batch(self) -> dict[str, Any]:
            return self.batch

    class Upper(OnGivenBatch):
        def training_step(self, batch: dict[str, Any]) -> Tensor:
            return F.cross_entropy(self.lower(batch["pixel_values"]).logits, batch["labels"])

    class Lower(OnGivenBatch):
        last_loss: float

        def training_step(self, batch: dict[str, Any]) -> Tensor:
            losses = F.cross_entropy(self(batch["pixel_values"]).logits, batch["labels"], reduction="none")
            weights = self.upper(losses.detach())
            return (weights / weights.sum() * losses).sum()

        def get_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
            loss, values = super().get_loss(batch)
            self.last_loss = values["loss"]
            return loss, values

    upper = Upper(
        name="upper",
        config=Config(type="darts", retain_graph=True),
        module=meta_learner,
        optimizer=torch.optim.SGD(meta_learner.parameters(), META_LEARNING_RATE, MOMENTUM),
    )
    lower = Lower(
        name="lower",
        config=Config(type="darts", unroll_steps=1),
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), learning_rate, MOMENTUM),
    )
    get_logger().setLevel("WARNING")
    return Engine(
        problems=[upper, lower],
        config=EngineConfig(strategy="gpu" if device.type == "cuda" else "cpu"),
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )


class BettyTrainer(MWNetPeer):
    """One iteration of Betty. Its optimizer is the Trainer's, without gradients when the Trainer's turn comes."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.engine = self.engine_of(self.model, self.meta_learner)
        self.optimizer = self.engine.lower.optimizer

    def engine_of(self, model: nn.Module, meta_learner: nn.Module) -> Any:
        return betty_engine(model, meta_learner, self.args.learning_rate, self.args.device)

    def iterate(self, engine: Any, batch: dict[str, Any]) -> None:
        engine.lower.batch, engine.upper.batch = batch, self.meta_batch
        engine.train()
        engine.train_step()

    def own_meta_gradient(self, batch: dict[str, Any]) -> Iterable[Tensor]:
        """Return the gradient of the next iteration, of which copies are made to move; with the present momentum."""
        engine = self.engine_of(*copy.deepcopy((self.model, self.meta_learner)))
        engine.lower.optimizer.load_state_dict(copy.deepcopy(self.engine.lower.optimizer.state_dict()))
        gradients: list[Tensor] = []
        engine.upper.grad_callback = lambda: gradients.extend(
            parameter.grad.clone() for parameter in engine.upper.trainable_parameters()
        )
        self.iterate(engine, batch)
        return gradients

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.iterate(self.engine, self._prepare_inputs(inputs))
        return torch.tensor(self.engine.lower.last_loss, device=self.args.device)


class TorchOptTrainer(PeerTrainer):
    """Learning to reweight with TorchOpt: ε starts at zero, moves the network by MetaSGD, and gets a gradient."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        import torchopt

        self.virtual_optimizer = torchopt.MetaSGD(self.model, lr=self.args.learning_rate)

    def losses(self, batch: dict[str, Any]) -> Tensor:
        return F.cross_entropy(self.model(batch["pixel_values"]).logits, batch["labels"], reduction="none")

    def own_meta_gradient(self, batch: dict[str, Any]) -> Iterable[Tensor]:
        import torchopt

        epsilon = torch.zeros(len(batch["labels"]), device=self.args.device, requires_grad=True)
        network = torchopt.extract_state_dict(self.model, by="reference", detach_buffers=True)
        optimizer = torchopt.extract_state_dict(self.virtual_optimizer, by="reference")
        self.virtual_optimizer.step((epsilon * self.losses(batch)).sum())
        gradients = torch.autograd.grad(self.losses(self.meta_batch).mean(), [epsilon])
        torchopt.recover_state_dict(self.model, network)
        torchopt.recover_state_dict(self.virtual_optimizer, optimizer)
        return gradients

    def exact_meta_gradient(self, batch: dict[str, Any]) -> Iterable[Tensor]:
        """Differentiate twice through the virtual step, without TorchOpt."""
        parameters = dict(self.model.named_parameters())

        def losses(tensors: Mapping[str, Tensor], inputs: dict[str, Any]) -> Tensor:
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            logits = functional_call(self.model, {**tensors, **buffers}, (inputs["pixel_values"],)).logits
            return F.cross_entropy(logits, inputs["labels"], reduction="none")

        epsilon = torch.zeros(len(batch["labels"]), device=self.args.device, requires_grad=True)
        loss = epsilon @ losses(parameters, batch)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        virtual = {
            name: parameter - self.args.learning_rate * gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
        return torch.autograd.grad(losses(virtual, self.meta_batch).mean(), [epsilon])

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        (gradient,) = self.own_meta_gradient(inputs)
        useful = (-gradient).clamp(min=0)
        total = useful.sum()
        weights = useful / torch.where(total == 0, torch.ones_like(total), total)
        loss = (weights * self.losses(inputs)).sum()
        self.accelerator.backward(loss)
        return loss.detach()
