"""`StoredRun`: one run as the store knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grokfast.store.errors import DamagedError
from grokfast.store.files import from_json
from grokfast.store.seals import Row

DONE = ("finished", "diverged")
ENDED = (*DONE, "failed")
WITHOUT_CHECKPOINT = ("diverged",)  # the others may go on
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
        fields |= {"config": config_of(row), "result": result_of(row)}
        return cls(**fields, directory=directory)


_FIELDS = set(StoredRun.__dataclass_fields__)


def config_of(row: Row) -> dict[str, Any]:
    """The row's configuration. Raises DamagedError where that is no JSON object."""
    return from_json(f"the config of {row.run_id}", row.config)


def result_of(row: Row) -> dict[str, Any] | None:
    """The row's result, if it has one. Raises DamagedError where it is no JSON object that a run can have left."""
    if row.result is None:
        return None
    result = from_json(f"the result of {row.run_id}", row.result)
    numbers = {name: result.get(name) for name in ("t_memorize", "t_generalize", "diverged_at", "steps", "seconds")}
    final = result.get("final") or {}
    wrong = [name for name, value in numbers.items() if not _is_number(value)]
    wrong += [] if isinstance(final, dict) and all(map(_is_number, final.values())) else ["final"]
    wrong += [] if isinstance(result.get("phase", ""), str) else ["phase"]
    if wrong:
        raise DamagedError(f"the result of {row.run_id} is damaged: {wrong[0]} is {result[wrong[0]]!r}")
    return result


def _is_number(value: Any) -> bool:
    """Or missing. An integer is one that a step can be."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and 0 <= value < 2**53)
