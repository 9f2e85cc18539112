"""Many runs resumed together: in waves, as they were begun, and nothing is changed before all of them fit."""

import gc
import sqlite3
import weakref

import pytest
import torch

from grokfast import Experiment, train
from grokfast.store import CheckpointError, RunStore, StoreError
from grokfast.training import Interrupted, waves
from grokfast.training.ensemble import Ensemble
from grokfast.training.entry import go_on
from grokfast.training.run import stored_state
from grokfast.transforms.flat import FlatOptimizer
from tests.training.common import StopAt, Waves, interrupt, same_result, short_of_memory

TINY = Experiment.preset("quick").override(
    {"task.p": 11, "model.width": 32, "schedule.steps": 40, "schedule.eval_every": 5, "schedule.stop_after": None}
)
SEEDS = [TINY.override({"seed": seed}) for seed in range(5)]


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as opened:
        yield opened


def stopped(store, experiments=SEEDS, at=18):
    """The ids of runs that were stopped together."""
    with pytest.raises(Interrupted) as error:
        train(experiments, store=store, observers=[StopAt(at)])
    return error.value.run_ids


def contents(store):
    """All that is stored, but for when it was changed."""
    files = {path: path.read_bytes() for path in store.root.rglob("*.safetensors")}
    with sqlite3.connect(store.root / "grokfast.sqlite") as database:
        rows = [database.execute(f"SELECT * FROM {table}").fetchall() for table in ("runs", "chunks")]
    database.close()
    return files, rows


def test_in_waves_they_end_as_if_nothing_had_happened(how, store):
    run_ids, seen = stopped(store), Waves()
    results = go_on(run_ids, store, observers=[seen], max_together=2)
    assert seen.sizes == [1, 2, 2]
    for result, experiment in zip(results, SEEDS):
        same_result(result, train(experiment))
        assert store.get(result.run_id).status == "finished"
        assert store.curves(result.run_id)["step"].tolist() == list(range(0, 41, 5))
        assert store.load_checkpoint(result.run_id)[1]["steps"] == 40  # it may go on further


def test_as_many_as_fit_go_together(how, store, monkeypatch):
    run_ids, seen = stopped(store), Waves()
    monkeypatch.setattr(waves, "at_once", lambda experiments: 3)
    go_on(run_ids, store, observers=[seen])
    assert seen.sizes == [2, 3]


@pytest.mark.parametrize(
    ("owner", "name", "step"),
    [
        (Ensemble, "__init__", None),
        (Ensemble, "restore", None),
        (FlatOptimizer, "step", 25),
        (FlatOptimizer, "_reference", 25),  # in the middle of an update: from the checkpoint
        (FlatOptimizer, "step", 39),
    ],
)
def test_out_of_memory_halves_the_wave(how, store, monkeypatch, owner, name, step):
    expected, run_ids = [train(e) for e in SEEDS], stopped(store)
    (taken,) = {stored_state(store, run_id).steps for run_id in run_ids}
    raised = short_of_memory(monkeypatch, owner, name, 2, lambda self: step is None or self.steps == step)
    seen = Waves()
    for result, alone in zip(go_on(run_ids, store, observers=[seen]), expected):
        same_result(result, alone)
    assert len(raised) >= 1
    assert min(step for _, step in seen.records) > taken - 5


def test_only_the_wave_under_way_is_in_memory(how, store, monkeypatch):
    run_ids, load, states = stopped(store), RunStore.load_checkpoint, []

    def remember(self, run_id):
        tensors, meta = load(self, run_id)
        states.append(weakref.ref(tensors["parameters"]))
        return tensors, meta

    class Count(Waves):
        def started(self, ensemble, run_ids):
            gc.collect()
            assert not any(state() is not None for state in states)
            super().started(ensemble, run_ids)

    monkeypatch.setattr(RunStore, "load_checkpoint", remember)
    seen = Count()
    go_on(run_ids, store, observers=[seen], max_together=2)
    assert seen.sizes == [1, 2, 2]
    assert len(states) == 10  # to be checked, and to go on


