"""The passes over memory that an optimizer's step consists of, found again by the addresses that they work on."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.filters import MA
from grokfast.optim.device import ENTRY_WIDTH, GRAD, Launch, Rows, Uploads, dtypes
from grokfast.optim.settings import Setting
from grokfast.optim.slots import FILTER_ONLY, FILTERS, Work, entry, fits, slots_of

_KEPT_AT_MOST = 8
_address, _layout, _dtype = Tensor.data_ptr, attrgetter("layout"), attrgetter("dtype")
Histories = dict[Tensor, dict[str, Any]]


class Passes:
    """One for each optimizer; not copied or saved with it."""

    def __init__(self) -> None:
        self.uploads = Uploads()
        self.rows: dict[torch.device, Rows] = {}
        self.made: dict[tuple[Any, ...], Made] = {}

    def again(self, key: tuple[Any, ...], grads: Sequence[Tensor], states: Any, histories: Histories) -> Made | None:
        """What was made for `key` before, if it is still right."""
        known = self.made.get(key)
        return known if known is not None and known.is_current(grads, states, histories) else None

    def make(
        self, key: tuple[Any, ...], rule: int, work: Sequence[Work], states: Any, histories: Histories, capturable: bool
    ) -> Made | None:
        """New ones, or None, nothing changed, where no kernel fits."""
        for w in work:
            if not fits(rule, w, states.get(w.param), histories.get(w.param), _dtypes(w.param.device, capturable)):
                return None
        made = Made(rule, work, states, histories, capturable, self.uploads)
        self.made.pop(key, None)
        if len(self.made) >= _KEPT_AT_MOST:
            self.made.pop(next(iter(self.made)))
        if not made.has_first:
            self.made[key] = made
        return made

    def run(
        self, made: Made, grads: Sequence[Tensor], hyper: array[float], overrides: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Run, with the rows of hyper-parameters and, on devices, their overrides, four a row.

        Where only the filter runs: returns the filtered gradients, in order; the next step writes there anew.
        """
        for part in made.parts:
            own = array("q", map(_address, [grads[i] for i in part.numbers] if len(made.parts) > 1 else grads))
            if isinstance(part, OnCpu):
                part(own, hyper)
            else:
                launch = part.launch(own)
                tables = self.rows.setdefault(launch.device, Rows(launch.device, self.uploads)).tables(hyper, overrides)
                launch(*tables)
                self.uploads.keep((made, launch), launch.device)
        return made.outs


