"""The passes over memory that an optimizer's step consists of: made once, run again while all lies in its place.

A pass holds addresses, not tensors: clients may move, replace, shrink or free what they like between two steps. So all
that an update reads is looked at before every run.
"""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.optim.history import PREFIX, counted_by
from grokfast.optim.look import look
from grokfast.optim.slots import Work, entry, fill, fits, slots_of
from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.chain import elements
from grokfast.transforms.filters import EMA
from grokfast.transforms.launch import ENTRY_WIDTH, GRAD, PARAM, HyperTables, Launch, Uploads, dtypes, is_capturing
from grokfast.transforms.one_pass import averages_in, filter_in, numbers, pass_of
from grokfast.transforms.rows import FILTER_ONLY

_KEPT_AT_MOST = 8
_CAN_COUNT_USES = hasattr(Tensor, "_use_count") and hasattr(torch._C, "_storage_Use_Count")


class Passes:
    """One for each optimizer; not copied or saved with it."""

    def __init__(self) -> None:
        self.uploads = Uploads()
        self.rows: dict[torch.device, HyperTables] = {}
        self.made: dict[tuple[Any, ...], Made] = {}

    def again(
        self, key: tuple[Any, ...], params: Sequence[Tensor], grads: Sequence[Tensor], states: Any
    ) -> Made | None:
        """What was made for `key` before, if it is still right for these tensors."""
        known = self.made.get(key)
        return known if known is not None and known.is_current(params, grads, states) else None

    def make(
        self,
        key: tuple[Any, ...],
        rule: int,
        work: Sequence[Work],
        states: Any,
        capturable: bool,
        names: tuple[str, ...] = (),
    ) -> Made | None:
        """New ones, or None, nothing changed, where no kernel fits. `names`: of all the optimizer's parameters."""
        for w in work:
            if w.filter.as_filter is None and backend.device_kernels(w.param.device) is not None:
                return None  # the launches have EMA and MA alone
            if not fits(rule, w, states.get(w.param, {}), _dtypes(w.param.device, capturable)):
                return None
        made = Made(rule, work, states, capturable, self.uploads, names)
        self.made.pop(key, None)
        if len(self.made) >= _KEPT_AT_MOST:
            self.made.pop(next(iter(self.made)))
        if not made.has_first:
            self.made[key] = made
        return made

    def run(
        self,
        made: Made,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Any,
        hyper: array[float],
        overrides: Sequence[Tensor | None],
    ) -> list[Tensor]:
        """Run, with the rows of hyper-parameters and, on devices, their overrides, four a row.

        Where only the filter runs: returns the filtered gradients, in order; the next run writes there anew, but not
        into one that somebody kept.
        """
        made.let_go()
        for part in made.parts:
            columns = {GRAD: _addresses(grads, part.numbers)}
            if made.outs:
                columns[PARAM] = _addresses(made.outs, part.numbers)
            if isinstance(part, OnCpu):
                part(columns, hyper, made.averages(params, states))
            else:
                launch = part.launch(columns)
                tables = self.rows.setdefault(launch.device, HyperTables(launch.device, self.uploads)).tables(
                    hyper, overrides
                )
                launch(*tables)
                if is_capturing(launch.device):  # a graph reads all this as long as it lives
                    self.uploads.keep((launch, made.outs[:], made.read(params, states)), launch.device)
        made.count(params, states)
        return made.outs


