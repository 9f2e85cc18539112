"""A linear classifier's loss in Triton: logits exist in tiles of rows by classes, forward and again in the backward.
Only on request are they written, too, and does the backward take a gradient of theirs.

Of a row the forward keeps its largest logit and its sum of exp(z - largest), s(z) or (z - one-hot)². The gradient of
the weights is summed over the rows of one split after the other, and over the splits in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from grokfast.ops.configurations import tile_for
from grokfast.ops.kernels import (
    adjacent,
    dot,
    launch,
    load_tile,
    load_vector,
    matmul,
    n_splits,
    split_of_rows,
    store_tile,
    sum_splits,
)


@triton.jit
def stable(z):
    """s(z) of StableMax."""
    return tl.where(z < 0, 1 / (1 - tl.minimum(z, 0.0)), z + 1)


@triton.jit
def grad_of_logits(z, is_target, largest, total, V: tl.constexpr, LOSS: tl.constexpr):
    """The derivative of a row's loss by its logits; `largest` and `total` broadcast over z."""
    if LOSS == "cross_entropy":
        grad = tl.exp(z - largest) / total - tl.where(is_target, 1.0, 0.0)
    elif LOSS == "stablemax":
        s = stable(z)
        slope = tl.where(z < 0, s * s, 1.0)
        grad = slope / total - tl.where(is_target, slope / s, 0.0)
    else:
        grad = (z - tl.where(is_target, 1.0, 0.0)) * (2 / V)
    return grad


@triton.jit
def meet(z, classes, target, largest, total, best, at_target, V: tl.constexpr, LOSS: tl.constexpr):
    """Of rows [R], after a block of their logits z [R, BV]: the largest, the sum, its class, the one of the target."""
    is_class = (classes < V)[None, :]
    is_target = classes[None, :] == target[:, None]
    at_target += tl.sum(tl.where(is_target, z, 0.0), 1)
    z_or_inf = tl.where(is_class, z, float("-inf"))
    block_largest = tl.max(z_or_inf, 1)
    first = tl.min(tl.where(z_or_inf == block_largest[:, None], classes[None, :], V), 1)
    best = tl.where(block_largest > largest, first, best)
    now = tl.maximum(largest, block_largest)
    if LOSS == "cross_entropy":
        total = total * tl.exp(largest - now) + tl.sum(tl.exp(z_or_inf - now[:, None]), 1)
    elif LOSS == "stablemax":
        total += tl.sum(tl.where(is_class, stable(z), 0.0), 1)
    else:
        error = z - tl.where(is_target, 1.0, 0.0)
        total += tl.sum(tl.where(is_class, error * error, 0.0), 1)
    return now, total, best, at_target


@triton.jit
def loss_of(largest, total, at_target, V: tl.constexpr, LOSS: tl.constexpr):
    """The losses of rows that have met all their logits."""
    if LOSS == "cross_entropy":
        loss = tl.log(total) - (at_target - largest)
    elif LOSS == "stablemax":
        loss = tl.log(total) - tl.log(stable(at_target))
    else:
        loss = total / V
    return loss


@triton.jit
def _load_row(p_grad, p_target, p_largest, p_total, rows, n_rows, V: tl.constexpr):
    """Of rows [BM]: gradient of the loss, NaN where the target is out of range, target, largest logit, sum."""
    grad = load_vector(p_grad, rows, n_rows)
    target = tl.load(p_target + rows, mask=rows < n_rows, other=0)
    grad = tl.where((target >= 0) & (target < V), grad, float("nan"))
    largest = load_vector(p_largest, rows, n_rows)
    total = tl.load(p_total + rows, mask=rows < n_rows, other=1)
    return grad, target, largest, total


