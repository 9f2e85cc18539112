"""What a filter remembers of a tensor's gradients: tensors in `optimizer.state[p]`, among the optimizer's own.

An EMA alone keeps `grokfast_ema`; a MA alone keeps `grokfast_ring` [window_size, *shape], their running `grokfast_sum`
and the number of gradients seen, `grokfast_count` (0-dim int64). Histories of half-precision gradients are fp32. Where
nothing may wait for the device the count lies on it, and an EMA has one, too. Any other transform keeps
`grokfast_<place>.<name>`, its place that in its chain, and the count, beside the parameter; with a start or stop of its
own it has a `grokfast_count.<place>`, too, of the gradients seen while it was on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.sharding import is_sharded, local_part, placed_like
from grokfast.transforms.base import Kept, Layout, Transform
from grokfast.transforms.chain import elements
from grokfast.transforms.launch import is_capturing
from grokfast.transforms.one_pass import pass_of

PREFIX = "grokfast_"
EMA_KEY, RING_KEY, SUM_KEY, COUNT_KEY = "grokfast_ema", "grokfast_ring", "grokfast_sum", "grokfast_count"

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


def kept_by(transform: Transform) -> dict[str, Kept]:
    """What a filter, alone, keeps of a parameter, by its key; nothing of any other transform."""
    own = transform.as_filter
    return {f"{PREFIX}{kept.name}": kept for kept in own.kept} if own else {}


def keys_of(transform: Transform) -> dict[str, Kept]:
    """What the filter of one pass keeps of a parameter, by its key: in a chain as the chain keeps it."""
    own = pass_of(transform)
    if transform.as_filter or own is None or own.filter is None:
        return kept_by(transform)
    return {f"{PREFIX}{own.filter}.{kept.name}": kept for kept in elements(transform)[own.filter].kept}


def counted_by(transform: Transform) -> tuple[str, ...]:
    """The counts that one pass advances of a transform that is no filter alone; the first is that of its filter."""
    own, counts = pass_of(transform), [COUNT_KEY]
    counts += [count_of(place) for place, one in enumerate(elements(transform)) if not one.is_always_on]
    first = COUNT_KEY if own is None or own.filter is None else count_of(own.filter)
    return tuple(sorted(counts, key=lambda key: key != first))


def shapes_of(transform: Transform, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of each tensor that is kept of a parameter of `shape`. A filter that does not count may have a count, too."""
    if own := transform.as_filter:
        shapes = {key: (*kept.lead, *shape) for key, kept in kept_by(own).items()}
        return {**shapes, COUNT_KEY: ()} if own.counts else shapes
    layout = Layout.of({"parameter": shape})
    found: dict[str, tuple[int, ...]] = {COUNT_KEY: ()}
    for place, one in enumerate(elements(transform)):
        found |= {f"{PREFIX}{place}.{name}": tuple(own) for name, own in one.state(layout).items()}
        if not one.is_always_on:
            found[count_of(place)] = ()
    return found


def count_of(place: int) -> str:
    """The key of an own count."""
    return f"{COUNT_KEY}.{place}"


def is_count(key: str) -> bool:
    return key == COUNT_KEY or key.startswith(f"{COUNT_KEY}.")


def is_key(key: Any) -> bool:
    """Whether a key of `optimizer.state[p]` is of a history."""
    return isinstance(key, str) and key.startswith(PREFIX)


def history_of(state: Any) -> dict[str, Any]:
    """The transforms' part of a parameter's state."""
    return {key: value for key, value in state.items() if is_key(key)} if isinstance(state, dict) else {}


def require_state(
    name: str,
    state: Any,
    filter: Transform,
    shape: tuple[int, ...],
    counts: tuple[torch.dtype, ...] = (torch.int64,),
    hint: str = "",
) -> None:
    """Raise TypeError or ValueError, naming `name`, unless `state` is what `filter` keeps for a gradient of `shape`.

    `counts`: dtypes that a count may have; `hint` ends the message where they belong to another kind of filter.
    """
    shapes = {COUNT_KEY: (), **shapes_of(filter, shape)}
    keys = list(shapes_of(filter, shape))
    if not isinstance(state, dict):
        raise TypeError(f"{name} must be a dict of {sorted(keys)}, got {type(state).__name__}")
    if set(state) - {COUNT_KEY} != set(keys) - {COUNT_KEY} or not set(keys) <= set(state):
        raise ValueError(f"{name} holds {list(state)}, but the filter is {filter}, which keeps {keys}{hint}")
    for key in state:
        value, accepted = state[key], shapes[key]
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(value).__name__}")
        if value.shape != accepted:
            raise ValueError(f"{name}[{key!r}] has shape {tuple(value.shape)}, accepted is {accepted} for {filter}")
        if is_count(key) and (value.dtype not in counts or not _is_count(value)):
            raise ValueError(f"{name}[{key!r}] must be a torch.int64 count between 0 and 2**53, got {value!r}")


