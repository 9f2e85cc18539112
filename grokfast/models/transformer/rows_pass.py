"""A transformer over the rows of a plan on a CPU, forward and backward written out: what stands between two products is
one pass in C++, and gradients are written where they belong. `planned.logits_of` says what it computes.

Attention and MLPs take turns, and after each of them (before the first one, too) comes a place where what it gave, bias
and residual stream become the next one's input; the LayerNorms stand there, wherever the config has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grokfast import backend
from grokfast.models.transformer.model import TransformerConfig
from grokfast.models.transformer.plan import LayerRows, PlannedRows
from grokfast.ops.mlp.cpu import ACTIVATIONS
from grokfast.ops.products import WORTHWHILE, product
from grokfast.ops.rows import RowIndex, add_rows, sum_readers, sum_rows, threads_for

EPS = 1e-5  # of LayerNorm


@dataclass(frozen=True)
class Place:
    """Between two sublayers. norm: its LayerNorm, None: there is none. is_stream: what it gives goes on as the residual
    stream; else only the next sublayer reads it."""

    norm: str | None = None
    is_stream: bool = True


def places(config: TransformerConfig) -> list[Place]:
    """2 n_layers + 1 of them."""
    norms = [f"blocks.{i}.{norm}" for i in range(config.n_layers) for norm in ("ln1", "ln2")]
    if config.norm == "post":
        return [Place(), *map(Place, norms)]
    if config.norm == "none":
        return [Place()] * (len(norms) + 1)
    firsts = config.norm == "replace"
    return [*(Place(norm, firsts and norm.endswith("ln1")) for norm in norms), Place("final_norm")]


class _Joined(NamedTuple):
    """What a place leaves: the stream, the next sublayer's input, and for the backward y and its statistics."""

    stream: Tensor
    inner: Tensor
    y: Tensor | None
    stats: Tensor | None


class _Attended(NamedTuple):
    """q, kv: queries and keys with values of the incoming rows. weights: the softmax. heads: what is mixed."""

    q: Tensor
    kv: Tensor
    weights: Tensor
    heads: Tensor


class _Hidden(NamedTuple):
    """The MLP's hidden layer; of a gelu also its slope. w_out: unit by unit, where only active units are multiplied."""

    values: Tensor
    slope: Tensor | None
    w_out: Tensor | None