class Made:
    """Passes, and how all that they read lay in memory when they were made."""

    def __init__(
        self,
        rule: int,
        work: Sequence[Work],
        states: Any,
        capturable: bool,
        uploads: Uploads,
        names: tuple[str, ...] = (),
    ) -> None:
        filter, self._averaging = filter_in(work[0].filter), averages_in(work[0].filter)
        no_filter = EMA.number if self._averaging else 0, 1, False
        kind, window, is_bf16 = (filter.number, filter.window, filter.in_bf16) if filter else no_filter
        row_wise = [_row_wise(w, names) for w in work]
        ring = torch.bfloat16 if is_bf16 else torch.float32
        params = [w.param for w in work]
        self.outs = [torch.empty_like(p) for p in params] if rule == FILTER_ONLY else []
        self.parts: list[OnCpu | OnDevice] = []
        self.has_first = False  # a momentum buffer begins: the next step is another
        slots = [slots_of(rule, w, capturable=capturable) for w in work]
        self._counts = [() if filter is w.filter else counted_by(w.filter)[1:] for w in work]
        self._watched_key = _watched_key(work[0].filter)
        self._watched: list[float] = []
        self._averages: array[float] | None = None
        self._names = [
            tuple(name for name in (*own, *counts, self._watched_key) if name)
            for own, counts in zip(slots, self._counts)
        ]
        for device, dtype in dict.fromkeys((p.device, p.dtype) for p in params):
            on_device = backend.device_kernels(device) is not None
            numbers = [i for i, p in enumerate(params) if (p.device, p.dtype) == (device, dtype)]
            entries = array("q")
            for i in numbers:
                state = states.setdefault(params[i], {})
                is_first = fill(rule, work[i], state, slots[i], on_device=on_device, capturable=capturable)
                entries.extend(entry(work[i], state, slots[i], is_first))
                self.has_first |= is_first
            if on_device:
                make = partial(
                    Launch, rule, kind, window=window, ring=ring, dtype=dtype, device=device, uploads=uploads
                )
                self.parts.append(OnDevice(entries, numbers, make))
            else:
                update = partial(backend.load_extension().update, rule, kind)
                own = array("d", itertools.chain.from_iterable(row_wise[i] for i in numbers)) or None
                self.parts.append(OnCpu(entries, numbers, update, is_bf16, own))
        self._look = look([*params, *self.read(params, states)])
        self._look_of_grads = look([p.grad for p in params if p.grad is not None], with_addresses=False)

    def read(self, params: Sequence[Tensor], states: Mapping[Tensor, Any]) -> list[Tensor]:
        """What the passes read of `states`. Raises KeyError or TypeError where it is not there."""
        return [state[name] for names, state in zip(self._names, map(states.get, params)) for name in names]  # type: ignore[index]

    def is_current(self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Mapping[Tensor, Any]) -> bool:
        """Whether all lie where and as they did; gradients, anywhere."""
        try:
            return (
                set(map(type, grads)) == {Tensor}
                and not any(map(Tensor.is_neg, grads))
                and look([*params, *self.read(params, states)]) == self._look
                and look(list(grads), with_addresses=False) == self._look_of_grads
            )
        except (KeyError, TypeError, RuntimeError):  # gone, not a tensor, or one without memory of its own
            return False

    def averages(self, params: Sequence[Tensor], states: Mapping[Tensor, Any]) -> array[float] | None:
        """Of each parameter α and λ of all averages; None: there is a filter, or nothing."""
        if self._averaging is None:
            return None
        key = self._watched_key
        watched = [states[p][key].item() if key else 0.0 for p in params]
        if watched != self._watched:
            pairs = itertools.chain.from_iterable(map(self._averaging.averages, watched))
            self._watched, self._averages = watched, array("d", itertools.chain.from_iterable(pairs))
        return self._averages

    def count(self, params: Sequence[Tensor], states: Mapping[Tensor, Any]) -> None:
        """Advance the counts that the passes do not."""
        if any(self._counts):
            torch._foreach_add_([states[p][key] for p, keys in zip(params, self._counts) for key in keys], 1)

    def let_go(self) -> None:
        """Leave outputs that somebody refers to, an optimizer that keeps the last gradients, say, and make new ones."""
        for i in range(len(self.outs)):
            if not _CAN_COUNT_USES or _is_shared(self.outs, i):
                self.outs[i] = torch.empty_like(self.outs[i])


def _addresses(tensors: Sequence[Tensor], numbers: Sequence[int]) -> array[int]:
    own = tensors if len(numbers) == len(tensors) else map(tensors.__getitem__, numbers)
    return array("q", map(Tensor.data_ptr, own))


def _is_shared(tensors: list[Tensor], i: int) -> bool:
    """Whether anybody but the list refers to one of its tensors, or to its memory."""
    # Two: the list and the call; the tensor and the storage's face.
    return (
        sys.getrefcount(tensors[i]) > 2
        or tensors[i]._use_count() > 1  # type: ignore[attr-defined]
        or torch._C._storage_Use_Count(tensors[i].untyped_storage()._cdata) > 2
    )


def _row_wise(work: Work, names: tuple[str, ...]) -> array[float]:
    """`one_pass.numbers` of a parameter; none where the pass asks for none."""
    own: dict[str, Transform] = {one.role: one for one in elements(work.filter) if one.role != "filter"}
    return numbers(Layout.of({work.name: work.param.shape})._replace(others=names), own) if own else array("d")


def _watched_key(transform: Transform) -> str:
    """The key of the number by which averages go; empty: there is none."""
    own, averaging = pass_of(transform), averages_in(transform)
    return f"{PREFIX}{own.filter}.{averaging.watched}" if own and averaging and averaging.watched else ""


class OnCpu:
    """The update of CPU fp32 tensors, in the extension; `entries` but for the columns that come at every step."""

    def __init__(
        self,
        entries: array[int],
        numbers: list[int],
        update: Callable[..., None],
        is_bf16: bool,
        row_wise: array[float] | None,
    ) -> None:
        self.entries, self.numbers, self.row_wise = entries, numbers, row_wise
        self.update, self.ring = update, int(is_bf16)

    def __call__(self, columns: Mapping[int, array[int]], hyper: array[float], averages: array[float] | None) -> None:
        for column, addresses in columns.items():
            self.entries[column::ENTRY_WIDTH] = addresses
        threads = torch.get_num_threads()
        own = {"ring_type": self.ring, "row_wise": self.row_wise, "averages": averages}
        self.update(self.entries, hyper, 0, threads, **own)


class OnDevice:
    """The launches for tensors of one dtype on a device; a table is never changed, a graph may be reading it."""

    def __init__(self, entries: array[int], numbers: list[int], make: Callable[..., Launch]) -> None:
        self.entries, self.numbers, self.make = entries, numbers, make
        self.launches: dict[bytes, Launch] = {}

    def launch(self, columns: Mapping[int, array[int]]) -> Launch:
        key = b"".join(addresses.tobytes() for addresses in columns.values())
        known = self.launches.get(key)
        if known is None:
            for column, addresses in columns.items():
                self.entries[column::ENTRY_WIDTH] = addresses
            known = self.make(entries=array("q", self.entries))
            if len(self.launches) >= _KEPT_AT_MOST:  # gradients alternate between a few places
                self.launches.pop(next(iter(self.launches)))
            self.launches[key] = known
        return known


def _dtypes(device: torch.device, capturable: bool) -> tuple[torch.dtype, ...]:
    """Parameters that a kernel takes on a device."""
    if device.type == "cpu" and backend.device_kernels(device) is None:
        return (torch.float32,) if backend.extension() is not None and not capturable else ()
    return dtypes(device)
