"""The store's sweeps: which runs belong together, in which order, and what was varied."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from grokfast import checks
from grokfast.store.database import Database
from grokfast.store.errors import DamagedError, DamagedWarning, StoreError, UnknownRunError
from grokfast.store.files import from_json, full_disk_as_store_error, to_json
from grokfast.store.owners import Owner
from grokfast.store.places import Places, checked_name, is_id
from grokfast.store.records import now
from grokfast.store.removal import Removal
from grokfast.store.rows import RunRows, state
from grokfast.store.run import DONE
from grokfast.store.seals import Member, Row, SweepRow, seal
from grokfast.store.tidying import Tidying

_HASH = re.compile(r"[0-9a-f]{12,}")


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

    @property
    def axes(self) -> dict[str, list[Any]]:
        """What was varied: values by key. Raises StoreError where the stored grid does not tell."""
        axes = self.grid.get("axes")
        if not isinstance(axes, dict) or not all(isinstance(values, list) for values in axes.values()):
            raise StoreError(f"the grid of {self.sweep_id} is damaged: it has no axes")
        return axes


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

    def __init__(
        self, db: Database, places: Places, owner: Owner, rows: RunRows, removal: Removal, tidying: Tidying
    ) -> None:
        self._db, self._places, self._owner, self._rows = db, places, owner, rows
        self._removal, self._tidying = removal, tidying

    def create(self, preset: str, base: dict[str, Any], grid: dict[str, Any], runs: Sequence[NewRun]) -> str:
        """Store a sweep of these runs, in one transaction, and return its id; runs that are stored already are shared.

        Ids come from hashes, so the same sweep has the same id, whoever stores it, and however often. New runs have the
        status "pending". Raises TypeError if a configuration is not JSON, ValueError if `preset` or a hash cannot be
        part of a file name.
        """
        checked_name(preset)
        base_text, grid_text = to_json("base", base), to_json("grid", grid)
        hashes = [run.hash for run in runs]
        sweep_id = f"{preset}-sweep-{digest([base, grid, hashes])[:8]}"
        time = now()
        rows = [
            Row(
                key=0, run_id=f"{preset}-{_checked_hash(run.hash)[:12]}", created=time, updated=time, preset=preset,
                version=run.version, device=run.device, status="pending", config=to_json("config", run.config),
                hash=run.hash,
            )
            for run in runs
        ]  # fmt: skip
        self._tidying.tidy()
        with self._db.transaction():
            known = self._keys_by_hash(hashes)
            new = {row.hash: row for row in rows if row.hash not in known}.values()
            first = self._rows.next_key()
            self._rows.insert((row._replace(key=first + i) for i, row in enumerate(new)), is_new=False)
            if not self._has(sweep_id):
                [(key,)] = self._db.execute("SELECT coalesce(max(key), 0) + 1 FROM sweeps")
                row = SweepRow(key, sweep_id, time, preset, base_text, grid_text)
                self._db.execute("INSERT INTO sweeps VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, seal(row)))
            key, known = self.key(sweep_id), self._keys_by_hash(hashes)
            if len(known) < len({*hashes}):
                raise StoreError(
                    f"two runs of {sweep_id} have the same id: the first 12 digits of their hashes are equal, or one "
                    "of them is damaged"
                )
            members = [Member(key, place, known[hash]) for place, hash in enumerate(hashes)]
            self._db.execute_many(
                "INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?)", ((*member, seal(member)) for member in members)
            )
        return sweep_id

    def get(self, sweep_id: str) -> StoredSweep:
        """The sweep with this id; UnknownRunError names the nearest."""
        found = self._list(sweep_id, is_strict=True)
        return found[0] if found else self._unknown(sweep_id)

    def list(self) -> _Sweeps:
        """All sweeps, the newest first."""
        return self._list(None, is_strict=False)

    def has(self, sweep_id: str) -> bool:
        """Whether there is a sweep with this id; it may be damaged."""
        return sweep_id not in self._removal.ids() and self._has(sweep_id)

    def statuses(self, sweep_id: str) -> dict[str, str]:
        """The status of every run of the sweep by its id, in the sweep's order. Raises DamagedError where one is."""
        return {row.run_id: row.status for row in self._rows.select(self.key(sweep_id), is_strict=True)}

    def own(self, sweep_id: str) -> _Ids:
        """The runs of the sweep that no other sweep has, which go with it."""
        return [run_id for _, run_id in self._removal.own_runs(self.key(sweep_id))]

    def remove(self, sweep_id: str) -> int:
        """Delete the sweep, and those of its runs that no other sweep has; returns their number.

        Raises StoreError, with nothing deleted, while a process trains one of them, or a fork of one has yet to end.
        See `RunStore.remove`.
        """
        self._tidying.tidy()
        with self._db.transaction():
            own = self._removal.own_runs(self.key(sweep_id))
            keys = json.dumps([key for key, _ in own])
            self._rows.refuse_trained(f"sweep {sweep_id}", "key IN (SELECT value FROM json_each(?))", keys)
            self._rows.refuse_needed(f"sweep {sweep_id}", [run_id for _, run_id in own])
            self._removal.mark(sweep_id)
        self._removal.finish(is_strict=True)
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
        if all_or_none:
            self._tidying.tidy()
        with self._db.transaction():
            token = self._owner.lock()
            found = [row for row in self._rows.get_all(run_ids) if row.status not in DONE]
            is_alive = self._owner.liveness()
            others = {r.run_id for r in found if r.status == "running" and r.owner != token and is_alive(r.owner)}
            free = [row for row in found if row.run_id not in others]
            claimed = {row.run_id for row in free}
            if all_or_none and (refused := [run_id for run_id in run_ids if run_id not in claimed]):
                is_trained = refused[0] in others
                why = "is being trained by another process: stop that first" if is_trained else "has ended"
                raise StoreError(f"run {refused[0]} {why}")
            self._rows.change_all(free, owner=token, status="running", updated=now())
            with full_disk_as_store_error(self._places.root):
                for row in free:
                    self._places.folder(row.run_id).mkdir(exist_ok=True)
        for dead in {row.owner for row in free if row.status == "running"} - {None, token}:
            self._owner.bury(dead)
        return [run_id for run_id in run_ids if run_id in claimed]

    def key(self, sweep_id: str) -> int:
        """The sweep's primary key; UnknownRunError names the nearest."""
        rows = self._db.execute("SELECT key FROM sweeps WHERE sweep_id = ?", (sweep_id,))
        return int(rows[0][0]) if rows and sweep_id not in self._removal.ids() else self._unknown(sweep_id)

    def _has(self, sweep_id: str) -> bool:
        return bool(self._db.execute("SELECT 1 FROM sweeps WHERE sweep_id = ?", (sweep_id,)))

    def _keys_by_hash(self, hashes: Sequence[str]) -> dict[str, int]:
        query = "SELECT hash, key FROM runs WHERE hash IN (SELECT value FROM json_each(?))"
        return dict(self._db.execute(query, (json.dumps([*hashes]),)))

    def _list(self, sweep_id: str | None, is_strict: bool) -> _Sweeps:
        """The newest first. A damaged one raises DamagedError where `is_strict`, else it is left out with a warning."""
        counts = self._counts()
        removed = self._removal.ids()
        found: _Sweeps = []
        names = ", ".join((*SweepRow._fields, "seal"))
        for values in self._db.execute(
            f"SELECT {names} FROM sweeps WHERE ?1 IS NULL OR sweep_id = ?1 ORDER BY key DESC", (sweep_id,)
        ):
            row = SweepRow(*values[:-1])
            try:
                if row.sweep_id not in removed:
                    found.append(_stored(row, values[-1], counts.get(row.key, {})))
            except DamagedError as error:
                if is_strict:
                    raise
                warnings.warn(f"{self._places.root}: {error}; it is left out", DamagedWarning, stacklevel=3)
        return found

    def _counts(self) -> dict[int, dict[str, int]]:
        """How many runs of every sweep have which status, of this moment."""
        is_alive, counts = self._owner.liveness(), dict[int, dict[str, int]]()
        query = """SELECT sweep, status, owner, count(*) FROM members JOIN runs ON runs.key = members.run
                   WHERE run_id NOT IN (SELECT value FROM json_each(?)) GROUP BY sweep, status, owner ORDER BY status"""
        for sweep, stored, owner, n in self._db.execute(query, (json.dumps([*self._removal.ids()]),)):
            status = state(stored, owner, is_alive)
            of = counts.setdefault(sweep, {})
            of[status] = of.get(status, 0) + n
        return counts

    def _unknown(self, sweep_id: str) -> NoReturn:
        ids = [row[0] for row in self._db.execute("SELECT sweep_id FROM sweeps ORDER BY key DESC")]
        raise UnknownRunError(f"{self._places.root} has no sweep {sweep_id!r}{checks.nearest(sweep_id, ids)}")


def _stored(row: SweepRow, sealed: int, counts: dict[str, int]) -> StoredSweep:
    """From its row. Raises DamagedError where that is not what was written."""
    if seal(row) != sealed:
        raise DamagedError(f"the row of sweep {row.sweep_id!r} is damaged: its checksum is not what was written")
    if not is_id(row.sweep_id) or not all(isinstance(value, str) for value in row[1:]):
        raise DamagedError(f"the row of sweep {row.sweep_id!r} is damaged: it has values that no version has written")
    base, grid = (from_json(f"the {name} of {row.sweep_id}", getattr(row, name)) for name in ("base", "grid"))
    return StoredSweep(row.sweep_id, row.created, row.preset, base, grid, counts)


def _checked_hash(value: str) -> str:
    if not _HASH.fullmatch(value):
        raise ValueError(f"a run's hash must be at least 12 hexadecimal digits, got {value!r}")
    return value
