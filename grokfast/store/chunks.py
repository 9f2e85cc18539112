"""Curves as the store keeps them: chunks of rows, each as long as what was appended at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from grokfast.store.database import Database
from grokfast.store.errors import DamagedError
from grokfast.store.records import STANDARD, Record
from grokfast.store.seals import Row, curve_seal

_TAKEN = ("step", "run", "run_id")  # names of columns that tables of curves have anyway


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

    def truncate(self, key: int, step: int, n_columns: int) -> None:
        """Drop the rows after `step` of a run with so many columns."""
        cut = self._db.execute(
            "SELECT rows FROM chunks WHERE run = ? AND first_step <= ? AND last_step > ?", (key, step, step)
        )
        self._db.execute("DELETE FROM chunks WHERE run = ? AND last_step > ?", (key, step))
        for (blob,) in cut:  # at most one chunk has rows on both sides
            rows = _matrix(blob, n_columns)
            self.insert(key, rows[rows[:, 0] <= step])

    def merge(self, key: int, n_columns: int) -> None:
        """Make the chunks of a run with so many columns one."""
        chunks = self.blobs(key)
        if len(chunks) > 1:
            self._db.execute("DELETE FROM chunks WHERE run = ?", (key,))
            self.insert(key, _matrix(b"".join(chunks), n_columns))


def check(row: Row, blobs: Sequence[bytes]) -> None:
    """Raise DamagedError, naming the run, unless these are its chunks as they were written."""
    are_bytes = all(isinstance(blob, bytes) for blob in blobs)
    if not are_bytes or curve_seal(blobs) != row.curve or sum(map(len, blobs)) % row_bytes(row):
        raise DamagedError(f"the curve of run {row.run_id} is damaged: its checksum is not what was written")


def names_of(row: Row) -> tuple[str, ...]:
    """The columns of the run's curve beside the step; those of most runs where it has had no record.

    Raises DamagedError, naming the run, where the row does not say them.
    """
    if row.columns is None:
        return STANDARD
    try:
        return _names(row.columns)
    except (TypeError, ValueError) as error:
        raise DamagedError(f"the columns of run {row.run_id} are damaged: {error}") from error


@lru_cache(maxsize=1024)  # thousands of runs have the same
def _names(columns: str) -> tuple[str, ...]:
    return checked_names(json.loads(columns))


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """ValueError unless these can be a run's columns: words, all different, none that tables have anyway."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"records must have columns with names, got {names!r}")
    wrong = [name for i, name in enumerate(names) if name in _TAKEN or name in names[:i]]
    if wrong:
        raise ValueError(f"records must have different columns, none of them {', '.join(_TAKEN)}, got {wrong[0]!r}")
    return tuple(names)


def row_bytes(row: Row) -> int:
    """Those of a row of the run's curve."""
    return 8 * (1 + len(names_of(row)))


def rows_of(records: Sequence[Record], names: Sequence[str]) -> np.ndarray:
    """The records as a matrix of the step and these columns.

    Raises ValueError unless all have just these columns, and steps that can follow each other.
    """
    if len(records) == 0:
        return np.empty((0, 1 + len(names)))
    for record in records:
        if tuple(record.values) != tuple(names):
            got, wanted = ", ".join(record.values), ", ".join(names)
            raise ValueError(f"records must have the run's columns {wanted}; the one of step {record.step} has {got}")
    rows = np.array([[record.step, *record.values.values()] for record in records], dtype="<f8")
    steps = rows[:, 0]
    accepted = (steps == np.floor(steps)) & (steps >= 0) & (steps < 2**53) & (np.diff(steps, prepend=-1) > 0)
    if not accepted.all():
        index = int(np.argmin(accepted))
        raise ValueError(f"records must have whole, strictly growing steps, got {steps[index]} at position {index}")
    return rows


def curves_of(blobs: Iterable[bytes], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Chunks of a run with these columns, one after the other: `step` in int64, the others in float64."""
    rows = _matrix(b"".join(blobs), len(names))
    columns = {name: rows[:, i].astype(np.float64) for i, name in enumerate(names, 1)}
    return {"step": rows[:, 0].astype(np.int64), **columns}


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Curves one after the other, with the columns of all: NaN where one does not have it."""
    lengths = [len(part["step"]) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part if name != "step") if parts else STANDARD
    steps = [part["step"] for part in parts]
    found = {"step": np.concatenate(steps) if steps else np.empty(0, dtype=np.int64)}
    for name in names:
        own = [part[name] if name in part else np.full(n, np.nan) for part, n in zip(parts, lengths)]
        found[name] = np.concatenate(own) if own else np.empty(0)
    return found


def _matrix(rows: bytes, n_columns: int) -> np.ndarray:
    return np.frombuffer(rows, dtype="<f8").reshape(-1, 1 + n_columns)
