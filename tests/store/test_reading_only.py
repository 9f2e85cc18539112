"""Stores that this process may not write."""

import os
import subprocess
import sys

import pytest

from grokfast.store import RunStore
from grokfast.store.records import Record

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
        store.append(run_id, [Record(step, 1.0, 1.0, 0.0, 0.0, 1.0) for step in range(3)])
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
