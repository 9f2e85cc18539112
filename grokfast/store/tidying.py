"""What killed processes have left goes with the next write: marks of what is removed, locks, halves of files."""

from __future__ import annotations

import os
import re
from contextlib import suppress

from grokfast.store.data import DataSets
from grokfast.store.database import Database
from grokfast.store.owners import Owner
from grokfast.store.places import CHECKPOINT, SNAPSHOTS, WEIGHTS, Places, is_token
from grokfast.store.removal import Removal
from grokfast.store.run import WITHOUT_CHECKPOINT

_HALF = re.compile(r"\.[0-9]+(\.state)?\.safetensors\.[0-9a-f]+\.tmp")  # of a snapshot
_BEGUN = re.compile(r".+-[0-9a-f]{6,12}")  # the folder of a run that may never have been stored


class Tidying:
    """Tidies one store."""

    def __init__(self, db: Database, places: Places, owner: Owner, removal: Removal, data: DataSets) -> None:
        self._db, self._places, self._owner, self._removal, self._data = db, places, owner, removal, data
        self._is_done = False

    def tidy(self) -> None:
        """Do it, but for files once only. Nothing is touched that a living process may be writing.

        Locks of dead owners; temporaries of tensors, and checkpoints of runs that have diverged; empty folders that are
        no run's; data sets that no run has.
        """
        self._removal.finish()
        if self._is_done or self._db.is_read_only:
            return
        with self._db.transaction():  # nobody begins a run meanwhile
            for token in self._owner.dead():
                with suppress(OSError):  # another user's
                    self._owner.bury(token)
            found = self._db.execute("SELECT run_id, status, owner FROM runs")
            runs = {run_id: (status, owner) for run_id, status, owner in found}
            sweeps = {sweep_id for (sweep_id,) in self._db.execute("SELECT sweep_id FROM sweeps")}
            is_alive = self._owner.liveness()
            for entry in os.scandir(self._places.root):
                if not entry.is_dir(follow_symlinks=False):
                    continue
                status, owner = runs.get(entry.name, (None, None))
                with suppress(OSError):  # another user's, or not empty: somebody's
                    if status is None:
                        if _BEGUN.fullmatch(entry.name) and entry.name not in sweeps:
                            os.rmdir(entry.path)
                    elif not (status == "running" and is_token(owner) and is_alive(owner)):
                        _tidy_folder(entry.path, status in WITHOUT_CHECKPOINT)
            self._data.tidy()
        self._is_done = True


def _tidy_folder(folder: str, has_ended: bool) -> None:
    """Of a run that nobody trains."""
    for name in os.listdir(folder):
        is_half = name.endswith(".tmp") and name.startswith((f".{CHECKPOINT}.", f".{WEIGHTS}."))
        if is_half or (has_ended and name == CHECKPOINT):
            os.unlink(os.path.join(folder, name))
    snapshots = os.path.join(folder, SNAPSHOTS)
    if os.path.isdir(snapshots) and not os.path.islink(snapshots):
        for name in os.listdir(snapshots):
            if _HALF.fullmatch(name):
                os.unlink(os.path.join(snapshots, name))
