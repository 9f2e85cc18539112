"""Gathers of pairs of rows in Triton, and the way back: the sum over the pairs that read a row, in their order.

A pair outside of the tables gives NaN. Where a row has many readers their sum is made in parts, and over the parts in
their order. The activation's input is worked out again from the tables in the backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.configurations import tile_for
from grokfast.ops.kernels import (
    activate,
    adjacent,
    launch,
    load_vector,
    n_splits,
    slope,
    store_tile,
    sum_rows,
    sum_splits,
)


@triton.jit
def pair_embed_fwd_kernel(
    p_a, p_b, p_pairs, p_bias, p_out, n_rows, n_a, n_b,
    a_model, b_model, bias_model, pairs_model, pairs_row, pairs_side,
    H: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(2).to(tl.int64)
    p_pairs += i_model * pairs_model + i_row * pairs_row
    p_out += (i_model * n_rows + i_row) * H
    n_rows = (n_rows - i_row).to(tl.int32)
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BH + tl.arange(0, BH)
    a = tl.load(p_pairs + rows * pairs_row, mask=rows < n_rows, other=0)
    b = tl.load(p_pairs + rows * pairs_row + pairs_side, mask=rows < n_rows, other=0)
    is_pair = (a >= 0) & (a < n_a) & (b >= 0) & (b < n_b)
    mask = is_pair[:, None] & (columns < H)[None, :]
    z = tl.load(p_a + i_model * a_model + a[:, None] * H + columns[None, :], mask=mask, other=0).to(tl.float32)
    z += tl.load(p_b + i_model * b_model + b[:, None] * H + columns[None, :], mask=mask, other=0).to(tl.float32)
    if BIAS:
        z += load_vector(p_bias + i_model * bias_model, columns, H)[None, :]
    out = tl.where(is_pair[:, None], activate(z, ACTIVATION), float("nan"))
    store_tile(p_out, rows, columns, H, n_rows, H, out)


@triton.jit(do_not_specialize=["n_models", "start_model", "items_model"])  # the same code for any number of models
def pair_embed_bwd_kernel(
    p_grad, p_own, p_other, p_index, p_bias, p_start, p_items, p_partial, n_own, n_other, n_models, n_splits,
    grad_model, grad_row, own_model, other_model, bias_model, index_model, index_row, start_model, items_model,
    H: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Of a table: partials [splits, E, n_own, H]. `index` is the row of the other table that each pair reads."""
    i_key, i_split = tl.program_id(0), tl.program_id(2) // n_models
    i_model = (tl.program_id(2) % n_models).to(tl.int64)
    p_grad += i_model * grad_model
    p_items += i_model * items_model
    p_index += i_model * index_model
    p_other += i_model * other_model
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BH + tl.arange(0, BH)
    first = tl.load(p_start + i_model * start_model + i_key)
    last = tl.load(p_start + i_model * start_model + i_key + 1)
    per_split = (last - first + n_splits - 1) // n_splits
    begin = (first + i_split * per_split).to(tl.int32)
    end = tl.minimum(begin + per_split, last).to(tl.int32)
    own = load_vector(p_own + i_model * own_model + i_key.to(tl.int64) * H, columns, H)
    if BIAS:
        own += load_vector(p_bias + i_model * bias_model, columns, H)
    acc = tl.zeros([BM, BH], tl.float32)
    for i in range(begin, end, BM):
        item = tl.load(p_items + i + rows, mask=i + rows < end, other=0)
        mask = (i + rows < end)[:, None] & (columns < H)[None, :]
        grad = tl.load(p_grad + item[:, None] * grad_row + columns[None, :], mask=mask, other=0).to(tl.float32)
        if ACTIVATION != "identity":
            other = tl.load(p_index + item * index_row, mask=i + rows < end, other=0)
            mask &= ((other >= 0) & (other < n_other))[:, None]
            z = tl.load(p_other + other[:, None] * H + columns[None, :], mask=mask, other=0).to(tl.float32)
            grad *= slope(z + own[None, :], ACTIVATION)
        acc += grad
    p_partial += ((i_split * n_models + i_model) * n_own + i_key) * H
    tl.store(p_partial + columns, tl.sum(acc, 0), mask=columns < H)


