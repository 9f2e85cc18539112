"""The launches that an optimizer's step on GPUs consists of, found again by the addresses that they read."""

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


class DeviceSteps:
    """One for each optimizer; not copied or saved with it."""

    def __init__(self) -> None:
        self.uploads = Uploads()
        self.rows: dict[torch.device, Rows] = {}
        self.made: dict[tuple[Any, ...], Made] = {}

    def again(self, key: tuple[Any, ...], states: Any, histories: Histories) -> Made | None:
        """The launches made for `key` before, if they are still right."""
        known = self.made.get(key)
        return known if known is not None and known.is_current(states, histories) else None

    def make(
        self, key: tuple[Any, ...], rule: int, work: Sequence[Work], states: Any, histories: Histories, capturable: bool
    ) -> Made | None:
        """New launches, or None, nothing changed, where no kernel fits."""
        for w in work:
            if not fits(rule, w, states.get(w.param), histories.get(w.param), dtypes(w.param.device)):
                return None
        made = Made(rule, work, states, histories, capturable, self.uploads)
        self.made.pop(key, None)
        if len(self.made) >= _KEPT_AT_MOST:
            self.made.pop(next(iter(self.made)))
        self.made[key] = made
        return made

    def run(self, made: Made, hyper: array[float], overrides: Sequence[Tensor | None]) -> list[Tensor]:
        """Launch, with the rows of hyper-parameters and their overrides, four a row.

        Where only the filter runs: returns the filtered gradients, in order; the next step writes there anew.
        """
        for launch in made.launches:
            rows = self.rows.setdefault(launch.device, Rows(launch.device, self.uploads))
            launch(*rows.tables(hyper, overrides))
            self.uploads.keep(made, launch.device)
        return made.outs


class Made:
    """Launches, and what must still hold for them to be right: the addresses in their key, and these tensors."""

    def __init__(
        self, rule: int, work: Sequence[Work], states: Any, histories: Histories, capturable: bool, uploads: Uploads
    ) -> None:
        filter = work[0].filter
        window, is_bf16 = (filter.window_size, filter.ring == "bfloat16") if isinstance(filter, MA) else (1, False)
        ring = torch.bfloat16 if is_bf16 else torch.float32
        self.outs = [torch.empty_like(w.param) for w in work] if rule == FILTER_ONLY else []
        self.launches = []
        self.params = [w.param for w in work]
        for device, dtype in dict.fromkeys((w.param.device, w.param.dtype) for w in work):
            entries = array("q")
            for i, w in enumerate(work):
                if (w.param.device, w.param.dtype) == (device, dtype):
                    slots = slots_of(rule, w, states, histories, on_device=True, capturable=capturable)
                    entries.extend(entry(w, slots, self.outs[i] if self.outs else None))
            self.launches.append(Launch(rule, FILTERS[type(filter)], entries, window, ring, dtype, device, uploads))
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


def key_of(
    rule: int, groups: Sequence[dict[str, Any]], settings: Sequence[Setting], params: Sequence[Tensor], capturable: bool
) -> tuple[Any, ...]:
    """What a launch depends on that may differ at the next step, but for state and history: above all, addresses."""
    grads = list(map(_gradient, params))
    try:
        gradients: tuple[Any, ...] = (*map(Tensor.is_contiguous, grads), *map(_address, grads))
    except TypeError:  # some have no gradient
        gradients = tuple(g is not None and (g.is_contiguous(), g.data_ptr()) for g in grads)
    filter = next((s.filter for s in settings if s.filter is not None), None)
    per_group = (
        (len(group["params"]), bool(group.get("momentum")), s.filter is None) for group, s in zip(groups, settings)
    )
    ring = (filter.window_size, filter.ring) if isinstance(filter, MA) else None
    return (rule, capturable, backend.current(), type(filter), ring, *per_group, *map(_address, params), *gradients)
