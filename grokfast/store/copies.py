"""A store that this process may not write, read from a copy in memory: nothing is made beside it, and nobody waits.

SQLite itself makes files beside a database in WAL mode, for reading too, and whoever they belong to can then lock the
others out.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

from grokfast.store.errors import StoreError
from grokfast.store.files import full_disk_as_store_error

SIDES = ("-wal", "-journal")  # the log of what the file has not yet, or of what is to be undone in it
_SECONDS = 10.0
_HEAD = 32  # bytes: of the database its counter of changes, of a log what tells it from the next one


def copied(path: Path) -> sqlite3.Connection:
    """A database in memory with what `path` and its logs hold.

    Raises StoreError where others write to it without a pause, sqlite3.Error where it is damaged, OSError where it
    cannot be read.
    """
    deadline = time.monotonic() + _SECONDS
    with tempfile.TemporaryDirectory(prefix="grokfast-") as directory, full_disk_as_store_error(Path(directory)):
        copy = Path(directory) / "copy"
        while not _copy(path, copy):
            if time.monotonic() > deadline:
                raise StoreError(f"{path} is written to without a pause: it cannot be read now")
            time.sleep(0.02)
        source = sqlite3.connect(copy, isolation_level=None)
        memory = sqlite3.connect(":memory:", isolation_level=None)
        try:
            source.execute("PRAGMA locking_mode = EXCLUSIVE")
            source.execute("PRAGMA journal_mode = DELETE").fetchall()
            source.backup(memory)
        except BaseException:
            memory.close()
            raise
        finally:
            source.close()
    return memory


def _copy(path: Path, copy: Path) -> bool:
    """Copy the file, then its logs; whether they belong together.

    They do if no log was begun anew meanwhile: it has all that was written into the file while that was copied, or
    what was there before. Without a log, if the file is the same before and after.
    """
    before = [_mark(path, is_log=False), *(_mark(_beside(path, side)) for side in SIDES)]
    shutil.copyfile(path, copy)
    for side, mark in zip(SIDES, before[1:]):
        _beside(copy, side).unlink(missing_ok=True)
        if mark is not None:
            try:
                shutil.copyfile(_beside(path, side), _beside(copy, side))
            except FileNotFoundError:
                return False
    after = [_mark(path, is_log=False), *(_mark(_beside(path, side)) for side in SIDES)]
    return before[1:] == after[1:] and (before[0] == after[0] or any(before[1:]))


def _beside(path: Path, side: str) -> Path:
    return path.with_name(path.name + side)


def _mark(path: Path, is_log: bool = True) -> tuple[object, ...] | None:
    """What changes when a log is begun anew, or the file is written to; None for a log that is not there or empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        if is_log:
            return None
        raise
    try:
        status, head = os.fstat(descriptor), os.read(descriptor, _HEAD)
    finally:
        os.close(descriptor)
    if is_log:
        return (status.st_ino, head) if status.st_size else None
    return status.st_ino, status.st_size, status.st_mtime_ns, head
