"""A store of the version before columns had names (make_old_store.py) loses nothing."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from grokfast.store import DamagedError, RunStore
from grokfast.store.records import STANDARD
from grokfast.training import resume
from tests.store.common import snapshot


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("schema-3.tar.gz")) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "runs"


def _is_whole(store: RunStore) -> None:
    expected = json.loads((store.root.parent / "curves.json").read_text())
    runs = {run.run_id: run for run in store.list()}
    assert runs.keys() == expected.keys()
    assert sorted(run.status for run in runs.values()) == ["diverged", *["finished"] * 3, "interrupted"]
    for run_id, curves in expected.items():
        found = store.curves(run_id)
        assert [*found] == ["step", *STANDARD]
        assert all(np.array_equal(found[name], curves[name], equal_nan=True) for name in curves)
        if runs[run_id].status != "interrupted":
            assert store.load_weights(run_id)
    (sweep,) = store.sweeps.list()
    assert sweep.counts == {"finished": 2}
    assert len(store.table(sweep.sweep_id)["run_id"]) == 2
    assert len(store.all_curves()["step"]) == sum(len(curves["step"]) for curves in expected.values())


def test_reading_changes_nothing(old: Path) -> None:
    before = snapshot(old)
    with RunStore(old, create=False, read_only=True) as store:
        _is_whole(store)
    assert snapshot(old) == before


def test_it_is_brought_up_to_date_when_it_is_opened_for_writing(old: Path) -> None:
    for _ in range(2):
        with RunStore(old) as store:
            _is_whole(store)
    with closing(sqlite3.connect(old / "grokfast.sqlite")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (4,)


def test_an_interrupted_run_goes_on(old: Path) -> None:
    with RunStore(old) as store:
        (run,) = store.list(status="interrupted")
        result = resume(run.run_id, store)
        assert result.curves["step"].tolist() == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(("table", "column"), [("runs", "device"), ("chunks", "rows")])
def test_what_was_damaged_stays_damaged(old: Path, table: str, column: str) -> None:
    with closing(sqlite3.connect(old / "grokfast.sqlite")) as db, db:
        run_id = db.execute("SELECT run_id FROM runs WHERE key = 1").fetchone()[0]
        key = "key" if table == "runs" else "run"
        damaged = "x" if table == "runs" else bytes(48)
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = 1", (damaged,))
    with RunStore(old) as store, pytest.raises(DamagedError, match=run_id):
        store.curves(run_id)
