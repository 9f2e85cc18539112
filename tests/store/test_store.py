from __future__ import annotations

import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from grokfast.store import CheckpointError, Record, RunStore, StoreError, StoreFullError, UnknownRunError


def record(step: int) -> Record:
    return Record(step, 1 / (step + 1), 2 / (step + 1), step / 7, step / 11, step + 0.1)


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


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore(tmp_path / "runs") as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "grokfast-test", str(mounted)]
    if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def forever(action: Callable[[], object]) -> None:
    while True:
        action()


def fill(directory: Path) -> None:
    """Leave no byte on the disk of `directory`."""
    with (directory / "filler").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        forever(lambda: file.write(b"x" * 512))


def test_a_run_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    config = {"task": {"name": "modular", "p": 97}, "lr": 1e-3, "betas": [0.9, 0.98], "filter": None}
    with RunStore(tmp_path) as store:
        run_id = store.create(config, preset="nanda", version="0.1.0", device="cuda:0")
        assert store.get(run_id).status == "running"
        store.update(run_id, status="diverged", result={"t_memorize": 100, "loss": float("inf")})
    with RunStore(str(tmp_path), create=False) as store:
        run = store.get(run_id)
    assert run_id.startswith("nanda-")
    assert len(run_id) == len("nanda-") + 6
    assert (run.run_id, run.preset, run.version, run.device) == (run_id, "nanda", "0.1.0", "cuda:0")
    assert (run.status, run.config, run.result) == ("diverged", config, {"t_memorize": 100, "loss": float("inf")})
    assert run.directory == tmp_path / run_id == store.root / run_id
    assert run.directory.is_dir()
    assert run.created <= run.updated
    assert run.created.endswith("+00:00")


def test_configs_are_stored_as_json_text(store: RunStore) -> None:
    store.create({"α": "café", "n": (1, 2)}, preset="quick", version="", device="")
    [(text,)] = store._db.execute("SELECT config FROM runs")
    assert json.loads(text) == {"α": "café", "n": [1, 2]} == store.list()[0].config


def test_runs_are_listed_newest_first_and_filtered(store: RunStore) -> None:
    ids = [new_run(store, preset) for preset in ("quick", "nanda", "quick", "s5")]
    store.update(ids[2], status="finished")
    assert [run.run_id for run in store.list()] == ids[::-1]
    assert [run.run_id for run in store.list(preset="quick")] == [ids[2], ids[0]]
    assert [run.run_id for run in store.list(preset="quick", status="running")] == [ids[0]]
    assert store.list(status="failed") == []
    assert len(set(ids)) == 4


def test_update_leaves_what_is_not_given(store: RunStore) -> None:
    run_id = new_run(store)
    store.update(run_id, result={"a": 1})
    store.update(run_id, status="interrupted")
    assert (store.get(run_id).status, store.get(run_id).result) == ("interrupted", {"a": 1})


def test_bad_arguments_are_named(store: RunStore) -> None:
    run_id = new_run(store)
    with pytest.raises(ValueError, match=r"status must be one of .*'finishd'.*did you mean 'finished'"):
        store.update(run_id, status="finishd")
    with pytest.raises(ValueError, match="status"):
        store.list(status="done")
    with pytest.raises(TypeError, match="config must be a dict"):
        store.create([1], preset="quick", version="", device="")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="result must consist of JSON values"):
        store.update(run_id, result={"curve": np.zeros(2)})
    for preset in ("", "../elsewhere", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="preset"):
            new_run(store, preset)
    assert [run.run_id for run in store.list()] == [run_id]


def test_an_unknown_id_is_answered_with_the_nearest(store: RunStore) -> None:
    run_id = new_run(store)
    typo = run_id[:-1] + "x"
    calls = [
        lambda: store.get(typo),
        lambda: store.curves(typo),
        lambda: store.append(typo, records(1)),
        lambda: store.append(typo, []),
        lambda: store.truncate(typo, 0),
        lambda: store.update(typo, status="failed"),
        lambda: store.directory(typo),
        lambda: store.remove(typo),
        lambda: store.save_checkpoint(typo, {}, {}),
        lambda: store.load_checkpoint(typo),
        lambda: store.has_checkpoint(typo),
        lambda: store.load_weights(typo),
    ]
    for call in calls:
        with pytest.raises(UnknownRunError, match=rf"no run '{typo}' \(did you mean '{run_id}'\?\)$"):
            call()
    with pytest.raises(KeyError):
        store.get("")
    assert isinstance(UnknownRunError(), StoreError)


