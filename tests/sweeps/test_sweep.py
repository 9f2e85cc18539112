"""What is trained, stored and shared."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from grokfast import EMA, RunStore, backend, sweep
from grokfast.store import StoreError, StoreFullError
from grokfast.sweeps import Group, InProcess, Processes, SweepObserver, plan, plan_stored, worker
from grokfast.sweeps.estimate import estimate
from grokfast.training.ensemble import Ensemble
from grokfast.training.replay import Replay
from tests.sweeps.common import GRID, TINY, Watch, bits
from tests.training.common import short_of_memory


def test_every_cell_is_trained_and_stored_in_the_grids_order(tmp_path):
    watch = Watch()
    result = sweep(TINY, GRID, seeds=2, store=tmp_path, runner=InProcess(), observers=[watch])
    table = result.table()
    assert table["optimizer.weight_decay"].tolist() == [0.1] * 4 + [1.0] * 4
    assert table["task.train_fraction"].tolist() == [0.3, 0.3, 0.4, 0.4] * 2
    assert table["seed"].tolist() == [0, 1] * 4
    assert set(table["status"]) == {"finished"}
    assert result.axes == [*GRID, "seed"]
    assert sorted(run_id for run_id, _ in watch.begun()) == sorted(table["run_id"])
    assert watch.progress.counts() == {"finished": 8}
    assert watch.progress.steps == 8 * 60
    np.testing.assert_array_equal(np.bincount(result.curves()["run"]), [13] * 8)
    assert [run.run_id for run in result.runs] == table["run_id"].tolist()
    cell = {"optimizer.weight_decay": 0.1, "task.train_fraction": 0.4, "seed": 1}
    assert result.runs[3].experiment == TINY.override(cell)
    assert [run.experiment.seed for run in result.runs[2:4]] == [0, 1]


@pytest.mark.parametrize("change", [{}, {"filter": EMA(), "schedule.batch_size": 17}])
def test_together_is_each_alone(tmp_path, change):
    varied = {"optimizer.lr": [1e-2, 3e-2], "task.label_noise": [0.0, 0.2], "seed": [0, 3]}
    one = sweep(TINY.override(change), varied, store=tmp_path / "one", runner=InProcess())
    together = plan(TINY.override(change), varied, store=tmp_path / "all", runner=InProcess(), ensemble=6)
    assert [len(group.runs) for group in together.groups] == [6, 2]
    assert bits(together.train()) == bits(one)


@pytest.mark.parametrize("varied", [{"model.init_scale": [0.5, 1.0, 2.0]}, {"task.train_fraction": [0.3, 0.5, 0.4]}])
def test_runs_that_differ_in_initial_scale_or_size_train_together_as_alone(tmp_path, varied):
    one = sweep(TINY, varied, store=tmp_path / "one", runner=InProcess())
    together = plan(TINY, varied, store=tmp_path / "all", runner=InProcess(), ensemble=3)
    assert len(together.groups) == 1
    assert bits(together.train()) == bits(one)
    assert len(set(one.table()["weight_norm"])) == 3


def test_the_group_with_most_to_do_comes_first(tmp_path):
    planned = plan(TINY, {"task.train_fraction": [0.3, 0.8, 0.5], "schedule.steps": [20, 30]}, store=tmp_path)
    fractions = [planned.runs[group.runs[0]].task.train_fraction for group in planned.groups]
    assert fractions == [0.8, 0.8, 0.5, 0.5, 0.3, 0.3]
    together = plan(
        TINY, {"task.train_fraction": [0.3, 0.8, 0.5], "schedule.steps": [20, 30]}, store=tmp_path, ensemble=2
    )
    assert [len(group.runs) for group in together.groups] == [2, 2, 1, 1]


def test_processes_give_the_bits_of_this_process(tmp_path):
    one = sweep(TINY, GRID, store=tmp_path / "one", runner=InProcess())
    watch = Watch()
    two = sweep(TINY, GRID, store=tmp_path / "two", runner=Processes(2), observers=[watch])
    assert bits(two) == bits(one)
    assert watch.progress.counts() == {"finished": 4}


def test_asked_twice_nothing_is_done_twice(tmp_path):
    first = sweep(TINY, GRID, store=tmp_path, runner=InProcess())
    watch = Watch()
    again = sweep(TINY, GRID, store=tmp_path, runner=InProcess(), observers=[watch])
    assert watch.events == []
    assert (again.sweep_id, bits(again)) == (first.sweep_id, bits(first))
    overlapping = {**GRID, "optimizer.weight_decay": [1, 3]}  # 1 is 1.0
    wider = sweep(TINY, overlapping, store=tmp_path, runner=InProcess(), observers=[watch])
    assert len(watch.begun()) == 2
    assert wider.sweep_id != first.sweep_id
    with RunStore(tmp_path, create=False) as store:
        assert len(store.list()) == 6
        assert len(store.sweeps.list()) == 2


def test_another_version_or_backend_is_another_run(tmp_path, monkeypatch):
    one = plan(TINY, {"seed": [0]}, store=tmp_path)
    monkeypatch.setenv("GROKFAST_BACKEND", "reference")
    two = plan(TINY, {"seed": [0]}, store=tmp_path)
    monkeypatch.setattr("grokfast.__version__", "99")
    three = plan(TINY, {"seed": [0]}, store=tmp_path)
    assert len({next(iter(p.runs)) for p in (one, two, three)}) == 3


def test_workers_use_the_backend_of_whoever_began_the_sweep(tmp_path, compiled):
    found = []
    for name, runner in (("reference", InProcess()), ("reference", Processes(1)), ("auto", InProcess())):
        with backend.using(name):
            found.append(bits(sweep(TINY, {"seed": [0]}, store=tmp_path / str(len(found)), runner=runner)))
    in_process, in_a_worker, fast = found
    assert in_a_worker == in_process
    assert in_a_worker[2] != fast[2]  # weights


def test_a_run_that_diverges_or_fails_leaves_the_others_alone(tmp_path, monkeypatch):
    wild = sweep(TINY, {"optimizer.lr": [1e-2, 1e30]}, store=tmp_path, runner=InProcess())
    assert wild.table()["status"].tolist() == ["finished", "diverged"]

    def fail(run_ids, *args, **options):
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "go_on", fail)
        broken = sweep(TINY, {"optimizer.lr": [1e-2, 2e-2]}, store=tmp_path, runner=InProcess())
    assert broken.table()["status"].tolist() == ["finished", "failed"]
    assert list(broken.errors.values()) == ["RuntimeError: no such kernel"]
    mended = sweep(TINY, {"optimizer.lr": [1e-2, 2e-2]}, store=tmp_path, runner=InProcess())
    assert mended.table()["status"].tolist() == ["finished", "finished"]
    assert mended.errors == {}


def test_a_group_that_memory_cannot_hold_trains_in_waves(tmp_path, monkeypatch):
    raised = short_of_memory(monkeypatch, Ensemble, "__init__", 2)
    watch = Watch()
    grid = {"seed": range(5)}
    result = sweep(TINY, grid, store=tmp_path, runner=InProcess(), ensemble=5, observers=[watch])
    assert set(result.table()["status"]) == {"finished"}
    assert raised == [5, 3]
    assert [run_id for run_id, _ in watch.begun()] == result.table()["run_id"].tolist()  # each once


def test_runs_that_are_too_large_alone_fail_and_say_how_much_they_need(tmp_path, monkeypatch):
    short_of_memory(monkeypatch, Ensemble, "__init__", 0)
    result = sweep(TINY, {"seed": range(2)}, store=tmp_path, runner=InProcess(), ensemble=2)
    assert set(result.table()["status"]) == {"failed"}
    assert all(said.startswith("MemoryError: quick needs ") for said in result.errors.values())


@pytest.mark.parametrize("batch_size", [None, 7])
def test_what_is_replayed_is_estimated_by_replays(replayed, monkeypatch, batch_size):
    steps, launch = [], Replay.launch

    def count(self):
        before = self.ensemble.steps
        window = launch(self)
        steps.append(self.ensemble.steps - before)
        return window

    monkeypatch.setattr(Replay, "launch", count)
    experiments = [TINY.override({"schedule.batch_size": batch_size, "schedule.steps": 4, "seed": i}) for i in range(2)]
    assert estimate(experiments, "cpu").seconds_per_step > 0
    assert steps == [5] * 4  # TINY is evaluated so often


@pytest.mark.parametrize("name", ["__init__", "step"])
def test_what_a_sweep_takes_is_estimated_of_as_many_as_fit(monkeypatch, name):
    raised = short_of_memory(monkeypatch, Ensemble, name, 2)
    assert estimate([TINY] * 5, "cpu").seconds_per_step > 0
    assert raised == [5]
    short_of_memory(monkeypatch, Ensemble, name, 0)
    with pytest.raises(MemoryError, match=r"quick needs .* GB for one run"):
        estimate([TINY] * 2, "cpu")


def test_a_reader_sees_a_running_sweep(tmp_path):
    seen = []

    class Reader(SweepObserver):
        def happened(self, event, progress):
            with RunStore(tmp_path, create=False) as store:
                (stored,) = store.sweeps.list()
                table, curves = store.table(stored.sweep_id), store.all_curves(stored.sweep_id)
                assert len(table["run_id"]) == stored.n_runs == 4
                assert set(curves["run"]) <= set(range(4))
                seen.append(stored.counts.get("finished", 0))

    sweep(TINY, GRID, store=tmp_path, runner=Processes(1), observers=[Reader()])
    assert seen[0] == 0
    assert seen[-1] == 4


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, monkeypatch):
    planned = plan(TINY, {"seed": [0]}, store=tmp_path, runner=InProcess())
    (run_id,) = planned.runs
    other = RunStore(tmp_path)
    assert other.sweeps.claim([run_id]) == [run_id]
    waits = []

    def released(seconds):
        waits.append(seconds)
        other.close()

    monkeypatch.setattr(time, "sleep", released)
    assert planned.train().table()["status"].tolist() == ["finished"]
    assert waits == [worker.ASK_EVERY]


def test_two_who_ask_for_the_same_sweep_at_once_share_the_work(tmp_path):
    watches = [Watch(), Watch()]

    def ask(watch):
        return bits(sweep(TINY, GRID, seeds=2, store=tmp_path, runner=Processes(1), observers=[watch]))

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(ask, watches)
    assert one == two
    assert len([run for watch in watches for run, _ in watch.begun()]) == 8
    assert all(watch.progress.counts() == {"finished": 8} for watch in watches)


def test_there_is_one_worker_for_a_core_or_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    of = [Group(runs=(str(i),), device="cuda") for i in range(3)]
    assert Processes()._environments(of) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,7")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in Processes()._environments(of)] == ["5", "3", "7"]
    assert len(Processes()._environments(of[:1])) == 1
    on_cpu = Processes(2)._environments([Group(runs=(str(i),)) for i in range(3)])
    assert [e["OMP_NUM_THREADS"] for e in on_cpu] == ["1", "1"]


def test_a_full_disk_ends_the_sweep_with_an_error(tmp_path, monkeypatch):
    talkative = TINY.override({"schedule.steps": 200, "schedule.eval_every": 1})  # more than a page of the database
    planned = plan(talkative, {"seed": [0, 1]}, store=tmp_path, runner=InProcess(), checkpoint_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", smaller(sqlite3.connect))
        with pytest.raises(StoreFullError, match="remains readable"):
            planned.train()
    again = sweep(talkative, {"seed": [0, 1]}, store=tmp_path, runner=InProcess())
    assert again.table()["steps"].tolist() == [200, 200]


def smaller(connect):
    """sqlite3.connect to databases that may not grow."""

    def connected(*args, **options):
        db = connect(*args, **options)
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
        return db

    return connected


def test_what_has_ended_leaves_weights_and_a_checkpoint_only_if_wanted(tmp_path):
    options = {"store": tmp_path, "runner": InProcess(), "checkpoint_every": 0}
    kept = sweep(TINY, {"seed": [0]}, **options)
    dropped = sweep(TINY, {"seed": [1]}, **options, keep_weights=False)
    names = sorted(path.name for path in kept.runs[0].directory.iterdir())
    assert names == ["checkpoint.safetensors", "weights.safetensors"]
    assert list(dropped.runs[0].directory.iterdir()) == []
    assert dropped.runs[0].weights == {}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: sweep("quick", GRID, store=s), TypeError, "experiment must be an Experiment"),
        (lambda s: sweep(TINY, {}, store=s), ValueError, "grid must have at least one key"),
        (lambda s: sweep(TINY, {"optimizer.weightdecay": [1]}, store=s), ValueError, "'optimizer.weight_decay'"),
        (lambda s: sweep(TINY, {"task.train_fraction": [0.5, 1]}, store=s), ValueError, "cell task.train_fraction=1.0"),
        (lambda s: sweep(TINY.override({"device": "cuda:99"}), GRID, store=s), ValueError, "device must be"),
        (lambda s: sweep(TINY, GRID, store=s, ensemble=0), ValueError, "ensemble"),
        (lambda s: sweep(TINY, GRID, store=s, checkpoint_every=-1), ValueError, "checkpoint_every"),
        (lambda s: Processes(0), ValueError, "processes"),
        (lambda s: plan_stored("quick-sweep-0", store=s, ensemble=0), ValueError, "ensemble must be at least 1"),
        (lambda s: plan_stored("quick-sweep-0", store=s, checkpoint_every=-1), ValueError, "checkpoint_every"),
        (lambda s: plan_stored("quick-sweep-0", store=s), StoreError, "there is no run store"),
    ],
)
def test_bad_arguments_leave_nothing(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_unknown_sweep_is_answered_with_the_nearest(tmp_path):
    planned = plan(TINY, {"seed": [0]}, store=tmp_path)
    with pytest.raises(StoreError, match=rf"did you mean '{planned.sweep_id}'"):
        plan_stored(planned.sweep_id[:-1], store=tmp_path)
