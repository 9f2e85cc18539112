"""`PairMLP`: a small MLP on two operands; its first layer is a gather instead of a product with one-hot vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from grokfast import checks, parts
from grokfast.models.base import Model
from grokfast.models.mlp import Layer, onward
from grokfast.nn.ensemble import EnsembleModule, Initializer, embedding, linear
from grokfast.nn.masks import dropout
from grokfast.ops import pair_embed
from grokfast.ops.pair_embed.reference import ACTIVATIONS
from grokfast.tasks.data import Data, Task

Activation = Literal["relu", "square", "gelu", "abs"]
Init = Literal["torch", "gromov", "normal"]
MAX_DEPTH = 1000


@parts.register("pair_mlp")
@dataclass(frozen=True, kw_only=True)
class PairMLPConfig(Model):
    """Shape and initialisation of a PairMLP.

    Args:
        width: units of a hidden layer.
        depth: hidden layers.
        activation: "relu", "square" (x², Gromov 2023, arXiv 2301.02679), "gelu" (with erf) or "abs".
        bias: biases of every layer.
        residual: whether hidden layers but the first add their input to what they compute.
        dropout: probability in [0, 1) with which a hidden unit is dropped in training.
        embed: dimensions of an embedding of each operand's own; the first layer is then of their concatenation
            (Chughtai et al. 2023, arXiv 2302.03025). None: of two one-hot vectors.
        init: "torch" is nn.Linear's U(±1/√fan_in), with fan_in = 2·n_tokens in the first layer, or 2·embed; "gromov"
            draws every matrix from N(0, σ²) with σ = 0.5/(2·width)^(1/3), biases 0; "normal" every matrix from
            N(0, 1/fan_in), biases 0. Embeddings are from N(0, 1/embed), with "gromov" like the others.
        init_scale: multiplies every initial matrix (not biases).

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"init_scale"})
    scheduled: ClassVar[frozenset[str]] = frozenset({"dropout"})

    width: int = 256
    depth: int = 1
    activation: Activation = "relu"
    bias: bool = True
    init: Init = "torch"
    init_scale: float = 1.0
    embed: int | None = parts.added(None)
    residual: bool = parts.added(False)
    dropout: float = parts.added(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = checks.Fields(self)
        fields.integer("width", minimum=1)
        fields.integer("depth", minimum=1, maximum=MAX_DEPTH)
        fields.choice(activation=get_args(Activation), init=get_args(Init))
        fields.boolean("bias", "residual")
        fields.integer("embed", minimum=1, optional=True)
        fields.real("dropout", minimum=0, maximum=1, open_maximum=True)
        fields.real("init_scale", minimum=0, maximum=checks.LARGEST_REAL, open_minimum=True)

    def why_not_task(self, task: Task) -> str:
        if task.seq_len in (None, 2):
            return ""
        layout = getattr(task, "layout", "pair")
        got = f": two tokens, not {task.seq_len}" if layout == "pair" else f", got {layout!r}"
        return f"task.layout must be 'pair' for a PairMLP{got}"

    def why_not(self, data: Data) -> str:
        x, y = data.train.inputs, data.train.targets
        if data.n_tokens and x.shape[1] == 2 and y.ndim == 1 and not data.is_real:
            return ""
        return f"a PairMLP takes inputs [N, 2] of tokens and targets [N], the data have {_shape(x)} and {_shape(y)}"

    def build(self, data: Data, *, seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float32) -> PairMLP:
        return PairMLP(self, n_tokens=data.n_tokens, n_answers=data.n_answers, seeds=seeds, dtype=dtype)

    def activations(self, data: Data, *, backward: bool) -> int:
        width, answers = self.width, data.n_answers
        widest = max(4 * width, 5 * answers) + max(width, 2 * answers)
        return 2 * width * self.depth + 2 * answers + max(width, 3 * answers) if backward else widest


class PairMLP(EnsembleModule):
    """E = len(seeds) networks: h = act(w_a[a] + w_b[b] + b_in), depth - 1 further hidden layers, then linear logits.

    w_a and w_b [E, n_tokens, width] are the two halves of the first layer on two concatenated one-hot operands; with
    `embed` they are the products of embed_a, embed_b [E, n_tokens, embed] and in_a, in_b [E, width, embed], which are
    made once a pass: two tables of n_tokens rows, whatever the batch.
    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """

    can_unstack = True

    def __init__(
        self,
        config: PairMLPConfig,
        *,
        n_tokens: int,
        n_answers: int,
        seeds: Sequence[int] = (0,),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(seeds)
        if not isinstance(config, PairMLPConfig):
            raise TypeError(f"config must be a PairMLPConfig, got {config!r} ({type(config).__name__})")
        for name, value in (("n_tokens", n_tokens), ("n_answers", n_answers)):
            checks.integer(name, value, minimum=1)
        self.config, self.n_tokens = config, n_tokens
        draw, width = Initializer(self.seeds, dtype), config.width

        def matrix(n_out: int, n_in: int, fan_in: int) -> nn.Parameter:
            if config.init == "torch":
                return draw.uniform(n_out, n_in, bound=config.init_scale * fan_in**-0.5)
            std = 0.5 / (2 * width) ** (1 / 3) if config.init == "gromov" else fan_in**-0.5
            return draw.normal(n_out, n_in, std=config.init_scale * std)

        def bias(n_out: int, fan_in: int) -> nn.Parameter | None:
            if not config.bias:
                return None
            return draw.uniform(n_out, bound=fan_in**-0.5) if config.init == "torch" else draw.constant(n_out, value=0)

        def embedding() -> nn.Parameter:
            std = 0.5 / (2 * width) ** (1 / 3) if config.init == "gromov" else embed**-0.5
            return draw.normal(n_tokens, embed, std=config.init_scale * std)

        embed = config.embed or 0
        fan_in = 2 * embed or 2 * n_tokens
        if embed:
            self.embed_a, self.embed_b = embedding(), embedding()
            self.in_a, self.in_b = matrix(width, embed, fan_in), matrix(width, embed, fan_in)
        else:
            self.w_a, self.w_b = matrix(n_tokens, width, fan_in), matrix(n_tokens, width, fan_in)
        self.b_in = bias(width, fan_in)
        self.hidden = nn.ModuleList()
        for _ in range(config.depth - 1):
            self.hidden.append(Layer(matrix(width, width, width), bias(width, width)))
        self.out = Layer(matrix(n_answers, width, width), bias(n_answers, width))

    def tables(self) -> tuple[Tensor, Tensor]:
        """w_a and w_b [E, n_tokens, width]."""
        if not self.config.embed:
            return self.w_a, self.w_b
        return linear(self.embed_a, self.in_a), linear(self.embed_b, self.in_b)

    def forward(self, tokens: Tensor, masks: Any = None) -> Tensor:
        """Logits [E, N, n_answers] of pairs [N, 2], the same for every model, or [E, N, 2]; int64 below n_tokens.

        `masks` as for GrokTransformer. Raises ValueError for another shape or dtype.
        """
        config, act = self.config, ACTIVATIONS[self.config.activation]
        w_a, w_b = self.tables()
        bias: Tensor | None = self.b_in
        if self.is_unstacked:
            w_a, w_b, bias = w_a[None], w_b[None], bias if bias is None else bias[None]
        tokens = tokens.expand(len(w_a), *tokens.shape) if tokens.ndim == 2 else tokens
        h = pair_embed(w_a, w_b, tokens, bias, activation=config.activation)
        h = h[0] if self.is_unstacked else h
        h = dropout(h, config.dropout, self.training, masks)
        for layer in self.hidden:
            y = dropout(act(layer(h)), config.dropout, self.training, masks)
            h = h + y if config.residual else y
        return self.out(h)

    def embedded(self, inputs: Tensor) -> Tensor:
        pairs = inputs.expand(*self.lead, *inputs.shape[-2:])
        if not self.config.embed:
            return one_hot(pairs, self.n_tokens).to(self.w_a.dtype)
        a, b = pairs.unbind(-1)
        return torch.stack([embedding(a, self.embed_a), embedding(b, self.embed_b)], -2)

    def from_embedded(self, x: Tensor, preactivations: list[Tensor] | None = None) -> Tensor:
        w_a, w_b = (self.in_a, self.in_b) if self.config.embed else (self.w_a.mT, self.w_b.mT)
        z = linear(x[:, :, 0], w_a) + linear(x[:, :, 1], w_b)
        z = z if self.b_in is None else z + self.b_in.unsqueeze(-2)
        return onward(self.config, z, [*self.hidden, self.out], self.training, None, preactivations)


def _shape(t: Tensor) -> str:
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}"
