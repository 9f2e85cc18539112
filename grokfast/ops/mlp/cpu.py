"""The two layers by the C++ extension and torch's products: one pass over memory between and after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend
from grokfast.ops.products import product
from grokfast.ops.rows import sum_readers, threads_for

ACTIVATIONS = {"relu": 1, "gelu": 4}  # as csrc/grokfast.h has them


def fits(activation: str, *tensors: Tensor | None) -> bool:
    """Whether the extension is there and takes these: plain CPU fp32 tensors, one model, relu or gelu."""
    if backend.extension() is None or activation not in ACTIVATIONS:
        return False
    return all(t is None or (backend.plain(t) and t.numel() > 0) for t in tensors)


def mlp(
    x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, activation: str,
    skip: Tensor | None,
) -> Tensor:  # fmt: skip
    """As the reference: x [N, d], skip [N, o] or None -> [N, o]; differentiable once.

    The hidden layer is kept once (relu), or with its slope (gelu), and its gradient is worked out in place.
    """
    tensors = [t for t in (x, w_in, b_in, w_out, b_out, skip) if t is not None]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _MLP.apply(x, w_in, b_in, w_out, b_out, skip, ACTIVATIONS[activation], wanted)


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_in: Tensor,
        b_in: Tensor | None,
        w_out: Tensor,
        b_out: Tensor | None,
        skip: Tensor | None,
        activation: int,
        wanted: bool,
    ) -> Tensor:
        hidden = product(x, w_in)
        slope = torch.empty_like(hidden) if wanted and activation == ACTIVATIONS["gelu"] else None
        bias = None if b_in is None else b_in.contiguous()
        backend.load_extension().activate_forward(
            hidden.data_ptr(), 0 if bias is None else bias.data_ptr(), 0 if slope is None else slope.data_ptr(),
            *hidden.shape, activation, threads_for(hidden),
        )  # fmt: skip
        out = product(hidden, w_out, b_out, skip)
        ctx.save_for_backward(x, w_in, w_out, hidden, slope)
        ctx.activation = activation
        ctx.skip_is_x = skip is x
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w_in, w_out, hidden, slope = ctx.saved_tensors
        need_x, need_w_in, need_b_in, need_w_out, need_b_out, need_skip, _, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_w_out = grad.T @ hidden if need_w_out else None
        grad_hidden = product(grad, w_out.T)
        grad_b_in = grad.new_empty(len(w_in)) if need_b_in else None
        backend.load_extension().activate_backward(
            grad_hidden.data_ptr(), (hidden if slope is None else slope).data_ptr(),
            0 if grad_b_in is None else grad_b_in.data_ptr(), *grad_hidden.shape, ctx.activation,
            threads_for(grad_hidden),
        )  # fmt: skip
        grad_x = None
        if need_x:
            grad_x = product(grad_hidden, w_in.T, skip=grad if ctx.skip_is_x else None)
        return (
            grad_x,
            grad_hidden.T @ x if need_w_in else None,
            grad_b_in,
            grad_w_out,
            sum_readers(grad, None, grad.new_empty(len(w_out))) if need_b_out else None,
            grad if need_skip and not ctx.skip_is_x else None,
            None,
            None,
        )
