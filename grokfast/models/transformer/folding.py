"""A one-layer transformer without LayerNorm with everything linear folded: tables straight to hidden units and logits.

What goes into the MLP is the query's row of the residual stream and Σ_h Σ_t w[h, t] (V_h W_O,h)[key], linear in the
attention's weights w; so its units' inputs are mixed of rows of tables V_h W_O,h W_in, and what goes past the MLP is
mixed of rows of V_h W_O,h U. Hidden units go to the logits through M = W_out U. All of it is exact.
A key that all rows have in common is in none of the mixtures: the weights of a head sum up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from grokfast import backend
from grokfast.models.transformer.model import TransformerConfig
from grokfast.models.transformer.plan import Plan
from grokfast.ops.rows import RowIndex, sum_readers

PADDING = 16  # floats in a vector


@dataclass(frozen=True, eq=False)
class FoldedRows:
    """A batch for a folded model.

    tokens, positions: [K], of each key. first: keys from here on are those of the position that is read.
    keys: [R, S] of each row, without the common one. query: [R], counted from `first`; None: there is one.
    common: a key of every row; None: there is none. order: [R], which row of the batch each is: those that share their
    first key lie together.
    """

    tokens: RowIndex
    positions: RowIndex
    first: int
    keys: RowIndex
    query: Tensor | None
    common: int | None
    order: Tensor

    @classmethod
    def of(cls, plan: Plan, n_tokens: int, batch: Tensor | None = None) -> FoldedRows:
        """The data set's rows `batch` [B], None: all of them, of a vocabulary of so many tokens."""
        rows = plan.rows(batch)
        (layer,) = rows.layers
        keys, query = layer.keys.index, None if layer.query is None else layer.query.index
        if rows.output is not None:  # each row of the batch, not each distinct one
            keys = keys[rows.output.index]
            query = None if query is None else query[rows.output.index]
        column, common = plan.common_position, None
        if column is not None:
            common = int(keys[0, column])
            keys = torch.cat([keys[:, :column], keys[:, column + 1 :]], 1)
        order = keys[:, 0].argsort(stable=True) if keys.shape[1] else torch.arange(len(keys))
        own = order if query is None else query[order]
        query = own if layer.keys.n_rows - layer.first > 1 else None
        tokens = RowIndex.trusted(rows.pairs[:, 0], n_tokens)
        positions = RowIndex.trusted(rows.pairs[:, 1], plan.tokens.shape[1])
        own_keys = RowIndex.trusted(keys[order], layer.keys.n_rows)
        return cls(tokens, positions, layer.first, own_keys, query, common, order)

    @property
    def n_queries(self) -> int:
        return self.keys.n_rows - self.first


@dataclass(frozen=True, eq=False)
class Folded:
    """The tables, of K keys and Q queries: what `fold` makes of a model's parameters.

    x: [K, d], rows of the residual stream. qkv: [K, 3d]. out: [d + ..., d], rows of w_in and the unembedding, and rows
    of zeros up to a multiple of 16. inner: [d, W], W_O with `out`. tables: [H, K, W]. scores: [Q, K, H].
    base: [Q, W]. to_logits: [units, C], M, C with the zeros.
    """

    x: Tensor
    qkv: Tensor
    out: Tensor
    inner: Tensor
    tables: Tensor
    scores: Tensor
    base: Tensor
    to_logits: Tensor


