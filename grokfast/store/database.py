"""The store's SQLite file: its schema, how it is opened, and what its errors become.

It is in WAL mode: any number of processes read while one writes, and writers queue. A killed process loses nothing that
was committed (a power failure may lose the last moments, and never damages the file). On a file system that cannot do
that it has a rollback journal (locks.py). What this process may not write is read from a copy (copies.py).
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout

from grokfast.store.copies import copied
from grokfast.store.errors import StoreError, StoreFullError
from grokfast.store.locks import abilities, exists_as_lock
from grokfast.store.records import STANDARD
from grokfast.store.seals import Member, Row, SweepRow, curve_seal, seal

_FIRST = (
    """
    CREATE TABLE runs (
        key     INTEGER PRIMARY KEY,   -- grows with every new run
        run_id  TEXT NOT NULL UNIQUE,  -- also the name of the run's directory
        created TEXT NOT NULL,         -- ISO 8601, UTC
        updated TEXT NOT NULL,         -- the last time that the run's row or curves changed
        preset  TEXT NOT NULL,
        version TEXT NOT NULL,         -- of grokfast
        device  TEXT NOT NULL,
        status  TEXT NOT NULL,         -- pending, running, interrupted, finished, diverged or failed
        config  TEXT NOT NULL,         -- JSON object
        result  TEXT                   -- JSON object
    )
    """,
    """
    CREATE TABLE chunks (
        run        INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        first_step INTEGER NOT NULL,
        last_step  INTEGER NOT NULL,
        n_rows     INTEGER NOT NULL,
        -- A run's curves are its chunks' rows in the order of first_step; steps grow strictly from row to row.
        -- rows: a row-major matrix of little-endian IEEE 754 doubles, n_rows x (1 + k): the step, then the k columns
        -- that runs.columns names
        rows       BLOB NOT NULL,
        PRIMARY KEY (run, first_step)
    )
    """,
)
_SWEEPS = (
    # of the configuration, the versions and the kind of device, for runs of sweeps: the same run is stored once
    "ALTER TABLE runs ADD COLUMN hash TEXT",
    "CREATE UNIQUE INDEX runs_by_hash ON runs (hash)",
    "ALTER TABLE runs ADD COLUMN owner TEXT",  # whose lock (owners.py) says whether the run is being trained now
    """
    CREATE TABLE sweeps (
        key      INTEGER PRIMARY KEY,
        sweep_id TEXT NOT NULL UNIQUE,
        created  TEXT NOT NULL,         -- ISO 8601, UTC
        preset   TEXT NOT NULL,
        base     TEXT NOT NULL,         -- JSON object: the experiment that was varied
        grid     TEXT NOT NULL          -- JSON object: what was varied, and how
    )
    """,
    """
    CREATE TABLE members (
        sweep INTEGER NOT NULL REFERENCES sweeps (key) ON DELETE CASCADE,
        place INTEGER NOT NULL,        -- of the run in its sweep
        run   INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        PRIMARY KEY (sweep, place)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX members_by_run ON members (run)",
)
_SEALS = (  # seals.py
    "ALTER TABLE runs ADD COLUMN last_step INTEGER",  # of the run's curve
    "ALTER TABLE runs ADD COLUMN curve INTEGER NOT NULL DEFAULT 0",  # the seal of its chunks' rows
    "ALTER TABLE runs ADD COLUMN seal INTEGER",  # of this row
    "ALTER TABLE sweeps ADD COLUMN seal INTEGER",
    "ALTER TABLE members ADD COLUMN seal INTEGER",
)
_COLUMNS = ("ALTER TABLE runs ADD COLUMN columns TEXT",)  # JSON list: of the run's curve beside the step
_SCHEMAS = (_FIRST, _SWEEPS, _SEALS, _COLUMNS)  # a file of version n lacks those from the n-th on
SCHEMA_VERSION = len(_SCHEMAS)
_SEALED = 3  # from this version on rows have seals
_MAGIC = b"SQLite format 3\0"
_VERSION_AT = 60  # where a SQLite file holds its user_version: 4 bytes, big-endian
_BUSY_SECONDS = 10.0


