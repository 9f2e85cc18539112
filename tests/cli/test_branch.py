"""`grokfast branch`, and `grokfast show --at`."""

import json

import pytest

from grokfast import Experiment, RunStore, train
from grokfast.cli import main
from grokfast.training.result import stored_result
from tests.training.common import same_result

TINY = Experiment.preset("quick").override(
    {
        "task.p": 13, "model.width": 16, "schedule.steps": 20, "schedule.eval_every": 5, "device": "cpu",
        "schedule.stop_after": None, "schedule.snapshots": "5,12", "schedule.full_snapshots": True,
    }
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def run(tmp_path, set_threads):
    set_threads(1)
    with RunStore(tmp_path) as store:
        return train(TINY, store=store)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def branch(run, *words):
    return main(["branch", run.run_id, *words, "--out", str(run.directory.parent), "--processes", "1"])


def arms(run, said):
    found = json.loads(said.splitlines()[-1])
    with RunStore(run.directory.parent) as store:
        return [stored_result(store, run_id) for run_id in store.sweeps.statuses(found["sweep_id"])]


def test_arms_have_what_was_set_and_what_varies(run, capsys):
    words = ["--at", "12", "--set", "optimizer.lr=1e-3", "filter=ema(lamb=1)", "--set", "schedule.stop_after=none"]
    assert (
        branch(run, *words, "--grid", "optimizer.weight_decay=0.1,1", "--grid", "filter.alpha=0.5,0.9", "--json") == 0
    )
    said = capsys.readouterr()
    found = arms(run, said.out)
    assert [(a.experiment.optimizer.weight_decay, a.experiment.filter.alpha) for a in found] == [
        (0.1, 0.5), (0.1, 0.9), (1.0, 0.5), (1.0, 0.9),
    ]  # fmt: skip
    assert {(a.experiment.optimizer.lr, a.experiment.filter.lamb, a.steps) for a in found} == {(1e-3, 1.0, 20)}
    assert "4 to train" in said.err


def test_one_that_changes_nothing_after_each_of_two_steps(run, capsys):
    assert branch(run, "--at", "5", "--at", "12", "--json") == 0
    for arm in arms(run, capsys.readouterr().out):
        same_result(arm, run)


def test_show_says_whose_fork_it_is(run, capsys):
    assert branch(run, "--at", "12", "--json") == 0
    (arm,) = arms(run, capsys.readouterr().out)
    root = str(run.directory.parent)
    assert main(["show", arm.run_id, "--out", root]) == 0
    assert f"forked from    {run.run_id}@12" in capsys.readouterr().out
    with RunStore(root) as store:
        (sweep,) = store.sweeps.list()
    assert main(["show", sweep.sweep_id, "--out", root]) == 0
    assert f"{sweep.sweep_id}: forks of {run.run_id}@12, 1 runs, 1 finished" in capsys.readouterr().out


def test_show_at_a_step(run, capsys):
    root = str(run.directory.parent)
    assert main(["show", run.run_id, "--out", root]) == 0
    assert "snapshots      5, 12 (full)" in capsys.readouterr().out
    assert main(["show", run.run_id, "--at", "12", "--out", root]) == 0
    said = capsys.readouterr().out
    assert f"{run.run_id} after step 12: did not memorise in 12 steps" in said
    assert f"w_a             [13, 16], norm {run.at(12).weights['w_a'].double().norm():.6g}" in said
    assert f"grokfast branch {run.run_id} --at 12" in said
    assert main(["show", run.run_id, "--at", "12", "--config", "--out", root]) == 0
    assert '"operation": "add"' in capsys.readouterr().out
    assert main(["show", run.run_id, "--at", "12", "--json", "--out", root]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["status"], found["full"]) == (12, "snapshot", True)
    assert found["final"]["step"] == 10
    assert found["weights"]["w_a"] == [13, 16]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "--at STEP says after which of the run's steps to fork it"),
        (["--at", "7"], 1, "has no full snapshot of step 7: it can be forked after 5, 12, 20"),
        (["--at", "12", "--set", "lr"], 2, "a change is written KEY=VALUE, got 'lr'"),
        (["--at", "12", "--set", "seed=1", "seed=2"], 2, "the changes have the key 'seed' twice"),
        (["--at", "12", "--set", "optimizer.lx=1"], 2, "unknown option 'optimizer.lx' (did you mean 'optimizer.lr'?)"),
        (["--at", "12", "--set", "optimizer.lr=fast"], 2, "optimizer.lr must have values of type a number, got 'fast'"),
        (["--at", "12", "--set", "filter=emma"], 2, "did you mean 'ema'?"),
        (["--at", "12", "--grid", "task.p=13,17"], 2, "must have its parameters"),
        (["--at", "12", "--ray", "local"], 2, "not both"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(run, capsys, words, status, message):
    assert branch(run, *words) == status
    assert message in capsys.readouterr().err
    with RunStore(run.directory.parent) as store:
        assert len(store.list()) == 1


def test_no_snapshot_to_show(run, capsys):
    root = str(run.directory.parent)
    assert main(["show", run.run_id, "--at", "7", "--out", root]) == 1
    assert "has no snapshot of step 7: those that it has are of 5, 12" in capsys.readouterr().err
    assert main(["show", run.run_id, "--at=-7", "--out", root]) == 2
    assert "--at must be at least 0, got -7" in capsys.readouterr().err
