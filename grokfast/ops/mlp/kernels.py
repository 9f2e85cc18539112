"""The MLP in Triton: a tile of rows forward, backward to x, and a tile of hidden units backward to the weights.

The hidden layer exists in blocks of BH units only and is made anew in both backward kernels. Gradients of weights are
summed over the rows of one split after the other, and over the splits in their order.
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
    dot,
    launch,
    load_tile,
    load_vector,
    matmul,
    n_splits,
    slope,
    split_of_rows,
    store_tile,
    sum_splits,
)


@triton.jit
def mlp_fwd_kernel(
    p_x, p_w_in, p_b_in, p_w_out, p_b_out, p_y, n_rows, x_model, x_row,
    D_IN: tl.constexpr, HIDDEN: tl.constexpr, D_OUT: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    BIAS_IN: tl.constexpr, BIAS_OUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(2).to(tl.int64)
    p_x += i_model * x_model + i_row * x_row
    p_y += (i_model * n_rows + i_row) * D_OUT
    p_w_in += i_model * HIDDEN * D_IN
    p_w_out += i_model * HIDDEN * D_OUT
    n_rows = (n_rows - i_row).to(tl.int32)
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros([BM, BD], tl.float32)
    for i_hidden in range(0, HIDDEN, BH):
        units = i_hidden + tl.arange(0, BH)
        z = matmul(p_x, rows, x_row, n_rows, p_w_in, units, D_IN, HIDDEN, "nt", D_IN, BK, PRECISION)  # [BM, BH]
        if BIAS_IN:
            z += load_vector(p_b_in + i_model * HIDDEN, units, HIDDEN)[None, :]
        w_out = load_tile(p_w_out, columns, units, HIDDEN, D_OUT, HIDDEN)  # [BD, BH]
        acc = dot(activate(z, ACTIVATION), tl.trans(w_out), acc, PRECISION)
    if BIAS_OUT:
        acc += load_vector(p_b_out + i_model * D_OUT, columns, D_OUT)[None, :]
    if RESIDUAL:
        acc += load_tile(p_x, rows, columns, x_row, n_rows, D_OUT)
    store_tile(p_y, rows, columns, D_OUT, n_rows, D_OUT, acc)


@triton.jit
def mlp_bwd_data_kernel(
    p_grad, p_x, p_w_in, p_b_in, p_w_out, p_grad_x, n_rows, grad_model, grad_row, x_model, x_row,
    D_IN: tl.constexpr, HIDDEN: tl.constexpr, D_OUT: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    BIAS_IN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(2).to(tl.int64)
    p_grad += i_model * grad_model + i_row * grad_row
    p_x += i_model * x_model + i_row * x_row
    p_grad_x += (i_model * n_rows + i_row) * D_IN
    p_w_in += i_model * HIDDEN * D_IN
    p_w_out += i_model * HIDDEN * D_OUT
    n_rows = (n_rows - i_row).to(tl.int32)
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros([BM, BD], tl.float32)
    for i_hidden in range(0, HIDDEN, BH):
        units = i_hidden + tl.arange(0, BH)
        z = matmul(p_x, rows, x_row, n_rows, p_w_in, units, D_IN, HIDDEN, "nt", D_IN, BK, PRECISION)  # [BM, BH]
        if BIAS_IN:
            z += load_vector(p_b_in + i_model * HIDDEN, units, HIDDEN)[None, :]
        grad_z = matmul(p_grad, rows, grad_row, n_rows, p_w_out, units, HIDDEN, HIDDEN, "nn", D_OUT, BK, PRECISION)
        grad_z *= slope(z, ACTIVATION)
        w_in = load_tile(p_w_in, units, columns, D_IN, HIDDEN, D_IN)  # [BH, BD]
        acc = dot(grad_z, w_in, acc, PRECISION)
    if RESIDUAL:
        acc += load_tile(p_grad, rows, columns, grad_row, n_rows, D_IN)
    store_tile(p_grad_x, rows, columns, D_IN, n_rows, D_IN, acc)


@triton.jit
def mlp_bwd_weights_kernel(
    p_grad, p_x, p_w_in, p_b_in, p_w_out, p_grad_w, p_grad_b,
    n_rows, rows_per_split, n_models, grad_model, grad_row, x_model, x_row,
    D_IN: tl.constexpr, HIDDEN: tl.constexpr, D_OUT: tl.constexpr, ACTIVATION: tl.constexpr,
    BIAS_IN: tl.constexpr, INPUT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Partials of a split of rows: of w_in, and of b_in [splits, E, HIDDEN]; unless INPUT, of w_out, transposed.

    Those of a matrix are [splits, E, HIDDEN, D]. Both in one kernel need more registers than there are.
    """
    i_split, i_model, begin = split_of_rows(rows_per_split, n_models, 2)
    p_grad += i_model * grad_model + begin * grad_row
    p_x += i_model * x_model + begin * x_row
    p_w_in += i_model * HIDDEN * D_IN
    p_w_out += i_model * HIDDEN * D_OUT
    n_rows = tl.minimum(n_rows - begin, rows_per_split).to(tl.int32)
    units, columns = tl.program_id(0) * BH + tl.arange(0, BH), tl.program_id(1) * BD + tl.arange(0, BD)
    grad_w, grad_b = tl.zeros([BH, BD], tl.float32), tl.zeros([BH], tl.float32)
    for i_row in range(0, n_rows, BM):
        rows = tl.arange(0, BM)
        left = n_rows - i_row
        z = matmul(p_w_in, units, D_IN, HIDDEN, p_x, rows, x_row, left, "nt", D_IN, BK, PRECISION)  # [BH, BM]
        if BIAS_IN:
            z += load_vector(p_b_in + i_model * HIDDEN, units, HIDDEN)[:, None]
        if INPUT:
            a = matmul(p_w_out, units, HIDDEN, HIDDEN, p_grad, rows, grad_row, left, "tt", D_OUT, BK, PRECISION)
            a *= slope(z, ACTIVATION)  # zero below the last row
            grad_b += tl.sum(a, 1)
            b = load_tile(p_x, rows, columns, x_row, left, D_IN)  # [BM, BD]
        else:
            a = activate(z, ACTIVATION)
            b = load_tile(p_grad, rows, columns, grad_row, left, D_OUT)
        grad_w = dot(a, b, grad_w, PRECISION)
        p_x += BM * x_row
        p_grad += BM * grad_row
    i_partial = (i_split * n_models + i_model) * HIDDEN
    D: tl.constexpr = D_IN if INPUT else D_OUT
    store_tile(p_grad_w + i_partial * D, units, columns, D, HIDDEN, D, grad_w)
    if INPUT and BIAS_IN:
        if tl.program_id(1) == 0:
            tl.store(p_grad_b + i_partial + units, grad_b, mask=units < HIDDEN)


