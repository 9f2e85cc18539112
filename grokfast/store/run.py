"""`StoredRun`: one run as the store knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokfast.store.files import from_json

DONE = ("finished", "diverged")
ENDED = (*DONE, "failed")
STATUSES = ("pending", "running", "interrupted", *ENDED)

COLUMNS = "run_id, created, updated, preset, version, device, status, config, result"


@dataclass(frozen=True)
class StoredRun:
    """One row of the store. `created` and `updated` are ISO 8601 in UTC; `directory` holds the run's files."""

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
    def of(cls, root: Path, row: tuple[Any, ...]) -> StoredRun:
        """From a row of COLUMNS, in the store at `root`. Raises StoreError where it is damaged."""
        fields: dict[str, Any] = dict(zip(COLUMNS.split(", "), row))
        for name in ("config", "result"):
            if fields[name] is not None:
                fields[name] = from_json(f"the {name} of {fields['run_id']}", fields[name])
        return cls(**fields, directory=root / fields["run_id"])
