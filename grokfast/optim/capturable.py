"""The gradient filters in plain PyTorch without a wait for the device, so that a CUDA graph can replay them.

How many gradients a history has seen is a tensor; α, λ and on/off may be. A history that is off is forgotten: its count
is 0, and what its tensors hold means nothing until they are written again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from grokfast.optim.history import COUNT_KEY, EMA_KEY, RESUM_WINDOWS, RING_KEY, SUM_KEY, in_memory_order
from grokfast.transforms.filters import EMA, MA, Filter


def filtered(filter: Filter, grad: Tensor, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    """Advance `state` in place by the raw `grad` and return ĝ; arguments as `reference.filter_gradient`.

    Or those of E models that have seen equally many gradients: grad, ema and sum [E, P], ring [E, window_size, P],
    count and `tensors` [E, 1].
    """
    count = state[COUNT_KEY]
    raw = grad.to(torch.promote_types(grad.dtype, torch.float32))
    is_on = tensors["enabled"] != 0 if "enabled" in tensors else torch.ones_like(count, dtype=torch.bool)
    lamb = tensors["lamb"] if "lamb" in tensors else torch.full_like(count, filter.lamb, dtype=raw.dtype)
    if isinstance(filter, EMA):
        alpha = tensors.get("alpha", filter.alpha)
        slow = _advance_ema(state[EMA_KEY], raw, count, 1 - alpha, is_on)
    else:
        slow, seen = _advance_ma(filter, state, raw, count, is_on)
        lamb = lamb / seen if filter.filter_type == "mean" else lamb
        if filter.warmup:
            lamb = torch.where(seen < filter.window_size, 0.0, lamb)
    count.copy_(torch.where(is_on, count + 1, 0))
    return torch.where(is_on & (lamb != 0), raw + lamb.to(raw.dtype) * slow, raw).to(grad.dtype)


def _advance_ema(ema: Tensor, raw: Tensor, count: Tensor, weight: float | Tensor, is_on: Tensor) -> Tensor:
    """e ← g at first, then e ← e + weight (g − e); untouched while off."""
    weight = weight.to(raw.dtype) if isinstance(weight, Tensor) else weight
    moved = torch.where(count == 0, raw, torch.lerp(ema, raw, weight))
    return ema.copy_(torch.where(is_on, moved, ema))


def _advance_ma(
    filter: MA, state: Mapping[str, Tensor], raw: Tensor, count: Tensor, is_on: Tensor
) -> tuple[Tensor, Tensor]:
    """Push `raw` into the window; returns the window's sum and how many gradients it holds."""
    ring, total, window = state[RING_KEY], state[SUM_KEY], filter.window_size
    one, raw = count.flatten()[:1], torch.empty_like(total).copy_(raw)
    rows, flat, own = ring.transpose(0, 1), total, raw  # of E models
    if count.ndim == 0:
        rows, flat, own = in_memory_order(ring, 1), in_memory_order(total, 0), in_memory_order(raw, 0)
    seen = (count + 1).clamp(max=window)
    slot = (one % window).to(ring.device)
    before, stored = rows.index_select(0, slot)[0], own.to(ring)
    oldest = torch.where(count >= window, before.to(total), 0)  # a slot not yet written since the history began
    now = torch.where(count == 0, 0, flat) - oldest + stored.to(total)
    rows.index_copy_(0, slot, torch.where(is_on.to(ring.device), stored, before).unsqueeze(0))

    # The slice whose turn it is; beyond the end, the last element again and again, to the same value.
    n = flat.shape[-1]
    size = -(-n // (RESUM_WINDOWS * window))
    turn = one % (RESUM_WINDOWS * window)
    index = (turn * size + torch.arange(size, device=count.device)).clamp(max=n - 1)
    live = torch.arange(window, device=count.device).view(-1, *[1] * flat.ndim) < seen
    slices = torch.where(live, rows.index_select(-1, index.to(ring.device)).to(total), 0)
    fresh = slices.movedim(0, -1).contiguous().sum(-1)  # along memory: in the same order in any company
    now.index_copy_(-1, index, fresh)
    flat.copy_(torch.where(is_on, now, flat))
    return total, seen
