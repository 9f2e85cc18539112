"""Matrix products of CPU fp32 tensors by oneDNN, which adds a bias and a residual on the way out; else by torch's BLAS.

Products that reduce over rows, as gradients of weights do, gain nothing by it and stay with torch.mm.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend
from grokfast.ops.dispatch import outside_autocast

WORTHWHILE = 1 << 22  # multiplications; below, torch.mm begins sooner


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias + skip, a new tensor [N, n]: x [N, k], weight [n, k] of any strides, bias [n], skip [N, n].

    For plain CPU fp32 tensors; nothing is recorded for autograd.
    """
    onednn = _onednn() if len(x) * weight.numel() >= WORTHWHILE else None
    if onednn is None:
        y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        return y if skip is None else y.add_(skip)
    bias = None if bias is None else bias.contiguous()  # its stride is not looked at
    if skip is None:
        return onednn(x, weight, bias, "none", [], "")
    return onednn.binary(x, skip, weight, bias, "add")


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """torch.nn.functional.linear without a bias, x [N, k], weight [n, k] -> [N, n]; where it is faster, by `product`.

    Differentiable once there. Under autocast it is torch's.
    """
    is_own = backend.extension() is not None and backend.plain(x) and backend.plain(weight)
    if not is_own or torch.is_autocast_enabled("cpu"):
        return torch.nn.functional.linear(x, weight)
    return _Linear.apply(x, weight)


class _Linear(torch.autograd.Function):
    @staticmethod
    @outside_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad
        return product(grad, weight.T) if need_x else None, grad.T @ x if need_weight else None


@functools.cache
def _onednn() -> Any:
    """torch's operator x Wᵀ + b with what follows it; None where torch is built without."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
