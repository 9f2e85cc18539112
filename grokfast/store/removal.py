"""Removing: first a run is marked as removed, at once and for everybody, then its files go, then its rows.

The mark is the run's folder, moved to `.owners/<id>.removed`. Files go before rows: on a full disk that makes the room
which the database needs to forget them. What a killed process has marked goes with the next write.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from grokfast.store.database import Database
from grokfast.store.errors import StoreFullError
from grokfast.store.files import full_disk_as_store_error
from grokfast.store.places import Places, checked_id, is_id

_SUFFIX = ".removed"
# Key and id of the runs that these sweeps have and no other.
_OWN_RUNS = """SELECT DISTINCT runs.key, run_id FROM members JOIN runs ON runs.key = members.run
               WHERE sweep IN (SELECT value FROM json_each(?1)) AND NOT EXISTS (SELECT 1 FROM members AS other
               WHERE other.run = runs.key AND other.sweep NOT IN (SELECT value FROM json_each(?1)))"""


class Removal:
    """The marks of one store."""

    def __init__(self, db: Database, places: Places) -> None:
        self._db, self._places = db, places

    def ids(self) -> set[str]:
        """Of the runs and sweeps that are not there any more, with the runs that go with their sweep."""
        marked = self._marked()
        return marked | {run_id for _, run_id in self._own_runs(marked)} if marked else marked

    def own_runs(self, sweep: int) -> list[tuple[int, str]]:
        """Key and id of the runs that no other sweep has."""
        return [(key, run_id) for key, run_id in self._db.execute(_OWN_RUNS, (json.dumps([sweep]),))]

    def mark(self, of: str) -> None:
        """From now on the run or the sweep is not there any more."""
        folder, mark = self._places.root / checked_id(of), self._mark(of)
        with full_disk_as_store_error(folder):
            mark.parent.mkdir(exist_ok=True)
            try:
                os.rename(folder, mark)
            except FileNotFoundError:
                mark.mkdir(exist_ok=True)

    def finish(self, is_strict: bool = False) -> None:
        """Delete what is marked: files, then rows. Where the database has no room, rows and marks stay.

        So they do where files cannot be deleted; with `is_strict` that is an OSError, once the rest is done.
        """
        if self._db.is_read_only or not self._marked():
            return
        failed: dict[str, OSError] = {}
        with suppress(StoreFullError):
            with self._db.transaction():
                own = self._own_runs(self._marked())
                for _, run_id in own:
                    if is_id(run_id):  # a row that somebody forged has no folder
                        _tried(run_id, self.mark, failed)
                for of in self._marked():
                    _tried(of, self.empty, failed)
                gone = self._marked() - failed.keys()
                runs = {*self._keys("run", gone), *(key for key, run_id in own if run_id not in failed)}
                sweeps = [] if failed else self._keys("sweep", gone)
                for table, keys in (("runs", [*runs]), ("sweeps", sweeps)):
                    query = f"DELETE FROM {table} WHERE key IN (SELECT value FROM json_each(?))"
                    self._db.execute(query, (json.dumps(keys),))
                kept = self._db.execute("SELECT sweep_id FROM sweeps")
            for of in gone - {sweep_id for (sweep_id,) in kept}:
                self.forget(of)
        if is_strict and failed:
            raise next(iter(failed.values()))

    def empty(self, of: str) -> None:
        """Delete the files of what is marked."""
        mark = self._mark(of)
        if mark.is_symlink() or not mark.is_dir():  # what a link leads to is not of this store
            mark.unlink()
            mark.mkdir()
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

    def _marked(self) -> set[str]:
        try:
            names = os.listdir(self._places.owners)
        except FileNotFoundError:
            return set()
        return {of for name in names if name.endswith(_SUFFIX) and is_id(of := name.removesuffix(_SUFFIX))}

    def _own_runs(self, marked: set[str]) -> list[tuple[int, str]]:
        """Those of the sweeps that are marked."""
        return self._db.execute(_OWN_RUNS, (json.dumps(self._keys("sweep", marked)),))

    def _keys(self, kind: str, ids: set[str]) -> list[int]:
        query = f"SELECT key FROM {kind}s WHERE {kind}_id IN (SELECT value FROM json_each(?))"
        return [key for (key,) in self._db.execute(query, (json.dumps([*ids]),))]


def _tried(of: str, action: Callable[[str], None], failed: dict[str, OSError]) -> None:
    try:
        action(of)
    except OSError as error:
        failed[of] = error
