"""What killed processes have left goes with the next write: marks of what is removed, locks, halves of files."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress

from grokfast.store.database import Database
from grokfast.store.errors import StoreFullError
from grokfast.store.owners import Owner
from grokfast.store.places import CHECKPOINT, WEIGHTS, Places, is_id, is_token
from grokfast.store.removal import Removal
from grokfast.store.run import WITHOUT_CHECKPOINT

# The runs that these sweeps have and no other: key and id.
OWN_RUNS = """SELECT DISTINCT runs.key, run_id FROM members JOIN runs ON runs.key = members.run
              WHERE sweep IN (SELECT value FROM json_each(?1)) AND NOT EXISTS (SELECT 1 FROM members AS other
              WHERE other.run = runs.key AND other.sweep NOT IN (SELECT value FROM json_each(?1)))"""
_BEGUN = re.compile(r".+-[0-9a-f]{6,12}")  # the folder of a run that may never have been stored


class Tidying:
    """Tidies one store."""

    def __init__(self, db: Database, places: Places, owner: Owner, removal: Removal) -> None:
        self._db, self._places, self._owner, self._removal = db, places, owner, removal
        self._is_done = False

    def tidy(self) -> None:
        """Do it, but for files once only. Nothing is touched that a living process may be writing.

        Locks of dead owners; temporaries of tensors, and checkpoints of ended runs; empty folders that are no run's.
        """
        self.finish_removals()
        if self._is_done or self._db.is_read_only:
            return
        with self._db.transaction():  # nobody begins a run meanwhile
            for token in self._owner.dead():
                self._owner.bury(token)
            found = self._db.execute("SELECT run_id, status, owner FROM runs")
            runs = {run_id: (status, owner) for run_id, status, owner in found}
            sweeps = {sweep_id for (sweep_id,) in self._db.execute("SELECT sweep_id FROM sweeps")}
            is_alive = self._owner.liveness()
            for entry in os.scandir(self._places.root):
                if not entry.is_dir(follow_symlinks=False):
                    continue
                status, owner = runs.get(entry.name, (None, None))
                if status is not None:
                    if not (status == "running" and is_token(owner) and is_alive(owner)):
                        _tidy_folder(entry.path, status in WITHOUT_CHECKPOINT)
                elif _BEGUN.fullmatch(entry.name) and entry.name not in sweeps:
                    with suppress(OSError):  # not empty: somebody's
                        os.rmdir(entry.path)
        self._is_done = True

    def finish_removals(self) -> None:
        """Delete what is marked as removed: files, then rows. On a full disk the rows may stay, and so the marks."""
        if self._db.is_read_only or not self._removal.ids():
            return
        with suppress(StoreFullError):
            with self._db.transaction():
                sweeps = self._marked("sweep")
                own = self._db.execute(OWN_RUNS, (sweeps,))
                for _, run_id in own:
                    if is_id(run_id):
                        self._removal.mark(run_id)
                self._removal.empty()
                ids = self._removal.ids()
                runs = json.dumps([*json.loads(self._marked("run")), *(key for key, _ in own)])
                self._db.execute("DELETE FROM runs WHERE key IN (SELECT value FROM json_each(?))", (runs,))
                self._db.execute("DELETE FROM sweeps WHERE key IN (SELECT value FROM json_each(?))", (sweeps,))
            for of in ids:
                self._removal.forget(of)

    def _marked(self, kind: str) -> str:
        """The primary keys of the runs, or the sweeps, that are marked as removed, as a JSON array."""
        query = f"SELECT key FROM {kind}s WHERE {kind}_id IN (SELECT value FROM json_each(?))"
        return json.dumps([key for (key,) in self._db.execute(query, (json.dumps([*self._removal.ids()]),))])


def _tidy_folder(folder: str, has_ended: bool) -> None:
    """Of a run that nobody trains."""
    for name in os.listdir(folder):
        is_half = name.endswith(".tmp") and name.startswith((f".{CHECKPOINT}.", f".{WEIGHTS}."))
        if is_half or (has_ended and name == CHECKPOINT):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
