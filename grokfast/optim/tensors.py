"""Any transforms around any optimizer, a parameter at a time: where no single pass over memory knows them.

What they keep of a parameter is in `optimizer.state[p]`: "grokfast_<place in the chain>.<name>", in at least fp32, and
"grokfast_count", int64, the gradients seen; "grokfast_count.<place>" those that an element with a start or stop saw.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.history import COUNT_KEY, PREFIX, count_of, history_of, init_state, is_count
from grokfast.optim.sharding import is_sharded
from grokfast.optim.slots import NAMELESS, Work
from grokfast.transforms.base import Layout
from grokfast.transforms.chain import elements
from grokfast.transforms.operations import Operation


class Tensors:
    """One for each optimizer; not copied or saved with it."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], list[Operation]] = {}

    def before(self, work: Work, state: dict[str, Any], names: tuple[str, ...], off: Collection[int] = ()) -> Tensor:
        """p.grad, or a copy as the transforms before the update change it; their state begins or advances. `off`: the
        places of those that are off."""
        p, transform = work.param, work.filter
        assert p.grad is not None
        on = [one for one in self._operations(work, names) if one.place not in off]
        if not history_of(state):
            state |= init_state(transform, p.grad)
        grad = p.grad
        if operations := [one for one in on if one.transform.when == "before"]:
            row = _row(grad).clone()
            self._apply(operations, row, _row(p), state)
            grad = row.view(p.shape).to(grad.dtype)
        for key in (COUNT_KEY, *(count_of(one.place) for one in on)):
            if key in state:
                state[key].add_(1)
        return grad

    def after(self, work: Sequence[Work], states: Any, names: tuple[str, ...], off: Collection[int] = ()) -> None:
        """What the transforms after the update do to parameters that have the same: to each, or to all as one."""
        work = [w for w in work if w.param.grad is not None]
        for place, one in enumerate(elements(work[0].filter) if work else ()):
            if one.when == "before" or place in off:
                continue
            if one.is_of_all:
                self._apply_to_all(place, work)
                continue
            for w in work:
                p = w.param
                assert p.grad is not None
                weights = _row(p)
                self._apply(self._operations(w, names)[place : place + 1], _row(p.grad), weights, states[p], taken=1)
                _write(p, weights)

    def observe(
        self, work: Work, state: dict[str, Any], names: tuple[str, ...], train_loss: Any, test_loss: Any
    ) -> None:
        """What the transforms keep of an evaluation's losses; their state begins where it has not."""
        if not history_of(state):
            state |= init_state(work.filter, work.param)
        like = _row(work.param)
        losses = [torch.as_tensor(loss).detach().to(like).view(1, 1) for loss in (train_loss, test_loss)]
        for operation in self._operations(work, names):
            operation.observe(_batched(state), *losses)

    def _apply(
        self, operations: Sequence[Operation], grad: Tensor, weights: Tensor, state: dict[str, Any], taken: int = 0
    ) -> None:
        own = _batched(state)
        for operation in operations:
            count = state.get(count_of(operation.place), state[COUNT_KEY])
            operation.apply(grad, weights, own, count.view(1, 1) - taken)

    def _apply_to_all(self, place: int, work: Sequence[Work]) -> None:
        """Of parameters on several devices, or in several precisions, the first one's, at least fp32, is taken."""
        first = _row(work[0].param)
        weights = torch.cat([_row(w.param).to(first) for w in work], 1)
        key = (work[0].filter, place, tuple(w.param.shape for w in work), first.dtype, first.device)
        if key not in self._made:
            names = {w.name if w.name != NAMELESS else f"{NAMELESS}_{i}": w.param.shape for i, w in enumerate(work)}
            self._made[key] = [Operation(place, [work[0].filter], Layout.of(names), weights)]
        self._made[key][0].apply(torch.zeros_like(weights), weights, {}, torch.zeros(1, 1, dtype=torch.int64))
        for w, row in zip(work, weights.split([w.param.numel() for w in work], 1)):
            _write(w.param, row)

    def _operations(self, work: Work, names: tuple[str, ...]) -> list[Operation]:
        """Those for tensors like a parameter, tried out on a copy when they are made."""
        p, transform = work.param, work.filter
        key = (transform, work.name, p.shape, p.dtype, p.device)
        if key not in self._made:
            if is_sharded(p):
                raise TypeError(
                    f"of a DTensor each process has a part only, which {transform} may not take for the whole: EMA and "
                    "MA, each alone, work on parts"
                )
            if not (p.is_floating_point() or p.is_complex()):
                raise TypeError(f"parameters must be floating-point for {transform}, got {p.dtype} {list(p.shape)}")
            layout, row = Layout.of({work.name: p.shape})._replace(others=names), _row(p)
            self._made[key] = [Operation(i, [transform], layout, row) for i in range(len(elements(transform)))]
            for operation in self._made[key]:
                operation.try_out(row)
        return self._made[key]


def _batched(state: dict[str, Any]) -> dict[str, Tensor]:
    """What transforms keep of a parameter, [1, ...]."""
    return {key.removeprefix(PREFIX): value[None] for key, value in history_of(state).items() if not is_count(key)}


def _row(t: Tensor) -> Tensor:
    """A tensor's numbers as [1, n] in at least fp32; its own memory, where that is so."""
    wide = torch.promote_types(t.dtype, torch.float32)
    return t.detach().to(wide).contiguous().view(1, -1)


def _write(p: Tensor, weights: Tensor) -> None:
    """Give p the numbers of a row, unless they are its own memory."""
    if weights.data_ptr() != p.data_ptr():
        p.copy_(weights.view(p.shape))
