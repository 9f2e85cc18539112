"""`grokfast ablate`."""

import json
from pathlib import Path

import pytest

from grokfast import RunStore
from grokfast.cli import main

TINY = ["--set", "task.p=13", "model.width=16", "schedule.steps=30", "device=cpu"]
FEW = ["--arms", "decay,l2", "--arms", "skips,curriculum"]

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def ablate(tmp_path, capsys):
    def run(*words, status=0):
        assert main(["ablate", *words, "--out", str(tmp_path / "runs"), "--processes", "1"]) == status
        return capsys.readouterr()

    return run


def test_it_says_all_that_a_reader_needs(ablate):
    said = ablate("quick", *TINY, *FEW, "--seeds", "2", "--json")
    found = json.loads(said.out.splitlines()[-1])
    assert [arm["arm"] for arm in found["arms"]] == ["base", "decay", "l2", "curriculum"]
    assert found["left_out"] == {"skips": "a single hidden layer has no skip connection"}
    assert (found["seeds"], found["steps"], found["threshold"], found["preset"]) == ([0, 1], 30, 0.99, "quick")
    base, decay, l2, _ = found["arms"]
    assert base["ratio"] is base["p"] is None
    assert decay["differs"] == {"optimizer.weight_decay": 0.0}
    assert l2["differs"] == {"optimizer": "adam"}
    assert [(arm["n"], arm["generalized"], len(arm["runs"])) for arm in found["arms"]] == [(2, 0, 2)] * 4
    assert decay["ratio"]["text"] == "unknown"
    assert all(0 <= arm["accuracy"] <= 1 for arm in found["arms"])
    assert Path(found["pictures"]["forest plot"]).read_bytes().startswith(b"\x89PNG")
    words = [
        "left out: skips: a single hidden layer has no skip connection",
        "weight_decay=0",
        "seeds 0 to 1",
        ">30",
        "0 of 2",
    ]
    words += ["at most 30 steps, stopped 300 after generalising", "99% of test", "Holm's correction for 0 arms"]
    words += ["curriculum(steps=5,start=0.3)", found["command"]]
    for word in words:
        assert word in said.out
    assert found["command"].startswith("grokfast ablate quick --seeds 2 --json")
    assert "8 runs; 8 to train" in said.err


def test_the_same_command_again_trains_nothing(ablate, tmp_path):
    words = ["quick", *TINY, *FEW, "--seeds", "2", "--json"]
    first, again = (ablate(*words) for _ in range(2))
    assert "8 runs, 8 of them done already" in again.err
    assert again.out.splitlines()[-1] == first.out.splitlines()[-1]
    more = ablate("quick", *TINY, "--arms", "decay", "--seeds", "3")
    assert "6 runs, 4 of them done already; 2 to train" in more.err
    with RunStore(tmp_path / "runs") as store:
        assert len(store.list()) == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quick", "--arms", "decay,dropuot"], "did you mean 'dropout'?"),
        (["quick", "--arms", "skips"], "got none (skips: a single hidden layer has no skip connection)"),
        (["quick", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["quikc"], "did you mean 'quick'?"),
        (["quick", "--set", "task.q=3"], "unknown option 'task.q' (did you mean 'task.p'?)"),
    ],
)
def test_what_cannot_be_is_said(ablate, tmp_path, words, message):
    assert message in ablate(*words, status=2).err
    assert not (tmp_path / "runs").exists()
