"""The MLP of an ensemble with its hidden layer kept in memory, by the kernels of linear layers: 6 products, not 10.

ops.mlp makes the hidden layer anew in each of its three backward kernels. Where products are exact and so dear (fp32
without tensor cores, or three passes), writing it once and reading it three times costs less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast.ops.dispatch import outside_autocast

PRECISIONS = ("ieee", "tf32x3")


def mlp_kept(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, activation: str,
    skip: Tensor | None, precision: str,
) -> Tensor:  # fmt: skip
    """ops.mlp of an ensemble on the kernels: fp32 x and skip [E, N, d], w_in [E, h, d], w_out [E, d, h] -> [E, N, d].

    The activation is "relu" or "gelu". Nothing is checked.
    """
    return _KeptMLP.apply(x, w_in, b_in, w_out, b_out, skip, activation, precision)


class _KeptMLP(torch.autograd.Function):
    @staticmethod
    @outside_autocast
    def forward(
        ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None,
        skip: Tensor | None, activation: str, precision: str,
    ) -> Tensor:  # fmt: skip
        from grokfast.ops.linear import kernels

        hidden = kernels.forward(x, w_in, b_in, None, None, precision)  # before the activation
        ctx.save_for_backward(x, w_in, w_out, hidden)
        ctx.has_bias = b_in is not None, b_out is not None
        ctx.has_skip, ctx.skip_is_x = skip is not None, skip is x
        ctx.options = activation, precision
        return kernels.forward(hidden, w_out, b_out, skip, None, precision, activation)

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from grokfast.ops.linear import kernels

        x, w_in, w_out, hidden = ctx.saved_tensors
        activation, precision = ctx.options
        grad_w_out, grad_b_out = kernels.backward_weight(grad, hidden, ctx.has_bias[1], precision, activation)
        grad_hidden = kernels.backward_x(grad, w_out, hidden, precision, activation)
        grad_w_in, grad_b_in = kernels.backward_weight(grad_hidden, x, ctx.has_bias[0], precision)
        grad_x = kernels.backward_x(grad_hidden, w_in, grad if ctx.skip_is_x else None, precision)
        grad_skip = grad if ctx.has_skip and not ctx.skip_is_x else None
        return grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out, grad_skip, None, None