def configuration(kernel: str, precision: str, d_in: int, hidden: int, d_out: int) -> dict[str, int]:
    """Rows BM, hidden units BH and columns BD of a tile, steps BK of the inner products, warps; none of these spills.

    kernel: "fwd", "bwd_data", "bwd_w_in" or "bwd_w_out".
    """
    is_rows = kernel in ("fwd", "bwd_data")
    if precision == "ieee":
        rows, units, step = 32, 32, 16 if kernel == "bwd_w_in" else 32
    elif precision == "tf32x3":
        rows, units, step = (64, 32, 16) if is_rows else (32, 32, 16)
    else:
        rows, units, step = (64, 64, 32) if is_rows else (32, 64, 32)
    width, narrowest = max(d_in, d_out), 16
    tile = {
        "BM": rows,
        "BH": min(units, max(narrowest, triton.next_power_of_2(hidden))),
        "BK": min(step, max(narrowest, triton.next_power_of_2(width))),
        "BD": min(128, max(narrowest, triton.next_power_of_2(width))),
        "num_warps": 8,
    }
    if kernel == "bwd_w_in" and precision == "ieee":
        tile["maxnreg"] = 192  # left to itself, ptxas takes fewer and spills some
    return tile


def forward(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None,
    activation: str, residual: bool, precision: str,
) -> Tensor:  # fmt: skip
    """x [E, N, d] -> [E, N, o]."""
    (n_models, n_rows, d_in), (_, d_out, hidden) = x.shape, w_out.shape
    x, w_in, w_out = adjacent(x), w_in.contiguous(), w_out.contiguous()
    y = torch.empty(n_models, n_rows, d_out, dtype=x.dtype, device=x.device)
    tile = _tile("fwd", x, w_out, precision)
    launch(
        mlp_fwd_kernel,
        (triton.cdiv(n_rows, tile["BM"]), triton.cdiv(d_out, tile["BD"]), n_models),
        x, w_in, _or(b_in, w_in), w_out, _or(b_out, w_out), y, n_rows, x.stride(0), x.stride(1),
        D_IN=d_in, HIDDEN=hidden, D_OUT=d_out, ACTIVATION=activation, RESIDUAL=residual,
        BIAS_IN=b_in is not None, BIAS_OUT=b_out is not None, PRECISION=precision, **tile,
    )  # fmt: skip
    return y


