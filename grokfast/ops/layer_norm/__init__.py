"""Layer normalisation of rows, its backward in one pass: torch's takes three, and on a few hundred rows that shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend, checks
from grokfast.ops.layer_norm.reference import layer_norm as reference
from grokfast.ops.rows import threads_for


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / √(variance + eps) · weight + bias over the last axis: x [N, d], weight [d], bias [d] -> [N, d].

    The gradients of weight and bias are sums over rows in a fixed order: the same bits for any number of threads.
    On CPU fp32 tensors with the extension each direction is one pass; differentiable once there.
    Raises ValueError or TypeError naming the argument.
    """
    checks.real("eps", eps, minimum=0)
    if x.ndim != 2 or not x.is_floating_point() or x.shape[1] == 0:
        raise ValueError(f"x must be [N, d] of a float dtype, got {tuple(x.shape)} {x.dtype}")
    for name, t in (("weight", weight), ("bias", bias)):
        if t.shape != x.shape[1:] or t.dtype != x.dtype or t.device != x.device:
            accepted = f"[{x.shape[1]}] {x.dtype} on {x.device}"
            raise ValueError(f"{name} must be {accepted}, got {list(t.shape)} {t.dtype} on {t.device}")
    if backend.extension() is None or not all(map(backend.plain, (x, weight, bias))):
        return reference(x, weight, bias, eps)
    return _LayerNorm.apply(x.contiguous(), weight.contiguous(), bias.contiguous(), eps)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        out, stats = torch.empty_like(x), x.new_empty(len(x), 2)
        backend.load_extension().layer_norm_forward(
            x.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr(), stats.data_ptr(), *x.shape, eps,
            threads_for(x),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, stats)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stats = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
        backend.load_extension().layer_norm_backward(
            x.data_ptr(), weight.data_ptr(), stats.data_ptr(), grad.data_ptr(), grad_x.data_ptr(),
            grad_weight.data_ptr(), grad_bias.data_ptr(), *x.shape, threads_for(x),
        )  # fmt: skip
        return grad_x, grad_weight, grad_bias, None
