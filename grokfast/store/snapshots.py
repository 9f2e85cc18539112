"""A run's snapshots: its weights after some of its steps, and of some all that a fork needs.

    root/<run_id>/snapshots/400.safetensors         weights by name
    root/<run_id>/snapshots/400.state.safetensors   the state, as a checkpoint holds it: the snapshot is full

The state is written first, so that a snapshot that is there is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokfast import checks
from grokfast.store.errors import StoreError
from grokfast.store.files import full_disk_as_store_error, load_tensors, save_tensors
from grokfast.store.places import SNAPSHOTS, Places
from grokfast.store.rows import RunRows

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = re.compile(r"(0|[1-9][0-9]*)\.safetensors")


class Snapshots:
    """The snapshots of one store, which is the only one to make this."""

    def __init__(self, places: Places, rows: RunRows) -> None:
        self._places, self._rows = places, rows

    def save(
        self,
        run_id: str,
        step: int,
        weights: Mapping[str, Tensor],
        meta: dict[str, Any],
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Keep the weights after `step`, for a full one the state's tensors, too, and the JSON object `meta` with both;
        what was kept of that step before is replaced. Raises as `RunStore.save_checkpoint` does."""
        step = checks.integer("step", step, minimum=0)
        self._rows.key(run_id)
        with full_disk_as_store_error(self._places.root):
            self._places.folder(run_id, SNAPSHOTS).mkdir(parents=True, exist_ok=True)
        if state is not None:
            save_tensors(self._state(run_id, step), state, meta)
        save_tensors(self._weights(run_id, step), weights, meta)

    def of(self, run_id: str) -> dict[int, bool]:
        """Of every snapshot its step, in their order, and whether it is full."""
        self._rows.key(run_id)
        names = self._names(run_id)
        steps = sorted(int(found[1]) for name in names if (found := _WEIGHTS.fullmatch(name)))
        return {step: f"{step}.state.safetensors" in names for step in steps}

    def weights(self, run_id: str, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights after `step` by name, and `meta`. Raises StoreError, which names those that are there, for
        another step, and CheckpointError where they are damaged."""
        self._check(run_id, step, [*self.of(run_id)], "snapshot")
        return load_tensors(self._weights(run_id, step))

    def state(self, run_id: str, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state's tensors of a full snapshot, and `meta`. Raises as `weights` does."""
        self._check(run_id, step, [at for at, is_full in self.of(run_id).items() if is_full], "full snapshot")
        return load_tensors(self._state(run_id, step))

    def _check(self, run_id: str, step: int, there: Sequence[int], what: str) -> None:
        if step not in there:
            said = f"those that it has are of {', '.join(map(str, there))}" if there else "it has none"
            raise StoreError(f"run {run_id} has no {what} of step {checks.shown(step)}: {said}")

    def _names(self, run_id: str) -> list[str]:
        with suppress(FileNotFoundError):
            return os.listdir(self._places.folder(run_id, SNAPSHOTS))
        return []

    def _weights(self, run_id: str, step: int) -> Path:
        return self._places.file(run_id, SNAPSHOTS, f"{step}.safetensors")

    def _state(self, run_id: str, step: int) -> Path:
        return self._places.file(run_id, SNAPSHOTS, f"{step}.state.safetensors")
