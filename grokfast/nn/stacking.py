"""From several layers of one kind to one with a leading ensemble axis, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from grokfast.nn.ensemble import linear

L = TypeVar("L", bound="Stackable")


class Linears(nn.Module):
    """E linear layers: x [E, ..., K] -> [E, ..., O]; weight [E, O, K], bias [E, O] or None, copied from E layers."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            self.register_parameter(name, stacked([getattr(layer, name) for layer in layers]))

    def of_model(self, e: int) -> nn.Linear:
        """A copy of one of them."""
        n_out, n_in = self.weight.shape[1:]
        layer = nn.Linear(n_in, n_out, device="meta")
        for name in ("weight", "bias"):
            layer.register_parameter(name, _of_model(getattr(self, name), e))
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, bias={self.bias is not None}"


class Stackable(nn.Module):
    """Base of layers of `n_models` models, None for one, that keep parameters of their own and in nn.Linear only."""

    n_models: int | None = None

    @classmethod
    def stack(cls: type[L], layers: Sequence[L]) -> L:
        """One layer with a leading ensemble axis from several, whose parameters are copied.

        Raises TypeError or ValueError unless they are layers of one model each, of the same settings and shapes.
        """
        layers = list(layers)
        if not layers:
            raise ValueError("layers must name at least one, got none")
        first = layers[0]
        for i, layer in enumerate(layers):
            if type(layer) is not cls:
                raise TypeError(f"layers[{i}] must be a {cls.__name__}, got {type(layer).__name__}")
            if layer.n_models is not None:
                raise ValueError(f"layers[{i}] must be of one model, got one of n_models={layer.n_models}")
            if any(not isinstance(module, nn.Linear) for module in layer._modules.values()):
                raise ValueError(f"layers[{i}] must keep its parameters in nn.Linear, got {layer!r}")
            if _settings(layer) != _settings(first) or _kinds(layer) != _kinds(first):
                raise ValueError(
                    f"layers[{i}] must have the settings and shapes of layers[0], {first!r}, got {layer!r}"
                )
        made = _empty(first)
        made.n_models = len(layers)
        for name in first._parameters:
            made.register_parameter(name, stacked([getattr(layer, name) for layer in layers]))
        for name in first._modules:
            setattr(made, name, Linears([getattr(layer, name) for layer in layers]))
        return made

    def unstack(self: L) -> list[L]:
        """The layers of the models, with copies of their parameters. Raises ValueError without `n_models`."""
        if self.n_models is None:
            raise ValueError("unstack needs a layer with n_models, got one without")
        layers = []
        for e in range(self.n_models):
            made = _empty(self)
            made.n_models = None
            for name, parameter in self._parameters.items():
                made.register_parameter(name, _of_model(parameter, e))
            for name, module in self._modules.items():
                assert isinstance(module, Linears)
                setattr(made, name, module.of_model(e))
            layers.append(made)
        return layers

    def _refuse_many(self) -> None:
        if self.n_models is not None:
            raise ValueError(f"torch's layers are of one model, this one has n_models={self.n_models}: unstack() first")


def _settings(layer: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "training"}


def _kinds(layer: nn.Module) -> list[tuple[Any, ...]]:
    return [(name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in layer.named_parameters()]


def _empty(layer: L) -> L:
    """A layer of the same settings, without parameters."""
    made = type(layer).__new__(type(layer))
    nn.Module.__init__(made)
    vars(made).update(_settings(layer))
    return made.train(layer.training)


def stacked(parameters: Sequence[nn.Parameter | None]) -> nn.Parameter | None:
    """[E, ...], copied; None of Nones."""
    of_models = [p for p in parameters if p is not None]
    return nn.Parameter(torch.stack([p.detach() for p in of_models]), of_models[0].requires_grad) if of_models else None


def _of_model(parameter: nn.Parameter | None, e: int) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter[e].detach().clone(), parameter.requires_grad)
