"""The run store: SQLite for runs and curves, safetensors files for checkpoints and weights."""

from grokfast.store.errors import (
    CheckpointError,
    DamagedError,
    DamagedWarning,
    StoreError,
    StoreFullError,
    UnknownRunError,
)
from grokfast.store.records import Record
from grokfast.store.run import STATUSES, StoredRun
from grokfast.store.store import RunStore
from grokfast.store.sweeps import NewRun, StoredSweep

__all__ = [
    "STATUSES",
    "CheckpointError",
    "DamagedError",
    "DamagedWarning",
    "NewRun",
    "Record",
    "RunStore",
    "StoreError",
    "StoreFullError",
    "StoredRun",
    "StoredSweep",
    "UnknownRunError",
]
