"""Where things lie in a store: every id is checked here before it becomes a path, and no path leads out of the root.

A store may have come from somebody else: what its rows say, and the links in its folders, are not trusted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from grokfast.store.errors import StoreError

DATABASE, CHECKPOINT, WEIGHTS = "grokfast.sqlite", "checkpoint.safetensors", "weights.safetensors"
SNAPSHOTS = "snapshots"  # a folder
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[0-9a-f]{16}")
_LONGEST = 200  # bytes; file systems take 255, and something is added to some
_ALIEN = frozenset('/\\:*?"<>|')  # in no file's name somewhere


def checked_name(value: Any) -> str:
    """A name that ids may begin with, such as a preset's; ValueError where it is none."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value.startswith(DATABASE):
        raise ValueError(
            "name (of the preset, with which ids begin) must be at most 100 letters, digits, '.', '_' and '-', the "
            f"first a letter or digit, got {value!r}"
        )
    return value


def checked_id(value: Any) -> str:
    """The id of a run or a sweep, which is the name of a folder in the root. Raises StoreError where it is none.

    Names with other letters are taken too: older versions made such ids.
    """
    if not is_id(value):
        raise StoreError(f"{value!r} is no id of a run or a sweep: it cannot be the name of a folder in the store")
    return str(value)


def is_id(value: Any) -> bool:
    """Whether `checked_id` takes it."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and 0 < len(value.encode()) <= _LONGEST
        and not value.startswith((".", "-", DATABASE))
        and _ALIEN.isdisjoint(value)
    )


def checked_token(value: Any) -> str:
    """The token of an owner, which is the name of a lock file. Raises StoreError where it is none."""
    if not is_token(value):
        raise StoreError(f"{value!r} is no owner of a run")
    return str(value)


def is_token(value: Any) -> bool:
    """Whether `checked_token` takes it."""
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


class Places:
    """The paths of the store at `root`, which may be a link itself; nothing below it may be one.

    Every method raises StoreError for an id that is none, and for a link.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def database(self) -> Path:
        return _no_link(self.root / DATABASE)

    @property
    def owners(self) -> Path:
        """The folder of locks, and of what is being removed."""
        return _no_link(self.root / ".owners")

    def lock(self, token: str) -> Path:
        """The lock file of an owner."""
        return self.owners / f"{checked_token(token)}.lock"

    @property
    def data_folder(self) -> Path:
        """The folder of data sets."""
        return _no_link(self.root / ".data")

    def data(self, sha256: str) -> Path:
        """The file of a data set."""
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise StoreError(f"{sha256!r} is no SHA-256 of a data set")
        return _no_link(self.data_folder / f"{sha256}.safetensors")

    def folder(self, of: str, *parts: str) -> Path:
        """The folder of a run or a sweep, or one in it."""
        path = _no_link(self.root / checked_id(of))
        for part in parts:
            path = _no_link(path / part)
        return path

    def file(self, of: str, *parts: str) -> Path:
        """A file in the folder of a run or a sweep."""
        return self.folder(of, *parts)


def _no_link(path: Path) -> Path:
    if path.is_symlink():
        raise StoreError(f"{path} is a symbolic link: what it leads to is not of this store")
    return path
