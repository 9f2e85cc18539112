"""The rows of runs: written with their seals, and checked when they are read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from grokfast import checks
from grokfast.store.database import Database
from grokfast.store.errors import DamagedError, DamagedWarning, StoreError, UnknownRunError
from grokfast.store.owners import Owner
from grokfast.store.places import Places, checked_id, checked_token, is_token
from grokfast.store.removal import Removal
from grokfast.store.run import DONE, STATUSES
from grokfast.store.seals import Member, Row, seal

_COLUMNS = ", ".join(f"runs.{name}" for name in (*Row._fields, "seal"))
_MEMBERS = ", ".join(f"members.{name}" for name in (*Member._fields, "seal"))
_TEXTS = ("created", "updated", "preset", "version", "device", "config")
# For a status that is asked for, those that rows may have: a running one may be found to be interrupted.
_STORED_AS = {"running": ("running",), "interrupted": ("interrupted", "running")}


class RunRows:
    """The table `runs`. Rows of what is being removed are not there any more."""

    def __init__(self, db: Database, places: Places, owner: Owner, removal: Removal) -> None:
        self._db, self._places, self._owner, self._removal = db, places, owner, removal

    def get(self, run_id: str) -> Row:
        """The run's row. Raises UnknownRunError, which names the nearest, or DamagedError."""
        damage: DamagedError | None = None
        for table in ("runs", "runs NOT INDEXED"):  # a damaged index leads nowhere, or to another run's row
            found = self._db.execute(f"SELECT {_COLUMNS} FROM {table} WHERE run_id = ?", (run_id,))
            for values in found if run_id not in self._removal.ids() else ():
                try:
                    return _checked(values)
                except DamagedError as error:
                    damage = error
        if damage is not None:
            raise damage
        return self._unknown(run_id)

    def get_all(self, run_ids: Sequence[str]) -> list[Row]:
        """`get` of each, once."""
        query = f"SELECT {_COLUMNS} FROM runs WHERE run_id IN (SELECT value FROM json_each(?))"
        found = {values[1]: values for values in self._db.execute(query, (json.dumps([*run_ids]),))}
        removed, rows = self._removal.ids(), []
        for run_id in dict.fromkeys(run_ids):
            try:
                rows.append(_checked(found[run_id]) if run_id not in removed else self.get(run_id))
            except (KeyError, DamagedError):  # it may be the index
                rows.append(self.get(run_id))
        return rows

    def key(self, run_id: str) -> int:
        """The primary key of the run, whose row may be damaged. Raises UnknownRunError, which names the nearest."""
        for table in ("runs", "runs NOT INDEXED"):
            found = self._db.execute(f"SELECT key FROM {table} WHERE run_id = ?", (run_id,))
            if found and run_id not in self._removal.ids():
                return int(found[0][0])
        return self._unknown(run_id)

    def select(
        self,
        sweep: int | None = None,
        *,
        status: str | None = None,
        preset: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
        is_strict: bool = False,
    ) -> list[Row]:
        """All rows, or the sweep's in its order, with the status of this moment; those with this status and preset.

        A damaged one is left out with a DamagedWarning that names it; with `is_strict` it raises DamagedError.
        """
        order = "runs.key DESC" if newest_first else "runs.key" if sweep is None else "place"
        source = "runs" if sweep is None else "members LEFT JOIN runs ON runs.key = members.run"
        columns = _COLUMNS if sweep is None else f"{_COLUMNS}, {_MEMBERS}"
        conditions = {"sweep = ?": sweep, "runs.preset = ?": preset}
        where = [(text, value) for text, value in conditions.items() if value is not None]
        stored_as = [] if status is None else _STORED_AS.get(status, (status,))
        clauses = [text for text, _ in where]
        if stored_as:
            clauses.append(f"runs.status IN ({', '.join('?' * len(stored_as))})")
        most = -1 if limit is None or status in _STORED_AS else limit
        found = self._db.execute(
            f"""SELECT {columns} FROM {source} {"WHERE " * bool(clauses)}{" AND ".join(clauses)}
                ORDER BY {order} LIMIT ?""",
            (*(value for _, value in where), *stored_as, most),
        )
        removed, is_alive = self._removal.ids(), self._owner.liveness()
        rows: list[Row] = []
        for values in found:
            try:
                row = _checked(values)
            except DamagedError as error:
                if is_strict:
                    raise
                warnings.warn(f"{self._places.root}: {error}; it is left out", DamagedWarning, stacklevel=3)
                continue
            if (now := state(row.status, row.owner, is_alive)) != row.status:
                row = row._replace(status=now)
            if row.run_id not in removed and status in (None, now):
                rows.append(row)
        return rows if limit is None else rows[:limit]

    def state(self, row: Row) -> str:
        """The status of this moment."""
        return state(row.status, row.owner, self._owner.is_alive)

    def refuse_trained(self, what: str, which: str, *parameters: Any) -> None:
        """Raise StoreError where another process trains one of these rows, which may be damaged."""
        query = f"SELECT DISTINCT owner FROM runs WHERE status = 'running' AND {which}"
        for (owner,) in self._db.execute(query, parameters):
            if is_token(owner) and owner != self._owner.token and self._owner.is_alive(owner):
                raise StoreError(f"{what} is being trained by another process: stop that first")

    def refuse_needed(self, what: str, run_ids: Iterable[str]) -> None:
        """Raise StoreError while other runs have yet to end that begin at a snapshot of one of these."""
        gone = {*run_ids}
        query = f'SELECT run_id, config FROM runs WHERE config LIKE \'%"origin":"%\' AND status NOT IN {DONE}'
        for run_id, config in self._db.execute(query):
            with suppress(ValueError, AttributeError):  # a damaged one needs nothing
                parent = str(json.loads(config).get("origin")).rpartition("@")[0]  # RUN@STEP
                if parent in gone and run_id not in gone | self._removal.ids():
                    raise StoreError(f"{what} is needed: run {run_id}, a fork of {parent}, has not ended")

    def insert(self, rows: Iterable[Row], *, is_new: bool = True) -> None:
        """Add rows; unless they must be new, those whose id or hash is there already are not added."""
        names = (*Row._fields, "seal")
        how = "INSERT" if is_new else "INSERT OR IGNORE"
        self._db.execute_many(
            f"{how} INTO runs ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            ((*row, seal(row)) for row in rows),
        )

    def next_key(self) -> int:
        """One that is greater than all."""
        [(key,)] = self._db.execute("SELECT coalesce(max(key), 0) + 1 FROM runs")
        return int(key)

    def change(self, row: Row, **changes: Any) -> Row:
        """Write the changed row. `row` is as it was read in this transaction: what was damaged is not sealed anew."""
        return self.change_all([row], **changes)[0]

    def change_all(self, rows: Iterable[Row], **changes: Any) -> list[Row]:
        """Write the same changes of many rows."""
        changed = [row._replace(**changes) for row in rows]
        settings = ", ".join(f"{name} = ?" for name in changes)
        self._db.execute_many(
            f"UPDATE runs SET {settings}, seal = ? WHERE key = ?",
            ((*changes.values(), seal(row), row.key) for row in changed),
        )
        return changed

    def _unknown(self, run_id: str) -> NoReturn:
        ids = [row[0] for row in self._db.execute("SELECT run_id FROM runs ORDER BY key DESC")]
        removed = self._removal.ids()
        near = checks.nearest(run_id, [one for one in ids if isinstance(one, str) and one not in removed])
        raise UnknownRunError(f"{self._places.root} has no run {run_id!r}{near}")


