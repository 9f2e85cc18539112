"""The run store: what was run, its curves, checkpoints and final weights, in one directory.

    root/grokfast.sqlite     runs, their curves, and which of them are a sweep
    root/<run_id>/           checkpoint.safetensors, weights.safetensors, snapshots/, and whatever else a run leaves
    root/.data/              data sets that runs bring along
    root/.owners/            a locked file for every process that trains runs, and what is being removed

Paths come from places.py alone. What is read is checked (seals.py): one damaged run does not hide the others.

What a call has stored when it returns, a killed process does not lose. Any number of processes use a store at once.
"""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from grokfast import checks
from grokfast.store.chunks import Chunks, check, checked_names, curves_of, joined, names_of, row_bytes, rows_of
from grokfast.store.data import DataSets
from grokfast.store.database import Database
from grokfast.store.errors import DamagedError, DamagedWarning, StoreError, UnknownRunError
from grokfast.store.files import full_disk_as_store_error, load_tensors, save_tensors, to_json
from grokfast.store.owners import Owner
from grokfast.store.places import CHECKPOINT, WEIGHTS, Places, checked_name
from grokfast.store.records import Record, now
from grokfast.store.removal import Removal
from grokfast.store.rows import RunRows
from grokfast.store.run import ENDED, STATUSES, WITHOUT_CHECKPOINT, StoredRun, config_of, result_of
from grokfast.store.seals import Row, curve_seal
from grokfast.store.snapshots import Snapshots
from grokfast.store.sweeps import Sweeps
from grokfast.store.table import TableRow, columns_of
from grokfast.store.tidying import Tidying

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_Runs = list[StoredRun]  # inside RunStore `list` is the method


