"""Removing: first a run is marked as removed, at once and for everybody, then its files go, then its rows.

The mark is the run's folder, moved to `.owners/<id>.removed`. Files go before rows: on a full disk that makes the room
which the database needs to forget them. What a killed process has marked goes with the next write.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from grokfast.store.files import full_disk_as_store_error
from grokfast.store.places import Places, checked_id, is_id

_SUFFIX = ".removed"


class Removal:
    """The marks of one store."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def ids(self) -> set[str]:
        """Of the runs and sweeps that are marked."""
        try:
            names = os.listdir(self._places.owners)
        except OSError:
            return set()
        return {of for name in names if name.endswith(_SUFFIX) and is_id(of := name.removesuffix(_SUFFIX))}

    def mark(self, of: str) -> None:
        """From now on the run or the sweep is not there any more."""
        folder, mark = self._places.root / checked_id(of), self._mark(of)
        with full_disk_as_store_error(folder):
            mark.parent.mkdir(exist_ok=True)
            try:
                os.rename(folder, mark)
            except FileNotFoundError:
                mark.mkdir(exist_ok=True)

    def empty(self) -> None:
        """Delete the files of what is marked."""
        for of in self.ids():
            mark = self._mark(of)
            if mark.is_symlink() or not mark.is_dir():  # what a link leads to is not of this store
                with suppress(FileNotFoundError):
                    mark.unlink()
                mark.mkdir(exist_ok=True)
            for entry in os.scandir(mark):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)

    def forget(self, of: str) -> None:
        """The rows are gone: take the mark away."""
        with suppress(FileNotFoundError):
            self._mark(of).rmdir()

    def _mark(self, of: str) -> Path:
        return self._places.owners / f"{checked_id(of)}{_SUFFIX}"
