"""Data sets that runs bring along: root/.data/<SHA-256 of its contents>.safetensors, one for all runs that have it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from grokfast.store.database import Database
from grokfast.store.files import full_disk_as_store_error, load_tensors, save_tensors
from grokfast.store.places import Places

if TYPE_CHECKING:
    from torch import Tensor

_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")
_YOUNG = 24 * 3600.0  # seconds in which whoever has written a file has stored the run that needs it


class DataSets:
    """Those of one store."""

    def __init__(self, db: Database, places: Places) -> None:
        self._db, self._places = db, places

    def save(self, sha256: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a data set, unless it is there. Raises as `RunStore.save_checkpoint` does."""
        path = self._places.data(sha256)
        with full_disk_as_store_error(path):
            path.parent.mkdir(exist_ok=True)
        if path.exists():
            os.utime(path)  # it is needed again
        else:
            save_tensors(path, tensors)

    def tidy(self) -> None:
        """Delete those that no run has any more."""
        folder = self._places.data_folder
        with suppress(FileNotFoundError):
            for name in os.listdir(folder):
                path = folder / name
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _YOUNG and not self._is_needed(name):
                        path.unlink()

    def _is_needed(self, name: str) -> bool:
        found = _FILE.fullmatch(name)
        if found is None:
            return not name.endswith(".tmp")
        return bool(self._db.execute("SELECT 1 FROM runs WHERE config LIKE ? LIMIT 1", (f"%{found[1]}%",)))


def load_data(root: Path, sha256: str) -> dict[str, Tensor]:
    """A data set of the store at `root`. Raises CheckpointError where it is not there, or damaged."""
    return load_tensors(Places(root).data(sha256))[0]
