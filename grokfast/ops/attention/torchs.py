"""torch's scaled_dot_product_attention on a CPU, which keeps no scores, with a second derivative."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from grokfast.ops.attention.reference import attention as reference
from grokfast.ops.attention.reference import visible

FLASH = "ScaledDotProductFlashAttentionForCpuBackward0"  # the one whose gradient torch cannot differentiate


def fits(q: Tensor) -> bool:
    """Whether it takes these: fp32, and none of torch.func's transforms or forward-mode derivatives at work.

    Of one position it would round gradients that are zero.
    """
    if q.dtype is not torch.float32 or q.shape[-2] == 1:
        return False
    return torch._C._functorch.maybe_current_level() is None and forward_ad._current_level < 0


def attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, mask: Tensor | None, dropout: float
) -> Tensor:
    """As the reference: q, k, v [..., H, T, dh], dh's numbers adjacent or not."""
    shape = q.shape
    if mask is not None:
        mask, causal = visible(shape[-2], causal, mask, q.device), False
    if q.ndim != 4:  # what torch's own kernel takes
        if mask is not None and mask.ndim > 2:
            mask = mask.expand(*shape[:-1], shape[-2]).reshape(-1, *shape[-3:-1], shape[-2])
        q, k, v = (t.reshape(-1, *shape[-3:]) for t in (q, k, v))
        return attention(q, k, v, causal, scale, mask, dropout).view(shape)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale)
    if out.requires_grad and not torch.compiler.is_compiling():
        node = out.grad_fn
        assert node is not None
        if node.name() == FLASH:  # without dropout, then
            node.register_hook(partial(_differentiably, q, k, v, causal, scale, mask))
    return out


def _differentiably(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, mask: Tensor | None,
    grads: tuple[Any, ...], of_out: tuple[Tensor, ...],
) -> tuple[Any, ...] | None:  # fmt: skip
    """Under create_graph the gradients again, by the reference; they replace those that have no derivative."""
    if not torch.is_grad_enabled():
        return None
    q, k, v = tensors = [t.view_as(t) for t in (q, k, v)]  # one may stand in several places
    out = reference(q, k, v, causal, scale, "ieee", mask)
    wanted = [t for t in tensors if t.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, of_out[0], create_graph=True))
    return (*(next(found) if t.requires_grad else None for t in tensors), *grads[3:])