class Made:
    """Passes, and what must still hold for them to be right: the addresses in their key, and these tensors."""

    def __init__(
        self, rule: int, work: Sequence[Work], states: Any, histories: Histories, capturable: bool, uploads: Uploads
    ) -> None:
        filter, kind = work[0].filter, FILTERS[type(work[0].filter)]
        window, is_bf16 = (filter.window_size, filter.ring == "bfloat16") if isinstance(filter, MA) else (1, False)
        ring = torch.bfloat16 if is_bf16 else torch.float32
        self.outs = [torch.empty_like(w.param) for w in work] if rule == FILTER_ONLY else []
        self.parts: list[OnCpu | OnDevice] = []
        self.has_first = False  # a momentum buffer begins: the next step is another
        self.params = [w.param for w in work]
        self.strides = None if all(p.is_contiguous() for p in self.params) else list(map(Tensor.stride, self.params))
        self.dtypes = [p.dtype for p in self.params]
        for device, dtype in dict.fromkeys((p.device, p.dtype) for p in self.params):
            on_device = backend.device_kernels(device) is not None
            entries, numbers = array("q"), []
            for i, w in enumerate(work):
                if (w.param.device, w.param.dtype) == (device, dtype):
                    slots = slots_of(rule, w, states, histories, on_device=on_device, capturable=capturable)
                    entries.extend(entry(w, slots, self.outs[i] if self.outs else None))
                    numbers.append(i)
                    self.has_first |= slots.is_first
            if on_device:
                make = partial(
                    Launch, rule, kind, window=window, ring=ring, dtype=dtype, device=device, uploads=uploads
                )
                self.parts.append(OnDevice(entries, numbers, make))
            else:
                self.parts.append(
                    OnCpu(entries, numbers, partial(backend.load_extension().update, rule, kind), is_bf16)
                )
        self.dicts = [*states.values(), *histories.values()]
        self.tensors = list(chain.from_iterable(map(dict.values, self.dicts)))
        self.memory = [t.untyped_storage() for t in self.tensors if isinstance(t, Tensor)]  # stays while this does

    def is_current(self, grads: Sequence[Tensor], states: Any, histories: Histories) -> bool:
        """Whether state and history are the tensors they were, and `grads` lie as the parameters do."""
        return (
            len(self.dicts) == len(states) + len(histories)
            and all(map(is_, self.dicts, chain(states.values(), histories.values())))
            and len(self.tensors) == sum(map(len, self.dicts))
            and all(map(is_, self.tensors, chain.from_iterable(map(dict.values, self.dicts))))
            and self._lie_alike(grads)
        )

    def _lie_alike(self, grads: Sequence[Tensor]) -> bool:
        if set(map(type, grads)) != {Tensor} or set(map(_layout, grads)) != {torch.strided}:
            return False
        if any(map(Tensor.is_neg, grads)) or not all(map(is_, map(_dtype, grads), self.dtypes)):
            return False
        if self.strides is None:
            return all(map(Tensor.is_contiguous, grads))
        return list(map(Tensor.stride, grads)) == self.strides


class OnCpu:
    """The update of CPU fp32 tensors, in the extension; `entries` but for the gradients' addresses."""

    def __init__(self, entries: array[int], numbers: list[int], update: Callable[..., None], is_bf16: bool) -> None:
        self.entries, self.numbers, self.update, self.ring = entries, numbers, update, int(is_bf16)

    def __call__(self, grads: array[int], hyper: array[float]) -> None:
        self.entries[GRAD::ENTRY_WIDTH] = grads
        self.update(self.entries, hyper, 0, torch.get_num_threads(), ring_type=self.ring)


class OnDevice:
    """The launches for tensors of one dtype on a device; a table is never changed, a graph may be reading it."""

    def __init__(self, entries: array[int], numbers: list[int], make: Callable[..., Launch]) -> None:
        self.entries, self.numbers, self.make = entries, numbers, make
        self.launches: dict[bytes, Launch] = {}

    def launch(self, grads: array[int]) -> Launch:
        known = self.launches.get(grads.tobytes())
        if known is None:
            self.entries[GRAD::ENTRY_WIDTH] = grads
            known = self.make(entries=array("q", self.entries))
            if len(self.launches) >= _KEPT_AT_MOST:  # gradients alternate between a few places
                self.launches.pop(next(iter(self.launches)))
            self.launches[grads.tobytes()] = known
        return known


def _dtypes(device: torch.device, capturable: bool) -> tuple[torch.dtype, ...]:
    """Parameters that a kernel takes on a device."""
    if device.type == "cpu" and backend.device_kernels(device) is None:
        return (torch.float32,) if backend.extension() is not None and not capturable else ()
    return dtypes(device)


def key_of(
    rule: int,
    groups: Sequence[dict[str, Any]],
    settings: Sequence[Setting],
    params: Sequence[Tensor],
    has_grad: Sequence[bool],
    capturable: bool,
) -> tuple[Any, ...]:
    """What passes depend on that may differ at the next step, but for gradients, state and history."""
    filter = next((s.filter for s in settings if s.filter is not None), None)
    per_group = (
        (len(group["params"]), bool(group.get("momentum")), s.filter is None) for group, s in zip(groups, settings)
    )
    ring = (filter.window_size, filter.ring) if isinstance(filter, MA) else None
    engine = backend.current(), backend.extension()
    return (rule, capturable, *engine, type(filter), ring, *per_group, *has_grad, *map(_address, params))
