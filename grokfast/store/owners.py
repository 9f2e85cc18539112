"""Who is training a run: a process keeps a file locked while it lives; the lock goes with it, however it ends."""

from __future__ import annotations

import secrets
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from grokfast.store.files import full_disk_as_store_error


class Owner:
    """One locked file in `directory`; its name, `token`, stands in the store's rows for whoever holds the lock."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.token = directory, secrets.token_hex(8)
        self._lock: BaseFileLock | None = None

    def lock(self) -> str:
        """Take the lock, if it is not held yet, and return the token."""
        if self._lock is None:
            with full_disk_as_store_error(self.directory):
                self.directory.mkdir(exist_ok=True)
                lock = _lock(self._path(self.token))
                lock.acquire(timeout=0)
            self._lock = lock
        return self.token

    def is_other_and_alive(self, token: str | None) -> bool:
        """Whether the token is that of another owner whose process lives; a dead one's file is removed."""
        if token is None or token == self.token or not self._path(token).exists():
            return False
        lock = _lock(self._path(token))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        self._path(token).unlink(missing_ok=True)
        lock.release(force=True)
        return False

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self._lock is not None:
            self._path(self.token).unlink(missing_ok=True)
            self._lock.release(force=True)
            self._lock = None

    def _path(self, token: str) -> Path:
        return self.directory / f"{token}.lock"


def _lock(path: Path) -> BaseFileLock:
    return FileLock(path, thread_local=False)
