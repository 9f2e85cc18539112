"""The store's SQLite file: its schema, how it is opened, and what its errors become.

It is in WAL mode: any number of processes read while one writes, and writers queue. A killed process loses nothing that
was committed (a power failure may lose the last moments, and never damages the file).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from grokfast.store.errors import StoreError, StoreFullError
from grokfast.store.records import Record

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
    f"""
    CREATE TABLE chunks (
        run        INTEGER NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
        first_step INTEGER NOT NULL,
        last_step  INTEGER NOT NULL,
        n_rows     INTEGER NOT NULL,
        -- A run's curves are its chunks' rows in the order of first_step; steps grow strictly from row to row.
        -- rows: a row-major matrix of little-endian IEEE 754 doubles, n_rows x {len(Record._fields)}, with the columns
        -- {", ".join(Record._fields)}
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
_SCHEMAS = (_FIRST, _SWEEPS)  # a file of version n lacks those from the n-th on
SCHEMA_VERSION = len(_SCHEMAS)
_MAGIC = b"SQLite format 3\0"
_VERSION_AT = 60  # where a SQLite file holds its user_version: 4 bytes, big-endian
_BUSY_SECONDS = 10.0


class Database:
    """The SQLite file `path`, made if it is missing. For the thread that opened it only.

    What this process may not write is opened for reading: then what would write raises StoreError.

    Raises StoreError if the file is not a store, or if a newer grokfast wrote it (then nothing is touched).
    """

    def __init__(self, path: Path) -> None:
        self.path, self.is_read_only = path, False
        with self._errors():
            if path.exists():
                _refuse_newer(path)
            self._connection = self._connect()
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
        with self._errors():
            return self._connection.execute(statement, parameters).fetchall()

    def execute_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute one statement for every row of parameters. Raises as `execute` does."""
        with self._errors():
            self._connection.executemany(statement, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is executed inside, all of it or, on an exception, none. Waits while another process writes."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite reports about the file into StoreError; wrong use (threads, closed) stays as it is."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            if "database or disk is full" in str(error):
                raise StoreFullError(f"{self.path}: {error}; what was stored before remains readable") from error
            raise StoreError(f"{self.path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.OperationalError as error:
            if "disk I/O error" in str(error):
                # A full disk has no room for the shared memory of WAL mode; a sole user reads without it.
                return self._open("PRAGMA locking_mode = EXCLUSIVE")
            if not any(said in str(error) for said in ("readonly database", "unable to open")):
                raise
        self.is_read_only = True
        try:
            return self._open(options="?mode=ro")
        except sqlite3.OperationalError:
            log = self.path.with_name(f"{self.path.name}-wal")
            if log.exists() and log.stat().st_size:  # has what the file has not
                raise
            return self._open(options="?mode=ro&immutable=1")  # in WAL mode a reader, too, makes files beside it

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

    def _prepare(self) -> None:
        """Make the tables in a new file, add what one of an older grokfast lacks, and set the connection up."""
        if self.is_read_only:
            if _user_version(self._connection) < SCHEMA_VERSION:
                raise StoreError(f"{self.path} was begun by an older grokfast, and cannot be written to be brought up")
            return
        if _user_version(self._connection) < SCHEMA_VERSION:
            self._make_tables()
        self._enter_wal_mode()
        for setting in ("synchronous = NORMAL", "foreign_keys = ON"):
            self.execute(f"PRAGMA {setting}")

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
            if version == 0 and self.execute("SELECT 1 FROM sqlite_master"):
                raise StoreError(f"{self.path} is a database, but not one of grokfast")
            for statement in (statement for schema in _SCHEMAS[version:] for statement in schema):
                self.execute(statement)
            self.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _refuse_newer(path: Path) -> None:
    """Raise StoreError if `path` is no database or has a newer schema, without changing a file or making one.

    The file's header tells, since opening a database in WAL mode makes two more files. What a killed or running process
    has not moved into the file yet is in the log: that is read through a connection that cannot write.
    """
    with path.open("rb") as file:
        header = file.read(_VERSION_AT + 4)
    if header and not header.startswith(_MAGIC):
        raise StoreError(f"{path} is not a SQLite database")
    version = int.from_bytes(header[_VERSION_AT:], "big")
    if path.with_name(f"{path.name}-wal").exists():
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as db:
            version = _user_version(db)
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} was written by a newer grokfast (schema {version}, this one knows up to {SCHEMA_VERSION}): "
            "upgrade grokfast to open it"
        )


def _user_version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
