"""A network of one hidden layer: two matrix products, and one pass over memory between and after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast import backend, checks
from grokfast.ops.mlp.reference import ACTIVATIONS
from grokfast.ops.mlp.reference import mlp as reference
from grokfast.ops.rows import add_rows, sum_readers, threads_for

_IN_EXTENSION = {"relu": 1, "gelu": 4}


def mlp(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    *,
    activation: str = "relu",
    skip: Tensor | None = None,
) -> Tensor:
    """skip + act(x w_inᵀ + b_in) w_outᵀ + b_out: x [N, d], w_in [h, d], b_in [h], w_out [o, h], b_out [o] -> [N, o].

    activation: "relu", or "gelu" (the exact one, with erf). skip [N, o] is often x itself.
    The gradients of the biases are sums over rows in a fixed order. On CPU fp32 tensors with the extension the hidden
    layer is kept once (relu) or with its slope (gelu), and its gradient is worked out in place; differentiable once.
    Raises ValueError naming the argument.
    """
    _check(x, w_in, b_in, w_out, b_out, activation, skip)
    tensors = [t for t in (x, w_in, b_in, w_out, b_out, skip) if t is not None]
    if backend.extension() is None or not all(map(backend.plain, tensors)):
        return reference(x, w_in, b_in, w_out, b_out, activation, skip)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _MLP.apply(x, w_in, b_in, w_out, b_out, skip, _IN_EXTENSION[activation], wanted)


def _check(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    activation: str,
    skip: Tensor | None,
) -> None:
    checks.choice("activation", activation, ACTIVATIONS)
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be [N, d] of a float dtype, got {tuple(x.shape)} {x.dtype}")
    for name, matrix in (("w_in", w_in), ("w_out", w_out)):
        if matrix.ndim != 2:
            raise ValueError(f"{name} must be a matrix, got {tuple(matrix.shape)}")
    (n, d), h, o = x.shape, len(w_in), len(w_out)
    shapes = {"w_in": (h, d), "b_in": (h,), "w_out": (o, h), "b_out": (o,), "skip": (n, o)}
    given = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out, "skip": skip}
    for name, t in given.items():
        if t is None:
            continue
        if t.shape != shapes[name]:
            raise ValueError(f"{name} must be {list(shapes[name])}, got {tuple(t.shape)}")
        if t.dtype != x.dtype or t.device != x.device:
            raise ValueError(f"{name} must be {x.dtype} on {x.device} as x is, got {t.dtype} on {t.device}")


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
        hidden = x @ w_in.T
        slope = torch.empty_like(hidden) if wanted and activation == _IN_EXTENSION["gelu"] else None
        bias = None if b_in is None else b_in.contiguous()
        backend.load_extension().activate_forward(
            hidden.data_ptr(), 0 if bias is None else bias.data_ptr(), 0 if slope is None else slope.data_ptr(),
            *hidden.shape, activation, threads_for(hidden),
        )  # fmt: skip
        out = hidden @ w_out.T
        add_rows(out, b_out, skip)
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
        grad_hidden = grad @ w_out
        grad_b_in = grad.new_empty(len(w_in)) if need_b_in else None
        backend.load_extension().activate_backward(
            grad_hidden.data_ptr(), (hidden if slope is None else slope).data_ptr(),
            0 if grad_b_in is None else grad_b_in.data_ptr(), *grad_hidden.shape, ctx.activation,
            threads_for(grad_hidden),
        )  # fmt: skip
        grad_x = None
        if need_x:  # where x is the skip, too, its whole gradient is one product onto the other part
            grad_x = torch.addmm(grad, grad_hidden, w_in) if ctx.skip_is_x else grad_hidden @ w_in
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
