"""The gradient filters in plain PyTorch, one tensor at a time, in any precision: what the one-pass kernels are held to.

The state of a tensor is a small dict of tensors, so that it can be saved like any optimizer state:
EMA keeps `grokfast_ema`; MA keeps `grokfast_ring` [window_size, *shape], their running `grokfast_sum` and the number of
gradients seen, `grokfast_count` (0-dim int64). State of half-precision gradients is fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast.filters import EMA, MA, Filter
from grokfast.optim.sharding import local_part, placed_like

EMA_KEY, RING_KEY, SUM_KEY, COUNT_KEY = "grokfast_ema", "grokfast_ring", "grokfast_sum", "grokfast_count"
KEYS: dict[type, tuple[str, ...]] = {EMA: (EMA_KEY,), MA: (RING_KEY, SUM_KEY, COUNT_KEY)}

# Every element of a running sum is summed anew once in this many windows, a slice at a step: adding and subtracting
# alone would drift. As csrc/cpu/update.cpp.
RESUM_WINDOWS = 4


def require_dense(grad: Tensor) -> None:
    """Raise TypeError for a sparse gradient."""
    if grad.layout is not torch.strided:
        raise TypeError(
            f"grad must be a dense tensor, got layout {grad.layout} with shape {tuple(grad.shape)}: a filter's history "
            "is dense (for nn.Embedding use sparse=False)"
        )


def state_shape(filter: Filter, shape: tuple[int, ...], key: str) -> tuple[int, ...]:
    """The shape of one of `filter`'s tensors for a parameter of `shape`."""
    if key == COUNT_KEY:
        return ()
    return (filter.window_size, *shape) if isinstance(filter, MA) and key == RING_KEY else tuple(shape)


def require_state(name: str, state: Any, filter: Filter, shape: tuple[int, ...]) -> None:
    """Raise TypeError or ValueError, naming `name`, unless `state` is what `filter` keeps for a gradient of `shape`."""
    keys = KEYS[type(filter)]
    if not isinstance(state, dict):
        raise TypeError(f"{name} must be a dict of {sorted(keys)}, got {type(state).__name__}")
    if state.keys() != set(keys):
        raise ValueError(f"{name} holds {list(state)}, but the filter is {filter}, which keeps {list(keys)}")
    for key in keys:
        value, accepted = state[key], state_shape(filter, shape, key)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(value).__name__}")
        if value.shape != accepted:
            raise ValueError(f"{name}[{key!r}] has shape {tuple(value.shape)}, accepted is {accepted} for {filter}")
        if key == COUNT_KEY and (value.dtype is not torch.int64 or value < 0):
            raise ValueError(f"{name}[{key!r}] must be a torch.int64 count, got {value!r}")


def init_state(filter: Filter, grad: Tensor) -> dict[str, Tensor]:
    """The state before the first gradient, sharded as `grad` is; EMA starts at that gradient itself."""
    own = local_part(grad.detach())
    dtype = torch.promote_types(grad.dtype, torch.float32)
    if isinstance(filter, EMA):
        return {EMA_KEY: placed_like(grad, own.to(dtype, copy=True))}
    ring, total, count = (state_shape(filter, own.shape, key) for key in KEYS[MA])
    return {
        RING_KEY: placed_like(grad, torch.zeros(ring, dtype=dtype, device=own.device)),
        SUM_KEY: placed_like(grad, torch.zeros(total, dtype=dtype, device=own.device)),
        COUNT_KEY: torch.zeros(count, dtype=torch.int64, device="cpu"),
    }


@torch.no_grad()
def filter_gradient(filter: Filter, grad: Tensor, state: dict[str, Any], *, trigger: bool = False) -> Tensor:
    """Advance `state` (empty at first) by the raw `grad` and return ĝ, a new tensor of the same dtype.

    `trigger` switches a warmed-up MA off for this call, as in the original; the window goes on. `grad` is not changed.
    Of a DTensor every process filters its own part, whatever the placements: the filters are linear and elementwise.
    Raises TypeError for a sparse gradient.
    """
    require_dense(grad)
    if not state:
        state.update(init_state(filter, grad))
    own = {key: local_part(value) for key, value in state.items()}
    return placed_like(grad, _filtered(filter, local_part(grad), own, trigger))


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
    total.sub_(oldest).add_(grad)
    oldest.copy_(grad)
    state[COUNT_KEY].add_(1)
    period = RESUM_WINDOWS * window
    size = -(-total.numel() // period)
    low = count % period * size
    if low < total.numel():
        flat = total.view(-1)[low : low + size]
        flat.copy_(ring.view(window, -1)[:, low : low + size].sum(0))
    return total
