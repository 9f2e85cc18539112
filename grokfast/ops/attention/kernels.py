"""Attention over short sequences in Triton: a program holds a tile of whole (sequence, head)s.

With TP the power of two that T fits in, a tile of BR rows is BR / TP (sequence, head)s one under the other, and scores
between two of them are masked: products need 16 rows at least, and the sequences of grokking have 3 to 5. All scores of
a tile, [BR, BR], are in registers, so the backward needs q, k and v only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.configurations import tile_for
from grokfast.ops.kernels import INTERPRETED, adjacent, dot, launch, store_at


@triton.jit
def _load(p, at, columns, exists, DH: tl.constexpr):
    """[R, C] of the rows at offsets `at` [R] that exist; zero outside."""
    tile = tl.load(p + at[:, None] + columns[None, :], mask=exists[:, None] & (columns < DH)[None, :], other=0)
    return tile.to(tl.float32) if INTERPRETED else tile


@triton.jit
def _place(i_tile, rows, n_pairs, T: tl.constexpr, TP: tl.constexpr, BR: tl.constexpr):
    """(sequence, head) and position of a tile's rows [R], and which of them exist."""
    pair, t = i_tile.to(tl.int64) * (BR // TP) + rows // TP, rows % TP
    return pair, t, (pair < n_pairs) & (t < T)


@triton.jit
def _offsets(pair, t, batch, head, row, H: tl.constexpr):
    return pair // H * batch + pair % H * head + t * row


@triton.jit
def _store(p, at, columns, exists, DH: tl.constexpr, tile):
    store_at(p + at[:, None] + columns[None, :], exists[:, None] & (columns < DH)[None, :], tile)


@triton.jit
def _sees(rows, T: tl.constexpr, TP: tl.constexpr, CAUSAL: tl.constexpr):
    """Whether a query reads a key, [BR, BR]. Rows that do not exist see something, too: no softmax of nothing."""
    queries, keys = rows[:, None], rows[None, :]
    sees = (queries // TP == keys // TP) & (keys % TP < T)
    return sees & (keys <= queries) if CAUSAL else sees


@triton.jit
def _products(p_a, at_a, p_b, at_b, exists, DH: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    """[BR, BR] of A Bᵀ: scores, or what they get from the gradient."""
    acc = tl.zeros([at_a.shape[0], at_b.shape[0]], tl.float32)
    for i in range(0, DH, BK):
        inner = i + tl.arange(0, BK)
        a, b = _load(p_a, at_a, inner, exists, DH), _load(p_b, at_b, inner, exists, DH)
        acc = dot(a, tl.trans(b), acc, PRECISION)
    return acc


@triton.jit
def _softmax(scores, sees):
    """[BR, BR] along the keys that are seen."""
    scores = tl.where(sees, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return tl.where(sees, weights / tl.sum(weights, 1)[:, None], 0.0)  # NaN of one sequence stays there


@triton.jit
def _weighted_sum(weights, values, sees, PACKED: tl.constexpr, PRECISION: tl.constexpr):
    """weights values: [BR, BR] times [BR, C]. In a tile of many sequences NaN and Inf reach only those who see them."""
    zero = tl.zeros([weights.shape[0], values.shape[1]], tl.float32)
    if PACKED:
        is_finite = tl.abs(values.to(tl.float32)) < float("inf")
        is_bad = tl.max(tl.where(is_finite, 0, 1), 1)  # [BR]
        total = dot(weights, tl.where(is_finite, values, 0.0).to(values.dtype), zero, PRECISION)
        sees_bad = tl.max(tl.where(sees, is_bad[None, :], 0), 1)  # [BR]
        total = tl.where(sees_bad[:, None] > 0, float("nan"), total)
    else:
        total = dot(weights, values, zero, PRECISION)
    return total


@triton.jit
def attention_fwd_kernel(
    p_q, p_k, p_v, p_out, n_pairs, scale, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    H: tl.constexpr, T: tl.constexpr, DH: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    TP: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, BR)
    pair, t, exists = _place(tl.program_id(0), rows, n_pairs, T, TP, BR)
    at_q, at_k = _offsets(pair, t, q_batch, q_head, q_row, H), _offsets(pair, t, k_batch, k_head, k_row, H)
    at_v, at_out = _offsets(pair, t, v_batch, v_head, v_row, H), _offsets(pair, t, T * H * DH, DH, H * DH, H)
    sees = _sees(rows, T, TP, CAUSAL)
    weights = _softmax(_products(p_q, at_q, p_k, at_k, exists, DH, BK, PRECISION) * scale, sees)
    for i in range(0, DH, BK):
        columns = i + tl.arange(0, BK)
        out = _weighted_sum(weights, _load(p_v, at_v, columns, exists, DH), sees, BR > TP, PRECISION)
        _store(p_out, at_out, columns, exists, DH, out)


@triton.jit
def attention_bwd_kernel(
    p_grad, p_q, p_k, p_v, p_grad_q, p_grad_k, p_grad_v, n_pairs, scale,
    g_batch, g_head, g_row, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    H: tl.constexpr, T: tl.constexpr, DH: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    TP: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, BR)
    pair, t, exists = _place(tl.program_id(0), rows, n_pairs, T, TP, BR)
    at_q, at_k = _offsets(pair, t, q_batch, q_head, q_row, H), _offsets(pair, t, k_batch, k_head, k_row, H)
    at_v, at_g = _offsets(pair, t, v_batch, v_head, v_row, H), _offsets(pair, t, g_batch, g_head, g_row, H)
    at_out = _offsets(pair, t, T * H * DH, DH, H * DH, H)
    sees = _sees(rows, T, TP, CAUSAL)
    seen_by = tl.trans(sees.to(tl.int8)) != 0
    weights = _softmax(_products(p_q, at_q, p_k, at_k, exists, DH, BK, PRECISION) * scale, sees)
    grad_weights = tl.where(sees, _products(p_grad, at_g, p_v, at_v, exists, DH, BK, PRECISION), 0.0)
    grad_scores = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None])
    grad_scores = tl.where(sees, grad_scores * scale, 0.0)
    weights_t, grad_scores_t = tl.trans(weights), tl.trans(grad_scores)
    for i in range(0, DH, BK):
        columns = i + tl.arange(0, BK)
        grad_v = _weighted_sum(weights_t, _load(p_grad, at_g, columns, exists, DH), seen_by, BR > TP, PRECISION)
        _store(p_grad_v, at_out, columns, exists, DH, grad_v)
        grad_q = _weighted_sum(grad_scores, _load(p_k, at_k, columns, exists, DH), sees, BR > TP, PRECISION)
        _store(p_grad_q, at_out, columns, exists, DH, grad_q)
        grad_k = _weighted_sum(grad_scores_t, _load(p_q, at_q, columns, exists, DH), seen_by, BR > TP, PRECISION)
        _store(p_grad_k, at_out, columns, exists, DH, grad_k)


def configuration(precision: str, t: int, d_head: int) -> dict[str, int]:
    """Rows BR of a tile, TP of a sequence, head columns BK at a time, warps; none of these spills."""
    padded = triton.next_power_of_2(t)
    rows = max(16, padded)
    width = 16 if precision in ("ieee", "tf32x3") else 32
    tile = {
        "TP": padded,
        "BR": rows,
        "BK": min(width, max(16, triton.next_power_of_2(d_head))),
        "num_warps": {16: 1, 32: 4, 64: 8}[rows],
    }
    if precision in ("ieee", "tf32x3") and rows == 64:
        tile["maxnreg"] = 255  # left to itself, ptxas takes fewer and spills some
    elif precision == "ieee" and rows == 32:
        tile["maxnreg"] = 168
    return tile


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str) -> Tensor:
    """q, k, v [B, H, T, dh] -> out of the same shape, in memory [B, T, H, dh]."""
    _, heads, t, d_head = q.shape
    q, k, v = adjacent(q), adjacent(k), adjacent(v)
    out = _like(q)
    tile = _tile("fwd", q, precision)
    launch(
        attention_fwd_kernel, _grid(q, tile), q, k, v, out, q.shape[0] * heads, scale, *_strides(q, k, v),
        H=heads, T=t, DH=d_head, CAUSAL=causal, PRECISION=precision, **tile,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v [B, H, T, dh], in memory [B, T, H, dh]."""
    _, heads, t, d_head = q.shape
    grad, q, k, v = (adjacent(x) for x in (grad, q, k, v))
    grads = _like(q), _like(q), _like(q)
    tile = _tile("bwd", q, precision)
    launch(
        attention_bwd_kernel, _grid(q, tile), grad, q, k, v, *grads, q.shape[0] * heads, scale,
        *_strides(grad, q, k, v), H=heads, T=t, DH=d_head, CAUSAL=causal, PRECISION=precision, **tile,
    )  # fmt: skip
    return grads


def _like(q: Tensor) -> Tensor:
    batch, heads, t, d_head = q.shape
    return torch.empty(batch, t, heads, d_head, dtype=q.dtype, device=q.device).transpose(1, 2)


def _tile(kernel: str, q: Tensor, precision: str) -> dict[str, int]:
    batch, heads, t, d_head = q.shape
    own = configuration(precision, t, d_head)
    return tile_for(q, f"attention {kernel}", precision, (t, d_head), batch * heads, own)


def _grid(q: Tensor, tile: dict[str, int]) -> tuple[int]:
    return (triton.cdiv(q.shape[0] * q.shape[1], tile["BR"] // tile["TP"]),)


def _strides(*tensors: Tensor) -> list[int]:
    """Of sequence, head and row."""
    return [stride for t in tensors for stride in t.stride()[:3]]
