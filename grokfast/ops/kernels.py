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

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _to_bf16(x):
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
        acc = tl.dot(_to_bf16(a), _to_bf16(b), acc)
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
        tile = _to_bf16(tile)
    tl.store(pointers, tile.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def store_tile(p, rows, columns, stride, n_rows, n_columns, tile):
    """Write a tile [R, C] of a matrix."""
    mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    store_at(p + rows[:, None] * stride + columns[None, :], mask, tile)


@triton.jit
def matmul_nt(
    p_a, rows, a_stride, n_rows, p_b, columns, b_stride, n_columns,
    K: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[R, C] of A Bᵀ, BK of the K at a time: A [n_rows, K], B [n_columns, K]."""
    acc = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for k in range(0, K, BK):
        inner = k + tl.arange(0, BK)
        a = load_tile(p_a, rows, inner, a_stride, n_rows, K)  # [R, BK]
        b = load_tile(p_b, columns, inner, b_stride, n_columns, K)  # [C, BK]
        acc = dot(a, tl.trans(b), acc, PRECISION)
    return acc


@triton.jit
def matmul_nn(
    p_a, rows, a_stride, n_rows, p_b, columns, b_stride, n_columns,
    K: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[R, C] of A B, BK of the K at a time: A [n_rows, K], B [K, n_columns]."""
    acc = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for k in range(0, K, BK):
        inner = k + tl.arange(0, BK)
        a = load_tile(p_a, rows, inner, a_stride, n_rows, K)  # [R, BK]
        b = load_tile(p_b, inner, columns, b_stride, K, n_columns)  # [BK, C]
        acc = dot(a, b, acc, PRECISION)
    return acc


@triton.jit
def matmul_tt(
    p_a, rows, a_stride, n_rows, p_b, columns, b_stride, n_columns,
    K: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[R, C] of Aᵀ Bᵀ, BK of the K at a time: A [K, n_rows], B [n_columns, K]."""
    acc = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for k in range(0, K, BK):
        inner = k + tl.arange(0, BK)
        a = load_tile(p_a, inner, rows, a_stride, K, n_rows)  # [BK, R]
        b = load_tile(p_b, columns, inner, b_stride, n_columns, K)  # [C, BK]
        acc = dot(tl.trans(a), tl.trans(b), acc, PRECISION)
    return acc


def adjacent(t: Tensor) -> Tensor:
    """`t`, or a copy where its last axis has gaps."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def n_splits(n_rows: int, n_models: int, tiles: int, at_least: int = 64) -> int:
    """Into how many parts the rows go for the gradients of weights: enough to fill a GPU, of 64 rows at least."""
    return max(1, min(-(-n_rows // at_least), 512 // (tiles * n_models)))


def sum_splits(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of fp32 partials over their first axis, in order."""
    return (partial[0] if len(partial) == 1 else partial.sum(0)).to(dtype)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument, on that device's current stream."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, num_stages=2, enable_fp_fusion=True, **constants)
