"""Flipped bits in the database: what was damaged is named, and the rest can be read."""

from __future__ import annotations

import shutil
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grokfast.store import DamagedError, DamagedWarning, NewRun, RunStore, StoreError
from grokfast.store.sweeps import digest
from tests.store.common import as_of_schema_2, new_run, records, steps


def change(store: RunStore, statement: str, *parameters: Any) -> None:
    """Behind the store's back."""
    with closing(sqlite3.connect(store.root / "grokfast.sqlite")) as db, db:
        assert db.execute(statement, parameters).rowcount == 1


@pytest.fixture
def two(store: RunStore) -> tuple[str, str]:
    """Two runs with curves."""
    ids = new_run(store), new_run(store)
    for run_id in ids:
        store.append(run_id, records(0, 10))
        store.append(run_id, records(20))
    return ids


@pytest.mark.parametrize(
    "damage",
    [
        "config = replace(config, '0', '1')",
        "result = '{}'",
        "status = 'finished'",
        "created = '2020'",
        "version = CAST(version AS BLOB)",
        "curve = curve + 1",
        "last_step = 10",
        "owner = NULL",
        "seal = NULL",
        "config = CAST(x'7bff7d' AS TEXT)",
    ],
)
def test_a_changed_row_is_named_and_the_others_are_read(store: RunStore, two: tuple[str, str], damage: str) -> None:
    damaged, whole = two
    change(store, f"UPDATE runs SET {damage} WHERE run_id = ?", damaged)
    for read in (store.get, store.curves, lambda run_id: store.append(run_id, records(30))):
        with pytest.raises(DamagedError, match=f"the row of run '{damaged}' is damaged"):
            read(damaged)
    with pytest.warns(DamagedWarning, match=f"run '{damaged}' is damaged.*left out"):
        assert [run.run_id for run in store.list()] == [whole]
    with pytest.warns(DamagedWarning, match=damaged):
        assert store.table()["run_id"].tolist() == [whole]
    with pytest.warns(DamagedWarning, match=damaged):
        assert store.all_curves()["step"].tolist() == [0, 10, 20]
    assert steps(store, whole) == [0, 10, 20]
    store.update(whole, status="finished")


@pytest.mark.parametrize("damage", ["{bad", "[]", "[" * 100_000])
@pytest.mark.parametrize("column", ["config", "result"])
def test_a_row_without_json_is_named(store: RunStore, two: tuple[str, str], column: str, damage: str) -> None:
    """As a store of an older version may have it, whose rows had no seals."""
    row = store._rows.get(two[0])
    with store._db.transaction():
        store._rows.change(row, **{column: damage})
    with pytest.raises(DamagedError, match=f"the {column} of {two[0]} is damaged"):
        store.get(two[0])
    for read in (store.list, store.table):
        with pytest.warns(DamagedWarning, match=f"the {column} of {two[0]} is damaged"):
            read()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE chunks SET rows = zeroblob(length(rows)) WHERE run = 1 AND first_step = 0",
        "UPDATE chunks SET rows = substr(rows, 1, 40) WHERE run = 1 AND first_step = 0",
        "UPDATE chunks SET first_step = 30 WHERE run = 1 AND first_step = 0",
        "UPDATE chunks SET run = 3 WHERE run = 1 AND first_step = 0",
        "DELETE FROM chunks WHERE run = 1 AND first_step = 20",
    ],
)
def test_a_changed_curve_is_named_and_the_others_are_read(store: RunStore, two: tuple[str, str], damage: str) -> None:
    damaged, whole = two
    change(store, damage)
    for read in (store.curves, lambda run_id: store.truncate(run_id, 0)):
        with pytest.raises(DamagedError, match=f"the curve of run {damaged} is damaged"):
            read(damaged)
    with pytest.warns(DamagedWarning, match=f"the curve of run {damaged} is damaged"):
        curves = store.all_curves()
    assert (curves["run"].tolist(), curves["step"].tolist()) == ([1, 1, 1], [0, 10, 20])
    assert steps(store, whole) == [0, 10, 20]
    assert [run.run_id for run in store.list()] == [whole, damaged]


def test_a_damaged_run_can_be_removed(store: RunStore, two: tuple[str, str]) -> None:
    change(store, "UPDATE runs SET config = '' WHERE run_id = ?", two[0])
    assert store.has(two[0])
    store.remove(two[0])
    assert not store.has(two[0])
    assert [run.run_id for run in store.list()] == [two[1]]


