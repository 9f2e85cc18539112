"""`branch`: one run into many arms, which end as they would alone, whatever happens on the way."""

import os
import signal
import sys

import numpy as np
import pytest

from grokfast import RunStore, branch, sweep, train
from grokfast.store import StoreError
from grokfast.sweeps import InProcess, Processes, plan_branch, plan_stored
from grokfast.training import Interrupted
from tests.sweeps.common import LONG, TINY, Watch, bits, workers
from tests.training.common import StopAt, same_result

KEPT = TINY.override({"schedule.snapshots": "0,13,30", "schedule.full_snapshots": True})
GRID = {"optimizer.weight_decay": [0.1, 1.0], "filter": ["none", "ema"]}


@pytest.fixture
def run(tmp_path, set_threads):
    set_threads(1)
    with RunStore(tmp_path) as store:
        return train(KEPT, store=store)


def test_arms_are_a_sweep_of_forks(run, tmp_path):
    found = branch(run, 13, {"optimizer.lr": 3e-3}, GRID, runner=InProcess())
    table = found.table()
    assert table["optimizer.weight_decay"].tolist() == [0.1, 0.1, 1.0, 1.0]
    assert table["filter"].tolist() == ["none", "ema", "none", "ema"]
    with RunStore(tmp_path) as store:
        stored = store.sweeps.get(found.sweep_id)
        assert stored.base["origin"] == f"{run.run_id}@13"
        for arm in found.runs:
            assert arm.experiment.optimizer.lr == 3e-3
            assert arm.experiment.origin == f"{run.run_id}@13"
            np.testing.assert_array_equal(arm.curves["test_loss"][:3], run.curves["test_loss"][:3])
            same_result(train(arm.experiment, store=store), arm)


def test_the_same_call_does_nothing_twice(run):
    once = branch(run, 13, grid=GRID, runner=InProcess())
    watch = Watch()
    again = branch(run.run_id, 13, grid=GRID, store=run.directory.parent, runner=InProcess(), observers=[watch])
    assert again.sweep_id == once.sweep_id
    assert watch.events == []
    assert bits(again) == bits(once)


def test_after_several_steps_and_with_nothing_changed(run):
    found = branch(run, [0, 13, 30], runner=Processes(2))
    assert found.table()["origin"].tolist() == [f"{run.run_id}@{step}" for step in (0, 13, 30)]
    for arm in found.runs:
        same_result(arm, run)


def test_together_they_are_as_alone(run):
    grid = {"optimizer.lr": [1e-3, 3e-3, 1e-2]}
    alone = branch(run, 13, grid=grid, runner=InProcess())
    with RunStore(run.directory.parent) as store:
        store.sweeps.remove(alone.sweep_id) if (before := bits(alone)) else None
    assert bits(branch(run, 13, grid=grid, ensemble=3, runner=InProcess())) == before


def test_where_a_run_stopped_it_can_be_forked(tmp_path, set_threads):
    set_threads(1)
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(TINY, store=store, observers=[StopAt(17)])
        (run_id,) = stopped.value.run_ids
        (arm,) = branch(run_id, 17, store=store, runner=InProcess()).runs
        same_result(arm, train(TINY))
        assert store.snapshots.of(run_id) == {17: True}
        run = train(TINY, store=store)
    (arm,) = branch(run, 60, {"schedule.steps": 70}, runner=InProcess()).runs
    same_result(arm, train(TINY.override({"schedule.steps": 70})))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((14,), StoreError, r"has no full snapshot of step 14: it can be forked after 0, 13, 30, 60 \(schedule.snap"),
        (([],), ValueError, "at must be at least one step, got none"),
        ((0.5,), TypeError, "at must be an integer or a sequence of integers, got 0.5"),
        (([13, "x"],), TypeError, "at must be an integer, got 'x'"),
        ((13, {"optimizer.lx": 1}), ValueError, "unknown option 'optimizer.lx'"),
        ((13, {}, {"optimizer.lx": [1]}), ValueError, "grid has an unknown key 'optimizer.lx'"),
        ((13, {}, {"task.p": [13, 17]}), ValueError, r"must have its parameters: \S+ is \[13, 16\], here \[17, 16\]"),
        ((30, {"schedule.steps": 29}), ValueError, "schedule.s"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_stored(run, arguments, error, message):
    with pytest.raises(error, match=message):
        branch(run, *arguments, runner=InProcess())
    with RunStore(run.directory.parent) as store:
        assert (len(store.list()), store.sweeps.list()) == (1, [])


def test_other_bad_arguments(run, tmp_path):
    with pytest.raises(ValueError, match="run must be stored: give `train` a store"):
        branch(train(TINY), 13)
    with pytest.raises(TypeError, match="run must be a RunResult or the id of a run, got 3"):
        branch(3, 13)
    with pytest.raises(StoreError, match="there is no run store at"):
        branch("quick", 13, store=tmp_path / "nowhere")
    with pytest.raises(StoreError, match="has no run 'quick'"):
        branch("quick", 13, store=tmp_path)
    with pytest.raises(ValueError, match="seeds"):
        branch(run, 13, seeds=0, runner=InProcess())


LATE = LONG.override({"schedule.snapshots": "300", "schedule.full_snapshots": True})


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    with RunStore(tmp_path_factory.mktemp("long")) as store:
        return train(LATE, store=store)


@pytest.fixture(scope="module")
def expected(long):
    return bits(branch(long, 300, grid={"optimizer.weight_decay": [0.5]}, runner=InProcess()))


def anew(long, **options):
    """A branch that is not stored yet."""
    with RunStore(long.directory.parent) as store:
        for old in store.sweeps.list():
            store.sweeps.remove(old.sweep_id)
    return plan_branch(long, 300, grid={"optimizer.weight_decay": [0.5]}, **options)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_killed_worker_is_replaced(long, expected):
    def kill():
        (pid,) = workers()
        os.kill(pid, signal.SIGKILL)

    watch = Watch(lambda event: event.status == "running" and event.steps > 300, kill)
    planned = anew(long, runner=Processes(1), checkpoint_every=0.02)
    assert bits(planned.train([watch])) == expected
    (_, first), (_, again) = watch.begun()
    assert 300 == first <= again


def test_a_damaged_checkpoint_is_the_fork_again(long, expected):
    planned = anew(long, runner=InProcess())
    (run_id,) = planned.runs
    with RunStore(planned.root) as store:
        store.directory(run_id).mkdir()
        store.save_checkpoint(run_id, {}, {"steps": 400})
        (store.directory(run_id) / "checkpoint.safetensors").write_bytes(b"garbage")
    watch = Watch()
    with pytest.warns(UserWarning, match=f"run {run_id} begins again"):
        assert bits(plan_stored(planned.sweep_id, store=planned.root, runner=InProcess()).train([watch])) == expected
    assert watch.begun() == [(run_id, 300)]


def test_the_run_goes_only_when_its_arms_have_ended(long):
    planned = anew(long, runner=InProcess())
    with RunStore(planned.root) as store:
        with pytest.raises(StoreError, match=f"run {long.run_id} is needed"):
            store.remove(long.run_id)
        store.sweeps.remove(planned.sweep_id)


def test_a_sweep_of_forks_is_a_sweep_as_any_other(run):
    arms = sweep(
        KEPT.override({"origin": f"{run.run_id}@13"}), {"seed": [0, 1]}, store=run.directory.parent, runner=InProcess()
    )
    same_result(arms.runs[0], run)
