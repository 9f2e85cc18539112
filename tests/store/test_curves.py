"""Curves in the store: what was appended comes back, cut where a run resumes, and in one piece at its end."""

from __future__ import annotations

import json
import sqlite3
import struct

import numpy as np
import pytest

from grokfast.store import Record, RunStore
from grokfast.store.records import STANDARD
from tests.store.common import chunk_sizes, new_run, record, records, steps, values


def test_curves_come_back_in_their_types_over_several_chunks(store: RunStore) -> None:
    run_id = new_run(store)
    store.append(run_id, records(0, 10, 20))
    store.append(run_id, [])
    store.append(run_id, records(2**40))
    curves = store.curves(run_id)
    assert tuple(curves) == ("step", *STANDARD)
    assert curves["step"].dtype == np.int64
    assert all(curves[name].dtype == np.float64 for name in STANDARD)
    expected = records(0, 10, 20, 2**40)
    assert curves["step"].tolist() == [row.step for row in expected]
    for name in STANDARD:
        assert curves[name].tolist() == [row[name] for row in expected]
        curves[name][0] = 1  # writable


def test_a_run_without_records_has_empty_columns(store: RunStore) -> None:
    curves = store.curves(new_run(store))
    assert [len(column) for column in curves.values()] == [0] * 6
    assert curves["step"].dtype == np.int64


def test_nan_and_infinity_are_stored(store: RunStore) -> None:
    run_id = new_run(store)
    store.append(run_id, [values(1, float("nan"), float("inf"), 0.0, -0.0, 1e-310)])
    curves = store.curves(run_id)
    assert np.isnan(curves["train_loss"][0])
    assert curves["test_loss"][0] == np.inf
    assert np.signbit(curves["test_accuracy"][0])
    assert curves["weight_norm"][0] == 1e-310


@pytest.mark.parametrize(
    "bad",
    [records(5, 5), records(5, 4), records(3), records(2), [values(7.5, 1, 2, 3, 4, 5)], [values(7, 1, 2, 3)]],
    ids=["repeated", "falling", "the_last_again", "before_the_last", "fractional", "short"],
)
def test_records_that_do_not_follow_are_refused(store: RunStore, bad: list[Record]) -> None:
    run_id = new_run(store)
    store.append(run_id, records(0, 3))
    with pytest.raises(ValueError, match="records must"):
        store.append(run_id, bad)
    assert steps(store, run_id) == [0, 3]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("step", [-1, 0, 5, 10, 15, 20, 25, 30, 49, 50, 60])
def test_truncate_cuts_between_and_inside_chunks(store: RunStore, step: int, merged: bool) -> None:
    run_id, other = new_run(store), new_run(store)
    for chunk in ((0, 10, 20), (30,), (40, 50)):
        store.append(run_id, records(*chunk))
        store.append(other, records(*chunk))
    if merged:
        store.update(run_id, status="finished")
    store.truncate(run_id, step)
    kept = [s for s in range(0, 60, 10) if s <= step]
    assert steps(store, run_id) == kept
    assert store.curves(run_id)["weight_norm"].tolist() == [record(s)["weight_norm"] for s in kept]
    assert steps(store, other) == list(range(0, 60, 10))
    store.append(run_id, records(step + 1))
    assert steps(store, run_id) == [*kept, step + 1]


@pytest.mark.parametrize("status", ["finished", "diverged", "failed"])
def test_ending_merges_the_chunks(store: RunStore, status: str) -> None:
    run_id = new_run(store)
    for step in range(5):
        store.append(run_id, records(step))
    assert chunk_sizes(store) == [1] * 5
    before = store.curves(run_id)
    store.update(run_id, status="interrupted")
    assert chunk_sizes(store) == [1] * 5
    store.update(run_id, status=status, result={})
    assert chunk_sizes(store) == [5]
    assert all(np.array_equal(before[name], column) for name, column in store.curves(run_id).items())
    store.update(run_id, status=status)
    store.append(run_id, records(9))
    assert steps(store, run_id) == [0, 1, 2, 3, 4, 9]


def test_the_format_can_be_read_without_this_package(store: RunStore) -> None:
    run_id = new_run(store)
    store.append(run_id, records(1, 2))
    store.append(run_id, records(3))
    db = sqlite3.connect(store.root / "grokfast.sqlite")
    chunks = db.execute("SELECT n_rows, rows FROM chunks ORDER BY first_step").fetchall()
    (schema,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'chunks'").fetchone()
    ((columns,),) = db.execute("SELECT columns FROM runs").fetchall()
    db.close()
    read = [row for n, blob in chunks for row in struct.iter_unpack("<6d", blob[: n * 48])]
    assert read == [(r.step, *r.values.values()) for r in records(1, 2, 3)]
    assert "little-endian" in schema
    assert columns == json.dumps([*STANDARD])
