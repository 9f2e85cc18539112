"""Stores that this process may not write."""

import os
import subprocess
import sys

import pytest

from grokfast.store import RunStore, StoreError
from grokfast.store.copies import copied
from grokfast.store.seals import curve_seal
from tests.store.common import as_of_schema_2, new_run, snapshot, start, values

# As another user: root may write everything.
READER = """
import os, sys
from grokfast.store import RunStore, StoreError
if os.geteuid() == 0:
    os.setuid(65534)
with RunStore(sys.argv[1], create=False) as store:
    (run,) = store.list()
    print(run.status, store.curves(run.run_id)["step"].tolist(), len(store.table()["run_id"]))
    try:
        store.update(run.run_id, status="failed")
    except StoreError as error:
        print(error)
"""


@pytest.fixture
def shared(tmp_path):
    """A directory that others may look into, with a store of one run."""
    root = tmp_path / "runs"
    with RunStore(root) as store:
        run_id = store.create({"seed": 0}, preset="quick", version="grokfast 0", device="cpu")
        store.append(run_id, [values(step, 1.0, 1.0, 0.0, 0.0, 1.0) for step in range(3)])
        store.update(run_id, status="interrupted")
    for directory in (tmp_path, *tmp_path.parents):
        if not os.stat(directory).st_mode & 0o005:
            os.chmod(directory, 0o755)
    return root


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="has no users")
def test_what_may_not_be_written_is_read(shared):
    os.chmod(shared / "grokfast.sqlite", 0o444)
    os.chmod(shared, 0o555)
    done = subprocess.run([sys.executable, "-c", READER, shared], capture_output=True, text=True)
    os.chmod(shared, 0o755)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "interrupted [0, 1, 2] 1"
    assert "readonly" in said[1]


LOOKS = """
import os, sys
from grokfast.store import RunStore
if os.geteuid() == 0:
    os.setuid(65534)
with RunStore(sys.argv[1], create=False, read_only=True) as store:  # as list, show and export do
    (run,) = store.list()
    assert store.table()["run_id"].tolist() == [run.run_id] and store.size() > 0 and store.sweeps.list() == []
    print(run.run_id, store.all_curves()["step"].tolist())
"""


def looked_at(root):
    done = subprocess.run([sys.executable, "-c", LOOKS, root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def open_to_all(shared):
    """Whoever reads may make files beside the database, but not write it; root reads as another user."""
    mode = 0o644 if os.geteuid() == 0 else 0o444
    os.chmod(shared / "grokfast.sqlite", mode)
    os.chmod(shared, 0o777)
    return shared


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="has no users")
def test_another_users_look_leaves_nothing_and_locks_nobody_out(open_to_all):
    (run_id,) = [path.name for path in open_to_all.glob("quick-*")]
    before = {path: path.stat().st_uid for path in open_to_all.rglob("*")}
    assert looked_at(open_to_all) == f"{run_id} [0, 1, 2]\n"
    assert {path: path.stat().st_uid for path in open_to_all.rglob("*")} == before
    os.chmod(open_to_all / "grokfast.sqlite", 0o644)
    with RunStore(open_to_all) as store:
        store.append(run_id, [values(3, 1.0, 1.0, 0.0, 0.0, 1.0)])


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="has no users")
def test_another_user_reads_what_is_still_in_the_log(open_to_all):
    os.chmod(open_to_all / "grokfast.sqlite", 0o644)
    with RunStore(open_to_all) as store:  # which keeps the log open
        (run,) = store.list()
        store.append(run.run_id, [values(7, 1.0, 1.0, 0.0, 0.0, 1.0)])
        os.chmod(open_to_all / "grokfast.sqlite", 0o644 if os.geteuid() == 0 else 0o444)
        assert (open_to_all / "grokfast.sqlite-wal").stat().st_size > 0
        assert looked_at(open_to_all) == f"{run.run_id} [0, 1, 2, 7]\n"
        store.append(run.run_id, [values(8, 1.0, 1.0, 0.0, 0.0, 1.0)])
    os.chmod(open_to_all / "grokfast.sqlite", 0o644)
    with RunStore(open_to_all) as store:
        assert store.curves(run.run_id)["step"].tolist() == [0, 1, 2, 7, 8]


def test_an_old_store_is_read_without_being_brought_up(shared):
    as_of_schema_2(shared)
    before = snapshot(shared)
    with RunStore(shared, read_only=True) as store:
        (run,) = store.list()
        assert store.curves(run.run_id)["step"].tolist() == [0, 1, 2]
        for write in (
            lambda: store.update(run.run_id, status="running"), lambda: store.append(run.run_id, []),
            lambda: store.create({}, preset="quick", version="", device=""), lambda: store.remove(run.run_id),
            lambda: store.sweeps.claim([run.run_id]), lambda: store.sweeps.create("quick", {}, {}, []),
        ):  # fmt: skip
            with pytest.raises(StoreError, match="readonly database; this process may not write it"):
                write()
    assert snapshot(shared) == before


def test_a_copy_is_of_one_moment(tmp_path):
    """While another process writes, begins its log anew and moves it into the file."""
    root = tmp_path / "runs"
    with RunStore(root) as store:
        run_id = new_run(store)
    code = """if True:
        import sys
        from grokfast.store import Record, RunStore
        from grokfast.store.records import STANDARD
        for n in range(10**6):
            with RunStore(sys.argv[1]) as store:
                for step in range(20 * n, 20 * n + 20):
                    store.append(sys.argv[2], [Record(step, dict.fromkeys(STANDARD, 1.0))])
            print(n, flush=True)"""
    writer = start(code, root, run_id)
    writer.stdout.readline()
    try:
        for _ in range(30):
            db = copied(root / "grokfast.sqlite")
            chunks = db.execute("SELECT rows FROM chunks ORDER BY first_step").fetchall()
            (seal,) = db.execute("SELECT curve FROM runs").fetchone()
            assert curve_seal(rows for (rows,) in chunks) == seal
            db.close()
    finally:
        writer.kill()
        writer.wait()