class Database:
    """The SQLite file `path`, made if it is missing. For the thread that opened it only.

    What this process may not write is read from a copy of this moment: then what would write raises StoreError. With
    `read_only` so is what belongs to somebody else, and what would have to be brought up to be read.

    Raises StoreError if the file is not a store, or if a newer grokfast wrote it (then nothing is touched).
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path, self.is_read_only = path, False
        self._lock: BaseFileLock | None = None  # in place of SQLite's own
        with self._errors():
            self._connection = self._connect(read_only)
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._connection.close()

    def execute(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement and return its rows.

        Raises StoreFullError if there is no room, StoreError for what else SQLite reports about the file.
        """
        with self._errors(), self._alone():
            return self._connection.execute(statement, parameters).fetchall()

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute one statement for every row of parameters. Raises as `execute` does."""
        with self._errors(), self._alone():
            self._connection.executemany(statement, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is executed inside, all of it or, on an exception, none. Waits while another process writes."""
        with self._alone():
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment."""
        with self._alone():
            self.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite reports about the file into StoreError; wrong use (threads, closed) stays as it is."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except UnicodeDecodeError as error:  # SQLite's own message quotes the damage
            raise StoreError(f"{self.path}: the database is damaged ({error})") from error
        except sqlite3.Error as error:
            if "database or disk is full" in str(error):
                raise StoreFullError(f"{self.path}: {error}; what was stored before remains readable") from error
            why = "; this process may not write it" if self.is_read_only and "readonly" in str(error) else ""
            raise StoreError(f"{self.path}: {error}{why}") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes out where SQLite cannot."""
        if self._lock is None:
            yield
            return
        try:
            self._lock.acquire(timeout=_BUSY_SECONDS, poll_interval=0.01)
        except Timeout as error:
            raise StoreError(
                f"{self.path} is locked: another process uses it, or one on another machine was killed while it did; "
                f"then delete {error.lock_file}"
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        exists = self.path.exists()
        is_foreign = exists and read_only and not _is_mine(self.path)
        if exists and (is_foreign or _may_not_write(self.path)):
            return self._copy()
        can = abilities(self.path.parent)
        if not can.records:
            self._lock = exists_as_lock(self.path.with_name(f"{self.path.name}.lock"))
        try:
            if exists and _refuse_newer(self.path) < SCHEMA_VERSION and read_only:
                return self._copy()
            if not (can.records and can.memory):
                return self._open_with_rollback_journal("" if can.records else "?vfs=unix-none")
            return self._open()
        except sqlite3.OperationalError as error:
            if "disk I/O error" in str(error):
                # A full disk has no room for the shared memory of WAL mode; a sole user reads without it.
                return self._open("PRAGMA locking_mode = EXCLUSIVE")
            if not exists or not any(said in str(error) for said in ("readonly database", "unable to open")):
                raise
        return self._copy()

    def _copy(self) -> sqlite3.Connection:
        self.is_read_only = True
        db = copied(self.path)
        if (version := _user_version(db)) > SCHEMA_VERSION:
            db.close()
            raise _newer(self.path, version)
        return db

    def _open(self, *settings: str, options: str = "") -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}{options}"
        db = sqlite3.connect(uri, timeout=_BUSY_SECONDS, isolation_level=None, uri=True)
        try:
            for statement in (*settings, "SELECT count(*) FROM sqlite_master"):  # the first read opens the files
                db.execute(statement)
        except BaseException:
            db.close()
            raise
        return db

    def _open_with_rollback_journal(self, options: str) -> sqlite3.Connection:
        """A sole user can switch a file from WAL mode over without shared memory."""
        with self._alone():
            db = self._open("PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = DELETE", options=options)
            db.execute("PRAGMA locking_mode = NORMAL")
            db.execute("SELECT count(*) FROM sqlite_master")  # the next read gives the lock up
        return db

    def _prepare(self) -> None:
        """Make the tables in a new file, add what one of an older grokfast lacks, and set the connection up."""
        self._connection.text_factory = _text
        if _user_version(self._connection) < SCHEMA_VERSION:
            self._make_tables()
        if self.is_read_only:
            self.execute("PRAGMA query_only = ON")
            return
        can = abilities(self.path.parent)
        if can.records and can.memory:
            self._enter_wal_mode()
            self.execute("PRAGMA synchronous = NORMAL")
        self.execute("PRAGMA foreign_keys = ON")

    def _enter_wal_mode(self) -> None:
        """Switch a new file over. SQLite does not itself wait when several processes open it at once, so this does."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _make_tables(self) -> None:
        with self.transaction():
            version = _user_version(self._connection)  # another process may have been faster
            if version == SCHEMA_VERSION:
                return
            if version == 0 and self.execute("SELECT 1 FROM sqlite_master"):
                raise StoreError(f"{self.path} is a database, but not one of grokfast")
            for statement in (statement for schema in _SCHEMAS[version:] for statement in schema):
                self.execute(statement)
            self._name_columns(is_sealed=version >= _SEALED)
            if version < _SEALED:
                self._seal()
            self.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _name_columns(self, *, is_sealed: bool) -> None:
        """Name the columns of the curves of an older grokfast, and seal those rows anew that are as they were written.

        A damaged one keeps its seal, which then fits it no more than before.
        """
        names = json.dumps([*STANDARD])
        if not is_sealed:
            self.execute("UPDATE runs SET columns = ? WHERE key IN (SELECT run FROM chunks)", (names,))
            return
        fields = Row._fields[:-1]
        changed = []
        for *values, sealed in self.execute(f"SELECT {', '.join(fields)}, seal FROM runs"):
            if seal(values) == sealed:
                row = Row(*values)
                row = row if row.last_step is None else row._replace(columns=names)
                changed.append((row.columns, seal(row), row.key))
        self.execute_many("UPDATE runs SET columns = ?, seal = ? WHERE key = ?", changed)

    def _seal(self) -> None:
        """Give the rows of an older grokfast their checksums."""
        chunks = self.execute("SELECT run, last_step, rows FROM chunks ORDER BY run, first_step")
        curves: dict[int, tuple[int, int]] = {}
        for run, last_step, rows in chunks:
            curves[run] = last_step, curve_seal([rows] if isinstance(rows, bytes) else [], curves.get(run, (0, 0))[1])
        self.execute_many(
            "UPDATE runs SET last_step = ?, curve = ? WHERE key = ?", ((*both, run) for run, both in curves.items())
        )
        keys: dict[str, tuple[type[Any], tuple[str, ...]]]
        keys = {"runs": (Row, ("key",)), "sweeps": (SweepRow, ("key",)), "members": (Member, ("sweep", "place"))}
        for table, (kind, key) in keys.items():
            rows = self.execute(f"SELECT {', '.join(kind._fields)} FROM {table}")
            which = " AND ".join(f"{name} = ?" for name in key)
            self.execute_many(
                f"UPDATE {table} SET seal = ? WHERE {which}", ((seal(row), *row[: len(key)]) for row in rows)
            )


def _refuse_newer(path: Path) -> int:
    """The version of the schema. Raises StoreError if `path` is no database or has a newer one.

    No file is changed or made, so the file's header tells, since opening a database in WAL mode makes two more files.
    What a killed or running process has not moved into the file yet is in the log: that is read through a connection
    that cannot write.
    """
    with path.open("rb") as file:
        header = file.read(_VERSION_AT + 4)
    if header and not header.startswith(_MAGIC):
        raise StoreError(f"{path} is not a SQLite database")
    version = int.from_bytes(header[_VERSION_AT:], "big")
    if path.with_name(f"{path.name}-wal").exists() and all(abilities(path.parent)):
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as db:
            version = _user_version(db)
    if version > SCHEMA_VERSION:
        raise _newer(path, version)
    return version


def _newer(path: Path, version: int) -> StoreError:
    return StoreError(
        f"{path} was written by a newer grokfast (schema {version}, this one knows up to {SCHEMA_VERSION}): "
        "upgrade grokfast to open it"
    )


def _may_not_write(path: Path) -> bool:
    """Whether this process may not write the file, or make others beside it."""
    return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK))


def _is_mine(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()


def _text(raw: bytes) -> str:
    """Damaged text is text that no seal fits, not an error of the whole query."""
    return raw.decode("utf-8", "surrogateescape")


def _user_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
