"""The two layers by the C++ extension and torch's products: one pass over memory between and after them.

What follows a relu is multiplied only where a unit is active, in the extension: five of the six products of a training
step (csrc/cpu/active.h).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend
from grokfast.ops.dispatch import outside_autocast
from grokfast.ops.products import WORTHWHILE, product
from grokfast.ops.rows import sum_rows, threads_for

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


def _only_active(x: Tensor, w_in: Tensor, w_out: Tensor, activation: int) -> bool:
    """Whether the extension multiplies the hidden layer where it is active."""
    if activation != ACTIVATIONS["relu"] or len(x) * w_in.numel() < WORTHWHILE:
        return False
    fits = backend.load_extension().active_products_fit
    return fits(w_in.shape[1], len(w_in)) and fits(len(w_out), len(w_in))


def _active_product(hidden: Tensor, weights: Tensor, bias: Tensor | None, skip: Tensor | None) -> Tensor:
    """hidden weights + bias + skip: hidden [N, h], weights [h, n]."""
    out = hidden.new_empty(len(hidden), weights.shape[1])
    bias, skip = (None if t is None else t.contiguous() for t in (bias, skip))
    # an entry that is active costs as much as `width` additions
    threads = threads_for(hidden, weights.shape[1])
    backend.load_extension().active_forward(hidden, weights, bias, skip, out, threads)
    return out


class _MLP(torch.autograd.Function):
    @staticmethod
    @outside_autocast
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
        backend.load_extension().activate_forward(hidden, bias, slope, activation, threads_for(hidden))
        ctx.only_active = _only_active(x, w_in, w_out, activation)
        if ctx.only_active:
            w_out = w_out.T.contiguous()
            out = _active_product(hidden, w_out, b_out, skip)
        else:
            out = product(hidden, w_out, b_out, skip)
        ctx.save_for_backward(x, w_in, w_out, hidden, slope)  # of the active kind w_out lies unit by unit
        ctx.activation = activation
        ctx.skip_is_x = skip is x
        return out

    @staticmethod
    @once_differentiable
    @outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w_in, w_out, hidden, slope = ctx.saved_tensors
        need_x, need_w_in, need_b_in, need_w_out, need_b_out, need_skip, _, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        own_skip = grad if need_skip and not ctx.skip_is_x else None
        if ctx.only_active:
            of_hidden, of_w_in, of_b_in, of_w_out = _active_backward(grad, x, w_in, w_out, hidden)
            skip = grad if ctx.skip_is_x else None
            return (
                _active_product(of_hidden, w_in.contiguous(), None, skip) if need_x else None,
                of_w_in,
                of_b_in if need_b_in else None,
                of_w_out,
                sum_rows(grad) if need_b_out else None,
                own_skip,
                None,
                None,
            )
        grad_w_out = grad.T @ hidden if need_w_out else None
        grad_hidden = product(grad, w_out.T)
        grad_b_in = grad.new_empty(len(w_in)) if need_b_in else None
        kept = hidden if slope is None else slope
        backend.load_extension().activate_backward(
            grad_hidden, kept, grad_b_in, ctx.activation, threads_for(grad_hidden)
        )
        grad_x = None
        if need_x:
            grad_x = product(grad_hidden, w_in.T, skip=grad if ctx.skip_is_x else None)
        return (
            grad_x,
            grad_hidden.T @ x if need_w_in else None,
            grad_b_in,
            grad_w_out,
            sum_rows(grad) if need_b_out else None,
            own_skip,
            None,
            None,
        )


def _active_backward(grad: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the relu's input, w_in [h, d], b_in and w_out [o, h], from that of the output; w_out is [h, o]."""
    of_hidden, of_second = torch.empty_like(hidden), torch.empty_like(w_out)
    of_first, of_bias = grad.new_empty(w_in.shape), grad.new_empty(len(w_in))
    x = x.contiguous()
    tensors = hidden, grad, w_out, x, of_hidden, of_second, of_first, of_bias
    backend.load_extension().active_backward(*tensors, threads_for(hidden, x.shape[1] + 2 * grad.shape[1]))
    return of_hidden, of_first, of_bias, of_second.T