@triton.jit
def linear_cross_entropy_fwd_kernel(
    p_x, p_weight, p_target, p_loss, p_right, p_largest, p_total, p_logits, n_rows,
    x_model, x_row, weight_model, weight_row,
    D: tl.constexpr, V: tl.constexpr, LOSS: tl.constexpr, PRECISION: tl.constexpr, LOGITS: tl.constexpr,
    BM: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(1).to(tl.int64)
    at = i_model * n_rows + i_row
    p_x += i_model * x_model + i_row * x_row
    p_weight += i_model * weight_model
    n_rows = (n_rows - i_row).to(tl.int32)
    rows = tl.arange(0, BM)
    exists = rows < n_rows
    target = tl.load(p_target + at + rows, mask=exists, other=0)
    largest, total = tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32)
    best, at_target = tl.zeros([BM], tl.int32), tl.zeros([BM], tl.float32)
    for i_class in range(0, V, BV):
        classes = i_class + tl.arange(0, BV)
        z = matmul(p_x, rows, x_row, n_rows, p_weight, classes, weight_row, V, "nt", D, BK, PRECISION)  # [BM, BV]
        if LOGITS:
            store_tile(p_logits + at * V, rows, classes, V, n_rows, V, z)
        largest, total, best, at_target = meet(z, classes, target, largest, total, best, at_target, V, LOSS)
    loss = loss_of(largest, total, at_target, V, LOSS)
    loss = tl.where((target >= 0) & (target < V), loss, float("nan"))
    tl.store(p_loss + at + rows, loss, mask=exists)
    tl.store(p_right + at + rows, tl.where(best == target, 1.0, 0.0), mask=exists)
    tl.store(p_largest + at + rows, largest, mask=exists)
    tl.store(p_total + at + rows, total, mask=exists)


