"""What the Triton kernels of all operations share: products at a chosen precision, activations, tiles, a launch.

Matrices have adjacent columns; whatever lies outside of one reads as zero and is not written. Sums are in fp32. Offsets
within a tile are of 32 bits, so kernels move the pointer to their first row, which costs fewer registers.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 128  # about a GPU's processors: as many programs sum the rows of one model
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def to_bf16(x):
    """The nearest bf16 number, ties to even; as fp32 in the interpreter, which cuts off and has no bf16 products."""
    if INTERPRETED:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = tl.where(x == x, bits.to(tl.float32, bitcast=True), x.to(tl.float32))
    else:
        rounded = x.to(tl.bfloat16)
    return rounded


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b: a [M, K], b [K, N], acc [M, N]."""
    if PRECISION == "bf16":
        acc = tl.dot(to_bf16(a), to_bf16(b), acc)
    elif PRECISION == "fp16":
        acc = tl.dot(a.to(tl.float16), b.to(tl.float16), acc)
    else:
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    return acc


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        a = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "square":
        a = z * z
    elif ACTIVATION == "squared_relu":
        a = tl.where(z < 0, 0.0, z * z)  # NaN stays NaN
    elif ACTIVATION == "relu":
        a = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "abs":
        a = tl.abs(z)
    else:
        a = z
    return a


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The derivative of `activate`."""
    if ACTIVATION == "gelu":
        s = 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == "square":
        s = 2 * z
    elif ACTIVATION == "squared_relu":
        s = tl.where(z < 0, 0.0, 2 * z)
    elif ACTIVATION == "relu":
        s = tl.where(z <= 0, 0.0, 1.0)
    elif ACTIVATION == "abs":
        s = tl.where(z < 0, -1.0, tl.where(z > 0, 1.0, 0.0))
    else:
        s = tl.full(z.shape, 1.0, tl.float32)
    return s


@triton.jit
def load_tile(p, rows, columns, stride, n_rows, n_columns):
    """[R, C] at rows [R] and columns [C]."""
    mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    tile = tl.load(p + rows[:, None] * stride + columns[None, :], mask=mask, other=0)
    return tile.to(tl.float32) if INTERPRETED else tile


@triton.jit
def load_vector(p, at, n):
    """fp32 [R] at indices [R] below n, zero elsewhere."""
    return tl.load(p + at, mask=at < n, other=0).to(tl.float32)


@triton.jit
def store_at(pointers, mask, tile):
    """Round a tile to the type of the memory and write it."""
    if pointers.dtype.element_ty == tl.bfloat16:
        tile = to_bf16(tile)
    tl.store(pointers, tile.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def store_tile(p, rows, columns, stride, n_rows, n_columns, tile):
    """Write a tile [R, C] of a matrix."""
    mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    store_at(p + rows[:, None] * stride + columns[None, :], mask, tile)


@triton.jit
def matmul(
    p_a, rows, a_stride, n_rows, p_b, columns, b_stride, n_columns, FORM: tl.constexpr,
    K: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, ACTIVATION: tl.constexpr = tl.constexpr("identity"),
):  # fmt: skip
    """[R, C] of act(A) B, BK of the K at a time, where act(0) = 0.

    FORM: what memory holds, "nn" A [n_rows, K] and B [K, n_columns], "nt" A and Bᵀ, "tt" Aᵀ and Bᵀ.
    """
    acc = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for k in range(0, K, BK):
        inner = k + tl.arange(0, BK)
        if FORM == "tt":
            a = load_tile(p_a, inner, rows, a_stride, K, n_rows)  # [BK, R]
        else:
            a = load_tile(p_a, rows, inner, a_stride, n_rows, K)  # [R, BK]
        a = activate(a, ACTIVATION)
        if FORM == "nn":
            b = load_tile(p_b, inner, columns, b_stride, K, n_columns)  # [BK, C]
        else:
            b = load_tile(p_b, columns, inner, b_stride, n_columns, K)  # [C, BK]
        acc = dot(tl.trans(a) if FORM == "tt" else a, b if FORM == "nn" else tl.trans(b), acc, PRECISION)
    return acc


@triton.jit
def matmul_over_rows(
    p_a, a_stride, outputs, n_out, p_b, b_stride, columns, n_in, n_rows,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """[R, C] of Aᵀ act(B) over all rows, BM at a time: A [n_rows, n_out], B [n_rows, n_in]."""
    acc, rows = tl.zeros([outputs.shape[0], columns.shape[0]], tl.float32), tl.arange(0, BM)
    for i in range(0, n_rows, BM):
        left = n_rows - i
        a = load_tile(p_a, rows, outputs, a_stride, left, n_out)  # [BM, R]
        b = activate(load_tile(p_b, rows, columns, b_stride, left, n_in), ACTIVATION)  # [BM, C]
        acc = dot(tl.trans(a), b, acc, PRECISION)
        p_a += BM * a_stride
        p_b += BM * b_stride
    return acc


@triton.jit
def split_of_rows(rows_per_split, n_models, AXIS: tl.constexpr):
    """Which split of which model's rows is a program's, of splits times models on an axis, and its first row."""
    i_split, i_model = tl.program_id(AXIS) // n_models, (tl.program_id(AXIS) % n_models).to(tl.int64)
    return i_split, i_model, i_split.to(tl.int64) * rows_per_split


def adjacent(t: Tensor) -> Tensor:
    """`t`, or a copy where its last axis has gaps."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def n_splits(n_rows: int, *, tiles: int, at_least: int = 128) -> int:
    """Into how many parts a model's rows go for the gradients of weights in so many tiles.

    The same for any number of models, so that each model's sums have the order that they have alone. One model alone
    fills a GPU. Of 128 rows, 64 x 64 tiles read 64 KB for 32 KB of partials that are written and read again.
    """
    return max(1, min(-(-n_rows // at_least), PROGRAMS // tiles))


@triton.jit
def sum_splits_kernel(p_partial, p_out, n_splits, n, BS: tl.constexpr, BLOCK: tl.constexpr):
    """partial [n_splits, n] -> out [n]: every BS-th partial in turn, and over those sums."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = n.to(tl.int64)
    acc = tl.zeros([BS, BLOCK], tl.float32)
    for i in range(0, n_splits, BS):
        splits = i + tl.arange(0, BS)
        mask = (splits < n_splits)[:, None] & (at < n)[None, :]
        acc += tl.load(p_partial + splits[:, None] * n + at[None, :], mask=mask, other=0)
    store_at(p_out + at, at < n, tl.sum(acc, 0))


@triton.jit
def sum_rows_kernel(
    p_x, p_partial, n_rows, rows_per_split, n_models, x_model, x_row,
    D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """x [E, n_rows, D] -> the sums of each split of rows [splits, E, D]."""
    i_split, i_model = tl.program_id(1), tl.program_id(2).to(tl.int64)
    begin = i_split.to(tl.int64) * rows_per_split
    p_x += i_model * x_model + begin * x_row
    n_rows = tl.minimum(n_rows - begin, rows_per_split).to(tl.int32)
    columns = tl.program_id(0) * BD + tl.arange(0, BD)
    acc = tl.zeros([BM, BD], tl.float32)
    for i_row in range(0, n_rows, BM):
        acc += load_tile(p_x, tl.arange(0, BM), columns, x_row, n_rows - i_row, D).to(tl.float32)
        p_x += BM * x_row
    at = (i_split * n_models + i_model) * D + columns
    tl.store(p_partial + at, tl.sum(acc, 0), mask=columns < D)


def sum_splits(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of fp32 partials over their first axis, in an order that depends on their number alone."""
    if len(partial) == 1:
        return partial[0].to(dtype)
    out = torch.empty(partial.shape[1:], dtype=dtype, device=partial.device)
    tile = sums_configuration(len(partial))
    launch(
        sum_splits_kernel, (triton.cdiv(out.numel(), tile["BLOCK"]),), partial, out, len(partial), out.numel(), **tile
    )
    return out


def sum_rows(x: Tensor) -> Tensor:
    """x [E, N, d] summed over N, in an order that depends on N and d alone, as torch's does not."""
    x, (n_models, n_rows, d) = adjacent(x), x.shape
    tile = rows_configuration(d)
    tiles = triton.cdiv(d, tile["BD"])
    splits = n_splits(n_rows, tiles=tiles)
    partial = torch.empty(splits, n_models, d, dtype=torch.float32, device=x.device)
    launch(
        sum_rows_kernel, (tiles, splits, n_models), x, partial, n_rows, triton.cdiv(n_rows, splits), n_models,
        *x.stride()[:2], D=d, **tile,
    )  # fmt: skip
    return sum_splits(partial, x.dtype)


def sums_configuration(n_splits: int) -> dict[str, int]:
    """Partials BS at a time and elements BLOCK of a program, warps; none of these spills."""
    splits = min(16, triton.next_power_of_2(n_splits))
    return {"BS": splits, "BLOCK": 4096 // splits, "num_warps": 4}


def rows_configuration(d: int) -> dict[str, int]:
    """Rows BM at a time and columns BD of a program, warps; none of these spills."""
    columns = min(128, max(16, triton.next_power_of_2(d)))
    return {"BM": 4096 // columns, "BD": columns, "num_warps": 4}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, on that device's current stream."""
    device = arguments[0].device
    options = {"num_stages": 2, "enable_fp_fusion": True, **constants}
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **options)
