"""`SweepResult`: what `sweep` returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np

from grokfast.store import RunStore
from grokfast.store.places import Places
from grokfast.text import shown
from grokfast.training.result import RunResult, stored_result
from grokfast.training.showing import Shown


@dataclass(frozen=True, kw_only=True)
class SweepResult(Shown):
    """A sweep in the store at `root`.

    axes: the dotted keys that were varied, in the grid's order. errors: what was wrong, by run id, with the runs that
    failed. What is read comes from the store each time, also while the sweep is still running.
    """

    sweep_id: str
    root: Path
    axes: list[str]
    errors: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        over = f" over {', '.join(self.axes)}" if self.axes else ""
        return shown(f"{type(self).__name__}({self.sweep_id}{over}, in {self.root})")

    def table(self) -> dict[str, np.ndarray]:
        """A row per run: `RunStore.table`."""
        with RunStore(self.root, create=False) as store:
            return store.table(self.sweep_id)

    def curves(self) -> dict[str, np.ndarray]:
        """The curves of all runs, long-form: `RunStore.all_curves`."""
        with RunStore(self.root, create=False) as store:
            return store.all_curves(self.sweep_id)

    @property
    def directory(self) -> Path:
        """Where its pictures go."""
        return Places(self.root).folder(self.sweep_id)

    @property
    def runs(self) -> Runs:
        """The runs, in order, each read when it is asked for."""
        with RunStore(self.root, create=False) as store:
            return Runs(self.root, list(store.sweeps.statuses(self.sweep_id)))


class Runs(Sequence[RunResult]):
    """Results by number, read from the store on access. Raises ValueError for a run that has not ended."""

    def __init__(self, root: Path, run_ids: Sequence[str]) -> None:
        self.root, self.run_ids = root, run_ids

    def __len__(self) -> int:
        return len(self.run_ids)

    @overload
    def __getitem__(self, index: int) -> RunResult: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RunResult]: ...
    def __getitem__(self, index: int | slice) -> RunResult | Sequence[RunResult]:
        if isinstance(index, slice):
            return Runs(self.root, self.run_ids[index])
        with RunStore(self.root, create=False) as store:
            return stored_result(store, self.run_ids[index])

    def __iter__(self) -> Iterator[RunResult]:
        with RunStore(self.root, create=False) as store:
            for run_id in self.run_ids:
                yield stored_result(store, run_id)