def state(status: str, owner: Any, is_alive: Callable[[str | None], bool]) -> str:
    """The status of this moment: a run that is stored as running, but whose owner is gone, is interrupted."""
    if status == "running" and not (is_token(owner) and is_alive(owner)):
        return "interrupted"
    return status


def _checked(values: Sequence[Any]) -> Row:
    """A row from its values, its seal, and those of its place in a sweep. Raises DamagedError, naming the run."""
    n = len(Row._fields)
    row, member = Row(*values[:n]), values[n + 1 :]
    if member and (seal(member[:-1]) != member[-1] or row.key is None):
        raise DamagedError(f"run {member[1]} of a sweep is damaged: its place is not what was written")
    if seal(row) != values[n]:
        raise DamagedError(f"the row of run {row.run_id!r} is damaged: its checksum is not what was written")
    try:
        checked_id(row.run_id)
        if row.owner is not None:
            checked_token(row.owner)
    except StoreError as error:
        raise DamagedError(str(error)) from error
    texts = {type(getattr(row, name)) for name in _TEXTS}
    may_lack = {type(row.result), type(row.hash), type(row.columns)}
    numbers = {type(row.curve), type(row.last_step or 0)}
    if texts != {str} or not may_lack <= {str, type(None)} or numbers != {int} or row.status not in STATUSES:
        raise DamagedError(f"the row of run {row.run_id!r} is damaged: it has values that no version has written")
    return row
