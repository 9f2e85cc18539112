"""What a filter remembers of a tensor's gradients: tensors in `optimizer.state[p]`, among the optimizer's own.

EMA keeps `grokfast_ema`; MA keeps `grokfast_ring` [window_size, *shape], their running `grokfast_sum` and the number of
gradients seen, `grokfast_count` (0-dim int64). Histories of half-precision gradients are fp32. Where nothing may wait
for the device the count lies on it, and an EMA has one, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.sharding import is_sharded, local_part, placed_like
from grokfast.transforms.filters import EMA, MA, Filter
from grokfast.transforms.launch import is_capturing

EMA_KEY, RING_KEY, SUM_KEY, COUNT_KEY = "grokfast_ema", "grokfast_ring", "grokfast_sum", "grokfast_count"
KEYS: dict[type, tuple[str, ...]] = {EMA: (EMA_KEY,), MA: (RING_KEY, SUM_KEY, COUNT_KEY)}
_KEYS = (EMA_KEY, RING_KEY, SUM_KEY, COUNT_KEY)
ALL_KEYS = frozenset(_KEYS)

MAX_COUNT = 2**53  # as csrc/; a kernel adds to a count, and takes it for a place in the ring


def is_dense(grad: Tensor | None) -> bool:
    return grad is not None and grad.layout is torch.strided


def require_dense(grad: Tensor | None) -> None:
    """Raise TypeError for a sparse gradient."""
    if grad is not None and not is_dense(grad):
        raise TypeError(
            f"grad must be a dense tensor, got layout {grad.layout} with shape {tuple(grad.shape)}: a filter's history "
            "is dense (for nn.Embedding use sparse=False)"
        )


def state_shape(filter: Filter, shape: tuple[int, ...], key: str) -> tuple[int, ...]:
    """The shape of one of `filter`'s tensors for a parameter of `shape`."""
    if key == COUNT_KEY:
        return ()
    return (filter.window_size, *shape) if isinstance(filter, MA) and key == RING_KEY else tuple(shape)


def history_of(state: Any) -> dict[str, Any]:
    """The filter's part of a parameter's state."""
    return {key: state[key] for key in _KEYS if key in state} if isinstance(state, dict) else {}


def require_state(
    name: str,
    state: Any,
    filter: Filter,
    shape: tuple[int, ...],
    counts: tuple[torch.dtype, ...] = (torch.int64,),
    hint: str = "",
) -> None:
    """Raise TypeError or ValueError, naming `name`, unless `state` is what `filter` keeps for a gradient of `shape`.

    `counts`: dtypes that a count may have; `hint` ends the message where they belong to another kind of filter.
    """
    keys = KEYS[type(filter)]
    if not isinstance(state, dict):
        raise TypeError(f"{name} must be a dict of {sorted(keys)}, got {type(state).__name__}")
    if set(state) - {COUNT_KEY} != set(keys) - {COUNT_KEY} or not set(keys) <= set(state):
        raise ValueError(f"{name} holds {list(state)}, but the filter is {filter}, which keeps {list(keys)}{hint}")
    for key in state:
        value, accepted = state[key], state_shape(filter, shape, key)
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(value).__name__}")
        if value.shape != accepted:
            raise ValueError(f"{name}[{key!r}] has shape {tuple(value.shape)}, accepted is {accepted} for {filter}")
        if key == COUNT_KEY and (value.dtype not in counts or not _is_count(value)):
            raise ValueError(f"{name}[{key!r}] must be a torch.int64 count between 0 and 2**53, got {value!r}")


def _is_count(value: Tensor) -> bool:
    if is_capturing(value.device):
        return True  # nobody may look now; it was looked at when it was loaded
    return bool((value >= 0) & (value <= MAX_COUNT) & (value == value.trunc()))


def settle(work: Iterable[tuple[Filter, Tensor]], states: Any, *, capturable: bool) -> None:
    """Bring histories that somebody loaded, cast or moved in `states` to where and what their filters keep.

    Raises TypeError or ValueError, nothing changed, where one is not its filter's.
    """
    found = [(filter, p, states.get(p), history_of(states.get(p))) for filter, p in work]
    for filter, p, _, history in found:
        if history:
            # Optimizer.load_state_dict makes a count a float of the parameter's precision.
            counts = (torch.int64, torch.float32, torch.float64)
            hint = "; GrokFast.forget(), or taking them out of the state, begins anew"
            require_state("state[p]", history, filter, p.shape, counts, hint)
    for filter, p, state, history in found:
        if any(value.dtype is not _dtype(key, filter, p) for key, value in history.items()) or any(
            value.device != p.device for key, value in history.items() if key in (EMA_KEY, SUM_KEY)
        ):
            state |= placed(history, filter, p, capturable=capturable)


def _dtype(key: str, filter: Filter, p: Tensor) -> torch.dtype:
    if key == COUNT_KEY:
        return torch.int64
    is_bf16 = key == RING_KEY and isinstance(filter, MA) and filter.ring == "bfloat16"
    return torch.bfloat16 if is_bf16 else torch.promote_types(p.dtype, torch.float32)


def placed(history: dict[str, Tensor], filter: Filter, p: Tensor, *, capturable: bool) -> dict[str, Tensor]:
    """A copy of a loaded history as the filter keeps it: in at least fp32, in the order of `p`'s memory."""
    copied = {}
    for key, value in history.items():
        dtype = _dtype(key, filter, p)
        if key == COUNT_KEY:
            if capturable or isinstance(filter, MA):
                copied[key] = value.detach().to(p.device if capturable else "cpu", dtype, copy=True)
        elif is_sharded(p) or is_sharded(value):
            copied[key] = value.detach().to(p.device, dtype, copy=True)
        elif key == RING_KEY and isinstance(filter, MA):
            copied[key] = new_ring(filter, p.detach(), dtype).copy_(value)
        else:
            copied[key] = torch.empty_like(p.detach(), dtype=dtype).copy_(value)
    return copied


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