def backward(
    grad: Tensor, x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor,
    activation: str, residual: bool, precision: str, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w_in, b_in, w_out; empty where `wanted` (x, w_in or b_in, w_out) is False."""
    (n_models, n_rows, d_in), (_, d_out, hidden) = x.shape, w_out.shape
    x, grad, w_in, w_out = adjacent(x), adjacent(grad), w_in.contiguous(), w_out.contiguous()
    strides = grad.stride(0), grad.stride(1), x.stride(0), x.stride(1)
    tensors = grad, x, w_in, _or(b_in, w_in), w_out
    constants = {
        "D_IN": d_in, "HIDDEN": hidden, "D_OUT": d_out, "ACTIVATION": activation, "BIAS_IN": b_in is not None,
        "PRECISION": precision,
    }  # fmt: skip
    grad_x, grad_w_in, grad_b_in, grad_w_out = (x.new_empty(0) for _ in range(4))
    if wanted[0]:
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        tile = _tile("bwd_data", x, w_out, precision)
        grid = triton.cdiv(n_rows, tile["BM"]), triton.cdiv(d_in, tile["BD"]), n_models
        launch(mlp_bwd_data_kernel, grid, *tensors, grad_x, n_rows, *strides, RESIDUAL=residual, **constants, **tile)
    for name, is_wanted, width in (("bwd_w_in", wanted[1], d_in), ("bwd_w_out", wanted[2], d_out)):
        if not is_wanted:
            continue
        tile = _tile(name, x, w_out, precision)
        tiles = triton.cdiv(hidden, tile["BH"]), triton.cdiv(width, tile["BD"])
        splits = n_splits(n_rows, tiles=tiles[0] * tiles[1])
        of_w = torch.empty(splits, n_models, hidden, width, dtype=torch.float32, device=x.device)
        of_b = torch.empty(splits, n_models, hidden, dtype=torch.float32, device=x.device)
        rows_per_split = triton.cdiv(n_rows, splits)
        launch(
            mlp_bwd_weights_kernel, (*tiles, splits * n_models), *tensors, of_w, of_b,
            n_rows, rows_per_split, n_models, *strides, INPUT=name == "bwd_w_in", **constants, **tile,
        )  # fmt: skip
        if name == "bwd_w_in":
            grad_w_in = sum_splits(of_w, x.dtype)
            grad_b_in = grad_b_in if b_in is None else sum_splits(of_b, x.dtype)
        else:
            grad_w_out = sum_splits(of_w, x.dtype).mT.contiguous()
    return grad_x, grad_w_in, grad_b_in, grad_w_out


def _tile(kernel: str, x: Tensor, w_out: Tensor, precision: str) -> dict[str, int]:
    (_, n_rows, d_in), (_, d_out, hidden) = x.shape, w_out.shape
    own = configuration(kernel, precision, d_in, hidden, d_out)
    return tile_for(x, f"mlp {kernel}", precision, (d_in, hidden, d_out), n_rows, own)


def _or(bias: Tensor | None, other: Tensor) -> Tensor:
    """What a kernel that reads no bias gets in its place."""
    return other if bias is None else bias.contiguous()
