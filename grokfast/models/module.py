"""`Module`: anybody's nn.Module as a model, and the Step that trains an ensemble of it."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grokfast import checks, parts
from grokfast.models.autograd import Autograd
from grokfast.models.base import PLAIN, Model, Spec
from grokfast.models.runs import Runs
from grokfast.nn.ensemble import EnsembleModule
from grokfast.seeds import generator
from grokfast.tasks.data import Data

PROBED = 2  # rows on which a module is tried out


@parts.register("module")
@dataclass(frozen=True, kw_only=True)
class Module(Model):
    """A module of one's own: `factory` makes it of the data, `Data -> nn.Module`.

    Its forward takes inputs [B, T] or [B, D] and returns logits [B, C] (one class), [B, S, C] (S answers) or numbers
    [B, R] (real targets). Each run's module is made under its own seed. On a CPU they are called one after the other,
    as they are; on a GPU all at once, by torch.func. Parameters lie in the flat memory, under their own names.

    Args:
        factory: "package.module:Name" of a class or function; from Python also the callable itself, which can be stored
            only if it can be imported so.

    Building it raises ValueError, naming what it is, for parameters that are frozen, not of floating point or not yet
    initialised, or whose shapes differ between runs; for buffers that training changes (BatchNorm) or that differ
    between runs; and where the outputs do not fit the data.
    """

    factory: Any = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.factory, str):
            if ":" not in self.factory:
                raise ValueError(f"model.factory must be 'package.module:Name', got {checks.shown(self.factory)}")
            return
        if not callable(self.factory):
            said = checks.shown(self.factory)
            raise TypeError(f"model.factory must be 'package.module:Name' or a callable, got {said}")
        module, name = getattr(self.factory, "__module__", None), getattr(self.factory, "__qualname__", "<>")
        if module not in (None, "__main__") and "<" not in name:
            object.__setattr__(self, "factory", f"{module}:{name}")

    def build(self, data: Data, *, seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float32) -> Stacked:
        factory = _found(self.factory)
        modules = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator(seed, "init").initial_seed())
                module = factory(data)
            if not isinstance(module, nn.Module):
                raise TypeError(f"model.factory must return an nn.Module, got {checks.shown(module)}")
            _check(module)
            modules.append(module.to(dtype))
        stacked = Stacked(modules, seeds)
        stacked.try_out(data, dtype)
        return stacked


class Stacked(EnsembleModule):
    """E modules of one structure in one: each parameter [E, ...] under its own name; `plain` is one of them.

    is_random: whether its forward pass in training draws random numbers.
    """

    can_unstack = True
    plain: nn.Module

    def __init__(self, modules: Sequence[nn.Module], seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        object.__setattr__(self, "plain", modules[0])  # not a child: its parameters are not this module's
        self.is_random = False
        named = [dict(module.named_parameters()) for module in modules]
        buffers = [dict(module.named_buffers()) for module in modules]
        for i in range(1, len(modules)):
            for name in named[0].keys() | named[i].keys():
                one, other = named[0].get(name), named[i].get(name)
                if one is None or other is None or one.shape != other.shape:
                    raise ValueError(
                        f"the module's parameter {name!r} must have one shape for every seed, got "
                        f"{None if one is None else list(one.shape)} and {None if other is None else list(other.shape)}"
                    )
            for name, buffer in buffers[0].items():
                if not torch.equal(buffer, buffers[i].get(name, buffer[:0] if buffer.ndim else buffer + 1)):
                    raise ValueError(f"the module's buffer {name!r} must be the same for every seed")
        for name in named[0]:
            *path, last = name.split(".")
            at: nn.Module = self
            for step in path:
                if not hasattr(at, step):
                    at.add_module(step, nn.Module())
                at = getattr(at, step)
            at.register_parameter(last, nn.Parameter(torch.stack([own[name].detach() for own in named])))

    def forward(self, inputs: Tensor, masks: Any = None) -> Tensor:
        """[B, D], the same for every model, or [E, B, D] -> [E, B, ...]."""
        inputs = inputs.expand(self.n_models, *inputs.shape[-2:])
        self.plain.train(self.training)
        parameters = dict(self.named_parameters())

        def one(own: Any, x: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(self.plain, own, (x,), tie_weights=True)
            return found

        if inputs.is_cuda and len(inputs) > 1:
            many: Tensor = torch.func.vmap(one, randomness="different")(parameters, inputs)
            return many
        return torch.stack([one({n: p[e] for n, p in parameters.items()}, x) for e, x in enumerate(inputs)])

    def _of_model(self, e: int) -> nn.Module:
        """The very module, with the weights."""
        own = copy.deepcopy(self.plain)
        for name, p in own.named_parameters():
            p.data = self.get_parameter(name).detach()[e].clone()
        return own

    def try_out(self, data: Data, dtype: torch.dtype) -> None:
        """Raise ValueError or TypeError where a forward pass on two rows does what must not be."""
        x = data.train.inputs[:PROBED]
        x = x.to(dtype) if x.is_floating_point() else x
        before = {n: (p, p.shape, p.dtype) for n, p in self.plain.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in self.plain.named_buffers()}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            state = torch.get_rng_state()
            try:
                outputs = self.plain.train()(x)
            except Exception as error:
                raise ValueError(
                    f"the module {type(self.plain).__name__} does not take inputs {list(x.shape)} in {x.dtype}: {error}"
                ) from error
            self.is_random = not torch.equal(state, torch.get_rng_state())
        for name, buffer in self.plain.named_buffers():
            if name not in buffers or not torch.equal(buffer, buffers[name]):
                raise ValueError(
                    f"the module's buffer {name!r} changes in training, which an ensemble does not keep (BatchNorm?)"
                )
        after = {n: (p, p.shape, p.dtype) for n, p in self.plain.named_parameters()}
        if after.keys() != before.keys() or any(
            after[n][0] is not own[0] or after[n][1:] != own[1:] for n, own in before.items()
        ):
            raise ValueError("the module changes its parameters in a forward pass")
        y = data.train.targets[:PROBED]
        right = [*y.shape] if data.is_real else [*y.shape, data.n_answers]
        if not isinstance(outputs, Tensor) or [*outputs.shape] != right:
            got = [*outputs.shape] if isinstance(outputs, Tensor) else checks.shown(outputs)
            raise ValueError(
                f"the module {type(self.plain).__name__} must return {right} of inputs {list(x.shape)}, as the data's "
                f"targets {list(data.train.targets.shape)} have {data.n_answers} answers, got {got}"
            )


class Separate(Autograd):
    """The module itself, model after model where that keeps the processor busy; its update is the one pass."""

    def __init__(self, runs: Runs) -> None:
        super().__init__(runs)
        self.plain: nn.Module = runs.module.plain
        self.is_random = runs.module.is_random
        self.one_by_one = self.one_by_one or self.is_random
        self._parameters = dict(self.plain.named_parameters())

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return PLAIN, "a module of one's own, and autograd"

    @classmethod
    def why_no_graph(cls, spec: Spec) -> str:
        """A stream of torch's own for each model and step is begun on the host."""
        is_random = spec.device.type != "cpu" and spec.model.build(spec.data, dtype=spec.dtype).is_random
        return "its dropout draws its masks on the host" if is_random else ""

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs, targets = self._shown(e, split, batch, trains=grad is not None)
        for name, own in self.runs.own[e].items():
            self._parameters[name].data = own.detach()
        if self.plain.training != (grad is not None):
            self.plain.train(grad is not None)
        if self.is_random and grad is not None:
            with torch.random.fork_rng(devices=[self.runs.device] if self.runs.device.type == "cuda" else []):
                torch.manual_seed(generator(self.runs.seeds[e], "dropout", self.runs.steps).initial_seed())
                outputs = self.plain(inputs)
        else:
            outputs = self.plain(inputs)
        return self._backward(e, outputs[None], targets, list(self._parameters.values()), grad)


def _found(factory: Any) -> Any:
    if not isinstance(factory, str):
        return factory
    module, _, path = factory.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model.factory {factory!r} is not there: {error}") from error
    if not callable(found):
        raise TypeError(f"model.factory must be a callable, {factory!r} is {checks.shown(found)}")
    return found


def _check(module: nn.Module) -> None:
    named = dict(module.named_parameters())
    if not named:
        raise ValueError(f"the module {type(module).__name__} must have parameters, it has none")
    for name, p in named.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"the module's parameter {name!r} is not initialised yet: call it once in the factory")
        if not p.is_floating_point():
            raise ValueError(f"the module's parameter {name!r} must be of floating point, got {p.dtype}")
        if not p.requires_grad:
            raise ValueError(f"the module's parameter {name!r} is frozen: make it a buffer")


Module.ways = (Separate,)
