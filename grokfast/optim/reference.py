"""The gradient filters in plain PyTorch, one tensor at a time, in any precision: the kernels are held to them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.history import (
    COUNT_KEY,
    EMA_KEY,
    RING_KEY,
    SUM_KEY,
    history_of,
    init_state,
    place_count,
    require_dense,
)  # fmt: skip
from grokfast.optim.sharding import local_part, placed_like
from grokfast.transforms.filters import EMA, MA, Filter
from grokfast.transforms.rules import RESUM_WINDOWS, in_memory_order


def filter_gradient(
    filter: Filter,
    grad: Tensor,
    state: dict[str, Any],
    *,
    trigger: bool = False,
    tensors: Mapping[str, Tensor] = MappingProxyType({}),
    capturable: bool = False,
    differentiable: bool = False,
) -> Tensor:
    """Advance the history in `state` (none at first) by the raw `grad` and return ĝ, a new tensor of the same dtype.

    `trigger` switches a warmed-up MA off for this call, as in the original; the window goes on. `grad` is not changed.
    `capturable`: nothing waits for the device, on which the count lies; `tensors` may hold 0-dim tensors "alpha",
    "lamb" and "enabled" (0 is off, and ends the history) that then stand in for the filter's own values.
    `differentiable`: history and ĝ are functions of `grad` to autograd, as the state of torch's optimizers then is.
    Of a DTensor every process filters its own part, whatever the placements: the filters are linear and elementwise.
    Raises TypeError for a sparse gradient.
    """
    require_dense(grad)
    with torch.set_grad_enabled(differentiable):
        raw = local_part(grad if differentiable else grad.detach())
        if not history_of(state):
            state |= init_state(filter, grad, count_on=raw.device if capturable else None)
            if differentiable and isinstance(filter, EMA):
                state[EMA_KEY] = raw.to(state[EMA_KEY].dtype, copy=True)
        if capturable:
            place_count(state, raw.device)
        own = {key: local_part(value) for key, value in history_of(state).items()}
        if capturable or (isinstance(filter, MA) and not own[COUNT_KEY].is_cpu):
            named = {key.removeprefix("grokfast_"): value for key, value in own.items()}
            return placed_like(grad, filter.filtered(raw, named, tensors))
        return placed_like(grad, _filtered(filter, raw, own, trigger))


def _filtered(filter: Filter, grad: Tensor, state: dict[str, Any], trigger: bool) -> Tensor:
    if isinstance(filter, EMA):
        ema = state[EMA_KEY]
        raw = grad.to(ema.dtype)
        ema.lerp_(raw, 1 - filter.alpha)
        return raw.add(ema, alpha=filter.lamb).to(grad.dtype) if filter.lamb else grad.clone()

    total, count = state[SUM_KEY], int(state[COUNT_KEY])
    raw = grad.to(total.dtype)
    slow = _push(state, raw, count, filter.window_size)
    seen = min(count + 1, filter.window_size)
    if filter.lamb == 0 or (filter.warmup and (seen < filter.window_size or trigger)):
        return grad.clone()
    weight = filter.lamb / seen if filter.filter_type == "mean" else filter.lamb
    return raw.add(slow, alpha=weight).to(grad.dtype)


def _push(state: dict[str, Tensor], grad: Tensor, count: int, window: int) -> Tensor:
    """Put `grad` in the place of the oldest value and return the window's sum: O(1) in the window."""
    ring, total = state[RING_KEY], state[SUM_KEY]
    oldest = ring[count % window]
    total.sub_(oldest.to(total.device))
    oldest.copy_(grad)
    total.add_(oldest.to(total.device) if oldest.dtype != grad.dtype else grad)  # the sum is that of the ring
    state[COUNT_KEY].add_(1)
    period = RESUM_WINDOWS * window
    size = -(-total.numel() // period)
    low = count % period * size
    if low < total.numel():
        rows, flat = in_memory_order(ring, 1), in_memory_order(total, 0)[low : low + size]
        flat.copy_(rows[:, low : low + size].to(total.dtype).sum(0))
    return total
