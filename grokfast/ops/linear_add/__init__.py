"""A linear layer and the skip connection around it, whose other end may be a smaller table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend
from grokfast.ops.linear_add.reference import linear_add as reference
from grokfast.ops.rows import RowIndex, sum_readers, threads_for


def linear_add(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, skip: Tensor | None = None, index: RowIndex | None = None
) -> Tensor:
    """x weightᵀ + bias + skip[index]: x [R, K], weight [O, K], bias [O], skip [S, O], index [R] -> [R, O].

    Without an index skip has R rows. The gradients of bias and skip are sums over rows in their order: the same bits
    every time, for any number of threads. On CPU fp32 tensors with the extension bias and skip are added in one pass
    after the product; differentiable once there.
    Raises ValueError or TypeError naming the argument.
    """
    _check(x, weight, bias, skip, index)
    tensors = [t for t in (x, weight, bias, skip) if t is not None]
    if backend.extension() is None or not all(map(backend.plain, tensors)):
        return reference(x, weight, bias, skip, None if index is None else index.index)
    return _LinearAdd.apply(x, weight, bias, skip, index)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, index: RowIndex | None) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be [R, K] of a float dtype, got {tuple(x.shape)} {x.dtype}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must be [O, {x.shape[1]}], got {tuple(weight.shape)}")
    if index is not None and not isinstance(index, RowIndex):
        raise TypeError(f"index must be a RowIndex, got {type(index).__name__}")
    if index is not None and (skip is None or index.shape != (len(x),)):
        raise ValueError(f"index must be [{len(x)}] beside a skip, got {tuple(index.shape)}")
    rows = len(x) if index is None else index.n_rows
    shapes = {"bias": (len(weight),), "skip": (rows, len(weight))}
    for name, t in (("bias", bias), ("skip", skip)):
        if t is not None and t.shape != shapes[name]:
            raise ValueError(f"{name} must be {list(shapes[name])}, got {tuple(t.shape)}")
    for name, t in (("weight", weight), ("bias", bias), ("skip", skip)):
        if t is not None and (t.dtype != x.dtype or t.device != x.device):
            raise ValueError(f"{name} must be {x.dtype} on {x.device} as x is, got {t.dtype} on {t.device}")


class _LinearAdd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, index: RowIndex | None
    ) -> Tensor:
        out = x @ weight.T
        ctx.save_for_backward(x, weight)
        ctx.index = index
        add_rows(out, bias, skip, index)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, index = grad.contiguous(), ctx.index
        needs = ctx.needs_input_grad
        grad_skip = None
        if needs[3]:
            grad_skip = grad if index is None else sum_readers(grad, index)
        return (
            grad @ weight if needs[0] else None,
            grad.T @ x if needs[1] else None,
            sum_readers(grad, None) if needs[2] else None,
            grad_skip,
            None,
        )


def add_rows(out: Tensor, bias: Tensor | None, skip: Tensor | None, index: RowIndex | None = None) -> None:
    """out += bias + skip[index], in one pass."""
    if bias is None and skip is None:
        return
    bias, skip = (None if t is None else t.contiguous() for t in (bias, skip))
    backend.load_extension().add_rows(
        out.data_ptr(), 0 if skip is None else skip.data_ptr(), 0 if index is None else index.index.data_ptr(),
        0 if bias is None else bias.data_ptr(), *out.shape, threads_for(out),
    )  # fmt: skip