def configuration(width: int) -> dict[str, int]:
    """Rows BM and columns BH of a tile, warps."""
    columns = min(128, max(16, triton.next_power_of_2(width)))
    return {"BM": 2048 // columns if columns > 32 else 64, "BH": columns, "num_warps": 4}


def forward(w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """w_a [E, A, H], w_b [E, B, H], pairs [E, N, 2], bias [E, H] -> [E, N, H]."""
    n_models, n_rows, _ = pairs.shape
    width = w_a.shape[2]
    w_a, w_b, bias = _dense(w_a), _dense(w_b), None if bias is None else _dense(bias)
    out = torch.empty(n_models, n_rows, width, dtype=w_a.dtype, device=w_a.device)
    tile = tile_for(w_a, "pair_embed fwd", "fp32", (width,), n_rows, configuration(width))
    launch(
        pair_embed_fwd_kernel, (triton.cdiv(n_rows, tile["BM"]), triton.cdiv(width, tile["BH"]), n_models),
        w_a, w_b, pairs, w_a if bias is None else bias, out, n_rows, w_a.shape[1], w_b.shape[1],
        w_a.stride(0), w_b.stride(0), 0 if bias is None else bias.stride(0), *pairs.stride(),
        H=width, ACTIVATION=activation, BIAS=bias is not None, **tile,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, w_a: Tensor, w_b: Tensor, pairs: Tensor, bias: Tensor | None, readers: list[Tensor],
    activation: str, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of w_a, w_b and bias; empty where `wanted` is False."""
    n_models, n_rows, _ = pairs.shape
    width = w_a.shape[2]
    grad, w_a, w_b, bias = adjacent(grad), _dense(w_a), _dense(w_b), None if bias is None else _dense(bias)
    tile = tile_for(w_a, "pair_embed bwd", "fp32", (width,), n_rows, configuration(width))
    column_tiles = triton.cdiv(width, tile["BH"])
    sides = (w_a, w_b, pairs[..., 1], *readers[:2]), (w_b, w_a, pairs[..., 0], *readers[2:])
    sums: dict[int, Tensor] = {}
    for i, (own, other, index, start, items) in enumerate(sides):
        if not (wanted[i] or (wanted[2] and i == 0)):
            continue
        n_own = own.shape[1]
        splits = n_splits(n_rows // max(n_own, 1), tiles=max(n_own, 1) * column_tiles)
        partial = torch.empty(splits, n_models, n_own, width, dtype=torch.float32, device=own.device)
        launch(
            pair_embed_bwd_kernel, (n_own, column_tiles, splits * n_models),
            grad, own, other, index, own if bias is None else bias, start, items, partial,
            n_own, other.shape[1], n_models, splits, grad.stride(0), grad.stride(1), own.stride(0), other.stride(0),
            0 if bias is None else bias.stride(0), *index.stride(), start.stride(0), items.stride(0),
            H=width, ACTIVATION=activation, BIAS=bias is not None, **tile,
        )  # fmt: skip
        sums[i] = sum_splits(partial, torch.float32)
    of_bias = sum_rows(sums[0]) if wanted[2] else None  # every pair reads one row of w_a
    kept = sums.get(0) if wanted[0] else None, sums.get(1), of_bias
    of_a, of_b, of_bias = (w_a.new_empty(0) if t is None else t.to(w_a.dtype) for t in kept)
    return of_a, of_b, of_bias


def _dense(t: Tensor) -> Tensor:
    """`t`, or a copy where a model's numbers are not one after the other."""
    return t if t[0].is_contiguous() else t.contiguous()
