"""What a GPU may do that Triton's interpreter does not: run a launch's programs in any order, and at the same time.

The interpreter runs one program after the other, and a program's threads as one. Here programs run in another order,
and every address that one reads or writes is noted: a GPU may mix up what two programs do to one address, and what one
program's threads do to it where no barrier stands between. What is outside of the launch's tensors is there a fault.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NAMES = ("set_grid_dim", "set_grid_idx", "create_masked_load", "create_masked_store", "create_atomic_rmw")


@dataclass
class Seen:
    """Launches, and those of their kernels in which something depends on who comes first or is outside of memory."""

    launches: int = 0
    programs: int = 0
    between: set[str] = field(default_factory=set)  # programs of a launch
    within: set[str] = field(default_factory=set)  # threads of a program
    outside: set[str] = field(default_factory=set)  # reads or writes beside the tensors that it was given


class _Launch:
    """By address: the program that wrote there, and those that read; drawing a ticket makes the last one come last."""

    def __init__(self, grid: tuple[int, int, int], order: str, seed: int) -> None:
        self.grid, self.n = grid, grid[0] * grid[1] * grid[2]
        self.places = list(range(self.n))
        if order == "reversed":
            self.places.reverse()
        elif order == "shuffled":
            random.Random(seed).shuffle(self.places)
        self.reads: list[tuple[int, np.ndarray]] = []
        self.writes: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.program = 0

    def place(self, x: int, y: int, z: int) -> tuple[int, int, int]:
        _, ny, nz = self.grid
        at = self.places[(x * ny + y) * nz + z]
        return at // (ny * nz), at // nz % ny, at % nz


@contextmanager
def watching(order: str = "reversed", seed: int = 0) -> Iterator[Seen]:
    """Interpreted launches in a block of code: in this order, "forward", "reversed" or "shuffled", and watched.

    A store of what is there already is no write: programs may agree. Nothing that comes after a program's atomic
    operation is held against others: tickets order it.
    """
    from triton.runtime import interpreter

    builder, seen = type(interpreter.interpreter_builder), Seen()
    own = {name: getattr(builder, name) for name in NAMES}
    call = interpreter.GridExecutor.__call__
    state: dict[str, Any] = {}
    fresh: dict[str, list[np.ndarray]] = {"reads": [], "writes": []}  # of the program, since its last barrier

    def set_grid_dim(self, *grid):
        state["launch"] = _Launch(grid, order, seed + seen.launches)
        own["set_grid_dim"](self, *grid)

    def set_grid_idx(self, x, y, z):
        launch = state["launch"]
        place = launch.place(x, y, z)
        launch.program = (place[0] * launch.grid[1] + place[1]) * launch.grid[2] + place[2]
        state["is_ordered"] = False
        seen.programs += 1
        fresh["reads"], fresh["writes"] = [], []
        own["set_grid_idx"](self, *place)

    def inside(addresses):
        begins, ends = state["memory"]
        found = np.searchsorted(begins, addresses, side="right") - 1
        if (found < 0).any() or (addresses >= ends[found.clip(min=0)]).any():
            seen.outside.add(state["kernel"])

    def masked_load(self, pointers, mask, *rest):
        addresses = np.unique(np.broadcast_to(pointers.data, np.shape(mask.data))[mask.data])
        inside(addresses)
        if not state["is_ordered"]:
            state["launch"].reads.append((state["launch"].program, addresses))
        if any(np.isin(addresses, other).any() for other in fresh["writes"]):
            seen.within.add(state["kernel"])
        fresh["reads"].append(addresses)
        return own["create_masked_load"](self, pointers, mask, *rest)

    def masked_store(self, pointers, value, mask, *rest):
        shape = np.broadcast_shapes(np.shape(pointers.data), np.shape(value.data), np.shape(mask.data))
        at, new, where = (np.broadcast_to(t, shape) for t in (pointers.data, value.data, mask.data))
        addresses, first = np.unique(at[where], return_index=True)
        inside(addresses)
        if not state["is_ordered"]:
            state["launch"].writes.append((state["launch"].program, addresses, new[where][first]))
        if any(np.isin(addresses, other).any() for other in fresh["writes"]):
            seen.within.add(state["kernel"])
        fresh["writes"].append(addresses)
        return own["create_masked_store"](self, pointers, value, mask, *rest)

    def atomic_rmw(self, *args):
        state["is_ordered"] = True
        return own["create_atomic_rmw"](self, *args)

    def barrier(self):
        fresh["reads"], fresh["writes"] = [], []

    def launched(self, *args, **kwargs):
        state["kernel"] = self.fn.__name__
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in args if hasattr(t, "data_ptr")
        }
        spans = sorted((begin, begin + size) for begin, size in storages.items() if size)
        state["memory"] = tuple(np.array(edges, np.uint64) for edges in zip(*spans))
        seen.launches += 1
        call(self, *args, **kwargs)
        if _collide(state["launch"]):
            seen.between.add(self.fn.__name__)

    patched = (set_grid_dim, set_grid_idx, masked_load, masked_store, atomic_rmw)
    before = builder.create_barrier
    try:
        for name, function in zip(NAMES, patched):
            setattr(builder, name, function)
        builder.create_barrier = barrier
        interpreter.GridExecutor.__call__ = launched
        yield seen
    finally:
        for name, function in own.items():
            setattr(builder, name, function)
        builder.create_barrier = before
        interpreter.GridExecutor.__call__ = call


def _collide(launch: _Launch) -> bool:
    """Whether a program wrote where another read, or wrote something else."""
    if not launch.writes:
        return False
    at, by, what = (np.concatenate(parts) for parts in _columns(launch.writes))
    order = np.lexsort((by, at))
    at, by, what = at[order], by[order], what[order]
    same = at[1:] == at[:-1]
    if (same & (by[1:] != by[:-1]) & (what[1:] != what[:-1])).any():
        return True
    writer_at, first = np.unique(at, return_index=True)
    writer, is_one = by[first], np.ones(len(first), bool)
    is_one[np.searchsorted(writer_at, at[1:][same & (by[1:] != by[:-1])])] = False  # several wrote the same
    for program, addresses in launch.reads:
        found = np.searchsorted(writer_at, addresses).clip(max=len(writer_at) - 1)
        hit = (writer_at[found] == addresses) & is_one[found] & (writer[found] != program)
        if hit.any():
            return True
    return False


def _columns(writes: list[tuple[int, np.ndarray, np.ndarray]]) -> Iterator[list[np.ndarray]]:
    yield [addresses for _, addresses, _ in writes]
    yield [np.full(len(addresses), program) for program, addresses, _ in writes]
    yield [values.astype(np.float64) if values.dtype != np.uint64 else values for _, _, values in writes]