def add(store: RunStore, *seeds: int) -> str:
    runs = [NewRun({"seed": seed}, digest(seed), "v", "cpu") for seed in seeds]
    return store.sweeps.create("quick", {}, {"axes": {"seed": [*seeds]}}, runs)


@pytest.mark.parametrize("damage", ["base = '{\"a\":1}'", "grid = '{}'", "preset = 'x'", "seal = 0"])
def test_a_changed_sweep_is_named_and_the_others_are_read(store: RunStore, damage: str) -> None:
    damaged, whole = add(store, 1), add(store, 2)
    change(store, f"UPDATE sweeps SET {damage} WHERE sweep_id = ?", damaged)
    with pytest.raises(DamagedError, match=f"the row of sweep '{damaged}' is damaged"):
        store.sweeps.get(damaged)
    with pytest.warns(DamagedWarning, match=damaged):
        assert [found.sweep_id for found in store.sweeps.list()] == [whole]
    assert store.sweeps.remove(damaged) == 1


@pytest.mark.parametrize("damage", ["run = 3", "run = 99", "place = 5"])
def test_a_changed_place_in_a_sweep_is_noticed(store: RunStore, damage: str) -> None:
    sweep_id = add(store, 1, 2)
    first, second = store.sweeps.statuses(sweep_id)
    add(store, 3)
    change(store, f"UPDATE members SET {damage} WHERE sweep = 1 AND place = 0")
    with pytest.raises(DamagedError, match="of a sweep is damaged"):
        store.sweeps.statuses(sweep_id)  # which places experiments by it
    with pytest.warns(DamagedWarning):
        assert store.table(sweep_id)["run_id"].tolist() == [second]
    assert store.get(first).config == {"seed": 1}


def test_a_store_without_seals_gets_them_when_it_is_opened(store: RunStore, two: tuple[str, str]) -> None:
    sweep_id = add(store, 1)
    before = [(run.config, store.curves(run.run_id)) for run in store.list()]
    as_of_schema_2(store.root)
    with RunStore(store.root, create=False) as opened:
        np.testing.assert_equal([(run.config, opened.curves(run.run_id)) for run in opened.list()], before)
        assert len(opened.sweeps.statuses(sweep_id)) == 1
        opened.append(two[0], records(30))
        assert steps(opened, two[0]) == [0, 10, 20, 30]


def contents(root: Path) -> dict[str, Any]:
    """All that can be read of a store: every run, curve and sweep, and what is said to be damaged."""
    found: dict[str, Any] = {}
    with warnings.catch_warnings(record=True), RunStore(root, create=False, read_only=True) as store:
        warnings.simplefilter("always")
        for run in store.list():
            found[run.run_id] = (run.created, run.preset, run.version, run.device, run.status, run.config, run.result)
            try:
                found[f"the curve of {run.run_id}"] = store.curves(run.run_id)
            except StoreError:
                continue
        for sweep in store.sweeps.list():
            found[sweep.sweep_id] = (sweep.created, sweep.base, sweep.grid)
            try:
                found[f"the runs of {sweep.sweep_id}"] = store.sweeps.statuses(sweep.sweep_id)
            except StoreError:
                continue
    return found


def test_no_flipped_bit_changes_what_is_read(store: RunStore, two: tuple[str, str], tmp_path: Path) -> None:
    store.update(two[0], status="finished", result={"steps": 20, "phase": "grokking", "final": {"test_loss": 0.5}})
    store.update(two[1], status="interrupted")
    add(store, 1, 2)
    store.close()
    whole, copy = contents(store.root), tmp_path / "copy"
    data = (store.root / "grokfast.sqlite").read_bytes()
    used = [i for i, byte in enumerate(data) if byte or data[i - 1 : i] not in (b"", b"\0")]
    copy.mkdir()
    noticed = 0
    for bit in np.random.default_rng(0).choice(8 * len(used), 150, replace=False).tolist():
        flipped = bytearray(data)
        flipped[used[bit // 8]] ^= 1 << bit % 8
        (copy / "grokfast.sqlite").write_bytes(flipped)
        try:
            found = contents(copy)
        except StoreError:
            noticed += 1
            continue
        for name, value in found.items():
            np.testing.assert_equal(value, whole[name])
        noticed += len(found) < len(whole)
    shutil.rmtree(copy)
    assert noticed > 75
