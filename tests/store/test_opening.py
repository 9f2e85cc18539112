"""What is opened: a store, and nothing else; by whoever, at once."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grokfast.store import RunStore, StoreError
from tests.store.common import new_run, records, snapshot, start, steps


def test_a_missing_store_is_not_made_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run store at .*nowhere"):
        RunStore(tmp_path / "nowhere", create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"these are my notes", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "grokfast.sqlite").write_bytes(content)
    with pytest.raises(StoreError, match=r"grokfast\.sqlite"):
        RunStore(tmp_path)
    assert snapshot(tmp_path) == {"grokfast.sqlite": content}


def test_somebody_elses_database_is_refused_untouched(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "grokfast.sqlite")
    db.execute("CREATE TABLE recipes (name)")
    db.close()
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match="not one of grokfast"):
        RunStore(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_store_whose_creator_was_killed_at_once_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "grokfast.sqlite").touch()
    with RunStore(tmp_path) as store:
        new_run(store)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_newer_store_is_refused_untouched(tmp_path: Path, journal: str) -> None:
    with RunStore(tmp_path) as store:
        new_run(store)
    db = sqlite3.connect(tmp_path / "grokfast.sqlite", isolation_level=None)
    db.execute(f"PRAGMA journal_mode = {journal}")
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match=r"newer grokfast \(schema 99, this one knows up to 4\)"):
        RunStore(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_newer_store_is_refused_untouched_also_while_its_version_is_in_the_log(tmp_path: Path) -> None:
    RunStore(tmp_path).close()
    code = """if True:
        import os, sqlite3, sys
        db = sqlite3.connect(sys.argv[1], isolation_level=None)
        db.execute("PRAGMA user_version = 99")
        os._exit(0)"""
    assert start(code, tmp_path / "grokfast.sqlite").wait() == 0
    before = snapshot(tmp_path)
    assert sorted(before) == ["grokfast.sqlite", "grokfast.sqlite-shm", "grokfast.sqlite-wal"]
    with pytest.raises(StoreError, match="newer grokfast"):
        RunStore(tmp_path)
    after = snapshot(tmp_path)
    assert before.keys() == after.keys()
    assert all(after[name] == before[name] for name in before if not name.endswith("-shm"))


def test_a_closed_store_and_a_foreign_thread_are_told(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with ThreadPoolExecutor(1) as pool, pytest.raises(sqlite3.ProgrammingError, match="thread"):
        pool.submit(store.list).result()
    store.close()
    store.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store.list()


def test_threads_that_open_a_new_store_at_once_all_succeed(tmp_path: Path) -> None:
    barrier = threading.Barrier(6)

    def work(_: int) -> str:
        barrier.wait()
        with RunStore(tmp_path / "new") as store:
            run_id = new_run(store)
            for step in range(10):
                store.append(run_id, records(step))
            return run_id

    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(work, range(6)))
    with RunStore(tmp_path / "new", create=False) as store:
        assert sorted(run.run_id for run in store.list()) == sorted(ids)
        assert all(steps(store, run_id) == list(range(10)) for run_id in ids)