class RowsPass:
    """One pass of one model. w: its parameters, and "positions" and "unembedding" also where these are none.

    tokens, positions: which rows of the two tables the pairs of `rows` read.
    """

    def __init__(
        self,
        config: TransformerConfig,
        w: Mapping[str, Tensor],
        rows: PlannedRows,
        tokens: RowIndex,
        positions: RowIndex,
    ) -> None:
        self.config, self.w, self.rows, self.tokens, self.positions = config, w, rows, tokens, positions
        self.places = places(config)
        self._joined: list[_Joined] = []
        self._attended: list[_Attended] = []
        self._hidden: list[_Hidden] = []

    def logits(self, *, trains: bool) -> Tensor:
        """[B, n_outputs]; trains: `backward` follows, once."""
        w = self.w
        x = F.embedding(self.tokens.index, w["embedding"])
        at = self._join(0, x, None, w["positions"], self.positions)
        for i, layer in enumerate(self.rows.layers):
            at = self._mlp(i, self._attention(i, at, layer, trains), trains)
            if not trains:
                self._joined.clear()
        logits = product(at.inner, w["unembedding"])
        return logits if self.rows.output is None else F.embedding(self.rows.output.index, logits)

    def backward(self, of_logits: Tensor, to: Mapping[str, Tensor]) -> None:
        """Write the gradients of all parameters `to` these, from that of the logits."""
        w, config = self.w, self.config
        if self.rows.output is not None:
            of_logits = sum_readers(of_logits, self.rows.output)
        inner = self._joined[-1].inner
        if not config.tied:
            torch.mm(of_logits.T, inner, out=to["unembedding"])
        grad, along = product(of_logits, w["unembedding"].T), None
        for i in range(config.n_layers - 1, -1, -1):
            grad = self._leave(2 * i + 2, grad, along, to, to.get(f"blocks.{i}.b_out"))
            grad, along = self._mlp_backward(i, grad, to)
            grad = self._leave(2 * i + 1, grad, along, to, to.get(f"blocks.{i}.b_o"))
            grad, along = self._attention_backward(i, grad, to)
        grad = self._leave(0, grad, along, to, None)
        _write_readers(grad, self.tokens, to["embedding"])
        if config.tied:
            to["embedding"][: of_logits.shape[1]].addmm_(of_logits.T, inner)
        if "positions" in to:
            n = self.positions.n_rows
            _write_readers(grad, self.positions, to["positions"][:n])
            to["positions"][n:].zero_()

    def _join(self, place: int, y: Tensor, bias: Tensor | None, skip: Tensor | None, index: RowIndex | None) -> _Joined:
        """y + bias + skip[index], in place, and what the norm makes of it."""
        name = self.places[place].norm
        if name is None:
            add_rows(y, bias, skip, index)
            found = _Joined(y, y, None, None)
        else:
            out, stats = torch.empty_like(y), y.new_empty(len(y), 2)
            backend.load_extension().residual_norm_forward(
                y, bias, skip, None if index is None else index.index, self.w[f"{name}.weight"],
                self.w[f"{name}.bias"], out, stats, EPS, threads_for(y, cost=6),
            )  # fmt: skip
            found = _Joined(out if self.places[place].is_stream else y, out, y, stats)
        self._joined.append(found)
        return found

    def _leave(
        self, place: int, grad: Tensor, along: Tensor | None, to: Mapping[str, Tensor], of_bias: Tensor | None
    ) -> Tensor:
        """The gradient of y from that of the next sublayer's input, and of the stream where this goes past the norm."""
        _, _, y, stats = self._joined.pop()
        name = self.places[place].norm
        if name is None:
            if of_bias is not None:
                sum_rows(grad, of_bias)
            return grad
        of_y = torch.empty_like(grad)
        backend.load_extension().residual_norm_backward(
            y, self.w[f"{name}.weight"], stats, grad, along, of_y, to[f"{name}.weight"], to[f"{name}.bias"], of_bias,
            threads_for(grad, cost=8),
        )  # fmt: skip
        return of_y

    def _attention(self, i: int, at: _Joined, rows: LayerRows, trains: bool) -> _Joined:
        w, x, d, first = self.w, at.inner, self.config.d_model, rows.first
        w_qkv, b_qkv = w[f"blocks.{i}.w_qkv"], w.get(f"blocks.{i}.b_qkv")
        w_o, b_o = w[f"blocks.{i}.w_o"], w.get(f"blocks.{i}.b_o")
        if first == 0:
            q, kv = product(x, w_qkv, b_qkv).split([d, 2 * d], 1)
        else:
            b_q, b_kv = (None, None) if b_qkv is None else b_qkv.split([d, 2 * d])
            q, kv = product(x[first:], w_qkv[:d], b_q), product(x, w_qkv[d:], b_kv)
        heads, weights = x.new_empty(rows.keys.shape[0], d), x.new_empty(*rows.keys.shape, self.config.n_heads)
        query = None if rows.query is None else rows.query.index
        backend.load_extension().gathered_attention_forward(
            q, kv, query, rows.keys.index, self.config.n_heads, heads, weights,
            threads_for(heads, cost=4 * rows.keys.shape[1]),
        )  # fmt: skip
        if trains:
            self._attended.append(_Attended(q, kv, weights, heads))
        skip = at.stream[first:] if self.config.residual else None
        if self.places[2 * i + 1].norm is None and rows.query is None:
            y, b_o, skip = product(heads, w_o, b_o, skip), None, None
        else:
            y = product(heads, w_o)
        return self._join(2 * i + 1, y, b_o, skip, rows.query if skip is not None else None)

    def _attention_backward(self, i: int, grad: Tensor, to: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The gradients of the sublayer's input and, where that is another, of the stream from row `first` on."""
        rows, (q, kv, weights, heads) = self.rows.layers[i], self._attended.pop()
        name, x, first, d = f"blocks.{i}.w_qkv", self._joined[-1].inner, rows.first, self.config.d_model
        w_qkv, of_w_qkv, of_b_qkv = self.w[name], to[name], to.get(f"blocks.{i}.b_qkv")
        torch.mm(grad.T, heads, out=to[f"blocks.{i}.w_o"])
        of_heads = product(grad, self.w[f"blocks.{i}.w_o"].T)
        if first == 0:
            of_qkv = grad.new_empty(len(x), 3 * d)
            of_q, of_kv = of_qkv.split([d, 2 * d], 1)
        else:
            of_q, of_kv = torch.empty_like(q), torch.empty_like(kv)
        start, items = (torch.arange(len(q) + 1), None) if rows.query is None else rows.query.readers
        backend.load_extension().gathered_attention_backward(
            q, kv, None if rows.query is None else rows.query.index, rows.keys.index, self.config.n_heads, start, items,
            *rows.keys.readers, weights, of_heads, of_q, of_kv, threads_for(of_heads, cost=8 * rows.keys.shape[1]),
        )  # fmt: skip
        if first == 0:
            torch.mm(of_qkv.T, x, out=of_w_qkv)
            of_x = product(of_qkv, w_qkv.T)
            if of_b_qkv is not None:
                sum_rows(of_qkv, of_b_qkv)
        else:
            torch.mm(of_q.T, x[first:], out=of_w_qkv[:d])
            torch.mm(of_kv.T, x, out=of_w_qkv[d:])
            if of_b_qkv is not None:
                sum_rows(of_q, of_b_qkv[:d])
                sum_rows(of_kv, of_b_qkv[d:])
            of_x = product(of_kv, w_qkv[d:].T)
            of_x[first:].addmm_(of_q, w_qkv[:d])
        if not self.config.residual:
            return of_x, None
        own = grad if rows.query is None else sum_readers(grad, rows.query)
        if not self.places[2 * i].is_stream:
            return of_x, own
        add_rows(of_x[first:], None, own)
        return of_x, None

    def _mlp(self, i: int, at: _Joined, trains: bool) -> _Joined:
        w, x, config = self.w, at.inner, self.config
        w_in, w_out = w[f"blocks.{i}.w_in"], w[f"blocks.{i}.w_out"]
        b_in, b_out = w.get(f"blocks.{i}.b_in"), w.get(f"blocks.{i}.b_out")
        skip = at.stream if config.residual else None
        z = product(x, w_in)
        slope = torch.empty_like(z) if trains and config.activation == "gelu" else None
        kind = ACTIVATIONS[config.activation]
        backend.load_extension().activate_forward(
            z, b_in, slope, kind, threads_for(z, cost=16 if config.activation == "gelu" else 1)
        )
        by_unit = None
        if self._only_active(len(x), w_in):
            by_unit, y = w_out.T.contiguous(), torch.empty_like(x)
            threads = threads_for(z, cost=x.shape[1])
            backend.load_extension().active_forward(z, by_unit, b_out, skip, y, threads)
            b_out = skip = None
        elif self.places[2 * i + 2].norm is None:
            y, b_out, skip = product(z, w_out, b_out, skip), None, None
        else:
            y = product(z, w_out)
        if trains:
            self._hidden.append(_Hidden(z, slope, by_unit))
        return self._join(2 * i + 2, y, b_out, skip, None)

    def _mlp_backward(self, i: int, grad: Tensor, to: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The gradients of the sublayer's input and, where that is another, of the stream."""
        hidden, slope, by_unit = self._hidden.pop()
        at = f"blocks.{i}"
        x, w_in, b_in, extension = (
            self._joined[-1].inner,
            self.w[f"{at}.w_in"],
            to.get(f"{at}.b_in"),
            backend.load_extension(),
        )
        skip = grad if self.config.residual else None
        own = skip if self.places[2 * i + 1].is_stream else None
        along = None if own is not None else skip
        if by_unit is not None:
            of_z, of_out = torch.empty_like(hidden), torch.empty_like(by_unit)
            threads = threads_for(hidden, cost=3 * x.shape[1])
            extension.active_backward(hidden, grad, by_unit, x, of_z, of_out, to[f"{at}.w_in"], b_in, threads)
            to[f"{at}.w_out"].copy_(of_out.T)
            of_x = torch.empty_like(x)
            extension.active_forward(of_z, w_in, None, own, of_x, threads_for(hidden, cost=x.shape[1]))
            return of_x, along
        torch.mm(grad.T, hidden, out=to[f"{at}.w_out"])
        of_z = product(grad, self.w[f"{at}.w_out"].T)
        kept = hidden if slope is None else slope
        extension.activate_backward(of_z, kept, b_in, ACTIVATIONS[self.config.activation], threads_for(of_z))
        torch.mm(of_z.T, x, out=to[f"{at}.w_in"])
        return product(of_z, w_in.T, skip=own), along

    def _only_active(self, n_rows: int, w_in: Tensor) -> bool:
        """Whether the extension multiplies the hidden layer only where a unit is active."""
        if self.config.activation != "relu" or n_rows * w_in.numel() < WORTHWHILE:
            return False
        return backend.load_extension().active_products_fit(w_in.shape[1], len(w_in))


def _write_readers(x: Tensor, index: RowIndex, out: Tensor) -> None:
    """To each row of `out` the sum of the rows of x that read it, in their order."""
    backend.load_extension().sum_readers(x, *index.readers, out, threads_for(x))
