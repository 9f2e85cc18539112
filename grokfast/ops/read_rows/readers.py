"""`Readers`: who reads each row of a table, in chunks, and which chunk has which slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Place = TypeVar("Place", int, Tensor)

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
    """What every batch's index [E, M] into a table has in common: who reads the rows from `first` on.

    Attributes:
        first: rows before it are read in the first columns[1] of columns[0] columns of the index only, the others not
            there.
        readers: of one such index, E = 1.
        first_item: where the items of row `first` begin.
    """

    first: int
    columns: tuple[int, int]
    readers: Readers
    first_item: int


def slot(start: Place, row: Place) -> Place:
    """The first slot of a row: ⌈n / CHUNK⌉ chunks of each row before it are never more than this leaves room for."""
    return start // CHUNK + row


def n_slots(size: int, n_rows: int) -> int:
    return size // CHUNK + n_rows
