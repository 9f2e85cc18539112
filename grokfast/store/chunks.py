"""Curves as the store keeps them: chunks of rows, each as long as what was appended at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from grokfast.store.database import Database
from grokfast.store.records import Record


class Chunks:
    """The curves of runs by primary key. The caller has begun a transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def last_step(self, key: int) -> int | None:
        """Of the run's last row, if it has one."""
        [(last,)] = self._db.execute("SELECT max(last_step) FROM chunks WHERE run = ?", (key,))
        return None if last is None else int(last)

    def insert(self, key: int, rows: np.ndarray) -> None:
        """Add one chunk."""
        first, last = int(rows[0, 0]), int(rows[-1, 0])
        self._db.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, ?)", (key, first, last, len(rows), rows.tobytes()))

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
        chunks = self._db.execute("SELECT rows FROM chunks WHERE run = ? ORDER BY first_step", (key,))
        if len(chunks) > 1:
            self._db.execute("DELETE FROM chunks WHERE run = ?", (key,))
            self.insert(key, _matrix(b"".join(blob for (blob,) in chunks)))


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


def curves_of(blobs: Iterable[bytes | None]) -> dict[str, np.ndarray]:
    """Chunks, one after the other, as columns: `step` in int64, the others in float64."""
    rows = _matrix(b"".join(blob or b"" for blob in blobs))
    columns = {name: rows[:, i].astype(np.float64) for i, name in enumerate(Record._fields)}
    return columns | {"step": columns["step"].astype(np.int64)}


def _matrix(rows: bytes) -> np.ndarray:
    return np.frombuffer(rows, dtype="<f8").reshape(-1, len(Record._fields))
