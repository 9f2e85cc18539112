"""`StoredRun`: one run as the store knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokfast.store.files import from_json
from grokfast.store.seals import Row

DONE = ("finished", "diverged")
ENDED = (*DONE, "failed")
WITHOUT_CHECKPOINT = DONE  # runs with these have none any more
STATUSES = ("pending", "running", "interrupted", *ENDED)


@dataclass(frozen=True)
class StoredRun:
    """One run of the store. `created` and `updated` are ISO 8601 in UTC; `directory` holds the run's files.

    status is that of the moment of reading: a run whose process was killed is "interrupted", though it was stored as
    "running".
    """

    run_id: str
    created: str
    updated: str
    preset: str
    version: str
    device: str
    status: str
    config: dict[str, Any]
    result: dict[str, Any] | None
    directory: Path

    @classmethod
    def of(cls, row: Row, directory: Path) -> StoredRun:
        """From its row. Raises DamagedError where that holds no JSON objects."""
        fields: dict[str, Any] = {name: value for name, value in row._asdict().items() if name in _FIELDS}
        for name in ("config", "result"):
            if fields[name] is not None:
                fields[name] = from_json(f"the {name} of {row.run_id}", fields[name])
        return cls(**fields, directory=directory)


_FIELDS = set(StoredRun.__dataclass_fields__)
