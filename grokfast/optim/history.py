"""What a filter remembers of a tensor's gradients: a small dict of tensors, to be saved like any optimizer state.

EMA keeps `grokfast_ema`; MA keeps `grokfast_ring` [window_size, *shape], their running `grokfast_sum` and the number of
gradients seen, `grokfast_count` (0-dim int64). Histories of half-precision gradients are fp32. Where nothing may wait
for the device the count lies on it, and an EMA has one, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast.filters import EMA, MA, Filter
from grokfast.optim.sharding import local_part, placed_like

EMA_KEY, RING_KEY, SUM_KEY, COUNT_KEY = "grokfast_ema", "grokfast_ring", "grokfast_sum", "grokfast_count"
KEYS: dict[type, tuple[str, ...]] = {EMA: (EMA_KEY,), MA: (RING_KEY, SUM_KEY, COUNT_KEY)}
ALL_KEYS = frozenset((EMA_KEY, RING_KEY, SUM_KEY, COUNT_KEY))

# Every element of a running sum is summed anew once in this many windows, a slice at a step: adding and subtracting
# alone would drift. As csrc/.
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
    if set(state) - {COUNT_KEY} != set(keys) - {COUNT_KEY} or not set(keys) <= set(state):
        raise ValueError(f"{name} holds {list(state)}, but the filter is {filter}, which keeps {list(keys)}")
    for key in state:
        value, accepted = state[key], state_shape(filter, shape, key)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(value).__name__}")
        if value.shape != accepted:
            raise ValueError(f"{name}[{key!r}] has shape {tuple(value.shape)}, accepted is {accepted} for {filter}")
        if key == COUNT_KEY and (value.dtype is not torch.int64 or value < 0):
            raise ValueError(f"{name}[{key!r}] must be a torch.int64 count, got {value!r}")


def init_state(filter: Filter, grad: Tensor, *, count_on: torch.device | None = None) -> dict[str, Tensor]:
    """The state before the first gradient, sharded and laid out as `grad` is; EMA starts at that gradient itself.

    `count_on`: the device of the count; None: the CPU for a MA, and no count for an EMA.
    """
    own = local_part(grad.detach())
    dtype = torch.promote_types(grad.dtype, torch.float32)
    count = torch.zeros((), dtype=torch.int64, device=count_on or "cpu")
    if isinstance(filter, EMA):
        state = {EMA_KEY: placed_like(grad, own.to(dtype, copy=True))}
        return state if count_on is None else {**state, COUNT_KEY: count}
    return {
        RING_KEY: placed_like(grad, new_ring(filter, own, dtype)),
        SUM_KEY: placed_like(grad, torch.zeros_like(own, dtype=dtype)),
        COUNT_KEY: count,
    }


def new_ring(filter: MA, own: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros [window_size, *shape]; within a row the elements lie in memory as those of `own` do."""
    row = torch.empty_like(own, device="meta")
    shape, strides = (filter.window_size, *row.shape), (row.numel(), *row.stride())
    on_host = filter.ring == "host" and own.is_cuda
    place = {"device": "cpu", "pin_memory": True} if on_host else {"device": own.device}
    kind = torch.bfloat16 if filter.ring == "bfloat16" else dtype
    return torch.empty_strided(shape, strides, dtype=kind, **place).zero_()


def place_count(history: dict[str, Any], device: torch.device) -> None:
    """Bring the count to `device`. An EMA that had none and is given one has seen gradients before."""
    if COUNT_KEY not in history:
        history[COUNT_KEY] = torch.ones((), dtype=torch.int64, device=device)
    history[COUNT_KEY] = history[COUNT_KEY].to(device)


def in_memory_order(t: Tensor, axes: int) -> Tensor:
    """`t` with all but its first `axes` axes as one, in the order of its memory, sharing it."""
    return t.as_strided((*t.shape[:axes], t.shape[axes:].numel()), (*t.stride()[:axes], 1))
