"""Curves as the store keeps them: chunks of rows, each as long as what was appended at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from grokfast.store.database import Database
from grokfast.store.errors import DamagedError
from grokfast.store.records import Record
from grokfast.store.seals import Row, curve_seal

ROW_BYTES = 8 * len(Record._fields)


class Chunks:
    """The curves of runs by primary key. The caller has begun a transaction, and keeps the curve's seal."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def insert(self, key: int, rows: np.ndarray) -> None:
        """Add one chunk."""
        first, last = int(rows[0, 0]), int(rows[-1, 0])
        self._db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", (key, first, last, len(rows), rows.tobytes()))

    def blobs(self, key: int) -> list[bytes]:
        """The run's chunks, in order."""
        found = self._db.execute("SELECT rows FROM chunks WHERE run = ? ORDER BY first_step", (key,))
        return [blob for (blob,) in found]

    def of_all(self, sweep: int | None) -> dict[int, list[bytes]]:
        """The chunks of every run, or of the sweep's, by primary key."""
        which = "" if sweep is None else "WHERE run IN (SELECT run FROM members WHERE sweep = ?)"
        chunks: dict[int, list[bytes]] = {}
        for run, blob in self._db.execute(
            f"SELECT run, rows FROM chunks {which} ORDER BY run, first_step", () if sweep is None else (sweep,)
        ):
            chunks.setdefault(run, []).append(blob)
        return chunks

    def truncate(self, key: int, step: int) -> None:
        """Drop the run's rows after `step`."""
        cut = self._db.execute(
            "SELECT rows FROM chunks WHERE run = ? AND first_step <= ? AND last_step > ?", (key, step, step)
        )
        self._db.execute("DELETE FROM chunks WHERE run = ? AND last_step > ?", (key, step))
        for (blob,) in cut:  # at most one chunk has rows on both sides
            rows = _matrix(blob)
            self.insert(key, rows[rows[:, 0] <= step])

    def merge(self, key: int) -> None:
        """Make the run's chunks one."""
        chunks = self.blobs(key)
        if len(chunks) > 1:
            self._db.execute("DELETE FROM chunks WHERE run = ?", (key,))
            self.insert(key, _matrix(b"".join(chunks)))


def check(row: Row, blobs: Sequence[bytes]) -> None:
    """Raise DamagedError, naming the run, unless these are its chunks as they were written."""
    are_bytes = all(isinstance(blob, bytes) for blob in blobs)
    if not are_bytes or curve_seal(blobs) != row.curve or sum(map(len, blobs)) % ROW_BYTES:
        raise DamagedError(f"the curve of run {row.run_id} is damaged: its checksum is not what was written")


def rows_of(records: Sequence[Record]) -> np.ndarray:
    """The records as a matrix, or ValueError unless they have Record's fields and steps that can follow each other."""
    if len(records) == 0:
        return np.empty((0, len(Record._fields)))
    rows = np.array(records, dtype="<f8")
    if rows.ndim != 2 or rows.shape[1] != len(Record._fields):
        raise ValueError(f"records must have the fields {', '.join(Record._fields)}, got an array of {rows.shape}")
    steps = rows[:, 0]
    accepted = (steps == np.floor(steps)) & (steps >= 0) & (steps < 2**53) & (np.diff(steps, prepend=-1) > 0)
    if not accepted.all():
        index = int(np.argmin(accepted))
        raise ValueError(f"records must have whole, strictly growing steps, got {steps[index]} at position {index}")
    return rows


def curves_of(blobs: Iterable[bytes]) -> dict[str, np.ndarray]:
    """Chunks, one after the other, as columns: `step` in int64, the others in float64."""
    rows = _matrix(b"".join(blobs))
    columns = {name: rows[:, i].astype(np.float64) for i, name in enumerate(Record._fields)}
    return columns | {"step": columns["step"].astype(np.int64)}


def _matrix(rows: bytes) -> np.ndarray:
    return np.frombuffer(rows, dtype="<f8").reshape(-1, len(Record._fields))
