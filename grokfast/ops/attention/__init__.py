"""Attention over short sequences, forward and backward without scores in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.ops import dispatch
from grokfast.ops.attention import torchs
from grokfast.ops.attention.reference import attention as reference

MAX_LENGTH, MAX_HEAD = 64, 128  # of the kernels, which hold whole sequences


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    dropout: float = 0.0,
    precision: str = "ieee",
    backend: str | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v: q, k, v [..., H, T, dh] -> [..., H, T, dh], as torch's scaled_dot_product_attention.

    The axes in front, a batch, an ensemble or both, are all alike. With `causal` position t sees positions 0..t.
    scale: None is 1/√dh.
    attn_mask: bool, broadcast to [..., H, T, T], True where a position (the last axis but one) sees another, as in
    torch's function; with `causal` where both say so. What sees nothing is 0.
    dropout: the probability in [0, 1) with which a weight is dropped, here and now: 0 outside of training. With either
    of the two plain PyTorch takes over from the kernels.
    precision, backend: as in ops.mlp. Scores and softmax of 16-bit tensors, also under autocast, are fp32.

    The kernels take fp32, bf16 and fp16, T up to 64 and dh up to 128, read q, k and v wherever the axes lie as long as
    dh's numbers are adjacent (as after `view(B, T, H, dh).transpose(1, 2)`), write [..., T, H, dh] in memory, keep
    nothing but q, k and v for the backward, give the same bits for the same input, and are differentiable once; the
    plain path any number of times. CPU fp32 tensors get torch's own kernel, with any number of derivatives, too.
    Raises TypeError or ValueError naming the argument.
    """
    checks.boolean("causal", causal)
    dispatch.check_options(precision, backend)
    if not _is_right(q, k, v):
        _check(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else checks.real("scale", scale)
    if attn_mask is not None:
        _check_mask(attn_mask, q)
    dropout = dropout if dropout == 0 else checks.real("dropout", dropout, minimum=0, maximum=1, open_maximum=True)
    if torchs.fits(q) and dispatch.torchs_own("attention", q, q.numel() * q.shape[-2], precision, backend):
        return torchs.attention(q, k, v, causal, scale, attn_mask, dropout)
    q, k, v = dispatch.autocast(q, k, v)  # type: ignore[assignment]
    length, d_head = q.shape[-2:]
    obstacle = ""
    if length > MAX_LENGTH or d_head > MAX_HEAD:
        obstacle = f"they take T up to {MAX_LENGTH} and dh up to {MAX_HEAD}, got T {length} and dh {d_head}"
    if attn_mask is not None or dropout:
        obstacle = "they take neither attn_mask nor dropout"
    if not dispatch.uses_triton("attention", q, backend, obstacle):
        return reference(q, k, v, causal, scale, precision, attn_mask, dropout)
    precision = dispatch.kernel_precision(q.dtype, precision)
    out = _attention(*(t.reshape(-1, *q.shape[-3:]) for t in (q, k, v)), causal, scale, precision)
    return out.view(q.shape)


def _is_right(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """A quick yes on a CPU to what `_check` asks in words."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        return False
    dtype, shape = q.dtype, q.shape
    alike = k.dtype is dtype and v.dtype is dtype and k.shape == shape and v.shape == shape
    on_cpu = q.is_cpu and k.is_cpu and v.is_cpu
    return alike and on_cpu and len(shape) > 2 and dtype.is_floating_point and 0 not in shape


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    dispatch.check_tensor("q", q, ["...", "H", "T", "dh"], q)
    for name, t in (("k", k), ("v", v)):
        dispatch.check_tensor(name, t, q.shape, q)
    if 0 in q.shape[-3:]:
        raise ValueError(f"q must not be empty in H, T or dh, got {tuple(q.shape)}")


def _check_mask(mask: Tensor, q: Tensor) -> None:
    scores = (*q.shape[:-1], q.shape[-2])
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"attn_mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    sizes = list(zip(reversed(mask.shape), reversed(scores)))
    if mask.ndim < 2 or mask.ndim > len(scores) or any(own not in (1, size) for own, size in sizes):
        raise ValueError(f"attn_mask must be {scores}, or broadcast to it, got {tuple(mask.shape)}")
    if mask.device != q.device:
        raise ValueError(f"attn_mask must be on {q.device} as q is, got {mask.device}")


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
