"""The store's sweeps: which runs belong together, in which order, and what was varied."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from grokfast import checks
from grokfast.store.database import Database
from grokfast.store.errors import StoreError, UnknownRunError
from grokfast.store.files import from_json, full_disk_as_store_error, to_json
from grokfast.store.owners import Owner
from grokfast.store.records import now


@dataclass(frozen=True)
class NewRun:
    """A run to be stored: its configuration, and the hash of all that determines its result."""

    config: dict[str, Any]
    hash: str
    version: str
    device: str


@dataclass(frozen=True)
class StoredSweep:
    """One sweep of the store. `counts` has the number of its runs by status; `n_runs` in all."""

    sweep_id: str
    created: str
    preset: str
    base: dict[str, Any]
    grid: dict[str, Any]
    counts: dict[str, int]

    @property
    def n_runs(self) -> int:
        return sum(self.counts.values())


_Ids = list[str]
_Sweeps = list[StoredSweep]  # inside Sweeps `list` is the method


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, in hexadecimal; 1.0 and 1 are the same number, and the order of keys is nothing."""
    text = json.dumps(_plain_numbers(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain_numbers(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Sweeps:
    """The sweeps of one store, which is the only one to make this."""

    def __init__(self, db: Database, root: Path, owner: Owner) -> None:
        self._db, self.root, self._owner = db, root, owner

    def create(self, preset: str, base: dict[str, Any], grid: dict[str, Any], runs: Sequence[NewRun]) -> str:
        """Store a sweep of these runs, in one transaction, and return its id; runs that are stored already are shared.

        Ids come from hashes, so the same sweep has the same id, whoever stores it, and however often. New runs have the
        status "pending". Raises TypeError if a configuration is not JSON.
        """
        base_text, grid_text = to_json("base", base), to_json("grid", grid)
        hashes = [run.hash for run in runs]
        sweep_id = f"{preset}-sweep-{digest([base, grid, hashes])[:8]}"
        time = now()
        rows = [
            (f"{preset}-{run.hash[:12]}", time, time, preset, run.version, run.device, to_json("config", run.config),
             run.hash)
            for run in runs
        ]  # fmt: skip
        with self._db.transaction():
            self._db.execute_many(
                """INSERT OR IGNORE INTO runs (run_id, created, updated, preset, version, device, config, hash, status)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'pending')""",
                rows,
            )
            self._db.execute(
                "INSERT OR IGNORE INTO sweeps (sweep_id, created, preset, base, grid) VALUES (?, ?, ?, ?, ?)",
                (sweep_id, time, preset, base_text, grid_text),
            )
            self._db.execute_many(
                """INSERT OR IGNORE INTO members
                   SELECT sweeps.key, ?, runs.key FROM sweeps, runs WHERE sweep_id = ? AND hash = ?""",
                ((place, sweep_id, hash) for place, hash in enumerate(hashes)),
            )
            query = "SELECT count(*) FROM members JOIN sweeps ON sweeps.key = sweep WHERE sweep_id = ?"
            if self._db.execute(query, (sweep_id,)) != [(len(runs),)]:
                raise StoreError(
                    f"two runs of {sweep_id} have the same id: the first 12 digits of their hashes are equal"
                )
        return sweep_id

    def get(self, sweep_id: str) -> StoredSweep:
        """The sweep with this id; UnknownRunError names the nearest."""
        found = self._list("WHERE sweep_id = ?", (sweep_id,))
        return found[0] if found else self._unknown(sweep_id)

    def list(self) -> _Sweeps:
        """All sweeps, the newest first."""
        return self._list("", ())

    def has(self, sweep_id: str) -> bool:
        """Whether there is a sweep with this id."""
        return bool(self._db.execute("SELECT 1 FROM sweeps WHERE sweep_id = ?", (sweep_id,)))

    def statuses(self, sweep_id: str) -> dict[str, str]:
        """The status of every run of the sweep by its id, in the sweep's order."""
        key = self.key(sweep_id)
        query = """SELECT run_id, status FROM members JOIN runs ON runs.key = members.run
                   WHERE sweep = ? ORDER BY place"""
        return dict(self._db.execute(query, (key,)))

    def remove(self, sweep_id: str) -> int:
        """Delete the sweep, and those of its runs that no other sweep has; returns their number.

        Raises StoreError, with nothing deleted, while a process trains one of them.
        """
        with self._db.transaction():
            key = self.key(sweep_id)
            own = self._db.execute(
                """SELECT runs.key, run_id, owner FROM members JOIN runs ON runs.key = members.run WHERE sweep = :key
                AND NOT EXISTS (SELECT 1 FROM members AS other WHERE other.run = runs.key AND other.sweep != :key)""",
                {"key": key},
            )
            if any(self._owner.is_other_and_alive(token) for token in {owner for _, _, owner in own}):
                raise StoreError(f"sweep {sweep_id} is being trained by another process: stop that first")
            self._db.execute("DELETE FROM sweeps WHERE key = ?", (key,))
            self._db.execute_many("DELETE FROM runs WHERE key = ?", ((run,) for run, _, _ in own))
        for name in (sweep_id, *(run_id for _, run_id, _ in own)):  # of the sweep itself: its pictures
            shutil.rmtree(self.root / name, ignore_errors=True)
        return len(own)

    def claim(self, run_ids: Sequence[str]) -> _Ids:
        """Make this process the one that trains these runs; returns those that it got, with status "running".

        Those that have ended, or that another living process has claimed, it does not get. A claim ends with the run,
        with `RunStore.close`, and with the process, however that ends.
        """
        return self._claim(run_ids, all_or_none=False)

    def claim_all(self, run_ids: Sequence[str]) -> None:
        """`claim` every one of these. Raises StoreError, with none claimed, where that cannot be."""
        self._claim(run_ids, all_or_none=True)

    def _claim(self, run_ids: Sequence[str], all_or_none: bool) -> _Ids:
        with self._db.transaction():
            token = self._owner.lock()
            found = self._db.execute(
                """SELECT key, run_id, owner FROM runs WHERE run_id IN (SELECT value FROM json_each(?))
                   AND status NOT IN ('finished', 'diverged')""",
                (json.dumps([*run_ids]),),
            )
            alive = {owner for owner in {row[2] for row in found} if self._owner.is_other_and_alive(owner)}
            free = [(key, run_id) for key, run_id, owner in found if owner not in alive]
            claimed = {run_id for _, run_id in free}
            if all_or_none and (others := [run_id for run_id in run_ids if run_id not in claimed]):
                is_trained = any(run_id == others[0] for _, run_id, _ in found)
                why = "is being trained by another process: stop that first" if is_trained else "has ended"
                raise StoreError(f"run {others[0]} {why}")
            self._db.execute_many(
                "UPDATE runs SET owner = ?, status = 'running', updated = ? WHERE key = ?",
                ((token, now(), key) for key, _ in free),
            )
        with full_disk_as_store_error(self.root):
            for _, run_id in free:
                (self.root / run_id).mkdir(exist_ok=True)
        return [run_id for run_id in run_ids if run_id in claimed]

    def key(self, sweep_id: str) -> int:
        """The sweep's primary key; UnknownRunError names the nearest."""
        rows = self._db.execute("SELECT key FROM sweeps WHERE sweep_id = ?", (sweep_id,))
        return int(rows[0][0]) if rows else self._unknown(sweep_id)

    def _list(self, where: str, parameters: tuple[str, ...]) -> _Sweeps:
        query = f"""SELECT sweep_id, created, preset, base, grid,
                           (SELECT json_group_object(status, n) FROM
                                (SELECT status, count(*) AS n FROM members JOIN runs ON runs.key = members.run
                                 WHERE members.sweep = sweeps.key GROUP BY status))
                    FROM sweeps {where} ORDER BY key DESC"""
        return [
            StoredSweep(
                sweep_id,
                created,
                preset,
                from_json(f"the base of {sweep_id}", base),
                from_json(f"the grid of {sweep_id}", grid),
                json.loads(counts),
            )
            for sweep_id, created, preset, base, grid, counts in self._db.execute(query, parameters)
        ]

    def _unknown(self, sweep_id: str) -> NoReturn:
        ids = [row[0] for row in self._db.execute("SELECT sweep_id FROM sweeps ORDER BY key DESC")]
        raise UnknownRunError(f"{self.root} has no sweep {sweep_id!r}{checks.nearest(sweep_id, ids)}")
