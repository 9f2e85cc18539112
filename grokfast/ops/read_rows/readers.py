"""`Readers`: who reads each row of a table, in chunks, and which chunk has which slot."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

ROWS = 3  # whose readers one program of the kernel looks for
CHUNK = 64  # readers whose sum is one program's work: a row that all read must not keep one program busy for long


@dataclass(frozen=True)
class Readers:
    """Who reads each row, in increasing order, in chunks of at most CHUNK readers.

    Attributes:
        start: [E, n_rows + 1], items[e, start[e, k] : start[e, k + 1]] read row k of model e.
        items: [E, M], flat positions in the index; what is not in any of those groups is left open.
        slots: [E, M // CHUNK + n_rows], the row whose chunk each slot holds, or -1. Those of row k are adjacent, from
            `slot(start[e, k], k)` on, so that nobody has to count the chunks before it.
    """

    start: Tensor
    items: Tensor
    slots: Tensor


@dataclass(frozen=True)
class Known:
    """What every batch's index [E, R, S] into a table of rows for each of S columns has in common.

    Attributes:
        columns: S.
        blocks: [n, 4] int64, what each program of the kernel does: a column, its first row, the first of ROWS that the
            program looks for, and the column's end; -1 instead of a column whose readers are the same in every batch.
        readers: of one such index, E = 1; every batch's has as many of each column.
    """

    columns: int
    blocks: Tensor
    readers: Readers


def slot(start: Tensor, row: Tensor) -> Tensor:
    """The first slot of a row: ⌈n / CHUNK⌉ chunks of each row before it are never more than this leaves room for."""
    return start // CHUNK + row


def n_slots(size: int, n_rows: int) -> int:
    return size // CHUNK + n_rows
