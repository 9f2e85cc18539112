"""The gradient filters in plain PyTorch, one tensor at a time, in any precision: the kernels are held to them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.history import COUNT_KEY, PREFIX, history_of, init_state, place_count, require_dense
from grokfast.optim.sharding import local_part, placed_like
from grokfast.transforms.filters import Filter


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
        if capturable:
            place_count(state, raw.device)
        own = {key: local_part(value) for key, value in history_of(state).items()}
        named = {key.removeprefix(PREFIX): value for key, value in own.items()}
        if capturable or (filter.counts and not named["count"].is_cpu):
            return placed_like(grad, filter.filtered(raw, named, tensors))
        if not filter.counts:
            return placed_like(grad, filter.filtered(raw, {k: t for k, t in named.items() if k != "count"}, {}))
        is_off = trigger and filter.numbers.get("warmup")
        out = filter.filtered(raw, {**named, "count": int(own[COUNT_KEY])}, {"lamb": 0.0} if is_off else {})
        own[COUNT_KEY].add_(1)
        return placed_like(grad, out)
