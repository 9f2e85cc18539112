"""kill -9 at file and SQL events: the store opens, and what is there is whole, or goes on to the same bits."""

import json
import os
import subprocess
import sys

import pytest

MANY = os.environ.get("GROKFAST_KILLS", "10")  # of the events; "all" for every one

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.mark.parametrize("what", ["train", "remove"])
def test_killed_anywhere_it_is_as_if_it_had_not_been(tmp_path, what):
    command = [sys.executable, "-m", "tests.training.killed", what, str(tmp_path), MANY]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, *killed = map(json.loads, done.stdout.splitlines())
    assert whole["ended"]["events"] > 20
    assert len(killed) > 5
    assert sum(one["ended"] is None for one in killed) >= len(killed) - 2  # the number of events varies a little
    for one in killed:
        found = one["found"]
        assert (found["litter"], found["missing"], found["folders"]) == ([], [], []), one
        if what == "train":
            assert found["bits"] in ([], whole["found"]["bits"]), one
            assert found["status"] in ([], ["interrupted"], ["finished"]), one
        else:
            assert (len(found["bits"]), found["sweeps"]) in ((0, 0), (2, 1)), one
