"""`grokfast compare`."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grokfast import RunStore
from grokfast.cli import main

TINY = ["--set", "task.p=11", "model.width=16", "criteria.generalize=train", "device=cpu", "schedule.eval_every=5"]
SMALL = [*TINY, "--steps", "60", "--arms", "mse", "--arms", "lion,paper-ema", "--budget", "2", "--tuning-seeds", "1"]
SMALL += ["--seeds", "2"]

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")


@pytest.fixture
def compare(tmp_path, capsys):
    def run(*words, status=0):
        assert main(["compare", *words, "--out", str(tmp_path / "runs"), "--processes", "1"]) == status
        return capsys.readouterr()

    return run


def test_it_says_all_that_a_reader_needs_and_resumed_the_same(compare, tmp_path):
    first = compare("quick", *SMALL, "--json")
    found = json.loads(first.out.splitlines()[-1])
    (task,) = found["tasks"]
    assert [arm["arm"] for arm in task["arms"]] == ["plain", "adam", "mse", "lion", "paper-ema"]
    assert [len(arm["cells"]) for arm in task["arms"]] == [2, 0, 2, 2, 0]
    assert all(Path(picture).read_bytes().startswith(b"\x89PNG") for picture in task["pictures"].values())
    folder = tmp_path / "runs" / found["comparison"]
    assert json.loads((folder / "compare.json").read_text()) == found
    page = (folder / "compare.md").read_text()
    assert all(f"({Path(picture).name})" in page for picture in task["pictures"].values())
    for word in ("× tuned AdamW", "Holm's correction", "as published", "seeds 100 to 101", "grokfast compare quick"):
        assert word in first.out
        assert word in page
    assert "6 runs; 6 to train" in first.err
    to = tmp_path / "results"
    again = compare("--resume", found["comparison"], "--json", "--to", str(to))
    assert "6 runs, 6 of them done already" in again.err
    assert json.loads(again.out.splitlines()[-1])["tasks"][0]["arms"] == task["arms"]
    assert len([*to.glob("*.png")]) == 3
    assert (to / "compare.md").exists()
    with RunStore(tmp_path / "runs") as store:
        assert len(store.list()) == 6 + 10


def test_a_plan_stores_nothing(compare, tmp_path):
    said = compare("quick", "mul-mlp", *SMALL, "--dry-run").out
    assert not (tmp_path / "runs").exists()
    for word in ("quick: 5 arms, 1 tuning seed of 2 points, 2 final seeds, 60 steps at most", "mul-mlp: 5 arms"):
        assert word in said
    assert "optimizer.lr 0.002 to 0.05, log" in said
    assert "in all at most" in said


def begun(out, *words):
    """A comparison of the two baselines in a process of its own."""
    options = ["--budget", "2", "--tuning-seeds", "1", "--seeds", "2", "--processes", "1", "--out", str(out)]
    command = [sys.executable, "-m", "grokfast", "compare", "quick", "--arms", "plain", *TINY, *words, *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait(process, out, is_so):
    """Until a run of the store is so."""
    while not (out / "grokfast.sqlite").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    with RunStore(out, create=False) as store:
        while not any(is_so(store, run) for run in store.list()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)


signals = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.mark.slow
@signals
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, capsys):
    process = begun(tmp_path, "criteria.threshold=1.0", "task.label_noise=0.5", "--steps", "1000000")
    wait(process, tmp_path, lambda store, run: len(store.curves(run.run_id)["step"]))
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    (folder,) = tmp_path.glob("compare-*")
    assert f"Stopped and saved. Go on with: grokfast compare --resume {folder.name} --out {tmp_path}" in said
    assert "Traceback" not in said
    assert main(["compare", "--resume", folder.name, "--out", str(tmp_path), "--dry-run"]) == 2
    assert "no task and no option of it beside it" in capsys.readouterr().err


@signals
def test_a_killed_one_goes_on(tmp_path, capsys):
    process = begun(tmp_path, "task.label_noise=0.5", "--steps", "800")
    wait(process, tmp_path, lambda store, run: run.status == "finished")
    process.kill()
    process.communicate(timeout=120)
    (folder,) = tmp_path.glob("compare-*")
    assert main(["compare", "--resume", folder.name, "--out", str(tmp_path), "--processes", "1", "--json"]) == 0
    said = capsys.readouterr()
    assert re.search("quick-sweep-[0-9a-f]{8}: 2 runs, [12] of them done already", said.err)
    (task,) = json.loads(said.out.splitlines()[-1])["tasks"]
    assert [(arm["arm"], arm["n"], len(arm["cells"])) for arm in task["arms"]] == [("plain", 2, 2), ("adam", 2, 0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quikc"], "did you mean 'quick'?"),
        (["mul-mpl"], "did you mean 'mul-mlp'?"),
        (["quick", "--arms", "ema,lino"], "did you mean 'lion'?"),
        (["quick", "--budget", "7"], "budget must be a multiple of the 3 tuning seeds"),
        (["quick", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["--preset", "gpu"], "--preset must be one of 'cpu'"),
        (["quick", "--set", "task.q=3"], "unknown option 'task.q' (did you mean 'task.p'?)"),
        (["--resume", "compare-1"], "has no comparison 'compare-1'"),
        (["quick", "--resume", "compare-1"], "no task and no option of it beside it"),
    ],
)
def test_what_cannot_be_is_said(compare, tmp_path, words, message):
    assert message in compare(*words, status=2).err
    assert not (tmp_path / "runs").exists()
