"""The passes over memory that an optimizer's step consists of, found again by the addresses that they work on."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.filters import MA
from grokfast.optim.device import Launch, Rows, Uploads, dtypes
from grokfast.optim.settings import Setting
from grokfast.optim.slots import FILTER_ONLY, FILTERS, Work, entry, fits, slots_of

_KEPT_AT_MOST = 8  # gradients alternate between a few places
_address, _gradient = Tensor.data_ptr, attrgetter("grad")
Histories = dict[Tensor, dict[str, Any]]


class Passes:
    """One for each optimizer; not copied or saved with it."""

    def __init__(self) -> None:
        self.uploads = Uploads()
        self.rows: dict[torch.device, Rows] = {}
        self.made: dict[tuple[Any, ...], Made] = {}

    def again(self, key: tuple[Any, ...], states: Any, histories: Histories) -> Made | None:
        """What was made for `key` before, if it is still right."""
        known = self.made.get(key)
        return known if known is not None and known.is_current(states, histories) else None

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

    def run(self, made: Made, hyper: array[float], overrides: Sequence[Tensor | None]) -> list[Tensor]:
        """Run, with the rows of hyper-parameters and, on devices, their overrides, four a row.

        Where only the filter runs: returns the filtered gradients, in order; the next step writes there anew.
        """
        for one_pass in made.on_cpu:
            one_pass(hyper)
        for launch in made.launches:
            rows = self.rows.setdefault(launch.device, Rows(launch.device, self.uploads))
            launch(*rows.tables(hyper, overrides))
            self.uploads.keep(made, launch.device)
        return made.outs


class Made:
    """Passes, and what must still hold for them to be right: the addresses in their key, and these tensors."""

    def __init__(
        self, rule: int, work: Sequence[Work], states: Any, histories: Histories, capturable: bool, uploads: Uploads
    ) -> None:
        filter = work[0].filter
        window, is_bf16 = (filter.window_size, filter.ring == "bfloat16") if isinstance(filter, MA) else (1, False)
        ring = torch.bfloat16 if is_bf16 else torch.float32
        self.outs = [torch.empty_like(w.param) for w in work] if rule == FILTER_ONLY else []
        self.launches: list[Launch] = []
        self.on_cpu: list[CpuPass] = []
        self.has_first = False  # a momentum buffer begins: the next step is another
        self.params = [w.param for w in work]
        for device, dtype in dict.fromkeys((w.param.device, w.param.dtype) for w in work):
            on_device = backend.device_kernels(device) is not None
            entries, kind = array("q"), FILTERS[type(filter)]
            for i, w in enumerate(work):
                if (w.param.device, w.param.dtype) == (device, dtype):
                    slots = slots_of(rule, w, states, histories, on_device=on_device, capturable=capturable)
                    entries.extend(entry(w, slots, self.outs[i] if self.outs else None))
                    self.has_first |= slots.is_first
            if on_device:
                self.launches.append(Launch(rule, kind, entries, window, ring, dtype, device, uploads))
            else:
                self.on_cpu.append(CpuPass(rule, kind, entries, is_bf16))
        self.dicts = [*states.values(), *histories.values()]
        self.tensors = list(chain.from_iterable(map(dict.values, self.dicts)))
        self.memory = [t.untyped_storage() for t in self.tensors if isinstance(t, Tensor)]  # stays while this does

    def is_current(self, states: Any, histories: Histories) -> bool:
        """Whether state and history are the tensors they were."""
        return (
            len(self.dicts) == len(states) + len(histories)
            and all(map(is_, self.dicts, chain(states.values(), histories.values())))
            and len(self.tensors) == sum(map(len, self.dicts))
            and all(map(is_, self.tensors, chain.from_iterable(map(dict.values, self.dicts))))
        )


class CpuPass:
    """The update of CPU fp32 tensors, in the extension."""

    def __init__(self, rule: int, filter: int, entries: array[int], is_bf16: bool) -> None:
        self.update = backend.load_extension().update
        self.arguments, self.ring = (rule, filter, entries), int(is_bf16)

    def __call__(self, hyper: array[float]) -> None:
        self.update(*self.arguments, hyper, 0, torch.get_num_threads(), ring_type=self.ring)


def _dtypes(device: torch.device, capturable: bool) -> tuple[torch.dtype, ...]:
    """Parameters that a kernel takes on a device."""
    if device.type == "cpu" and backend.device_kernels(device) is None:
        return (torch.float32,) if backend.extension() is not None and not capturable else ()
    return dtypes(device)


def key_of(
    rule: int, groups: Sequence[dict[str, Any]], settings: Sequence[Setting], params: Sequence[Tensor], capturable: bool
) -> tuple[Any, ...]:
    """What a pass depends on that may differ at the next step, but for state and history: above all, addresses."""
    grads = list(map(_gradient, params))
    try:
        gradients: tuple[Any, ...] = (*map(Tensor.is_contiguous, grads), *map(_address, grads))
    except (TypeError, RuntimeError):  # some have no gradient, or a sparse one
        dense = [g is not None and g.layout is torch.strided for g in grads]
        gradients = tuple(is_dense and (g.is_contiguous(), g.data_ptr()) for g, is_dense in zip(grads, dense))
    filter = next((s.filter for s in settings if s.filter is not None), None)
    per_group = (
        (len(group["params"]), bool(group.get("momentum")), s.filter is None) for group, s in zip(groups, settings)
    )
    ring = (filter.window_size, filter.ring) if isinstance(filter, MA) else None
    engine = backend.current(), backend.extension()
    return (rule, capturable, *engine, type(filter), ring, *per_group, *map(_address, params), *gradients)
