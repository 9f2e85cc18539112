"""Locks that go with their process, and what takes their place on a file system that has none.

Network file systems (NFS, Lustre, GPFS) may be mounted without locks: `flock` and `fcntl` then fail with ENOLCK,
EOPNOTSUPP or ENOSYS. There the lock is a file whose existence is the lock, with the process and the machine in it: it
is broken where that process is on this machine and gone; of another machine nobody can know, and it stands.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, whose file systems have locks
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_SOFT_SECONDS = 0.2  # to break the lock of a process that is gone


class Abilities(NamedTuple):
    """What a file system can do: fcntl's locks, flock's, and memory of a file that processes share."""

    records: bool
    files: bool
    memory: bool


_ALL = Abilities(True, True, True)
_known: dict[int, Abilities] = {}  # by device


def abilities(directory: Path) -> Abilities:
    """What the file system of `directory` can do, tried once a process; all, where that cannot be tried."""
    if fcntl is None:
        return _ALL
    device = directory.stat().st_dev
    if device not in _known:
        try:
            with tempfile.TemporaryFile(dir=directory) as file:
                file.truncate(mmap.PAGESIZE)
                _known[device] = Abilities(
                    _works(lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)),
                    _works(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)),
                    _works(lambda: mmap.mmap(file.fileno(), mmap.PAGESIZE).close(), but={errno.ENODEV, errno.EINVAL}),
                )
        except OSError:
            return _ALL
        if not all(_known[device]):
            warnings.warn(
                f"the file system of {directory} has no locks or no shared memory: the store makes do with a rollback "
                "journal and with files whose existence is the lock",
                stacklevel=2,
            )
    return _known[device]


def lock_at(path: Path) -> BaseFileLock:
    """A lock on the file `path`, not taken yet."""
    kind = FileLock if abilities(path.parent).files else SoftFileLock
    return kind(path, thread_local=False)


def exists_as_lock(path: Path) -> BaseFileLock:
    """A lock that is the file's existence, not taken yet."""
    return SoftFileLock(path, thread_local=False)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock `path`. Who may only read it can ask, too; it is not changed."""
    if fcntl is None:
        return _cannot_take(FileLock(path, thread_local=False))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:  # nobody can know
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS or _cannot_take(exists_as_lock(path))
    finally:
        os.close(descriptor)
    return False


def _cannot_take(lock: BaseFileLock) -> bool:
    try:
        lock.acquire(timeout=_SOFT_SECONDS, poll_interval=0.01)
    except (Timeout, OSError):
        return True
    lock.release(force=True)
    return False


def _works(attempt: Callable[[], object], but: frozenset[int] | set[int] = frozenset()) -> bool:
    try:
        attempt()
    except OSError as error:
        return error.errno not in NO_LOCKS | but
    return True
