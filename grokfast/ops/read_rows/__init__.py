"""Which rows of its table each model of an ensemble reads, and the way back, without waiting for the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from grokfast.ops import dispatch, rows
from grokfast.ops.read_rows.readers import CHUNK, ROWS, Known, Readers, n_slots, slot

LOOK = 1 << 24  # comparisons of rows with entries of an index up to which looking for readers beats sorting them


class EnsembleIndex:
    """index [E, R], or [E, R, S] for up to S rows each, into tables of `n_rows` rows; -1 for none.

    In [E, R, S] the rows that are read come first, at least one of them. Right by construction: nothing is checked, as
    that would wait for the device. An index that all models share, expanded to E, is kept and grouped once. known: of
    whose rows the readers need not be looked for.
    """

    def __init__(self, index: Tensor, n_rows: int, known: Known | None = None) -> None:
        own = index[:1] if index.stride(0) == 0 else index
        self.index = own.contiguous().expand(index.shape)
        self.n_rows, self.known = n_rows, known

    @property
    def shape(self) -> torch.Size:
        return self.index.shape

    @functools.cached_property
    def readers(self) -> Readers:
        """Made once; of an index that is made in a CUDA graph, there."""
        own = self.index[:1] if self.index.stride(0) == 0 else self.index
        readers = group_readers(own.flatten(1), self.n_rows, self.known)
        return Readers(*(t.expand(len(self.index), -1) for t in (readers.start, readers.items, readers.slots)))


def read_rows(x: Tensor, index: EnsembleIndex, *, backend: str | None = None) -> Tensor:
    """out[e, r] = x[e, index[e, r]]: x [E, n_rows, d], index [E, R] -> [E, R, d].

    The kernels take fp32 and sum the gradient of a row over its readers in their order: the same bits every time;
    differentiable once. backend: as in ops.mlp. Raises TypeError or ValueError naming the argument.
    """
    dispatch.check_tensor("x", x, ["E", "n_rows", "d"], x)
    if index.shape[0] != len(x) or len(index.shape) != 2 or index.n_rows != x.shape[1]:
        accepted = f"[{len(x)}, R] into {x.shape[1]} rows"
        raise ValueError(f"index must be {accepted}, got {list(index.shape)} into {index.n_rows}")
    obstacle = "" if x.dtype == torch.float32 else f"they take fp32, got {x.dtype}"
    if dispatch.uses_triton("read_rows", x, backend, obstacle):
        return _ReadRows.apply(x, index)
    return take(x, index.index)


def take(x: Tensor, index: Tensor) -> Tensor:
    """x [E, N, d] at rows index [E, B] -> [E, B, d]."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


class _ReadRows(torch.autograd.Function):
    @staticmethod
    @dispatch.outside_autocast
    def forward(ctx: Any, x: Tensor, index: EnsembleIndex) -> Tensor:
        ctx.index = index
        return take(x, index.index)

    @staticmethod
    @once_differentiable
    @dispatch.outside_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_readers(grad, ctx.index), None


def sum_readers(x: Tensor, index: EnsembleIndex) -> Tensor:
    """The kernels: out[e, k] = the sum of x's rows that read row k, x [E, R, d] -> [E, n_rows, d]."""
    from grokfast.ops.read_rows import kernels

    out = torch.empty(len(x), index.n_rows, x.shape[2], dtype=x.dtype, device=x.device)
    return kernels.sum_readers(x.contiguous(), index.readers, out)


def group_readers(index: Tensor, n_rows: int, known: Known | None = None) -> Readers:
    """The readers of an index [E, M] with -1 for none, for the kernels, by operations of fixed shapes."""
    if index.shape[1] * n_rows > LOOK * (1 if known is None else known.columns):
        return sort_readers(index, n_rows)
    from grokfast.ops.read_rows import kernels

    return kernels.group_readers(index, n_rows, known)


def known_readers(index: Tensor, begin: Sequence[int], n_rows: int, is_open: Sequence[bool]) -> Known:
    """What the readers of this index [1, R, S] tell of others: its column t reads rows from begin[t] on, up to the next
    column's, and is the same in all of them unless it is open; then as many read those rows."""
    places = index.flatten(1)
    last = sort_readers(torch.where(places < 0, n_rows, places), n_rows + 1)  # which has those that read none behind
    slots = last.slots[:, :-1]
    readers = Readers(last.start[:, :-1].contiguous(), last.items, torch.where(slots < n_rows, slots, -1))
    blocks: list[tuple[int, int, int, int]] = []
    for t, (first, end) in enumerate(zip(begin, [*begin[1:], n_rows])):
        if is_open[t]:
            blocks += [(t, first, row, end) for row in range(first, end, ROWS)]
        else:
            blocks.append((-1, first, first, end))
    return Known(index.shape[2], torch.tensor(blocks, device=index.device), readers)


def sort_readers(index: Tensor, n_rows: int) -> Readers:
    """The same in plain PyTorch, a dozen and more launches on a GPU."""
    n_models, size = index.shape
    start, items = rows.group_readers(index, n_rows)
    first = slot(start, torch.arange(n_rows + 1, device=index.device))  # [E, n_rows + 1]
    places = torch.arange(n_slots(size, n_rows), device=index.device).expand(n_models, -1).contiguous()
    row = torch.searchsorted(first[:, 1:].contiguous(), places, right=True).clamp(
        max=n_rows - 1
    )  # whose slot it may be
    chunk = places - first.gather(1, row)
    is_used = (chunk >= 0) & (start.gather(1, row) + chunk * CHUNK < start.gather(1, row + 1))
    return Readers(start, items, torch.where(is_used, row, -1))
