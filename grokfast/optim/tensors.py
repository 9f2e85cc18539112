"""Any transforms around any optimizer, a parameter at a time: where no single pass over memory knows them.

What they keep of a parameter is in `optimizer.state[p]`: "grokfast_<place in the chain>.<name>", in at least fp32, and
"grokfast_count", int64, the gradients seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast.optim.history import COUNT_KEY, PREFIX, history_of, init_state
from grokfast.optim.sharding import is_sharded
from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.chain import elements
from grokfast.transforms.operations import Operation


class Tensors:
    """One for each optimizer; not copied or saved with it."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], list[Operation]] = {}

    def before(self, transform: Transform, p: Tensor, state: dict[str, Any]) -> Tensor:
        """p.grad as the transforms before the update change it, in a copy; their state begins or advances."""
        assert p.grad is not None
        operations = self._operations(transform, p)
        weights = _row(p)
        grad = _row(p.grad).clone()
        if not history_of(state):
            state |= init_state(transform, p.grad)
        self._apply(operations, "before", grad, weights, state)
        state[COUNT_KEY].add_(1)
        return grad.view(p.shape).to(p.grad.dtype)

    def after(self, transform: Transform, p: Tensor, state: dict[str, Any]) -> None:
        """What the transforms after the update do to p."""
        operations = self._operations(transform, p)
        if p.grad is None or not any(one.transform.when == "after" for one in operations):
            return
        weights = _row(p)
        self._apply(operations, "after", _row(p.grad).clone(), weights, state, taken=1)
        if weights.data_ptr() != p.data_ptr():
            p.copy_(weights.view(p.shape))

    def _apply(
        self,
        operations: list[Operation],
        when: str,
        grad: Tensor,
        weights: Tensor,
        state: dict[str, Any],
        taken: int = 0,
    ) -> None:
        own = {key.removeprefix(PREFIX): value[None] for key, value in history_of(state).items() if key != COUNT_KEY}
        step = state[COUNT_KEY].view(1, 1) - taken
        for operation in operations:
            if operation.transform.when == when:
                operation.apply(grad, weights, own, step)

    def _operations(self, transform: Transform, p: Tensor) -> list[Operation]:
        """Those for tensors like p, tried out on a copy when they are made."""
        key = (transform, p.shape, p.dtype, p.device)
        if key not in self._made:
            if is_sharded(p):
                raise TypeError(
                    f"of a DTensor each process has a part only, which {transform} may not take for the whole: EMA and "
                    "MA, each alone, work on parts"
                )
            layout, row = Layout.of({"parameter": p.shape}), _row(p)
            self._made[key] = [Operation(i, [transform], layout, row) for i in range(len(elements(transform)))]
            for operation in self._made[key]:
                operation.try_out(row)
        return self._made[key]


def _row(t: Tensor) -> Tensor:
    """A tensor's numbers as [1, n] in at least fp32; its own memory, where that is so."""
    wide = torch.promote_types(t.dtype, torch.float32)
    return t.detach().to(wide).contiguous().view(1, -1)
