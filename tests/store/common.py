"""Records, runs, and the processes and files of a store."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from grokfast.store import Record, RunStore
from grokfast.store.records import STANDARD


def values(step: float, *values: float) -> Record:
    return Record(step, dict(zip(STANDARD, values)))  # type: ignore[arg-type]


def record(step: int) -> Record:
    return values(step, 1 / (step + 1), 2 / (step + 1), step / 7, step / 11, step + 0.1)


def records(*steps: int) -> list[Record]:
    return [record(step) for step in steps]


def new_run(store: RunStore, preset: str = "quick") -> str:
    return store.create({"seed": 0}, preset=preset, version="0.1.0", device="cpu")


def steps(store: RunStore, run_id: str) -> list[int]:
    return store.curves(run_id)["step"].tolist()


def chunk_sizes(store: RunStore) -> list[int]:
    return [n for (n,) in store._db.execute("SELECT n_rows FROM chunks ORDER BY run, first_step")]


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def folders(root: Path) -> list[str]:
    """Of runs and sweeps."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != ".owners")


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def as_of_schema_2(root: Path) -> None:
    with closing(sqlite3.connect(root / "grokfast.sqlite")) as db, db:
        for column in ("runs.columns", "runs.last_step", "runs.curve", "runs.seal", "sweeps.seal", "members.seal"):
            table, name = column.split(".")
            db.execute(f"ALTER TABLE {table} DROP COLUMN {name}")
        db.execute("PRAGMA user_version = 2")
