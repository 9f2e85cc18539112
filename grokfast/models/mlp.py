"""`MLP`: fully connected layers on features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from grokfast import checks, parts
from grokfast.models.base import Model
from grokfast.nn.ensemble import EnsembleModule, Initializer, linear
from grokfast.nn.masks import dropout
from grokfast.ops.pair_embed.reference import ACTIVATIONS
from grokfast.tasks.data import Data

Activation = Literal["relu", "square", "gelu", "abs"]
Init = Literal["torch", "normal"]
MAX_WIDTH, MAX_DEPTH = 4096, 8


@parts.register("mlp")
@dataclass(frozen=True, kw_only=True)
class MLPConfig(Model):
    """Shape and initialisation of an MLP on features [N, D]: classes as logits, or real numbers.

    Args:
        width: units of a hidden layer, 1 to 4,096.
        depth: hidden layers, 0 to 8; 0 is a linear model, to which width, activation, dropout and residual are nothing.
        activation: "relu", "square", "gelu" (with erf) or "abs".
        bias: biases of every layer.
        residual: whether hidden layers but the first add their input to what they compute.
        dropout: probability in [0, 1) with which a hidden unit is dropped in training.
        init: "torch" is nn.Linear's, weights and biases from U(±1/√fan_in); "normal" has weights from N(0, 1/fan_in),
            biases 0.
        init_scale: multiplies every initial parameter, biases too (Omnigrok's α: Liu et al. 2022, arXiv 2210.01117).

    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"init_scale"})
    scheduled: ClassVar[frozenset[str]] = frozenset({"dropout"})
    least_depth: ClassVar[int] = 0

    width: int = 256
    depth: int = 1
    activation: Activation = "relu"
    bias: bool = True
    residual: bool = False
    dropout: float = 0.0
    init: Init = "torch"
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = checks.Fields(self)
        fields.integer("width", minimum=1, maximum=MAX_WIDTH)
        fields.integer("depth", minimum=self.least_depth, maximum=MAX_DEPTH)
        fields.choice(activation=get_args(Activation), init=get_args(Init))
        fields.boolean("bias", "residual")
        fields.real("dropout", minimum=0, maximum=1, open_maximum=True)
        fields.real("init_scale", minimum=0, maximum=checks.LARGEST_REAL, open_minimum=True)

    def why_not(self, data: Data) -> str:
        x, y = data.train.inputs, data.train.targets
        if x.is_floating_point() and (data.is_real or y.ndim == 1):
            return ""
        shapes = f"{[*x.shape]} {x.dtype} and {[*y.shape]} {y.dtype}".replace("torch.", "")
        return f"an MLP takes features [N, D] and targets of one class, or real numbers, the data have {shapes}"

    def build(self, data: Data, *, seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float32) -> MLP:
        return MLP(self, n_features=data.seq_len, n_outputs=data.n_answers, seeds=seeds, dtype=dtype)


class MLP(EnsembleModule):
    """E networks: weights [E, n_out, n_in] and biases [E, n_out] of layers.0, layers.1, ..., the last one linear."""

    can_unstack = True

    def __init__(
        self,
        config: MLPConfig,
        *,
        n_features: int,
        n_outputs: int,
        seeds: Sequence[int] = (0,),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(seeds)
        self.config = config
        draw, sizes = Initializer(self.seeds, dtype), [n_features, *[config.width] * config.depth, n_outputs]
        self.layers = nn.ModuleList(drawn_layer(config, draw, n_in, n_out) for n_in, n_out in pairwise(sizes))

    def forward(self, inputs: Tensor, masks: Any = None) -> Tensor:
        """[N, D], the same for every model, or [E, N, D] -> [E, N, n_outputs]; `masks` as for GrokTransformer."""
        return self._outputs(self.embedded(inputs), masks)

    def embedded(self, inputs: Tensor) -> Tensor:
        return inputs.expand(*self.lead, *inputs.shape[-2:])

    def from_embedded(self, x: Tensor, preactivations: list[Tensor] | None = None) -> Tensor:
        return self._outputs(x, None, preactivations)

    def _outputs(self, x: Tensor, masks: Any, preactivations: list[Tensor] | None = None) -> Tensor:
        first, *others = self.layers
        z: Tensor = first(x)
        return onward(self.config, z, others, self.training, masks, preactivations) if others else z


def onward(
    config: Any,
    z: Tensor,
    layers: Iterable[nn.Module],
    training: bool,
    masks: Any,
    preactivations: list[Tensor] | None = None,
) -> Tensor:
    """Outputs of what the first layer computed, z [E, N, width]: through the other hidden layers and the last one.
    preactivations: see EnsembleModule.from_embedded."""
    act, (*hidden, last) = ACTIVATIONS[config.activation], layers
    seen = [] if preactivations is None else preactivations
    seen.append(z)
    x = dropout(act(z), config.dropout, training, masks)
    for layer in hidden:
        seen.append(z := layer(x))
        y = dropout(act(z), config.dropout, training, masks)
        x = x + y if config.residual else y
    out: Tensor = last(x)
    return out


class Layer(nn.Module):
    """weight [E, n_out, n_in] and bias [E, n_out] or None."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def drawn_layer(config: MLPConfig, draw: Initializer, n_in: int, n_out: int) -> Layer:
    """As config.init and config.init_scale ask for."""
    return Layer(drawn_weight(config, draw, n_out, n_in, fan_in=n_in), drawn_bias(config, draw, n_out, fan_in=n_in))


def drawn_weight(config: MLPConfig, draw: Initializer, *shape: int, fan_in: int) -> nn.Parameter:
    """[E, *shape]."""
    size = config.init_scale * fan_in**-0.5
    return draw.uniform(*shape, bound=size) if config.init == "torch" else draw.normal(*shape, std=size)


def drawn_bias(config: MLPConfig, draw: Initializer, n_out: int, fan_in: int) -> nn.Parameter | None:
    """[E, n_out]; None where there is none."""
    if not config.bias:
        return None
    if config.init == "torch":
        return draw.uniform(n_out, bound=config.init_scale * fan_in**-0.5)
    return draw.constant(n_out, value=0)
