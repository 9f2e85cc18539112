"""`TokenMLP`: an MLP on any number of tokens; its first layer is a sum of rows, not a product with one-hot vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from grokfast import checks, parts
from grokfast.models.mlp import MLPConfig, drawn_bias, drawn_layer, drawn_weight, onward
from grokfast.nn.ensemble import EnsembleModule, Initializer, embedding, linear
from grokfast.tasks.data import Data

Join = Literal["concat", "sum"]


@parts.register("token_mlp")
@dataclass(frozen=True, kw_only=True)
class TokenMLPConfig(MLPConfig):
    """Shape and initialisation of a TokenMLP: tokens [N, T] -> classes.

    Args:
        width, activation, bias, residual, dropout, init, init_scale: see MLPConfig.
        depth: hidden layers, 1 to 8.
        embed: dimensions of the tokens' embeddings, from N(0, 1/embed) times init_scale. None: one-hot vectors.
        shared: one embedding for all positions; else each position has its own.
        join: "concat": the first layer is of the T vectors one after the other, its fan_in T·embed or T·n_tokens;
            "sum": of their sum, which forgets the order where vectors are one-hot or shared.

    Raises TypeError or ValueError where an argument has the wrong type or is out of range, or shared is True without
    embed.
    """

    least_depth: ClassVar[int] = 1

    embed: int | None = None
    shared: bool = False
    join: Join = "concat"

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = checks.Fields(self)
        fields.integer("embed", minimum=1, optional=True)
        fields.boolean("shared")
        fields.choice(join=get_args(Join))
        if self.shared and self.embed is None:
            raise ValueError("shared must be False where embed is None, as there are no embeddings, got True")

    def why_not(self, data: Data) -> str:
        x, y = data.train.inputs, data.train.targets
        if data.n_tokens and y.ndim == 1:
            return ""
        shapes = f"{[*x.shape]} {x.dtype} and {[*y.shape]} {y.dtype}".replace("torch.", "")
        return f"a TokenMLP takes inputs [N, T] of tokens and targets [N], the data have {shapes}"

    def build(self, data: Data, *, seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float32) -> TokenMLP:  # type: ignore[override]
        sizes = {"n_tokens": data.n_tokens, "n_answers": data.n_answers, "seq_len": data.seq_len}
        return TokenMLP(self, **sizes, seeds=seeds, dtype=dtype)


class TokenMLP(EnsembleModule):
    """E networks: h = act(Σ_t table_t[x_t] + b_in), depth - 1 further hidden layers, then linear logits.

    Of one-hot vectors the tables are w_in.t [E, n_tokens, width], one with join "sum", else one for each position; of
    embeddings they are embed.t [E, n_tokens, embed] times w_in.t [E, width, embed], made once a pass: T tables of
    n_tokens rows, whatever the batch.
    Raises TypeError or ValueError where an argument has the wrong type or is out of range.
    """

    can_unstack = True

    def __init__(
        self,
        config: TokenMLPConfig,
        *,
        n_tokens: int,
        n_answers: int,
        seq_len: int,
        seeds: Sequence[int] = (0,),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(seeds)
        for name, value in (("n_tokens", n_tokens), ("n_answers", n_answers), ("seq_len", seq_len)):
            checks.integer(name, value, minimum=1)
        self.config, self.seq_len = config, seq_len
        draw, width, embed = Initializer(self.seeds, dtype), config.width, config.embed
        n_in = 1 if config.join == "sum" else seq_len
        fan_in = n_in * (embed or n_tokens)
        self.embed = nn.ParameterList()
        if embed:
            std = config.init_scale * embed**-0.5
            self.embed.extend(draw.normal(n_tokens, embed, std=std) for _ in range(1 if config.shared else seq_len))
        shape = (width, embed) if embed else (n_tokens, width)
        self.w_in = nn.ParameterList(drawn_weight(config, draw, *shape, fan_in=fan_in) for _ in range(n_in))
        self.b_in = drawn_bias(config, draw, width, fan_in=fan_in)
        sizes = [*[width] * (config.depth - 1), n_answers]
        self.layers = nn.ModuleList(drawn_layer(config, draw, width, n_out) for n_out in sizes)

    def tables(self) -> list[Tensor]:
        """[E, n_tokens, width] of each position; positions may have the same one."""
        w_in, embed = list(self.w_in), list(self.embed)
        found = w_in
        if embed:
            n = max(len(w_in), len(embed))
            found = [linear(e, w) for e, w in zip(embed * (n // len(embed)), w_in * (n // len(w_in)))]
        return found * (self.seq_len // len(found))

    def forward(self, tokens: Tensor, masks: Any = None) -> Tensor:
        """Logits [E, N, n_answers] of tokens [N, T], the same for every model, or [E, N, T], int64 below n_tokens;
        `masks` as for GrokTransformer. Raises ValueError for another T."""
        if tokens.ndim not in (2, 3) or tokens.shape[-1] != self.seq_len:
            raise ValueError(f"tokens must be [N, {self.seq_len}] or [E, N, {self.seq_len}], got {[*tokens.shape]}")
        x = tokens.expand(*self.lead, *tokens.shape[-2:])
        rows = [embedding(own, table) for own, table in zip(x.unbind(-1), self.tables())]
        return self._outputs(rows, masks)

    def embedded(self, inputs: Tensor) -> Tensor:
        tokens = inputs.expand(*self.lead, *inputs.shape[-2:])
        if not len(self.embed):
            return one_hot(tokens, self.w_in[0].shape[-2]).to(self.w_in[0].dtype)
        tables = list(self.embed) * (self.seq_len // len(self.embed))
        return torch.stack([embedding(own, table) for own, table in zip(tokens.unbind(-1), tables)], -2)

    def from_embedded(self, x: Tensor, preactivations: list[Tensor] | None = None) -> Tensor:
        weights = [w if len(self.embed) else w.mT for w in self.w_in] * (self.seq_len // len(self.w_in))
        return self._outputs([linear(own, w) for own, w in zip(x.unbind(-2), weights)], None, preactivations)

    def _outputs(self, rows: list[Tensor], masks: Any, preactivations: list[Tensor] | None = None) -> Tensor:
        z = sum(rows[1:], start=rows[0])
        z = z if self.b_in is None else z + self.b_in.unsqueeze(-2)
        return onward(self.config, z, self.layers, self.training, masks, preactivations)
