"""`grokfast report`: where the page is, and what cannot be one."""

import pytest

from grokfast import Experiment, RunStore, sweep, train
from grokfast.cli import main
from grokfast.sweeps import InProcess

TINY = Experiment.preset("quick").override(
    {"task.p": 5, "model.width": 4, "schedule.steps": 20, "schedule.snapshots": "0,10", "device": "cpu"}
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with a run and a sweep of another: its root and their ids."""
    root = tmp_path_factory.mktemp("runs")
    with RunStore(root) as store:
        run = train(TINY, store=store).run_id
    swept = sweep(TINY.override({"schedule.snapshots": None}), {"seed": [1]}, store=root, runner=InProcess())
    return root, run, swept.sweep_id


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def test_the_page_lies_with_the_run_and_show_says_so(filled, capsys):
    root, run, _ = filled
    assert main(["show", run, "--out", str(root)]) == 0
    assert f"none yet: grokfast report {run}" in capsys.readouterr().out
    assert main(["report", run, "--out", str(root)]) == 0
    path = root / run / "report.html"
    assert capsys.readouterr().out.startswith(f"{path} (")
    assert path.read_text().startswith("<!doctype html>")
    assert main(["show", run, "--out", str(root)]) == 0
    said = capsys.readouterr().out
    assert str(path) in said
    assert "none yet: grokfast report" not in said


def test_a_page_of_a_step_goes_where_it_is_said(filled, tmp_path, capsys):
    root, run, _ = filled
    assert main(["report", run, "--at", "10", "--to", str(tmp_path / "then.html"), "--out", str(root)]) == 0
    assert "As it was after step 10." in (tmp_path / "then.html").read_text()
    assert not (root / run / "report-10.html").exists()
    assert str(tmp_path / "then.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["{run}", "--at", "15"], 1, "no snapshot of step 15: those that it has are of 0, 10"),
        (["{run}", "--at", "-1"], 2, "--at must be at least 0, got -1"),
        (["quick-nothing"], 1, "has no run"),
        (["{sweep}", "--at", "10"], 2, "--at is of a run, {sweep} is a sweep"),
        (["{run}", "--to", "{root}/nowhere/x.html"], 1, "nowhere"),
    ],
)
def test_what_cannot_be_a_page_is_told_and_nothing_is_left(filled, words, status, message, capsys):
    root, run, sweep_id = filled
    known = {"run": run, "sweep": sweep_id, "root": root}
    before = sorted(root.rglob("*"))
    assert main(["report", *(word.format(**known) for word in words), "--out", str(root)]) == status
    said = capsys.readouterr().err
    assert message.format(**known) in " ".join(said.split())
    assert sorted(root.rglob("*")) == before
