"""Who is training a run: a process keeps a file locked while it lives; the lock goes with it, however it ends."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import cache

from filelock import BaseFileLock

from grokfast.store.files import full_disk_as_store_error
from grokfast.store.locks import is_held, lock_at
from grokfast.store.places import Places, is_token


class Owner:
    """One locked file in `.owners`; its name, `token`, stands in the store's rows for whoever holds the lock."""

    def __init__(self, places: Places) -> None:
        self._places, self.token = places, secrets.token_hex(8)
        self._lock: BaseFileLock | None = None

    def lock(self) -> str:
        """Take the lock, if it is not held yet, and return the token."""
        if self._lock is None:
            path = self._places.lock(self.token)
            with full_disk_as_store_error(path.parent):
                path.parent.mkdir(exist_ok=True)
                lock = lock_at(path)
                lock.acquire(timeout=1)  # who looks whether it is held holds it for a moment
            self._lock = lock
        return self.token

    def is_alive(self, token: str | None) -> bool:
        """Whether the owner of this token lives."""
        if token is None or token == self.token:
            return token is not None and self._lock is not None
        return is_held(self._places.lock(token))

    def liveness(self) -> Callable[[str | None], bool]:
        """`is_alive` of one moment: each owner is looked for once."""
        return cache(self.is_alive)

    def dead(self) -> list[str]:
        """The owners that were killed: their locks are there, and nobody holds them."""
        folder = self._places.owners
        tokens = [path.stem for path in folder.glob("*.lock") if is_token(path.stem)]
        return [token for token in tokens if token != self.token and not is_held(self._places.lock(token))]

    def bury(self, token: str | None) -> None:
        """Delete the lock file of a dead owner."""
        if token is None:
            return
        with suppress(FileNotFoundError):
            self._places.lock(token).unlink()

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self._lock is not None:
            self.bury(self.token)
            self._lock.release(force=True)
            self._lock = None
