"""A linear layer of every model of an ensemble in Triton: tiles of its output, of the gradients of input and weights.

Tiles do not depend on the number of models. Gradients of weights are summed over the rows of one split after the other,
and over the splits in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.kernels import (
    adjacent,
    launch,
    load_tile,
    load_vector,
    matmul,
    matmul_over_rows,
    n_splits,
    slope,
    split_of_rows,
    store_tile,
    sum_splits,
)


@triton.jit
def linear_fwd_kernel(
    p_x, p_weight, p_bias, p_skip, p_own, p_y, n_rows, x_model, x_row, skip_model, skip_row, own_model,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, SKIP: tl.constexpr,
    OWN: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = act(x) weightᵀ + bias + skip[own]."""
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(2).to(tl.int64)
    p_x += i_model * x_model + i_row * x_row
    p_y += (i_model * n_rows + i_row) * D_OUT
    n_rows = (n_rows - i_row).to(tl.int32)
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    p_weight += i_model * D_IN * D_OUT
    y = matmul(p_x, rows, x_row, n_rows, p_weight, columns, D_IN, D_OUT, "nt", D_IN, BK, PRECISION, ACTIVATION)
    if BIAS:
        y += load_vector(p_bias + i_model * D_OUT, columns, D_OUT)[None, :]
    if SKIP:
        p_skip += i_model * skip_model
        mask = (rows < n_rows)[:, None] & (columns < D_OUT)[None, :]
        at = tl.load(p_own + i_model * own_model + i_row + rows, mask=rows < n_rows, other=0) if OWN else i_row + rows
        y += tl.load(p_skip + (at * skip_row)[:, None] + columns[None, :], mask=mask, other=0)
    store_tile(p_y, rows, columns, D_OUT, n_rows, D_OUT, y)


