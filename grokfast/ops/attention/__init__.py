"""Attention over short sequences, forward and backward without scores in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.ops import dispatch
from grokfast.ops.attention.reference import attention as reference

MAX_LENGTH, MAX_HEAD = 64, 128  # of the kernels, which hold whole sequences


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    precision: str = "ieee",
    backend: str | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v: q, k, v [..., H, T, dh] -> [..., H, T, dh], as torch's scaled_dot_product_attention.

    The axes in front, a batch, an ensemble or both, are all alike. With `causal` position t sees positions 0..t.
    scale: None is 1/√dh.
    precision, backend: as in ops.mlp. Scores and softmax of 16-bit tensors, also under autocast, are fp32.

    The kernels take fp32, bf16 and fp16, T up to 64 and dh up to 128, read q, k and v wherever the axes lie as long as
    dh's numbers are adjacent (as after `view(B, T, H, dh).transpose(1, 2)`), write [..., T, H, dh] in memory, keep
    nothing but q, k and v for the backward, give the same bits for the same input, and are differentiable once; the
    plain path any number of times.
    Raises TypeError or ValueError naming the argument.
    """
    checks.boolean("causal", causal)
    dispatch.check_options(precision, backend)
    dispatch.check_tensor("q", q, ["...", "H", "T", "dh"], q)
    for name, t in (("k", k), ("v", v)):
        dispatch.check_tensor(name, t, q.shape, q)
    if 0 in q.shape[-3:]:
        raise ValueError(f"q must not be empty in H, T or dh, got {tuple(q.shape)}")
    scale = q.shape[-1] ** -0.5 if scale is None else checks.real("scale", scale)
    q, k, v = dispatch.autocast(q, k, v)  # type: ignore[assignment]
    length, d_head = q.shape[-2:]
    obstacle = ""
    if length > MAX_LENGTH or d_head > MAX_HEAD:
        obstacle = f"they take T up to {MAX_LENGTH} and dh up to {MAX_HEAD}, got T {length} and dh {d_head}"
    if not dispatch.uses_triton("attention", q, backend, obstacle):
        return reference(q, k, v, causal, scale, precision)
    precision = dispatch.kernel_precision(q.dtype, precision)
    out = _attention(*(t.reshape(-1, *q.shape[-3:]) for t in (q, k, v)), causal, scale, precision)
    return out.view(q.shape)


@torch.library.custom_op(
    "grokfast::attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, bool causal, float scale, str precision) -> Tensor",
)
def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str) -> Tensor:
    """The kernels: q, k, v [B, H, T, dh] -> out of the same shape."""
    from grokfast.ops.attention import kernels

    return kernels.forward(q, k, v, causal, scale, precision)


@torch.library.custom_op(
    "grokfast::attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, bool causal, float scale, str precision) "
    "-> (Tensor, Tensor, Tensor)",
)
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    from grokfast.ops.attention import kernels

    return kernels.backward(grad, q, k, v, causal, scale, precision)


@_attention.register_fake
def _like(q: Tensor, *rest: Any) -> Tensor:
    batch, heads, length, d_head = q.shape
    return q.new_empty(batch, length, heads, d_head).transpose(1, 2)


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(q), _like(q)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.causal, ctx.scale, ctx.precision = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *ctx.saved_tensors, ctx.causal, ctx.scale, ctx.precision), None, None, None


_attention.register_autograd(_differentiate, setup_context=_save)
dispatch.refuse_second_derivative("attention", _attention_backward)
dispatch.fold_vmap(_attention, _attention_backward)
