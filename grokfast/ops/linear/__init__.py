"""A linear layer of every model of an ensemble, with a skip connection that may be read by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast.ops import dispatch
from grokfast.ops.linear.reference import linear as reference
from grokfast.ops.read_rows import EnsembleIndex, sum_readers


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    skip: Tensor | None = None,
    own: EnsembleIndex | None = None,
    precision: str = "ieee",
    backend: str | None = None,
) -> Tensor:
    """y[e] = x[e] weight[e]ᵀ + bias[e] + skip[e][own[e]]: x [E, N, d], weight [E, o, d] -> [E, N, o].

    bias [E, o] or None; skip [E, K, o] or None, of which row r of the output reads row own[r], without `own` the r-th.
    precision, backend: as in ops.mlp. The kernels take fp32, give the same bits for the same input, and are
    differentiable once. Raises TypeError or ValueError naming the argument.
    """
    dispatch.check_options(precision, backend)
    dispatch.check_tensor("x", x, ["E", "N", "d"], x)
    dispatch.check_tensor("weight", weight, [len(x), "o", x.shape[2]], x)
    n_out = weight.shape[1]
    if bias is not None:
        dispatch.check_tensor("bias", bias, [len(x), n_out], x)
    if skip is not None:
        dispatch.check_tensor("skip", skip, [len(x), x.shape[1] if own is None else own.n_rows, n_out], x)
    if own is not None and own.shape != x.shape[:2]:
        raise ValueError(f"own must be {list(x.shape[:2])}, got {list(own.shape)}")
    obstacle = "" if x.dtype == torch.float32 else f"they take fp32, got {x.dtype}"
    if dispatch.uses_triton("linear", x, backend, obstacle):
        return _Linear.apply(x, weight, bias, skip, own, precision)
    return reference(x, weight, bias, skip, None if own is None else own.index, precision)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, own: EnsembleIndex | None,
        precision: str,
    ) -> Tensor:  # fmt: skip
        from grokfast.ops.linear import kernels

        ctx.save_for_backward(x, weight)
        ctx.options = own, precision
        return kernels.forward(x, weight, bias, skip, None if own is None else own.index, precision)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from grokfast.ops.linear import kernels

        own, precision = ctx.options
        needs_x, needs_weight, needs_bias, needs_skip = ctx.needs_input_grad[:4]
        x, weight = ctx.saved_tensors
        grads = kernels.backward(grad, x, weight, precision, (needs_x, needs_weight or needs_bias, needs_bias))
        grad_skip = grad if needs_skip else None
        if grad_skip is not None and own is not None:
            grad_skip = sum_readers(grad, own)
        return *grads, grad_skip, None, None
