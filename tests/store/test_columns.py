"""Runs of one store have columns of their own."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np
import pytest

from grokfast.store import DamagedError, Record, RunStore
from tests.store.common import new_run, record, records


def wide(step: int) -> Record:
    return Record(step, {**record(step).values, "test_ood_accuracy": step / 3, "norm.w": step / 9})


def test_runs_have_columns_of_their_own(store: RunStore) -> None:
    plain, other = new_run(store), new_run(store)
    store.append(plain, records(0, 10))
    store.append(other, [wide(0)])
    store.append(other, [wide(5), wide(10)])
    store.truncate(other, 5)
    assert [*store.curves(other)] == ["step", *wide(0).values]
    assert store.curves(other)["norm.w"].tolist() == [0, 5 / 9]
    store.update(other, status="finished", result={"final": {"step": 5, **wide(5).values, "phase": 0.5}})
    found, table = store.all_curves(), store.table()
    assert found["run"].tolist() == [0, 0, 1, 1]
    assert found["weight_norm"].tolist() == [record(step).values["weight_norm"] for step in (0, 10, 0, 5)]
    np.testing.assert_array_equal(found["norm.w"], [np.nan, np.nan, 0, 5 / 9])
    np.testing.assert_array_equal(table["test_ood_accuracy"], [np.nan, 5 / 3])
    np.testing.assert_array_equal(table["final.phase"], [np.nan, 0.5])


def test_a_run_keeps_its_columns(store: RunStore) -> None:
    run_id = new_run(store)
    store.append(run_id, [wide(0)])
    with pytest.raises(ValueError, match=r"records must have the run's columns .*norm\.w; the one of step 5 has"):
        store.append(run_id, records(5))
    with pytest.raises(ValueError, match="records must have the run's columns"):
        store.append(run_id, [wide(5), record(6)])
    assert store.curves(run_id)["step"].tolist() == [0]
    store.truncate(run_id, -1)
    store.append(run_id, records(5))  # it begins again, as another


@pytest.mark.parametrize("name", ["step", "run_id", ""])
def test_names_that_tables_have_are_refused(store: RunStore, name: str) -> None:
    run_id = new_run(store)
    with pytest.raises(ValueError, match="records must have"):
        store.append(run_id, [Record(0, {name: 1.0})])
    assert len(store.curves(run_id)["step"]) == 0


def test_a_column_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(KeyError, match="train_loss"):
        record(0)["train_los"]


def test_damaged_names_are_noticed(store: RunStore) -> None:
    run_id = new_run(store)
    store.append(run_id, [wide(0)])
    with closing(sqlite3.connect(store.root / "grokfast.sqlite")) as db, db:
        db.execute("UPDATE runs SET columns = replace(columns, 'norm', 'form')")
    with pytest.raises(DamagedError, match=run_id):
        store.curves(run_id)
