"""Layer normalisation in Triton: whole rows in a program, each direction one pass.

The backward makes mean and variance anew. Gradients of weight and bias are summed over the rows of one split after the
other, and over the splits in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.configurations import tile_for
from grokfast.ops.kernels import adjacent, launch, load_tile, load_vector, n_splits, store_tile, sum_splits


@triton.jit
def normalise_rows(x, rows, n_rows, columns, eps, D: tl.constexpr):
    """(x - mean) / √(variance + eps) of rows x [R, C], zero outside, and 1 / √(variance + eps) [R]."""
    centred = tl.where((columns < D)[None, :], x - (tl.sum(x, 1) / D)[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    scale = tl.where(rows < n_rows, scale, 0.0)  # eps may be 0
    return centred * scale[:, None], scale


@triton.jit
def layer_norm_fwd_kernel(
    p_x, p_weight, p_bias, p_out, n_rows, eps, x_model, x_row, weight_model, bias_model,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(1).to(tl.int64)
    p_x += i_model * x_model + i_row * x_row
    p_out += (i_model * n_rows + i_row) * D
    n_rows = (n_rows - i_row).to(tl.int32)
    rows, columns = tl.arange(0, BM), tl.arange(0, BD)
    x = load_tile(p_x, rows, columns, x_row, n_rows, D).to(tl.float32)
    normal, _ = normalise_rows(x, rows, n_rows, columns, eps, D)
    weight = load_vector(p_weight + i_model * weight_model, columns, D)
    out = normal * weight[None, :] + load_vector(p_bias + i_model * bias_model, columns, D)[None, :]
    store_tile(p_out, rows, columns, D, n_rows, D, out)


@triton.jit
def layer_norm_bwd_kernel(
    p_grad, p_x, p_weight, p_grad_x, p_of_weight, p_of_bias, n_rows, rows_per_split, n_models, eps,
    grad_model, grad_row, x_model, x_row, weight_model,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """grad_x, and of a split of rows partials of weight and bias [splits, E, D]."""
    i_split, i_model = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin = i_split.to(tl.int64) * rows_per_split
    p_grad += i_model * grad_model + begin * grad_row
    p_x += i_model * x_model + begin * x_row
    p_grad_x += (i_model * n_rows + begin) * D
    n_rows = tl.minimum(n_rows - begin, rows_per_split).to(tl.int32)
    rows, columns = tl.arange(0, BM), tl.arange(0, BD)
    weight = load_vector(p_weight + i_model * weight_model, columns, D)
    of_weight, of_bias = tl.zeros([BM, BD], tl.float32), tl.zeros([BM, BD], tl.float32)
    for i_row in range(0, n_rows, BM):
        left = n_rows - i_row
        x = load_tile(p_x, rows, columns, x_row, left, D).to(tl.float32)
        grad = load_tile(p_grad, rows, columns, grad_row, left, D).to(tl.float32)
        normal, scale = normalise_rows(x, rows, left, columns, eps, D)
        of_weight += grad * normal
        of_bias += grad
        grad *= weight[None, :]
        grad -= (tl.sum(grad, 1) / D)[:, None] + normal * (tl.sum(grad * normal, 1) / D)[:, None]
        store_tile(p_grad_x, rows, columns, D, left, D, grad * scale[:, None])
        p_x += BM * x_row
        p_grad += BM * grad_row
        p_grad_x += BM * D
    at = (i_split * n_models + i_model) * D + columns
    tl.store(p_of_weight + at, tl.sum(of_weight, 0), mask=columns < D)
    tl.store(p_of_bias + at, tl.sum(of_bias, 0), mask=columns < D)


def configuration(d: int) -> dict[str, int]:
    """Rows BM and columns BD of a tile, warps; none of these spills."""
    columns = max(16, triton.next_power_of_2(d))
    return {"BM": max(1, min(32, 2048 // columns)), "BD": columns, "num_warps": 4 if columns <= 2048 else 8}


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [E, N, d], weight [E, d], bias [E, d] -> [E, N, d]."""
    n_models, n_rows, d = x.shape
    x, weight, bias = adjacent(x), adjacent(weight), adjacent(bias)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = tile_for(x, "layer_norm fwd", "fp32", (d,), n_rows, configuration(d))
    launch(
        layer_norm_fwd_kernel, (triton.cdiv(n_rows, tile["BM"]), n_models), x, weight, bias, out, n_rows, eps,
        x.stride(0), x.stride(1), weight.stride(0), bias.stride(0), D=d, **tile,
    )  # fmt: skip
    return out


def backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    n_models, n_rows, d = x.shape
    grad, x, weight = adjacent(grad), adjacent(x), adjacent(weight)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = tile_for(x, "layer_norm bwd", "fp32", (d,), n_rows, configuration(d))
    splits = n_splits(n_rows, tiles=1, at_least=2 * tile["BM"])
    of_weight, of_bias = (torch.empty(splits, n_models, d, dtype=torch.float32, device=x.device) for _ in range(2))
    launch(
        layer_norm_bwd_kernel, (splits, n_models), grad, x, weight, grad_x, of_weight, of_bias,
        n_rows, triton.cdiv(n_rows, splits), n_models, eps,
        grad.stride(0), grad.stride(1), x.stride(0), x.stride(1), weight.stride(0), D=d, **tile,
    )  # fmt: skip
    return grad_x, sum_splits(of_weight, x.dtype), sum_splits(of_bias, x.dtype)