def _is_count(value: Tensor) -> bool:
    if is_capturing(value.device):
        return True  # nobody may look now; it was looked at when it was loaded
    number = value.item()
    return 0 <= number <= MAX_COUNT and number == int(number)


def settle(work: Iterable[tuple[Transform, Tensor]], states: Any, *, capturable: bool) -> None:
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
            value.device != p.device for key, value in history.items() if not _lies_elsewhere(key, filter)
        ):
            state |= placed(history, filter, p, capturable=capturable)


def _lies_elsewhere(key: str, filter: Transform) -> bool:
    """Whether it need not lie beside its parameter."""
    kept = kept_by(filter).get(key)
    return key == COUNT_KEY or (kept is not None and kept.on_host)


def _dtype(key: str, filter: Transform, p: Tensor) -> torch.dtype:
    if is_count(key):
        return torch.int64
    kept = kept_by(filter).get(key)
    return torch.bfloat16 if kept and kept.in_bf16 else torch.promote_types(p.dtype, torch.float32)


def placed(history: dict[str, Tensor], filter: Transform, p: Tensor, *, capturable: bool) -> dict[str, Tensor]:
    """A copy of a loaded history as the filter keeps it: in at least fp32, in the order of `p`'s memory."""
    own, kept = filter.as_filter, kept_by(filter)
    if own is None:
        return {key: value.detach().to(p.device, _dtype(key, filter, p), copy=True) for key, value in history.items()}
    copied = {}
    for key, value in history.items():
        dtype = _dtype(key, filter, p)
        if key == COUNT_KEY:
            if capturable or own.counts:
                copied[key] = value.detach().to(p.device if capturable else "cpu", dtype, copy=True)
        elif is_sharded(p) or is_sharded(value):
            copied[key] = value.detach().to(p.device, dtype, copy=True)
        else:
            copied[key] = zeros(kept[key], p.detach(), dtype).copy_(value)
    return copied


def init_state(filter: Transform, grad: Tensor, *, count_on: torch.device | None = None) -> dict[str, Tensor]:
    """The state before the first gradient, sharded and laid out as `grad` is; an EMA starts at that gradient itself.

    `count_on`: the device of the count; None: the CPU where the filter counts, and else no count.
    """
    own = filter.as_filter
    if own is None:
        shapes = shapes_of(filter, grad.shape)
        return {
            key: torch.zeros(shape, dtype=_dtype(key, filter, grad), device=grad.device)
            for key, shape in shapes.items()
        }
    raw = local_part(grad)
    state = {
        key: placed_like(grad, raw.to(_dtype(key, own, grad), copy=True) if kept.is_gradient
                         else zeros(kept, raw.detach(), _dtype(key, own, grad)))
        for key, kept in kept_by(own).items()
    }  # fmt: skip
    if own.counts or count_on is not None:
        state[COUNT_KEY] = torch.zeros((), dtype=torch.int64, device=count_on or "cpu")
    return state


def zeros(kept: Kept, own: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros [*lead, *shape]; the elements, those of a row where there are several, lie in memory as `own`'s do."""
    row = torch.empty_like(own, device="meta")
    shape, strides = (*kept.lead, *row.shape), (*(row.numel() for _ in kept.lead), *row.stride())
    place = {"device": "cpu", "pin_memory": True} if kept.on_host and own.is_cuda else {"device": own.device}
    return torch.empty_strided(shape, strides, dtype=dtype, **place).zero_()


def place_count(history: dict[str, Any], device: torch.device) -> None:
    """Bring the count to `device`. An EMA that had none and is given one has seen gradients before."""
    if COUNT_KEY not in history:
        history[COUNT_KEY] = torch.ones((), dtype=torch.int64, device=device)
    history[COUNT_KEY] = history[COUNT_KEY].to(device)
