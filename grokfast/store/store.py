"""The run store: what was run, its curves, checkpoints and final weights, in one directory.

    root/grokfast.sqlite     runs, their curves, and which of them are a sweep
    root/<run_id>/           checkpoint.safetensors, weights.safetensors, and whatever else a run leaves
    root/.owners/            a locked file for every process that trains runs

What a call has stored when it returns, a killed process does not lose. Any number of processes use a store at once.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from grokfast import checks
from grokfast.store.chunks import Chunks, curves_of, rows_of
from grokfast.store.database import Database
from grokfast.store.errors import StoreError, UnknownRunError
from grokfast.store.files import full_disk_as_store_error, load_tensors, save_tensors, to_json
from grokfast.store.owners import Owner
from grokfast.store.records import Record, now
from grokfast.store.run import COLUMNS, ENDED, STATUSES, StoredRun
from grokfast.store.sweeps import Sweeps
from grokfast.store.table import Row, columns_of

if TYPE_CHECKING:
    from torch import Tensor

_PRESET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


_Runs = list[StoredRun]  # inside RunStore `list` is the method


class RunStore:
    """Runs under the directory `root`, which is made if `create` is true.

    A store is a context manager and belongs to the thread that opened it: open one per thread and per process (two of
    the same root are fine), and none across a fork. Dictionaries come back as JSON makes them: tuples as lists.

    Every method raises UnknownRunError (a StoreError and KeyError) for an id that is not there, StoreFullError if there
    is no room, and StoreError for what else the database reports; none of them leaves anything half done.

    Raises StoreError if there is no store and `create` is false, if the file is not a store, or if a newer grokfast
    wrote it (then nothing is touched).
    """

    def __init__(self, root: str | Path, create: bool = True) -> None:
        self.root = Path(root).absolute()
        path = self.root / "grokfast.sqlite"
        if not create and not path.exists():
            raise StoreError(f"there is no run store at {self.root}")
        with full_disk_as_store_error(self.root):
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise StoreError(f"{self.root} cannot be a run store: {error.filename} is no directory") from error
        self._db = Database(path)
        self._owner = Owner(self.root / ".owners")
        self._chunks = Chunks(self._db)
        self.sweeps = Sweeps(self._db, self.root, self._owner)

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
        """Add a run with status "running", make its directory, and return its id: `preset`, "-", 6 hexadecimal digits.

        Raises TypeError if `config` is not JSON, ValueError if `preset` cannot be part of a file name.
        """
        if not _PRESET.fullmatch(preset):
            raise ValueError(f"preset must consist of letters, digits, '.', '_' and '-', got {preset!r}")
        text = to_json("config", config)
        time = now()
        directory = self._new_directory(preset)
        try:
            with self._db.transaction():
                self._db.execute(
                    f"INSERT INTO runs ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, 'running', ?, NULL)",
                    (directory.name, time, time, preset, version, device, text),
                )
        except BaseException:
            directory.rmdir()
            raise
        return directory.name

    def append(self, run_id: str, records: Sequence[Record]) -> None:
        """Store `records` in one transaction; once this returns, a killed process does not lose them.

        Raises ValueError unless the steps are whole numbers that grow strictly, from the last stored one on (after a
        resume `truncate` first).
        """
        rows = rows_of(records)
        with self._db.transaction():
            key = self._key(run_id)
            if len(rows) == 0:
                return
            last = self._chunks.last_step(key)
            if last is not None and rows[0, 0] <= last:
                raise ValueError(f"records must follow the stored step {last} of {run_id}, got step {rows[0, 0]:.0f}")
            self._chunks.insert(key, rows)
            self._touch(key)

    def truncate(self, run_id: str, step: int) -> None:
        """Drop the records after `step`, as a run does that resumes from its checkpoint of that step; -1 drops all."""
        checks.integer("step", step, minimum=-1)
        with self._db.transaction():
            key = self._key(run_id)
            self._chunks.truncate(key, step)
            self._touch(key)

    def update(self, run_id: str, *, status: str | None = None, result: dict[str, Any] | None = None) -> None:
        """Set the status, the result, or both; what is None stays. Once a run has ended, its curves are one chunk, and
        if it diverged its checkpoint is deleted: others may go on further than they were to.

        Raises ValueError for an unknown status, TypeError if `result` is not JSON.
        """
        if status is not None:
            checks.choice("status", status, STATUSES)
        text = None if result is None else to_json("result", result)
        with self._db.transaction():
            key = self._key(run_id)
            self._db.execute(
                "UPDATE runs SET status = coalesce(?, status), result = coalesce(?, result) WHERE key = ?",
                (status, text, key),
            )
            if status in ENDED:
                self._chunks.merge(key)
            if status not in (None, "running"):
                self._db.execute("UPDATE runs SET owner = NULL WHERE key = ?", (key,))
            self._touch(key)
        if status == "diverged":
            self._checkpoint(run_id).unlink(missing_ok=True)

    def reopen(self, run_id: str, config: dict[str, Any]) -> None:
        """Let a run that has not diverged go on by another configuration: it is "interrupted" and has no result then.

        Raises StoreError for a run that has diverged and for one that another process trains, TypeError if `config` is
        not JSON.
        """
        text = to_json("config", config)
        with self._db.transaction():
            key = self._key(run_id)
            [(status, token)] = self._db.execute("SELECT status, owner FROM runs WHERE key = ?", (key,))
            if status == "diverged":
                raise StoreError(f"run {run_id} has diverged")
            if self._owner.is_other_and_alive(token):
                raise StoreError(f"run {run_id} is being trained by another process: stop that first")
            self._db.execute(
                "UPDATE runs SET config = ?, status = 'interrupted', result = NULL WHERE key = ?", (text, key)
            )
            self._touch(key)

    def get(self, run_id: str) -> StoredRun:
        """The run with this id."""
        rows = self._db.execute(f"SELECT {COLUMNS} FROM runs WHERE run_id = ?", (run_id,))
        return StoredRun.of(self.root, rows[0]) if rows else self._unknown(run_id)

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
        wanted = {"status": status, "preset": preset, "sweep": sweep, "limit": -1 if limit is None else limit}
        query = f"""SELECT {COLUMNS} FROM runs WHERE (:status IS NULL OR status = :status)
                    AND (:preset IS NULL OR preset = :preset)
                    AND (:sweep IS NULL OR key IN (SELECT run FROM members WHERE sweep = :sweep))
                    ORDER BY key DESC LIMIT :limit"""
        return [StoredRun.of(self.root, row) for row in self._db.execute(query, wanted)]

    def curves(self, run_id: str) -> dict[str, np.ndarray]:
        """The run's records as columns, by the names of Record's fields: `step` in int64, the others in float64."""
        chunks = self._db.execute(
            "SELECT rows FROM runs LEFT JOIN chunks ON chunks.run = runs.key WHERE run_id = ? ORDER BY first_step",
            (run_id,),
        )
        if not chunks:
            self._unknown(run_id)
        return curves_of([blob for (blob,) in chunks])

    def table(self, sweep_id: str | None = None) -> dict[str, np.ndarray]:
        """A sweep's runs in its order, or all runs, as columns of one length: `pandas.DataFrame(table)` takes it.

        run_id, status, phase, preset (text); seed, the keys of the sweep's grid (a filter as "ema lamb=1": what it has
        beside its kind's, or the varied experiment's, own values), and every other key of the
        configuration that differs between the runs, by its dotted name (float64 where a number is missing in some runs,
        else int64, float64, bool or text); t_memorize, t_generalize, diverged_at (float64, NaN where it did not happen:
        censored at `steps`), steps, seconds, collapsed, and the final train_loss, test_loss, train_accuracy,
        test_accuracy and weight_norm (NaN for runs that have not ended).
        """
        source, parameters, order = self._runs_of(sweep_id)
        found = self._db.execute(
            f"""SELECT run_id, status, preset, config, result,
                       coalesce((SELECT max(last_step) FROM chunks WHERE run = runs.key), -1)
                FROM {source} ORDER BY {order}""",
            parameters,
        )
        rows = [Row(*row) for row in found]
        if sweep_id is None:
            return columns_of(rows)
        sweep = self.sweeps.get(sweep_id)
        return columns_of(rows, sweep.grid.get("axes", {}), sweep.base)

    def all_curves(self, sweep_id: str | None = None) -> dict[str, np.ndarray]:
        """The curves of all runs of `table(sweep_id)` in one query, long-form: `run` (the row in the table, int64)
        and the columns of `curves`, run after run."""
        source, parameters, order = self._runs_of(sweep_id)
        chunks = self._db.execute(
            f"SELECT key, n_rows, rows FROM {source} LEFT JOIN chunks ON chunks.run = runs.key "
            f"ORDER BY {order}, first_step",
            parameters,
        )
        keys = np.array([key for key, _, _ in chunks], dtype=np.int64)
        numbers = np.cumsum(np.diff(keys, prepend=keys[:1]) != 0)  # a run's chunks stand together
        lengths = np.array([n or 0 for _, n, _ in chunks], dtype=np.int64)
        return {"run": np.repeat(numbers, lengths), **curves_of([blob for _, _, blob in chunks])}

    def directory(self, run_id: str) -> Path:
        """The directory of the run's files."""
        self._key(run_id)
        return self.root / run_id

    def remove(self, run_id: str) -> None:
        """Delete the run, its curves and its directory. Raises StoreError while another process trains it."""
        with self._db.transaction():
            key = self._key(run_id)
            [(token,)] = self._db.execute("SELECT owner FROM runs WHERE key = ?", (key,))
            if self._owner.is_other_and_alive(token):
                raise StoreError(f"run {run_id} is being trained by another process: stop that first")
            self._db.execute("DELETE FROM runs WHERE key = ?", (key,))
        directory = self.root / run_id
        if directory.exists():
            shutil.rmtree(directory)

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
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def _save(self, path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
        path.parent.mkdir(exist_ok=True)
        save_tensors(path, tensors, meta)

    def _runs_of(self, sweep_id: str | None) -> tuple[str, tuple[int, ...], str]:
        """What to select from, its parameters, and the order."""
        if sweep_id is None:
            return "runs", (), "runs.key"
        return "members JOIN runs ON runs.key = members.run AND sweep = ?", (self.sweeps.key(sweep_id),), "place"

    def _checkpoint(self, run_id: str) -> Path:
        return self.directory(run_id) / "checkpoint.safetensors"

    def _weights(self, run_id: str) -> Path:
        return self.directory(run_id) / "weights.safetensors"

    def _new_directory(self, preset: str) -> Path:
        with full_disk_as_store_error(self.root):
            while True:
                directory = self.root / f"{preset}-{secrets.token_hex(3)}"
                try:
                    directory.mkdir()
                except FileExistsError:
                    continue
                return directory

    def _key(self, run_id: str) -> int:
        rows = self._db.execute("SELECT key FROM runs WHERE run_id = ?", (run_id,))
        return int(rows[0][0]) if rows else self._unknown(run_id)

    def _unknown(self, run_id: str) -> NoReturn:
        ids = [row[0] for row in self._db.execute("SELECT run_id FROM runs ORDER BY key DESC")]
        raise UnknownRunError(f"{self.root} has no run {run_id!r}{checks.nearest(run_id, ids)}")

    def _touch(self, key: int) -> None:
        self._db.execute("UPDATE runs SET updated = ? WHERE key = ?", (now(), key))