@triton.jit
def linear_bwd_x_kernel(
    p_grad, p_weight, p_skip, p_grad_x, n_rows, grad_model, grad_row, skip_model, skip_row,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, ACTIVATION: tl.constexpr, SKIP: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """grad_x = grad weight + skip; with an activation, whose input stands where skip would, grad weight · act'."""
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(2).to(tl.int64)
    p_grad += i_model * grad_model + i_row * grad_row
    p_grad_x += (i_model * n_rows + i_row) * D_IN
    n_rows = (n_rows - i_row).to(tl.int32)
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    p_weight += i_model * D_IN * D_OUT
    grad_x = matmul(p_grad, rows, grad_row, n_rows, p_weight, columns, D_IN, D_IN, "nn", D_OUT, BK, PRECISION)
    if SKIP:
        other = load_tile(p_skip + i_model * skip_model + i_row * skip_row, rows, columns, skip_row, n_rows, D_IN)
        if ACTIVATION == "identity":
            grad_x += other
        else:
            grad_x *= slope(other, ACTIVATION)
    store_tile(p_grad_x, rows, columns, D_IN, n_rows, D_IN, grad_x)


@triton.jit
def linear_bwd_weight_kernel(
    p_grad, p_x, p_grad_w, p_grad_b, n_rows, rows_per_split, n_models, grad_model, grad_row, x_model, x_row,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Partials of a split of rows: of the weights [splits, E, D_OUT, D_IN], and of the bias [splits, E, D_OUT]."""
    i_split, i_model, begin = split_of_rows(rows_per_split, n_models, 2)
    p_grad += i_model * grad_model + begin * grad_row
    p_x += i_model * x_model + begin * x_row
    n_rows = tl.minimum(n_rows - begin, rows_per_split).to(tl.int32)
    outputs, columns = tl.program_id(0) * BO + tl.arange(0, BO), tl.program_id(1) * BN + tl.arange(0, BN)
    grad_b, rows = tl.zeros([BO], tl.float32), tl.arange(0, BM)
    if BIAS:
        # In a loop of its own: of a tile that is used twice Triton keeps a copy too few, and on sm_90 a product that is
        # under way would read what the next copy brings.
        if tl.program_id(1) == 0:
            p_tile = p_grad
            for i_row in range(0, n_rows, BM):
                grad_b += tl.sum(load_tile(p_tile, rows, outputs, grad_row, n_rows - i_row, D_OUT), 0)
                p_tile += BM * grad_row
    grad_w = matmul_over_rows(
        p_grad, grad_row, outputs, D_OUT, p_x, x_row, columns, D_IN, n_rows, ACTIVATION, PRECISION, BM
    )
    i_partial = (i_split * n_models + i_model) * D_OUT
    store_tile(p_grad_w + i_partial * D_IN, outputs, columns, D_IN, D_OUT, D_IN, grad_w)
    if BIAS:
        if tl.program_id(1) == 0:
            tl.store(p_grad_b + i_partial + outputs, grad_b, mask=outputs < D_OUT)


def configuration(kernel: str, precision: str, d_in: int, d_out: int) -> dict[str, int]:
    """Tile sizes and warps; none of these spills. kernel: "fwd", "bwd_x" or "bwd_weight"."""
    exact = precision in ("ieee", "tf32x3")
    sizes = (
        {"BM": 32, "BO": 64, "BN": 64} if kernel == "bwd_weight" else {"BM": 64, "BN": 64, "BK": 16 if exact else 32}
    )
    if kernel == "bwd_weight" and exact:
        sizes["BM"] = 16
    limits = {"BO": d_out, "BN": d_out if kernel == "fwd" else d_in, "BK": d_out if kernel == "bwd_x" else d_in}
    fitted = {
        name: min(size, max(16, triton.next_power_of_2(limits[name]))) if name in limits else size
        for name, size in sizes.items()
    }
    return {**fitted, "num_warps": 8 if precision == "ieee" else 4}


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, own: Tensor | None, precision: str,
    activation: str = "identity",
) -> Tensor:  # fmt: skip
    """act(x) weightᵀ + bias + skip[own]: x [E, N, d], weight [E, o, d], bias [E, o], skip [E, K, o], own [E, N]."""
    (n_models, n_rows, d_in), d_out = x.shape, weight.shape[1]
    x, weight = adjacent(x), weight.contiguous()
    skip = None if skip is None else adjacent(skip)
    y = torch.empty(n_models, n_rows, d_out, dtype=torch.float32, device=x.device)
    tile = configuration("fwd", precision, d_in, d_out)
    launch(
        linear_fwd_kernel, (triton.cdiv(n_rows, tile["BM"]), triton.cdiv(d_out, tile["BN"]), n_models),
        x, weight, weight if bias is None else bias.contiguous(), x if skip is None else skip,
        x if own is None else own, y, n_rows, *x.stride()[:2], *((0, 0) if skip is None else skip.stride()[:2]),
        0 if own is None else own.stride(0),
        D_IN=d_in, D_OUT=d_out, ACTIVATION=activation, BIAS=bias is not None,
        SKIP=skip is not None, OWN=own is not None,
        PRECISION=precision, **tile,
    )  # fmt: skip
    return y


def backward_x(
    grad: Tensor, weight: Tensor, skip: Tensor | None, precision: str, activation: str = "identity"
) -> Tensor:
    """grad [E, N, o] times weight [E, o, d], plus skip [E, N, d]; or times act'(skip)."""
    (n_models, n_rows, d_out), d_in = grad.shape, weight.shape[2]
    grad, weight = adjacent(grad), weight.contiguous()
    grad_x = torch.empty(n_models, n_rows, d_in, dtype=torch.float32, device=grad.device)
    tile = configuration("bwd_x", precision, d_in, d_out)
    launch(
        linear_bwd_x_kernel, (triton.cdiv(n_rows, tile["BM"]), triton.cdiv(d_in, tile["BN"]), n_models),
        grad, weight, grad if skip is None else skip, grad_x, n_rows, *grad.stride()[:2],
        *((0, 0) if skip is None else skip.stride()[:2]),
        D_IN=d_in, D_OUT=d_out, ACTIVATION=activation, SKIP=skip is not None, PRECISION=precision, **tile,
    )  # fmt: skip
    return grad_x


def backward_weight(
    grad: Tensor, x: Tensor, with_bias: bool, precision: str, activation: str = "identity"
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the weights [E, o, d] and of the bias [E, o] from grad [E, N, o] and act(x), x [E, N, d]."""
    (n_models, n_rows, d_in), d_out = x.shape, grad.shape[2]
    grad, x = adjacent(grad), adjacent(x)
    tile = configuration("bwd_weight", precision, d_in, d_out)
    tiles = triton.cdiv(d_out, tile["BO"]), triton.cdiv(d_in, tile["BN"])
    splits = n_splits(n_rows, tiles=tiles[0] * tiles[1])
    of_w = torch.empty(splits, n_models, d_out, d_in, dtype=torch.float32, device=x.device)
    of_b = torch.empty(splits, n_models, d_out, dtype=torch.float32, device=x.device)
    launch(
        linear_bwd_weight_kernel, (*tiles, splits * n_models),
        grad, x, of_w, of_b, n_rows, triton.cdiv(n_rows, splits), n_models, *grad.stride()[:2], *x.stride()[:2],
        D_IN=d_in, D_OUT=d_out, ACTIVATION=activation, BIAS=with_bias, PRECISION=precision, **tile,
    )  # fmt: skip
    return sum_splits(of_w, torch.float32), sum_splits(of_b, torch.float32) if with_bias else None
