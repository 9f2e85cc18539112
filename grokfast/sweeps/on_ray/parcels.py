"""How runs travel: to a worker with all that the store has of them, and back as what is new."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grokfast.store import CheckpointError, NewRun, RunStore
from grokfast.store.records import Record, records_of
from grokfast.training.forks import begin
from grokfast.training.result import stored_experiment


@dataclass
class News:
    """What is new in one run: evaluations, a checkpoint (tensors and meta), final weights, a status and a result.

    snapshots: of each the arguments of `Snapshots.save` behind the run's id. has_checkpoint is false where a run that
    is over has none, or none any more.
    """

    run_id: str
    records: list[Record]
    checkpoint: tuple[dict[str, Any], dict[str, Any]] | None = None
    snapshots: list[tuple[Any, ...]] = field(default_factory=list)
    has_checkpoint: bool = True
    weights: dict[str, Any] | None = None
    status: str | None = None
    result: dict[str, Any] | None = None


@dataclass
class Packed:
    """A run as it travels to a worker: what the store has of it, up to its checkpoint."""

    run_id: str
    new: NewRun
    preset: str
    records: list[Record]
    checkpoint: tuple[dict[str, Any], dict[str, Any]] | None
    data: Mapping[str, Mapping[str, Any]]  # what its task needs beside its fields


def pack(store: RunStore, run_id: str) -> Packed:
    """The run up to its checkpoint, or from its beginning where there is none; the store forgets what came after."""
    stored = store.get(run_id)
    checkpoint = None
    for _ in range(2):
        begin(store, run_id)
        if not store.has_checkpoint(run_id):
            break
        try:
            checkpoint = store.load_checkpoint(run_id)
            break
        except CheckpointError as error:
            warnings.warn(f"run {run_id} begins again: {error}", stacklevel=2)
            store.drop_checkpoint(run_id)
    store.truncate(run_id, -1 if checkpoint is None else int(checkpoint[1]["steps"]))
    # an id is the preset, "-", and the beginning of the hash
    new = NewRun(stored.config, run_id[len(stored.preset) + 1 :], stored.version, stored.device)
    data = stored_experiment(stored).task.attachments()
    return Packed(run_id, new, stored.preset, records_after(store, run_id, -1), checkpoint, data)


def unpack(root: Path, runs: Sequence[Packed]) -> None:
    """Make a store at `root` in which the runs have the ids and the state that they have in the sweep's store."""
    with RunStore(root) as store:
        for preset in dict.fromkeys(run.preset for run in runs):
            store.sweeps.create(preset, {}, {}, [run.new for run in runs if run.preset == preset])
        for run in runs:
            store.directory(run.run_id).mkdir()
            for sha256, tensors in run.data.items():
                store.data.save(sha256, tensors)
            store.append(run.run_id, run.records)
            if run.checkpoint is not None:
                store.save_checkpoint(run.run_id, *run.checkpoint)


def records_after(store: RunStore, run_id: str, step: int) -> list[Record]:
    """The run's records after that of `step`; -1: all."""
    return [record for record in records_of(store.curves(run_id)) if record.step > step]
