"""The launches that an optimizer's step on a GPU consists of, found again by the addresses that they read."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.filters import MA
from grokfast.optim.device import DTYPES, Launch, Rows, Uploads
from grokfast.optim.slots import FILTER_ONLY, FILTERS, SGD, Work, entry, fits, slots_of

_MADE_AT_MOST = 8  # gradients alternate between a few places
_address, _gradient = Tensor.data_ptr, attrgetter("grad")
Histories = dict[Tensor, dict[str, Any]]
Step = Callable[["array[float]", Sequence[Tensor | None]], list[Tensor]]


class DeviceSteps:
    """One for each optimizer; not copied or saved with it."""

    def __init__(self) -> None:
        self.uploads = Uploads()
        self.rows: dict[torch.device, Rows] = {}
        self.made: dict[tuple[Any, ...], _Made] = {}

    def find(
        self, rule: int, work: Sequence[Work], states: Any, histories: Histories, *, capturable: bool
    ) -> Step | None:
        """A function that takes the step of the parameters of one device, or None where no kernel fits.

        Nothing is changed before it is called, with the rows of hyper-parameters and their overrides (four a row).
        Where only the filter runs, it returns the filtered gradients in the order of `work`; the next step writes
        there anew.
        """
        params = [w.param for w in work]
        grads = list(map(_gradient, params))
        filter = work[0].filter
        key = (
            rule, capturable, backend.current(), type(filter), getattr(filter, "window_size", 0),
            getattr(filter, "ring", ""), tuple(w.row for w in work),
            rule == SGD and tuple(bool(w.group["momentum"]) for w in work),
            tuple(map(Tensor.is_contiguous, grads)), *map(_address, params), *map(_address, grads),
        )  # fmt: skip
        known = self.made.get(key)
        if known is not None and not known.is_current(states, histories):
            known = None
        if known is None and not all(fits(rule, w, states.get(w.param), histories.get(w.param), DTYPES) for w in work):
            return None

        def step(hyper: array[float], overrides: Sequence[Tensor | None]) -> list[Tensor]:
            made = _Made(rule, work, states, histories, capturable, self.uploads) if known is None else known
            if known is None:
                self.made.pop(key, None)
                if len(self.made) >= _MADE_AT_MOST:
                    self.made.pop(next(iter(self.made)))
                self.made[key] = made
            device = params[0].device
            tables = self.rows.setdefault(device, Rows(device, self.uploads)).tables(hyper, overrides)
            self.uploads.keep(made, device)
            for launch in made.launches:
                launch(*tables)
            return made.outs

        return step


class _Made:
    """The launches, and what must still hold for them to be right: the addresses in the key, and these tensors."""

    def __init__(
        self, rule: int, work: Sequence[Work], states: Any, histories: Histories, capturable: bool, uploads: Uploads
    ) -> None:
        device, filter = work[0].param.device, work[0].filter
        window, is_bf16 = (filter.window_size, filter.ring == "bfloat16") if isinstance(filter, MA) else (1, False)
        self.outs = [torch.empty_like(w.param) for w in work] if rule == FILTER_ONLY else []
        self.launches = []
        for dtype in dict.fromkeys(w.param.dtype for w in work):
            entries = array("q")
            for i, w in enumerate(work):
                if w.param.dtype is dtype:
                    slots = slots_of(rule, w, states, histories, on_device=True, capturable=capturable)
                    entries.extend(entry(w, slots, self.outs[i] if self.outs else None))
            ring = torch.bfloat16 if is_bf16 else torch.float32
            kind = FILTERS[type(filter)]
            self.launches.append(Launch(rule, kind, entries, window, ring, dtype, device, uploads))
        self.dicts = [*states.values(), *histories.values()]
        self.tensors = list(chain.from_iterable(map(dict.values, self.dicts)))
        self.memory = [t.untyped_storage() for t in self.tensors if isinstance(t, Tensor)]  # stays while this does

    def is_current(self, states: Any, histories: Histories) -> bool:
        """Whether state and history are the tensors they were."""
        dicts = chain(states.values(), histories.values())
        return _same(self.dicts, dicts) and _same(self.tensors, chain.from_iterable(map(dict.values, self.dicts)))


def _same(known: list[Any], now: Iterable[Any]) -> bool:
    found = list(now)
    return len(known) == len(found) and all(map(is_, known, found))
