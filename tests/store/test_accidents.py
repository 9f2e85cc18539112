"""Processes that are killed, and disks that are full: what was stored stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grokfast.cli import main
from grokfast.store import NewRun, RunStore, StoreFullError, UnknownRunError
from grokfast.store.database import Database
from grokfast.store.sweeps import digest
from tests.store.common import folders, new_run, records, snapshot, start, steps


def forever(action: Callable[[], object]) -> None:
    while True:
        action()


def fill(directory: Path) -> None:
    """Leave no byte on the disk of `directory`."""
    with (directory / "filler").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        forever(lambda: file.write(b"x" * 512))


APPEND = """if True:
    import sys
    from grokfast.store import Record, RunStore
    from grokfast.store.records import STANDARD
    store = RunStore(sys.argv[1])
    for step in range(int(sys.argv[3])):
        store.append(sys.argv[2], [Record(2 * step + i, dict.fromkeys(STANDARD, 0.5)) for i in range(2)])
        print(2 * step + 1, flush=True)
"""


def test_reading_while_another_process_writes(store: RunStore) -> None:
    run_id = new_run(store)
    writer = start(APPEND, store.root, run_id, 300)
    lengths = [0]
    while lengths[-1] < 600:
        assert writer.poll() in (None, 0)
        found = steps(store, run_id)
        assert found == list(range(len(found)))
        assert len(found) % 2 == 0  # never half an append
        lengths.append(len(found))
    assert writer.wait() == 0
    assert lengths == sorted(lengths)


def kill_after(process: subprocess.Popen[str], lines: int) -> int:
    """Kill `process` in the middle of its work, and return the last number that it printed before."""
    assert process.stdout is not None
    for _ in range(lines):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    assert process.wait() == -signal.SIGKILL
    return int(rest[-1]) if rest else -1


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_loses_no_acknowledged_record(store: RunStore) -> None:
    run_id = new_run(store)
    last = kill_after(start(APPEND, store.root, run_id, 10**6), lines=40)
    with RunStore(store.root, create=False) as reopened:
        found = steps(reopened, run_id)
        assert found == list(range(len(found)))
        assert len(found) > max(last, 79)
        reopened.truncate(run_id, 10)
        reopened.append(run_id, records(11))
        assert steps(reopened, run_id) == list(range(12))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_leaves_a_whole_checkpoint(store: RunStore) -> None:
    run_id = new_run(store)
    code = """if True:
        import sys, torch
        from grokfast.store import RunStore
        store = RunStore(sys.argv[1])
        for step in range(10**6):
            store.save_checkpoint(sys.argv[2], {"w": torch.full((50_000,), step)}, {"step": step})
            print(step, flush=True)"""
    last = kill_after(start(code, store.root, run_id), lines=10)
    tensors, meta = store.load_checkpoint(run_id)
    assert meta["step"] >= max(last, 9)
    assert (tensors["w"] == meta["step"]).all()
    store.save_checkpoint(run_id, {}, {})
    assert sorted(snapshot(store.directory(run_id))) == ["checkpoint.safetensors"]


def test_a_full_database_keeps_what_was_stored(store: RunStore) -> None:
    run_id = new_run(store)
    store.append(run_id, records(0, 1))
    [(pages,)] = store._db.execute("PRAGMA page_count")
    store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreFullError, match=r"grokfast\.sqlite: .*full; .*remains readable"):
        store.append(run_id, records(*range(2, 1000)))
    with pytest.raises(StoreFullError):
        store.create({"note": "x" * 100_000}, preset="quick", version="", device="")
    assert steps(store, run_id) == [0, 1]
    assert [run.run_id for run in store.list()] == [run_id]
    assert folders(store.root) == [run_id]
    store._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.append(run_id, records(*range(2, 1000)))
    assert steps(store, run_id) == list(range(1000))


def test_a_full_disk_keeps_what_was_stored(small_disk: Path) -> None:
    root, ballast = small_disk / "runs", small_disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    with RunStore(root) as store:
        run_id = new_run(store)
        store.save_checkpoint(run_id, {"w": torch.ones(10_000)}, {"step": 7})
        stored = 0

        def append() -> None:
            nonlocal stored
            store.append(run_id, records(*range(stored, stored + 100)))
            stored += 100

        with pytest.raises(StoreFullError, match=r"grokfast\.sqlite: .*remains readable"):
            forever(append)
        fill(small_disk)
        with pytest.raises(StoreFullError, match=r"checkpoint\.safetensors: .*remains readable"):
            store.save_checkpoint(run_id, {"w": torch.zeros(10_000)}, {"step": 8})
        created = [run_id]
        with pytest.raises(StoreFullError, match="remains readable"):
            forever(lambda: created.append(new_run(store)))
        assert stored > 100
        assert steps(store, run_id) == list(range(stored))
        assert folders(root) == sorted(created)
        assert [run.run_id for run in store.list()] == created[::-1]
        assert sorted(snapshot(store.directory(run_id))) == ["checkpoint.safetensors"]
    fill(small_disk)
    with RunStore(root, create=False) as store:
        assert steps(store, run_id) == list(range(stored))
        tensors, meta = store.load_checkpoint(run_id)
        assert (tensors["w"].sum().item(), meta) == (10_000, {"step": 7})
    ballast.unlink()
    with RunStore(root, create=False) as store:
        store.append(run_id, records(stored))
        assert steps(store, run_id)[-1] == stored


def test_a_store_on_a_disk_that_others_filled_is_readable(small_disk: Path) -> None:
    with RunStore(small_disk) as store:
        run_id = new_run(store)
        store.append(run_id, records(0, 1))
    fill(small_disk)
    with RunStore(small_disk, create=False) as store:
        assert steps(store, run_id) == [0, 1]
        with pytest.raises(StoreFullError):
            store.append(run_id, records(*range(2, 1000)))


def test_a_store_cannot_be_made_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(StoreFullError, match=r"full|No space left"):
        RunStore(small_disk / "runs")


def free(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def test_removing_frees_a_full_disk(small_disk: Path) -> None:
    with RunStore(small_disk) as store:
        one, kept = new_run(store), new_run(store)
        sweep_id = store.sweeps.create("quick", {}, {}, [NewRun({}, digest(i), "v", "cpu") for i in range(2)])
        swept = store.sweeps.claim([*store.sweeps.statuses(sweep_id)])
        for run_id in (one, kept, *swept):
            store.save_weights(run_id, {"w": torch.ones(10_000)})
            store.append(run_id, records(0, 1))
    fill(small_disk)
    with RunStore(small_disk, create=False) as store:
        store.remove(one)
    assert free(small_disk) > 30_000
    fill(small_disk)
    with RunStore(small_disk, create=False) as store:
        assert store.sweeps.remove(sweep_id) == 2
        assert ([run.run_id for run in store.list()], store.sweeps.list()) == ([kept], [])
        assert (steps(store, kept), store.has_weights(kept)) == ([0, 1], True)
        assert folders(small_disk) == [kept]
        store.append(kept, records(2))
    assert free(small_disk) > 60_000


def test_where_the_database_has_no_room_what_is_removed_is_gone_all_the_same(store: RunStore, monkeypatch) -> None:
    one, kept = new_run(store), new_run(store)
    store.save_weights(one, {"w": torch.ones(10)})
    execute = Database.execute

    def is_full(self: Database, statement: str, *parameters: Any) -> Any:
        if statement.startswith("DELETE FROM runs"):
            raise StoreFullError("database or disk is full")
        return execute(self, statement, *parameters)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "execute", is_full)
        store.remove(one)
    for look in (store, RunStore(store.root, create=False)):
        with pytest.raises(UnknownRunError):
            look.get(one)
        assert [run.run_id for run in look.list()] == [kept]
        assert look.table()["run_id"].tolist() == [kept]
    look.close()
    assert folders(store.root) == [kept]
    assert store._db.execute("SELECT count(*) FROM runs") == [(2,)]
    new_run(store)
    assert store._db.execute("SELECT count(*) FROM runs") == [(2,)]


EXPORT = """if True:
    import resource, sys
    from grokfast.cli import main
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    sys.exit(main(["export", "--curves", "--to", sys.argv[2], "--out", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
def test_an_export_without_room_names_the_file_and_leaves_the_old_one(store: RunStore, tmp_path: Path) -> None:
    run_id, path = new_run(store), tmp_path / "table.csv"
    path.write_text("good")
    path.chmod(0o600)
    store.append(run_id, records(*range(2000)))
    store.close()
    command = [sys.executable, "-c", EXPORT, str(store.root), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"File too large: '{path}'" in done.stderr
    assert path.read_text() == "good"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["runs", "table.csv"]
    assert main(["export", "--curves", "--to", str(path), "--out", str(store.root)]) == 0
    assert path.read_text().count("\n") == 2001
    assert path.stat().st_mode & 0o777 == 0o600


def test_exports_go_where_a_link_leads_and_to_devices(store: RunStore, tmp_path: Path, capfd) -> None:
    run_id = new_run(store)
    (tmp_path / "link.csv").symlink_to("table.csv")
    (tmp_path / "table.csv").write_text("old")
    assert main(["export", "--to", str(tmp_path / "link.csv"), "--out", str(store.root)]) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert run_id in (tmp_path / "table.csv").read_text()
    assert main(["export", "--to", os.devnull, "--out", str(store.root)]) == 0
    assert not Path(os.devnull).is_file()
    assert main(["export", "--to", str(tmp_path), "--out", str(store.root)]) == 1
    assert f"Is a directory: '{tmp_path}'" in capfd.readouterr().err
