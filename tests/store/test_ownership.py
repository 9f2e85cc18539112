"""Runs whose process is gone, and what killed processes have left."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from grokfast.store import NewRun, RunStore, StoreError
from grokfast.store.removal import Removal
from grokfast.store.sweeps import digest
from tests.store.common import new_run, records, snapshot, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")

TRAINS = """if True:
    import sys
    from grokfast.store import NewRun, Record, RunStore
    from grokfast.store.sweeps import digest
    store = RunStore(sys.argv[1])
    one = store.create({"seed": 0}, preset="quick", version="v", device="cpu")
    sweep_id = store.sweeps.create("quick", {}, {"axes": {}}, [NewRun({}, digest(i), "v", "cpu") for i in range(2)])
    two, three = store.sweeps.statuses(sweep_id)
    store.sweeps.claim([two])
    print(one, two, three, sweep_id, flush=True)
    sys.stdin.read() if len(sys.argv) < 3 else store.close()
    import time
    time.sleep(60)
"""


def statuses(store: RunStore, sweep_id: str) -> list[list[str]]:
    """Everything that says a status."""
    return [
        sorted(run.status for run in store.list()),
        sorted(store.table()["status"].tolist()),
        sorted(store.get(run.run_id).status for run in store.list()),
        sorted([*store.sweeps.statuses(sweep_id).values(), store.list()[-1].status]),
        sorted([*store.sweeps.get(sweep_id).counts, store.list()[-1].status]),
    ]


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_a_run_whose_process_is_gone_is_interrupted_wherever_it_is_read(tmp_path: Path, how: str) -> None:
    process = start(TRAINS, tmp_path, *(["close"] if how == "closed" else []))
    assert process.stdout is not None
    one, two, three, sweep_id = process.stdout.readline().split()
    with RunStore(tmp_path, create=False) as store:
        if how == "killed":
            assert statuses(store, sweep_id) == [["pending", "running", "running"]] * 5
            assert {run.run_id for run in store.list(status="running")} == {one, two}
            assert store.list(status="interrupted") == []
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            while store.get(one).status == "running":
                pass
        assert statuses(store, sweep_id) == [["interrupted", "interrupted", "pending"]] * 5
        assert {run.run_id for run in store.list(status="interrupted")} == {one, two}
        assert len(store.list(status="interrupted", limit=1)) == 1
        assert store.list(status="running") == []
        assert store.sweeps.claim([one, two, three]) == [one, two, three]
        assert statuses(store, sweep_id) == [["running"] * 3] * 3 + [["running"] * 3, ["running", "running"]]
    process.kill()
    process.wait()


def test_who_reads_changes_no_lock(tmp_path: Path) -> None:
    process = start(TRAINS, tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    before = set(snapshot(tmp_path / ".owners"))
    with RunStore(tmp_path, read_only=True) as store:
        assert len(store.list(status="interrupted")) == 2
    assert set(snapshot(tmp_path / ".owners")) == before


def littered(store: RunStore) -> tuple[str, str]:
    """A diverged and an interrupted run, with all that a killed process may have left."""
    done, stopped = new_run(store), new_run(store)
    for run_id in (done, stopped):
        store.append(run_id, records(0))
        store.save_checkpoint(run_id, {"w": torch.ones(1)}, {})
        (store.directory(run_id) / ".checkpoint.safetensors.0123abcd.tmp").write_bytes(b"half")
        (store.directory(run_id) / ".weights.safetensors.0123abcd.tmp").write_bytes(b"half")
    checkpoint = (store.directory(done) / "checkpoint.safetensors").read_bytes()
    store.update(done, status="diverged")
    store.update(stopped, status="interrupted")
    (store.directory(done) / "checkpoint.safetensors").write_bytes(checkpoint)
    (store.directory(done) / ".notes.tmp").write_bytes(b"the user's")
    (store.root / "quick-0123ab").mkdir()
    (store.root / "quick-0123456789ab").mkdir()
    (store.root / "my-notes").mkdir()
    (store.root / "quick-ffffff").mkdir()
    (store.root / "quick-ffffff" / "something").write_bytes(b"of somebody")
    (store.root / ".owners" / "0123456789abcdef.lock").touch()
    return done, stopped


@pytest.mark.parametrize("write", ["create", "sweep", "remove", "claim"])
def test_litter_goes_with_the_next_write(store: RunStore, write: str) -> None:
    done, stopped = littered(store)
    store.close()
    with RunStore(store.root) as opened:
        opened.list()
        assert (opened.root / "quick-0123ab").is_dir()  # reading tidies nothing
        if write == "create":
            new_run(opened)
        elif write == "sweep":
            opened.sweeps.create("quick", {}, {}, [NewRun({}, digest({}), "v", "cpu")])
        elif write == "remove":
            opened.remove(new_run(opened))
        else:
            opened.sweeps.claim_all([stopped])
        assert sorted(snapshot(opened.directory(done))) == [".notes.tmp"]
        assert sorted(snapshot(opened.directory(stopped))) == ["checkpoint.safetensors"]
        assert not (opened.root / "quick-0123ab").exists()
        assert not (opened.root / "quick-0123456789ab").exists()
        assert (opened.root / "my-notes").is_dir()
        assert (opened.root / "quick-ffffff" / "something").exists()
        assert len(list((opened.root / ".owners").iterdir())) <= 1


def test_what_a_living_process_writes_is_no_litter(store: RunStore) -> None:
    run_id = new_run(store)
    half = store.directory(run_id) / ".checkpoint.safetensors.0123abcd.tmp"
    half.write_bytes(b"half")
    with RunStore(store.root) as other:
        new_run(other)
        assert half.exists()
        assert store.get(run_id).status == "running"
        for refused in (other.remove, lambda run_id: other.sweeps.claim_all([run_id])):
            with pytest.raises(StoreError, match="is being trained by another process"):
                refused(run_id)


@pytest.mark.parametrize("what", ["run", "sweep"])
@pytest.mark.parametrize("after", ["mark", "empty", "forget"])
def test_a_removal_that_was_cut_short_is_finished_by_the_next_write(
    store: RunStore, monkeypatch, after: str, what: str
) -> None:
    sweep_id = store.sweeps.create("quick", {}, {"axes": {}}, [NewRun({}, digest(i), "v", "cpu") for i in range(2)])
    kept, one = new_run(store), new_run(store)
    gone = [one] if what == "run" else store.sweeps.claim([*store.sweeps.statuses(sweep_id)])
    for run_id in (kept, *gone):
        store.save_weights(run_id, {"w": torch.ones(10)})
    original = getattr(Removal, after)

    def dies(*arguments: object) -> None:
        original(*arguments)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Removal, after, dies)
        with pytest.raises(InterruptedError):
            store.remove(one) if what == "run" else store.sweeps.remove(sweep_id)
    with RunStore(store.root) as other:
        assert not (other.has(one) if what == "run" else other.sweeps.has(sweep_id))
        assert other.sweeps.list() == ([] if what == "sweep" else [other.sweeps.get(sweep_id)])
        begun = new_run(other)
        assert {kept, begun} <= {run.run_id for run in other.list()}
        assert len(other.list()) == (3 if what == "sweep" else 4)
        assert other.has_weights(kept)
    assert not any((store.root / run_id).exists() for run_id in gone)
    assert {path.suffix for path in (store.root / ".owners").iterdir()} == {".lock"}


def test_files_that_cannot_be_deleted_are_said_and_stop_no_later_write(store: RunStore, monkeypatch) -> None:
    sweep_id = store.sweeps.create("quick", {}, {"axes": {}}, [NewRun({}, digest(i), "v", "cpu") for i in range(2)])
    stays, goes = store.sweeps.claim([*store.sweeps.statuses(sweep_id)])
    for run_id in (stays, goes):
        store.save_weights(run_id, {"w": torch.ones(10)})
    unlink = os.unlink

    def refused(path: str, **options: object) -> None:
        if stays in str(path):
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refused)
        with pytest.raises(PermissionError, match=stays):
            store.sweeps.remove(sweep_id)
        begun = new_run(store)
        assert [run.run_id for run in store.list()] == [begun]
        assert store.sweeps.list() == []
    with RunStore(store.root) as other:
        other.sweeps.create("quick", {}, {"axes": {}}, [])
    assert store._db.execute("SELECT count(*) FROM runs") == [(1,)]
    assert {path.suffix for path in (store.root / ".owners").iterdir()} == {".lock"}