@triton.jit
def linear_cross_entropy_bwd_x_kernel(
    p_grad, p_x, p_weight, p_target, p_largest, p_total, p_grad_logits, p_grad_x, n_rows,
    x_model, x_row, weight_model, weight_row,
    D: tl.constexpr, V: tl.constexpr, LOSS: tl.constexpr, PRECISION: tl.constexpr, LOGITS: tl.constexpr,
    BM: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_row, i_model = tl.program_id(0).to(tl.int64) * BM, tl.program_id(2).to(tl.int64)
    at = i_model * n_rows + i_row
    p_x += i_model * x_model + i_row * x_row
    p_weight += i_model * weight_model
    n_rows = (n_rows - i_row).to(tl.int32)
    rows, columns = tl.arange(0, BM), tl.program_id(1) * BD + tl.arange(0, BD)
    grad, target, largest, total = _load_row(p_grad + at, p_target + at, p_largest + at, p_total + at, rows, n_rows, V)
    acc = tl.zeros([BM, BD], tl.float32)
    for i_class in range(0, V, BV):
        classes = i_class + tl.arange(0, BV)
        z = matmul(p_x, rows, x_row, n_rows, p_weight, classes, weight_row, V, "nt", D, BK, PRECISION)  # [BM, BV]
        is_target = classes[None, :] == target[:, None]
        z = grad_of_logits(z, is_target, largest[:, None], total[:, None], V, LOSS) * grad[:, None]
        if LOGITS:
            z += load_tile(p_grad_logits + at * V, rows, classes, V, n_rows, V)
        weight = load_tile(p_weight, classes, columns, weight_row, V, D)  # [BV, BD]
        acc = dot(tl.where((classes < V)[None, :], z, 0.0), weight, acc, PRECISION)
    store_tile(p_grad_x + at * D, rows, columns, D, n_rows, D, acc)


@triton.jit
def linear_cross_entropy_bwd_weight_kernel(
    p_grad, p_x, p_weight, p_target, p_largest, p_total, p_grad_logits, p_grad_weight,
    n_rows, rows_per_split, n_models, x_model, x_row, weight_model, weight_row,
    D: tl.constexpr, V: tl.constexpr, LOSS: tl.constexpr, PRECISION: tl.constexpr, LOGITS: tl.constexpr,
    BM: tl.constexpr, BV: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Partials of a split of rows: [splits, E, V, D]."""
    i_split, i_model, begin = split_of_rows(rows_per_split, n_models, 2)
    at = i_model * n_rows + begin
    p_x += i_model * x_model + begin * x_row
    p_weight += i_model * weight_model
    n_rows = tl.minimum(n_rows - begin, rows_per_split).to(tl.int32)
    classes, columns = tl.program_id(0) * BV + tl.arange(0, BV), tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros([BV, BD], tl.float32)
    for i_row in range(0, n_rows, BM):
        rows = tl.arange(0, BM)
        left = n_rows - i_row
        grad, target, largest, total = _load_row(
            p_grad + at, p_target + at, p_largest + at, p_total + at, rows, left, V
        )
        z = matmul(p_weight, classes, weight_row, V, p_x, rows, x_row, left, "nt", D, BK, PRECISION)  # [BV, BM]
        is_target = classes[:, None] == target[None, :]
        z = grad_of_logits(z, is_target, largest[None, :], total[None, :], V, LOSS) * grad[None, :]
        if LOGITS:
            z += tl.trans(load_tile(p_grad_logits + at * V, rows, classes, V, left, V))
        acc = dot(z, load_tile(p_x, rows, columns, x_row, left, D), acc, PRECISION)
        p_x += BM * x_row
        at += BM
    store_tile(p_grad_weight + (i_split * n_models + i_model) * V * D, classes, columns, D, V, D, acc)


def configuration(kernel: str, precision: str, d: int, classes: int) -> dict[str, int]:
    """Rows BM, classes BV and columns BD of a tile, steps BK of the inner products, warps; none of these spills.

    kernel: "fwd", "bwd_x" or "bwd_weight".
    """
    if precision == "ieee":
        rows, columns, step = 32, 32, 16 if kernel == "bwd_weight" else 32
    elif precision == "tf32x3":
        rows, columns, step = (32, 32, 16) if kernel == "bwd_weight" else (64, 32, 16)
    else:
        rows, columns, step = (32, 64, 32) if kernel == "bwd_weight" else (64, 64, 32)
    tile = {
        "BM": rows,
        "BV": min(columns, max(16, triton.next_power_of_2(classes))),
        "BK": min(step, max(16, triton.next_power_of_2(d))),
        "BD": min(128, max(16, triton.next_power_of_2(d))),
        "num_warps": 8,
    }
    if kernel == "fwd":
        del tile["BD"]
    return tile


def forward(
    x: Tensor, weight: Tensor, target: Tensor, loss: str, precision: str, with_logits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x [E, N, d], weight [E, V, d], target [E, N] -> loss, right, largest logit and sum [E, N], logits [E, N, V].

    All are fp32; without `with_logits` the last is [E, N, 0].
    """
    (n_models, n_rows, d), classes = x.shape, weight.shape[1]
    x, weight, target = adjacent(x), adjacent(weight), target.contiguous()
    values, right, largest, total = (
        torch.empty(n_models, n_rows, dtype=torch.float32, device=x.device) for _ in range(4)
    )
    logits = values.new_empty(n_models, n_rows, classes if with_logits else 0)
    tile = _tile("fwd", x, classes, precision)
    launch(
        linear_cross_entropy_fwd_kernel, (triton.cdiv(n_rows, tile["BM"]), n_models),
        x, weight, target, values, right, largest, total, logits, n_rows, *x.stride()[:2], *weight.stride()[:2],
        D=d, V=classes, LOSS=loss, PRECISION=precision, LOGITS=with_logits, **tile,
    )  # fmt: skip
    return values, right, largest, total, logits


def backward(
    grad: Tensor, grad_logits: Tensor | None, x: Tensor, weight: Tensor, target: Tensor, largest: Tensor,
    total: Tensor, loss: str, precision: str, wanted: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x and weight from those of the rows' losses [E, N] and of logits [E, N, V]; empty if unwanted."""
    (n_models, n_rows, d), classes = x.shape, weight.shape[1]
    x, weight, grad, with_logits = adjacent(x), adjacent(weight), grad.contiguous(), grad_logits is not None
    grad_logits = grad if grad_logits is None else grad_logits.contiguous()
    tensors = grad, x, weight, target.contiguous(), largest.contiguous(), total.contiguous(), grad_logits
    strides = *x.stride()[:2], *weight.stride()[:2]
    constants = {"D": d, "V": classes, "LOSS": loss, "PRECISION": precision, "LOGITS": with_logits}
    grad_x, grad_weight = x.new_empty(0), x.new_empty(0)
    if wanted[0]:
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        tile = _tile("bwd_x", x, classes, precision)
        grid = triton.cdiv(n_rows, tile["BM"]), triton.cdiv(d, tile["BD"]), n_models
        launch(linear_cross_entropy_bwd_x_kernel, grid, *tensors, grad_x, n_rows, *strides, **constants, **tile)
    if wanted[1]:
        tile = _tile("bwd_weight", x, classes, precision)
        tiles = triton.cdiv(classes, tile["BV"]), triton.cdiv(d, tile["BD"])
        splits = n_splits(n_rows, tiles=tiles[0] * tiles[1])
        partials = torch.empty(splits, n_models, classes, d, dtype=torch.float32, device=x.device)
        launch(
            linear_cross_entropy_bwd_weight_kernel, (*tiles, splits * n_models), *tensors, partials,
            n_rows, triton.cdiv(n_rows, splits), n_models, *strides, **constants, **tile,
        )  # fmt: skip
        grad_weight = sum_splits(partials, x.dtype)
    return grad_x, grad_weight


def _tile(kernel: str, x: Tensor, classes: int, precision: str) -> dict[str, int]:
    _, n_rows, d = x.shape
    own = configuration(kernel, precision, d, classes)
    return tile_for(x, f"linear_cross_entropy {kernel}", precision, (d, classes), n_rows, own)