def test_interrupted_again_in_a_wave_the_later_ones_are_as_they_were(how, store):
    class Stop(Waves):
        def recorded(self, run, record, outcome):
            if run == 2 and record.step == 30:
                interrupt()

    run_ids = stopped(store)
    before, _ = contents(store)
    with pytest.raises(Interrupted) as again:
        go_on(run_ids, store, observers=[Stop()], max_together=2)
    assert again.value.run_ids == run_ids[1:]
    assert [store.get(run_id).status for run_id in run_ids] == ["finished", *["interrupted"] * 4]
    after, _ = contents(store)
    same = [after.get(store.directory(r) / "checkpoint.safetensors") in before.values() for r in run_ids]
    assert same == [False, False, False, True, True]
    results = [result for some in (run_ids[1:3], run_ids[3:]) for result in go_on(some, store)]
    for result, experiment in zip(results, SEEDS[1:]):
        same_result(result, train(experiment))


def damage(store, run_id):
    path = store.directory(run_id) / "checkpoint.safetensors"
    *data, last = path.read_bytes()
    path.write_bytes(bytes([*data, last ^ 1]))


def change(store, run_id, shape=None, **meta):
    tensors, before = store.load_checkpoint(run_id)
    tensors = tensors if shape is None else {name: torch.zeros(shape) for name in tensors}
    store.save_checkpoint(run_id, tensors, meta and {"seconds": before["seconds"], **meta})


@pytest.mark.parametrize(
    ("accident", "error", "message"),
    [
        (damage, CheckpointError, "checkpoint.safetensors is damaged"),
        (lambda *run: change(*run, steps=30), ValueError, "has taken 30 steps, run quick-.* 18"),
        (lambda *run: change(*run, shape=(3,), steps=20), ValueError, "run quick-.*: the checkpoint holds .*accepted"),
        (change, CheckpointError, "checkpoint of quick-.* does not say its steps"),
        (lambda store, run_id: store.drop_checkpoint(run_id), ValueError, "has taken 0 steps"),
    ],
)  # fmt: skip
def test_where_one_of_a_later_wave_does_not_fit_nothing_is_changed(store, accident, error, message):
    run_ids = stopped(store)
    accident(store, run_ids[4])
    before = contents(store)
    with pytest.raises(error, match=message):
        go_on(run_ids, store, max_together=1)
    assert contents(store) == before


def test_where_one_alone_is_too_large_it_says_so_and_nothing_is_changed(store, monkeypatch):
    run_ids = stopped(store)
    before = contents(store)
    raised = short_of_memory(monkeypatch, Ensemble, "__init__", 0)
    with pytest.raises(MemoryError, match=r"quick needs .* GB for one run \(.* throughout, .* in a step\)"):
        go_on(run_ids, store)
    assert raised == [5, 2, 1]
    assert contents(store) == before


def test_a_run_that_another_process_trains_is_left_alone(store):
    run_ids = stopped(store, SEEDS[:3])
    with RunStore(store.root) as other:
        other.sweeps.claim(run_ids[2:])
        before = contents(store)
        with pytest.raises(StoreError, match=f"run {run_ids[2]} is being trained by another process: stop that first"):
            go_on(run_ids, store)
        assert contents(store) == before
    assert len(go_on(run_ids, store)) == 3
    with pytest.raises(StoreError, match=f"run {run_ids[0]} has ended"):
        go_on(run_ids, store)


def test_a_run_belongs_to_the_process_that_trains_it_until_it_ends(store):
    class Meddle(Waves):
        def recorded(self, run, record, outcome):
            with RunStore(store.root) as other:
                (running,) = other.list(status="running")
                for meddle in (other.remove, lambda run_id: go_on([run_id], other)):
                    with pytest.raises(StoreError, match="is being trained by another process"):
                        meddle(running.run_id)

    result = train(TINY.override({"schedule.steps": 5}), store=store, observers=[Meddle()])
    store.remove(result.run_id)


def test_when_a_run_diverged_outlives_an_interruption(store):
    wild = TINY.override({"optimizer.lr": 1e30})
    diverged_at = train(wild).diverged_at
    assert diverged_at is not None
    assert (diverged_at + 2) % 5 > 0  # before the next evaluation
    run_ids = stopped(store, [wild], at=diverged_at + 2)
    (result,) = go_on(run_ids, store)
    same_result(result, train(wild))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_together": 0}, "max_together must be at least 1, got 0"), ({"checkpoint_every": -1}, "checkpoint_every")],
)
def test_bad_arguments_are_refused(store, options, message):
    run_ids = stopped(store, SEEDS[:1])
    before = contents(store)
    with pytest.raises(ValueError, match=message):
        go_on(run_ids, store, **options)
    with pytest.raises(ValueError, match="experiments must name at least one"):
        go_on([], store)
    assert contents(store) == before