class RunStore:
    """Runs under the directory `root`, which is made if `create` is true.

    A store is a context manager and belongs to the thread that opened it: open one per thread and per process (two of
    the same root are fine), and none across a fork. Dictionaries come back as JSON makes them: tuples as lists.

    Every method raises UnknownRunError (a StoreError and KeyError) for an id that is not there, DamagedError where what
    is stored of the run is not what was written, StoreFullError if there is no room, and StoreError for what else the
    database reports, and for ids and links that lead out of `root`; none of them leaves anything half done. What reads
    many runs leaves damaged ones out, with a DamagedWarning that names each.

    `read_only` leaves no file behind, whoever the store belongs to; what would write raises StoreError.

    Raises StoreError if there is no store and `create` is false, if the file is not a store, or if a newer grokfast
    wrote it (then nothing is touched).
    """

    def __init__(self, root: str | Path, create: bool = True, read_only: bool = False) -> None:
        self.root = Path(root).absolute()
        self._places = Places(self.root)
        path = self._places.database
        if not (create and not read_only) and not path.exists():
            raise StoreError(f"there is no run store at {self.root}")
        with full_disk_as_store_error(self.root):
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise StoreError(f"{self.root} cannot be a run store: {error.filename} is no directory") from error
        self._db = Database(path, read_only)
        self._owner, self._removal = Owner(self._places), Removal(self._db, self._places)
        self._rows = RunRows(self._db, self._places, self._owner, self._removal)
        self._chunks = Chunks(self._db)
        self.data = DataSets(self._db, self._places)
        self._tidying = Tidying(self._db, self._places, self._owner, self._removal, self.data)
        self.snapshots = Snapshots(self._places, self._rows)
        self.sweeps = Sweeps(self._db, self._places, self._owner, self._rows, self._removal, self._tidying)

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and give up what was claimed; a second call does nothing."""
        self._owner.release()
        self._db.close()

    def create(self, config: dict[str, Any], *, preset: str, version: str, device: str) -> str:
        """Add a run, make its directory, and return its id: `preset`, "-", 6 hexadecimal digits.

        This process trains it: its status is "running" until it is changed or the store is closed.

        Raises TypeError if `config` is not JSON, ValueError if `preset` cannot be part of a file name.
        """
        checked_name(preset)
        text, time = to_json("config", config), now()
        self._tidying.tidy()
        directory = None
        try:
            with self._db.transaction():
                owner, directory = self._owner.lock(), self._new_directory(preset)
                row = Row(
                    key=self._rows.next_key(), run_id=directory.name, created=time, updated=time, preset=preset,
                    version=version, device=device, status="running", config=text, owner=owner,
                )  # fmt: skip
                self._rows.insert([row])
        except BaseException:
            if directory is not None:
                directory.rmdir()
            raise
        return row.run_id

    def append(self, run_id: str, records: Sequence[Record]) -> None:
        """Store `records` in one transaction; once this returns, a killed process does not lose them.

        The run's first record says its columns: they may be others than those of other runs.

        Raises ValueError unless the columns are the run's, and the steps whole numbers that grow strictly, from the
        last stored one on (after a resume `truncate` first).
        """
        with self._db.transaction():
            row = self._rows.get(run_id)
            if len(records) == 0:
                return
            names = checked_names([*records[0].values]) if row.last_step is None else names_of(row)
            rows = rows_of(records, names)
            last = row.last_step
            if last is not None and rows[0, 0] <= last:
                raise ValueError(f"records must follow the stored step {last} of {run_id}, got step {rows[0, 0]:.0f}")
            self._chunks.insert(row.key, rows)
            curve = curve_seal([rows.tobytes()], row.curve)
            changes = {} if last is not None else {"columns": json.dumps(names)}
            self._rows.change(row, updated=now(), last_step=int(rows[-1, 0]), curve=curve, **changes)

    def truncate(self, run_id: str, step: int) -> None:
        """Drop the records after `step`, as a run does that resumes from its checkpoint of that step; -1 drops all."""
        checks.integer("step", step, minimum=-1)
        with self._db.transaction():
            row = self._rows.get(run_id)
            check(row, self._chunks.blobs(row.key))
            names = names_of(row)
            self._chunks.truncate(row.key, step, len(names))
            left = self._chunks.blobs(row.key)
            last = int(curves_of(left[-1:], names)["step"][-1]) if left else None
            self._rows.change(row, updated=now(), last_step=last, curve=curve_seal(left))

    def update(
        self,
        run_id: str,
        *,
        status: str | None = None,
        result: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Set the status, the result, the configuration, or some of them; what is None stays.

        "running" says that this process trains the run. Once a run has ended, its curves are one chunk, and if it
        diverged its checkpoint is deleted: others may go on further than they were to.

        Raises ValueError for an unknown status, TypeError if `result` or `config` is not JSON.
        """
        changes: dict[str, Any] = {}
        if status is not None:
            changes["status"] = checks.choice("status", status, STATUSES)
        for name, value in (("result", result), ("config", config)):
            if value is not None:
                changes[name] = to_json(name, value)
        with self._db.transaction():
            row = self._rows.get(run_id)
            if status == "running":
                changes["owner"] = self._owner.lock()
            if status in ENDED:
                self._chunks.merge(row.key, len(names_of(row)))
            if status not in (None, "running"):
                changes["owner"] = None
            self._rows.change(row, updated=now(), **changes)
        if status in WITHOUT_CHECKPOINT:
            self._checkpoint(run_id).unlink(missing_ok=True)

    def reopen(self, run_id: str, config: dict[str, Any]) -> None:
        """Let a run that has not diverged go on by another configuration: it is "interrupted" and has no result then.

        Raises StoreError for a run that has diverged and for one that another process trains, TypeError if `config` is
        not JSON.
        """
        text = to_json("config", config)
        with self._db.transaction():
            row = self._rows.get(run_id)
            if row.status == "diverged":
                raise StoreError(f"run {run_id} has diverged")
            self._rows.refuse_trained(f"run {run_id}", "run_id = ?", run_id)
            self._rows.change(row, updated=now(), config=text, status="interrupted", result=None)

    def get(self, run_id: str) -> StoredRun:
        """The run with this id."""
        row = self._rows.get(run_id)
        return self._stored(row._replace(status=self._rows.state(row)))

    def has(self, run_id: str) -> bool:
        """Whether there is a run with this id; it may be damaged."""
        try:
            self._rows.key(run_id)
        except UnknownRunError:
            return False
        return True

    def list(
        self,
        *,
        status: str | None = None,
        preset: str | None = None,
        sweep_id: str | None = None,
        limit: int | None = None,
    ) -> _Runs:
        """All runs, or those with this status, of this preset and this sweep; the newest first, at most `limit`.

        Raises ValueError for an unknown status.
        """
        if status is not None:
            checks.choice("status", status, STATUSES)
        sweep = None if sweep_id is None else self.sweeps.key(sweep_id)
        rows = self._rows.select(sweep, status=status, preset=preset, newest_first=True, limit=limit)
        return list(self._undamaged(rows, self._stored))

    def curves(self, run_id: str) -> dict[str, np.ndarray]:
        """The run's records as columns: `step` in int64, the others, in the order of its records, in float64."""
        with self._db.snapshot():
            row = self._rows.get(run_id)
            blobs = self._chunks.blobs(row.key)
        check(row, blobs)
        return curves_of(blobs, names_of(row))

    def table(self, sweep_id: str | None = None) -> dict[str, np.ndarray]:
        """A sweep's runs in its order, or all runs, as columns of one length: `pandas.DataFrame(table)` takes it.

        run_id, status, phase, preset (text); seed, the keys of the sweep's grid (a filter as "ema lamb=1": what it has
        beside its kind's, or the varied experiment's, own values), and every other key of the
        configuration that differs between the runs, by its dotted name (float64 where a number is missing in some runs,
        else int64, float64, bool or text); t_memorize, t_generalize, diverged_at (float64, NaN where it did not happen:
        censored at `steps`), steps, seconds, collapsed, and the final value of every column that a run's records
        have (NaN for runs that have not ended, or do not have it; "final.NAME" where the table has a NAME already).
        """
        key = None if sweep_id is None else self.sweeps.key(sweep_id)
        rows = list(self._undamaged(self._rows.select(key), TableRow))
        if sweep_id is None:
            return columns_of(rows)
        sweep = self.sweeps.get(sweep_id)
        return columns_of(rows, sweep.axes, sweep.base)

    def all_curves(self, sweep_id: str | None = None) -> dict[str, np.ndarray]:
        """The curves of all runs of `table(sweep_id)`, long-form: `run` (the row in the table, int64) and the columns
        of all their `curves` (NaN where a run does not have one), run after run."""
        with self._db.snapshot():
            key = None if sweep_id is None else self.sweeps.key(sweep_id)
            read = self._undamaged(self._rows.select(key), lambda row: (row, config_of(row), result_of(row)))
            rows = [row for row, *_ in read]  # those of the table
            chunks = self._chunks.of_all(key)
        lengths, alike = [0] * len(rows), dict[tuple[str, ...], list[bytes]]()
        parts: list[dict[str, np.ndarray]] = []

        def take(row: Row) -> tuple[tuple[str, ...], list[bytes], int]:
            blobs = chunks.get(row.key, [])
            check(row, blobs)
            return names_of(row), blobs, sum(map(len, blobs)) // row_bytes(row)

        def finish() -> None:
            parts.extend(curves_of(blobs, names) for names, blobs in alike.items())
            alike.clear()

        for i, row in enumerate(rows):
            for names, blobs, lengths[i] in self._undamaged([row], take):
                if names not in alike and blobs:
                    finish()  # what follows has other columns
                if blobs:
                    alike.setdefault(names, []).extend(blobs)
        finish()
        return {"run": np.repeat(np.arange(len(rows)), lengths), **joined(parts)}

    def directory(self, run_id: str, *parts: str) -> Path:
        """The directory of the run's files, or one in it."""
        self._rows.key(run_id)
        return self._places.folder(run_id, *parts)

    def remove(self, run_id: str) -> None:
        """Delete the run, its curves and its directory. Raises StoreError while another process trains it, or a fork of
        it has yet to end.

        On a full disk, too: its files go first. It is gone at once; where the database has no room to forget it, or the
        process is killed, the next write does the rest.
        """
        self._tidying.tidy()
        with self._db.transaction():
            self._rows.key(run_id)
            self._rows.refuse_trained(f"run {run_id}", "run_id = ?", run_id)
            self._rows.refuse_needed(f"run {run_id}", [run_id])
            self._removal.mark(run_id)
        self._removal.finish(is_strict=True)

    def save_checkpoint(self, run_id: str, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        """Replace the run's checkpoint by `tensors` and the JSON object `meta`; on any failure the old one stays.

        Raises TypeError for what a safetensors file cannot hold and for a `meta` that is not JSON.
        """
        self._save(self._checkpoint(run_id), tensors, meta)

    def load_checkpoint(self, run_id: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, on the CPU, and `meta` of the run's checkpoint.

        Raises CheckpointError (a StoreError) if there is none or if it is damaged.
        """
        return load_tensors(self._checkpoint(run_id))

    def has_checkpoint(self, run_id: str) -> bool:
        """Whether `save_checkpoint` has been called for the run."""
        return self._checkpoint(run_id).exists()

    def drop_checkpoint(self, run_id: str) -> None:
        """Delete the run's checkpoint, if it has one."""
        self._checkpoint(run_id).unlink(missing_ok=True)

    def save_weights(self, run_id: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace the run's final weights; on any failure the old ones stay. Raises as `save_checkpoint` does."""
        self._save(self._weights(run_id), tensors, {})

    def load_weights(self, run_id: str) -> dict[str, Tensor]:
        """The run's final weights, on the CPU. Raises CheckpointError if there are none or if they are damaged."""
        return load_tensors(self._weights(run_id))[0]

    def has_weights(self, run_id: str) -> bool:
        """Whether `save_weights` has been called for the run."""
        return self._weights(run_id).exists()

    def size(self) -> int:
        """Bytes that the store takes: the database, and the runs' files."""
        return _bytes_below(self.root)

    def _save(self, path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        save_tensors(path, tensors, meta)

    def _stored(self, row: Row) -> StoredRun:
        return StoredRun.of(row, self._places.root / row.run_id)

    def _undamaged(self, rows: Iterable[Row], made_of: Callable[[Row], T]) -> Iterator[T]:
        """What is made of the rows, without those where that finds damage."""
        for row in rows:
            try:
                yield made_of(row)
            except DamagedError as error:
                warnings.warn(f"{self.root}: {error}; it is left out", DamagedWarning, stacklevel=3)

    def _checkpoint(self, run_id: str) -> Path:
        self._rows.key(run_id)
        return self._places.file(run_id, CHECKPOINT)

    def _weights(self, run_id: str) -> Path:
        self._rows.key(run_id)
        return self._places.file(run_id, WEIGHTS)

    def _new_directory(self, preset: str) -> Path:
        with full_disk_as_store_error(self.root):
            while True:
                directory = self.root / f"{preset}-{secrets.token_hex(3)}"
                try:
                    directory.mkdir()
                except FileExistsError:
                    continue
                return directory


def _bytes_below(directory: Path) -> int:
    """Of the files in the directory and in those below it; links are not followed, and files may go meanwhile."""
    total, todo = 0, [os.fspath(directory)]
    while todo:
        with suppress(FileNotFoundError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    with suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_size
    return total