def test_removing_a_run_leaves_nothing_of_it(store: RunStore) -> None:
    kept, removed = new_run(store), new_run(store)
    for run_id in (kept, removed):
        store.append(run_id, records(0, 1))
        store.save_checkpoint(run_id, {"w": torch.ones(1)}, {})
    store.remove(removed)
    assert [run.run_id for run in store.list()] == [kept]
    assert not (store.root / removed).exists()
    assert chunk_sizes(store) == [2]
    assert steps(store, kept) == [0, 1]


def test_curves_come_back_in_their_types_over_several_chunks(store: RunStore) -> None:
    run_id = new_run(store)
    store.append(run_id, records(0, 10, 20))
    store.append(run_id, [])
    store.append(run_id, records(2**40))
    curves = store.curves(run_id)
    assert tuple(curves) == Record._fields
    assert curves["step"].dtype == np.int64
    assert all(curves[name].dtype == np.float64 for name in Record._fields[1:])
    expected = records(0, 10, 20, 2**40)
    for i, name in enumerate(Record._fields):
        assert curves[name].tolist() == [row[i] for row in expected]
        curves[name][0] = 1  # writable


def test_a_run_without_records_has_empty_columns(store: RunStore) -> None:
    curves = store.curves(new_run(store))
    assert [len(column) for column in curves.values()] == [0] * 6
    assert curves["step"].dtype == np.int64


def test_nan_and_infinity_are_stored(store: RunStore) -> None:
    run_id = new_run(store)
    store.append(run_id, [Record(1, float("nan"), float("inf"), 0.0, -0.0, 1e-310)])
    curves = store.curves(run_id)
    assert np.isnan(curves["train_loss"][0])
    assert curves["test_loss"][0] == np.inf
    assert np.signbit(curves["test_accuracy"][0])
    assert curves["weight_norm"][0] == 1e-310


@pytest.mark.parametrize(
    "bad",
    [records(5, 5), records(5, 4), records(3), records(2), [record(7)._replace(step=7.5)], [record(7)[:3]]],
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
    assert store.curves(run_id)["weight_norm"].tolist() == [record(s).weight_norm for s in kept]
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
    db.close()
    read = [row for n, blob in chunks for row in struct.iter_unpack("<6d", blob[: n * 48])]
    assert read == [tuple(r) for r in records(1, 2, 3)]
    assert "little-endian" in schema
    assert ", ".join(Record._fields) in schema


def test_checkpoints_and_weights_are_separate(store: RunStore) -> None:
    run_id = new_run(store)
    assert not store.has_checkpoint(run_id)
    with pytest.raises(CheckpointError, match="does not exist"):
        store.load_checkpoint(run_id)
    store.save_checkpoint(run_id, {"w": torch.zeros(3)}, {"step": 1})
    store.save_checkpoint(run_id, {"w": torch.ones(3)}, {"step": 2})
    store.save_weights(run_id, {"w": torch.full((3,), 5.0)})
    tensors, meta = store.load_checkpoint(run_id)
    assert store.has_checkpoint(run_id)
    assert (tensors["w"].tolist(), meta) == ([1, 1, 1], {"step": 2})
    assert store.load_weights(run_id)["w"].tolist() == [5, 5, 5]
    assert sorted(snapshot(store.directory(run_id))) == ["checkpoint.safetensors", "weights.safetensors"]


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
    with pytest.raises(StoreError, match=r"newer grokfast \(schema 99, this one knows up to 2\)"):
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


APPEND = """if True:
    import sys
    from grokfast.store import Record, RunStore
    store = RunStore(sys.argv[1])
    for step in range(int(sys.argv[3])):
        store.append(sys.argv[2], [Record(2 * step, 0.5, 0.5, 0.5, 0.5, 0.5), Record(2 * step + 1, 0, 0, 0, 0, 0)])
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
    assert [path.name for path in store.root.iterdir() if path.is_dir()] == [run_id]
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
        assert sorted(path.name for path in root.iterdir() if path.is_dir()) == sorted(created)
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