def fold(config: TransformerConfig, w: Mapping[str, Tensor], rows: FoldedRows) -> Folded:
    """The tables of a model; differentiable.

    w: its parameters, those of the layer without their prefix, and whatever it has not as a parameter: "positions", and
    the "unembedding".
    """
    d, heads, units = config.d_model, config.n_heads, config.d_mlp
    x = F.embedding(rows.tokens.index, w["embedding"]) + F.embedding(rows.positions.index, w["positions"])
    own = x[rows.first :]
    qkv = F.linear(x, w["w_qkv"], w.get("b_qkv"))
    q, k, v = _of_heads(qkv, heads)
    scores = (q[:, rows.first :] @ k.mT / math.sqrt(d // heads)).permute(1, 2, 0)
    unembedding = w["unembedding"]
    out = torch.cat([w["w_in"], unembedding, unembedding.new_zeros(-len(unembedding) % PADDING, d)])
    inner = w["w_o"].T @ out.T
    v, of_common = _from_common(v, rows)
    tables = v @ inner.view(heads, d // heads, -1)
    base = (own if "b_o" not in w else own + w["b_o"]) @ out.T
    if "b_in" in w:
        base = base + torch.cat([w["b_in"], out[units:] @ w["b_out"]])
    if of_common is not None:
        base = base + _share(config, rows) * (of_common[:, None] * inner).sum(0)
    to_logits = w["w_out"].T @ out[units:].T
    return Folded(x, qkv, out, inner, tables.contiguous(), scores.contiguous(), base.contiguous(), to_logits)


def unfold(
    config: TransformerConfig,
    w: Mapping[str, Tensor],
    rows: FoldedRows,
    folded: Folded,
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
    to: Mapping[str, Tensor],
) -> None:
    """Write the gradients of the parameters to `to`, of those of tables, scores, base and M."""
    of_tables, of_scores, of_base, of_logits = grads
    d, heads, units = config.d_model, config.n_heads, config.d_mlp
    x, out, total = folded.x, folded.out, of_base.sum(0)  # [W]
    own = x[rows.first :]
    torch.mm(out[units:].T, of_logits.T, out=to["w_out"])
    of_out = of_base.T @ (own if "b_o" not in w else own + w["b_o"])  # [W, d]
    of_out[units:].addmm_(of_logits.T, w["w_out"].T)
    # MKL splits the sum of a single row over threads: other bits on another number of them.
    of_own = of_base @ out if len(of_base) > 1 else (of_base.T * out).sum(0, keepdim=True)  # [Q, d]
    if "b_o" in w:
        torch.sum(of_own, 0, out=to["b_o"])
    if "b_in" in w:
        to["b_in"].copy_(total[:units])
        torch.mv(out[units:].T, total[units:], out=to["b_out"])
        of_out[units:].addr_(total[units:], w["b_out"])
    q, k, v = _of_heads(folded.qkv, heads)
    of_qkv = torch.zeros_like(folded.qkv)
    of_q, of_k, of_v = _of_heads(of_qkv, heads)
    v, of_common = _from_common(v, rows)
    of_v.copy_(of_tables @ folded.inner.view(heads, d // heads, -1).mT)
    of_inner = (v.mT @ of_tables).view(d, -1)  # [d, W]
    if of_common is not None:
        share = _share(config, rows) * total
        of_v[:, rows.common] = (folded.inner * share).sum(1).view(heads, -1) - of_v.sum(1)
        of_inner.addr_(of_common, share)
    torch.mm(out.T, of_inner.T, out=to["w_o"])
    of_out.addmm_(of_inner.T, w["w_o"].T)
    g = of_scores.permute(2, 0, 1) / math.sqrt(d // heads)  # [H, Q, K]
    q = q[:, rows.first :]
    is_single = q.shape[1] == 1  # products of a single row or column cost more than they do
    of_q[:, rows.first :] = (g.mT * k).sum(1, keepdim=True) if is_single else g @ k
    of_k.copy_(g.mT * q if is_single else g.mT @ q)
    torch.mm(of_qkv.T, x, out=to["w_qkv"])
    if "b_qkv" in w:
        torch.sum(of_qkv, 0, out=to["b_qkv"])
    of_x = of_qkv @ w["w_qkv"]
    of_x[rows.first :] += of_own
    _sum_readers(of_x, rows.tokens, to["embedding"])
    if "positions" in to:
        to["positions"].zero_()
        _sum_readers(of_x, rows.positions, to["positions"][: rows.positions.n_rows])
    n_outputs = len(w["unembedding"])
    to["w_in"].copy_(of_out[:units])
    if config.tied:
        to["embedding"][:n_outputs] += of_out[units : units + n_outputs]
    else:
        to["unembedding"].copy_(of_out[units : units + n_outputs])


def _of_heads(qkv: Tensor, heads: int) -> list[Tensor]:
    """[K, 3d] as queries, keys and values [H, K, d_head], views."""
    return [part.unflatten(1, (heads, -1)).transpose(0, 1) for part in qkv.chunk(3, 1)]


def _from_common(v: Tensor, rows: FoldedRows) -> tuple[Tensor, Tensor | None]:
    """Values [H, K, d_head] counted from those of the common key, and these [d]; as they are where there is none."""
    if rows.common is None:
        return v, None
    common = v[:, rows.common].clone()
    return v - common[:, None], common.flatten()


def _sum_readers(x: Tensor, index: RowIndex, out: Tensor) -> None:
    """Write to each row of `out` the sum of the rows of x that read it, in their order."""
    if backend.extension() is not None and backend.plain(x):
        out.copy_(sum_readers(x, index))
    else:
        out.zero_().index_add_(0, index.index, x)


def _share(config: TransformerConfig, rows: FoldedRows) -> float:
    """What the weights of a head sum up to, over all keys of a row."""
    return config.attention_rate + (1 - config.attention_rate) * (rows.keys.shape[1] + 1)
